"""Synchronised batch norms: two processes with half of the batch each are one with all of it."""

from __future__ import annotations

import pytest
import torch
from conftest import run_program_process, succeeded
from tiny_models import tiny_config, tiny_model
from torch import nn

from featdepth.models.batch_norm import SynchronisedBatchNorm2d, synchronise_batch_norms

# Of each variant, on each of two processes: outputs, gradients and statistics of two steps, beside those of one
# process that has the whole batch. The compiled ones are single graphs.
PROBE = """
import copy, os, sys
import torch
from torch import nn
from featdepth.models.batch_norm import synchronise_batch_norms
from featdepth.models.recompute import Segmented

rank, out = int(os.environ["RANK"]), sys.argv[1]
torch.distributed.init_process_group("gloo", init_method=f"file://{out}.meeting", rank=rank, world_size=2)


class Network(Segmented):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.second = nn.Sequential(nn.Conv2d(8, 4, 3, stride=2, bias=False), nn.BatchNorm2d(4))

    def forward(self, images):
        return self.segment(self.second, self.segment(self.first, images))


def steps(network, images, run):
    found = {}
    for step in range(2):
        network.zero_grad()
        images = images.detach().clone().requires_grad_()
        values = run(images)
        pattern = torch.arange(values[0].numel()).reshape(1, *values.shape[1:]).cos()
        (values * pattern).square().flatten(1).sum(1).mean().backward()
        found[f"output {step}"], found[f"images {step}"] = values.detach(), images.grad
        found |= {f"{name} {step}": each.grad for name, each in network.named_parameters()}
    return found | {name: each.clone() for name, each in network.named_buffers()}


torch.manual_seed(0)
plain = Network().to(memory_format=torch.channels_last)
plain.first[0].weight.data *= 3
whole = torch.randn(4, 3, 10, 12) + torch.tensor([0.0, 5.0, 30.0])[:, None, None]
whole = whole.contiguous(memory_format=torch.channels_last)
network = copy.deepcopy(plain)
results = {"whole": steps(network, whole, network)}
for variant in ("eager", "recomputed", "compiled", "compiled, recomputed"):
    network = copy.deepcopy(plain)
    synchronise_batch_norms(network, 2)
    network.gradient_checkpointing = "recomputed" in variant
    run = network
    if "compiled" in variant:
        run = torch.compile(network, fullgraph=True, dynamic=False, backend="aot_eager")
    results[variant] = steps(network, whole[2 * rank : 2 * rank + 2], run)

# The processes need not have equally many images where nothing is learned.
network.eval()
with torch.no_grad():
    results["evaluated"] = {"output": network(whole[: 1 + 2 * rank])}
    results["evaluated alone"] = {"output": network(whole)[: 1 + 2 * rank]}

# In half precision the statistics are those of the values, in single precision.
half = nn.Sequential(nn.BatchNorm2d(3))
synchronise_batch_norms(half, 2)
values = half(whole[2 * rank : 2 * rank + 2].bfloat16())
results["half"] = {"dtype": values.dtype, "mean": half[0].running_mean, "variance": half[0].running_var}
results["formats"] = {name: values.is_contiguous(memory_format=torch.channels_last) for name, values in
    (("half", values), ("output", results["eager"]["output 0"]), ("images", results["eager"]["images 0"]))}
torch.save(results, f"{out}.{rank}")
torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("norms")
    (folder / "probe.py").write_text(PROBE)
    succeeded(run_program_process([folder / "probe.py", folder / "out"], processes=2))
    return [torch.load(f"{folder}/out.{rank}") for rank in range(2)]


@pytest.mark.parametrize("variant", ["eager", "recomputed", "compiled", "compiled, recomputed"])
def test_two_processes_are_one_with_the_whole_batch(results: list[dict], variant: str) -> None:
    expected, found = results[0]["whole"], [result[variant] for result in results]
    assert expected.keys() == found[0].keys() == found[1].keys()
    for name, value in expected.items():
        values = [each[name] for each in found]
        if name.startswith("output"):
            joined = torch.cat(values)
        elif name.startswith("images"):
            joined = torch.cat(values) / 2  # each process's loss is the mean over its own half
        elif name.endswith((" 0", " 1")):
            joined = (values[0] + values[1]) / 2  # as DistributedDataParallel averages them
        else:
            assert torch.equal(*values), name
            joined = values[0]
        tolerance = 5e-5 * value.abs().max().item()
        torch.testing.assert_close(
            joined, value, rtol=1e-4, atol=tolerance, msg=lambda text, name=name: f"{name} {text}"
        )


def test_norms_in_evaluation_mode_are_each_process_s_own(results: list[dict]) -> None:
    for result in results:
        torch.testing.assert_close(result["evaluated"], result["evaluated alone"])


def test_half_precision_and_formats(results: list[dict]) -> None:
    for result in results:
        assert result["half"]["dtype"] == torch.bfloat16
        assert result["formats"] == dict.fromkeys(("half", "output", "images"), True)
        # A tenth of the batch's.
        assert result["half"]["mean"].tolist() == pytest.approx([0, 0.5, 3], abs=0.02)
        assert result["half"]["variance"].tolist() == pytest.approx([1, 1, 1], abs=0.05)


@pytest.mark.usefixtures("whole_resnet18")
def test_names_and_tensors_stay() -> None:
    config = tiny_config("feature_metric")
    model = tiny_model(config)
    before = dict(model.state_dict(keep_vars=True))
    frozen = model.feature_encoder.bn1.training
    synchronise_batch_norms(model, 2)
    after = dict(model.state_dict(keep_vars=True))
    assert before.keys() == after.keys() and all(after[name] is before[name] for name in before)
    norms = [each for each in model.modules() if isinstance(each, nn.BatchNorm2d)]
    assert len(norms) > 40 and all(type(each) is SynchronisedBatchNorm2d for each in norms)
    assert not frozen and not model.feature_encoder.bn1.training and model.depth_encoder.bn1.training
