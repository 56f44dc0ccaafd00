"""The same training by other means: with recomputed activations, channels innermost, in bfloat16."""

from __future__ import annotations

import copy
from pathlib import Path

import check_reference
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from check_reference import network_case, to_float32
from conftest import call_program, forget_accelerator
from run_records import differences, interrupted_copy
from safetensors.torch import load_file
from same_training import (
    assert_same_metrics,
    assert_same_statistics,
    assert_same_step,
    kept_bytes,
    one_graph,
    run_here,
    training_step,
)
from tiny_models import OBJECTIVES, tiny_batch, tiny_config, tiny_model
from torch import Tensor, nn

import train
from featdepth.config import Config
from featdepth.models import FeatDepth, Prediction
from featdepth.objective import compute_losses, compute_terms

pytestmark = pytest.mark.usefixtures("forget_compiled")
REFERENCE = Path(__file__).parent / "data"
# Of bfloat16 networks under a float32 objective, relative to float32's loss.
BFLOAT16_LOSS = 0.03
LONG = pytest.mark.long  # what one other case of the same tests, or a smaller one, covers


@pytest.fixture(scope="module")
def plain_run(config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("plain") / "run"
    run_here(config_file, directory)
    return directory


class TestGradientCheckpointing:
    @pytest.mark.parametrize(
        ("objective", "precision"),
        [
            *((objective, torch.float32) for objective in OBJECTIVES if objective != "joint"),
            pytest.param("joint", torch.float32, marks=LONG),
            ("photometric", torch.bfloat16),
            pytest.param("joint", torch.bfloat16, marks=LONG),
        ],
        ids=str,
    )
    @pytest.mark.usefixtures("whole_resnet18")
    def test_changes_memory_alone(self, objective: str, precision: torch.dtype) -> None:
        config = tiny_config(objective, [0, 1])
        batch = tiny_batch(config)
        results, sizes = [], []
        for recompute in (False, True):
            model = tiny_model(config)
            if model.has_depth:
                model.depth_decoder.dropout.p = 0.5
            if recompute:
                model.gradient_checkpointing_enable()

            def networks(batch: dict[str, Tensor], model: FeatDepth = model) -> Prediction:
                torch.manual_seed(3)  # of the dropout
                with torch.autocast("cpu", precision, enabled=precision != torch.float32):
                    return to_float32(model(batch))

            step = training_step(model, batch, config, networks)
            results.append((*step, model.state_dict(), {"random": torch.get_rng_state()}))
            sizes.append(kept_bytes(model, lambda networks=networks: networks(batch)))
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
        assert sizes[1] < 0.3 * sizes[0]

    def test_a_graph_is_followed_twice(self) -> None:
        """Statistics and the settings of batch norms stay as after the forward pass."""
        config = tiny_config("autoencoder", [0])
        model, batch = tiny_model(config), tiny_batch(config)
        model.gradient_checkpointing_enable()
        loss = torch.stack(list(compute_losses(model(batch), batch, config).values())).sum()
        norms = [each for each in model.modules() if isinstance(each, nn.BatchNorm2d)]
        settings = [(each.momentum, each.num_batches_tracked) for each in norms]
        before = copy.deepcopy(model.state_dict())
        weights = list(model.parameters())
        first = torch.autograd.grad(loss, weights, retain_graph=True)
        torch.testing.assert_close(torch.autograd.grad(loss, weights), first, rtol=0, atol=0)
        torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
        for each, (momentum, count) in zip(norms, settings, strict=True):
            assert each.momentum == momentum and each.num_batches_tracked is count

    @pytest.mark.long
    @pytest.mark.usefixtures("whole_resnet18")
    def test_compiled(self) -> None:
        config = tiny_config("autoencoder", [0])
        batch = tiny_batch(config)
        model = tiny_model(config)
        twin = copy.deepcopy(model)
        model.gradient_checkpointing_enable()
        networks = one_graph(model, "aot_eager")
        assert_same_step(training_step(model, batch, config, networks), training_step(twin, batch, config))
        assert_same_statistics(model, twin)
        assert kept_bytes(model, lambda: networks(batch)) < 0.3 * kept_bytes(twin, lambda: twin(batch))

    def test_run_continues_with_it(self, config_file: Path, plain_run: Path, tmp_path: Path) -> None:
        directory = interrupted_copy(plain_run, tmp_path / "run", step=1)
        out = run_here(config_file, directory, "train.gradient_checkpointing=true", "--resume")
        assert "continued from" in out and "note:" not in out
        assert differences(plain_run, directory) == []

    def test_compiler_that_would_count_statistics_twice_is_refused(self, config_file: Path, tmp_path: Path) -> None:
        words = ["--config", config_file, f"run.directory={tmp_path / 'run'}", "train.gradient_checkpointing=true"]
        result = call_program(train.main, *words, environment={"ACCELERATE_DYNAMO_BACKEND": "eager"})
        assert "train.gradient_checkpointing" in result.error_line() and "dynamo backend eager" in result.error_line()
        assert not (tmp_path / "run").exists()


def reference(name: str) -> tuple[dict[str, np.ndarray], tuple[FeatDepth, dict[str, Tensor], Config]]:
    """Numbers of the published implementations; model, batch and configuration that should give them."""
    case = dict(np.load(REFERENCE / f"{name}.npz"))
    return case, network_case(case, REFERENCE / f"{name}.npz")


class TestPrecision:
    @pytest.mark.usefixtures("whole_resnet18")
    @pytest.mark.parametrize("variant", ["recomputed", "channels last", pytest.param("compiled", marks=LONG)])
    def test_reference_is_reproduced(self, variant: str) -> None:
        """Outputs within the tolerances of the plain form; terms, all in float32, within 1e-3."""
        case, (model, batch, config) = reference("featdepth_mono_r50")
        networks, terms_of = model, compute_terms
        if variant == "recomputed":
            model.gradient_checkpointing_enable()
        if variant == "channels last":
            model.to(memory_format=torch.channels_last)
        if variant == "compiled":
            networks, terms_of = one_graph(model, "aot_eager"), one_graph(compute_terms, "aot_eager")
        with torch.no_grad():
            model.eval()
            outputs = list(check_reference.compare_outputs(networks(batch), case, config))
        prediction = model.train()(batch)
        # Tracing their backward passes too would take three times as long.
        with torch.set_grad_enabled(variant != "compiled"):
            terms = list(check_reference.compare_terms(terms_of(prediction, batch, config), case))
        assert len(outputs) > 5 and [each for each in outputs if not each.passed] == []
        assert len(terms) > 8 and [each for each in terms if each.error > check_reference.FLOAT32_TERM] == []

    @pytest.mark.long
    @pytest.mark.usefixtures("whole_resnet18")
    def test_bfloat16_networks_are_near_the_reference(self) -> None:
        """Disparities and reconstructions within 0.01 of a range of 1, poses within 0.001, total loss within 1 %."""
        case, (model, batch, config) = reference("featdepth_joint_r50")
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            seen, trained = to_float32(model.eval()(batch)), to_float32(model.train()(batch))
        outputs = list(check_reference.compare_outputs(seen, case, config))
        comparisons = check_reference.compare_terms(compute_terms(trained, batch, config), case)
        (total,) = [each for each in comparisons if each.quantity == "loss/total"]
        assert 0 < total.error < 0.01
        assert len(outputs) > 9
        for each in outputs:
            assert each.error < (0.001 if each.quantity.startswith("pose") else 0.01), each

    def test_last_layers_of_bfloat16_networks(self) -> None:
        """Disparities, motions and reconstructions are as fine as in float32, from features in bfloat16."""
        config = tiny_config("joint", [0, 1])
        model, batch = tiny_model(config).eval(), tiny_batch(config)
        with torch.no_grad():
            exact = model(batch)
            with torch.autocast("cpu", torch.bfloat16):
                features: dict[str, Tensor] = {}
                level, pose = model.depth_decoder.levels[0], model.pose_decoder
                level.merge.register_forward_hook(lambda *call: features.update(depth=call[2]))
                pose.conv2.register_forward_hook(lambda *call: features.update(pose=call[2]))
                found = model(batch)
        maps = [(*each.disparities, *each.reconstructions) for each in (found, exact)]
        for one, other in zip(*maps, strict=True):
            assert one.unique().numel() > 0.95 * other.unique().numel()
        assert features["depth"].dtype == features["pose"].dtype == torch.bfloat16
        with torch.no_grad():
            doubled = nn.functional.interpolate(
                nn.functional.leaky_relu(features["depth"], 0.01).float(), scale_factor=2
            )
            torch.testing.assert_close(found.disparities[0], level.disparity(doubled).sigmoid(), rtol=0, atol=1e-6)
            motion = 0.01 * pose.conv3(features["pose"].float().relu()).mean((2, 3))
            torch.testing.assert_close(found.poses[:, 0, :3, 3], motion[:, 3:], rtol=1e-5, atol=1e-8)

    def test_last_layers_of_networks_in_half_precision(self) -> None:
        """Without autocast, all weights in half precision, as exported."""
        config = tiny_config("joint", [0, 1])
        model, images = tiny_model(config).eval().bfloat16(), tiny_batch(config)["augmented"].bfloat16()
        with torch.no_grad():
            disparity = model.depth(images[:, 0])[0]
            reconstruction = model.learned_features(images, Prediction()).reconstructions[0]
        assert disparity.dtype == reconstruction.dtype == torch.float32
        assert disparity.unique().numel() > 0.9 * disparity.numel()
        assert reconstruction.unique().numel() > 0.3 * reconstruction.numel()

    @pytest.mark.parametrize("objective", OBJECTIVES)
    def test_outputs_of_bfloat16_networks(self, objective: str) -> None:
        config = tiny_config(objective)
        batch = tiny_batch(config)
        forget_accelerator()
        model = Accelerator(cpu=True, mixed_precision="bf16").prepare(tiny_model(config))
        prediction = model(batch)
        forget_accelerator()
        loss, expected = (
            torch.stack(list(compute_losses(each, batch, config).values())).sum(0).mean().item()
            for each in (prediction, tiny_model(config)(batch))
        )
        assert loss != expected and loss == pytest.approx(expected, rel=BFLOAT16_LOSS)
        flat = [
            each for value in prediction if value is not None for each in (value if type(value) is tuple else [value])
        ]
        assert flat and {each.dtype for each in flat} == {torch.float32}

    def test_poses_of_bfloat16_networks_are_rigid(self) -> None:
        config = tiny_config("photometric", [0, -1, 1])
        model = tiny_model(config)
        model.pose_decoder.conv3.weight.data *= 1000  # motions that are seen
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            poses = model(tiny_batch(config)).poses
        rotations = poses[..., :3, :3]
        identity = torch.eye(3).expand_as(rotations)
        assert (rotations - identity).abs().amax((2, 3)).min() > 0.05
        torch.testing.assert_close(rotations @ rotations.mT, identity, rtol=0, atol=1e-6)

    def test_bfloat16_run(self, config_file: Path, plain_run: Path, tmp_path: Path) -> None:
        out = run_here(config_file, tmp_path / "run", ACCELERATE_MIXED_PRECISION="bf16")
        assert "precision bf16" in out
        assert_same_metrics(tmp_path / "run", plain_run, tolerance=BFLOAT16_LOSS)
        saved = load_file(tmp_path / "run" / "model" / "model.safetensors")
        assert {each.dtype for each in saved.values()} == {torch.float32, torch.int64}
