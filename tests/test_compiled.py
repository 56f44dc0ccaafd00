"""Training compiled is the same training: of a step, of a run, and of what belongs to it."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from conftest import forget_accelerator, run_program_process, succeeded
from run_records import differences, interrupted_copy, read_metrics
from safetensors.torch import load_file
from same_training import (
    ROUNDING,
    SHORT_RUN,
    assert_same_metrics,
    assert_same_statistics,
    assert_same_step,
    one_graph,
    run_here,
    training_step,
)
from tiny_models import OBJECTIVES, tiny_batch, tiny_config, tiny_model
from torch import Tensor, nn
from torch._dynamo.utils import counters

from featdepth.config import Config, load_config
from featdepth.data import augment
from featdepth.models import FeatDepth, Prediction
from featdepth.objective import compute_losses
from featdepth.parallel.accelerator import bare_model, begin_pass, compiled, make_accelerator, records_graphs
from featdepth.training.checkpoint import Progress, checkpoints, resume, save_checkpoint
from featdepth.training.conditions import conditions_of

pytestmark = pytest.mark.usefixtures("forget_compiled")
LONG = pytest.mark.long  # what one other case of the same tests, or a smaller one, covers
AUTOENCODER = ("model.objective=autoencoder", "data.frames=[0]")  # the quickest to compile


class TestCompiledStep:
    @pytest.mark.long
    @pytest.mark.parametrize("objective", OBJECTIVES)
    def test_one_graph_serves_all_values(self, objective: str) -> None:
        config = tiny_config(objective, [0, -1, "s"] if objective == "photometric" else [0, -1])
        model = tiny_model(config)
        twin = copy.deepcopy(model)
        networks, losses_of = one_graph(model), one_graph(compute_losses)
        with torch._dynamo.config.patch(error_on_recompile=True):
            for seed in range(2):
                batch = tiny_batch(config, seed=seed)
                found = training_step(model, batch, config, networks, losses_of)
                assert_same_step(found, training_step(twin, batch, config))
        assert_same_statistics(model, twin)
        model.eval()
        twin.eval()
        with torch.no_grad():
            torch.testing.assert_close(networks(batch), twin(batch), rtol=ROUNDING, atol=1e-6)

    def test_another_shape_is_another_graph(self) -> None:
        """So the test above can fail."""
        augment_batch = one_graph(augment)
        config = tiny_config("photometric")
        with torch._dynamo.config.patch(error_on_recompile=True):
            augment_batch(raw_batch(config, size=2))
            with pytest.raises(torch._dynamo.exc.RecompileError):
                augment_batch(raw_batch(config, size=1))

    @pytest.mark.parametrize(
        "settings",
        [{"automask": True, "identity_noise": 1e-3, "normalise_disparity": True}],
        ids=lambda settings: "+".join(settings),
    )
    def test_settings_of_the_loss(self, settings: dict[str, object]) -> None:
        config = tiny_config("photometric", [0, -1], **settings)
        batch = tiny_batch(config)
        with torch.no_grad():
            output = tiny_model(config)(batch)
        results = []
        for losses_of in (compute_losses, one_graph(compute_losses)):
            disparities = [each.clone().requires_grad_() for each in output.disparities]
            poses = output.poses.clone().requires_grad_()
            torch.manual_seed(4)  # of the noise
            losses = losses_of(Prediction(tuple(disparities), poses), batch, config)
            torch.stack(list(losses.values())).sum().backward()
            gradients = {str(index): each.grad for index, each in enumerate([*disparities, poses])}
            results.append(({name: each.detach() for name, each in losses.items()}, gradients))
        assert_same_step(results[1], results[0])

    def test_augmentation(self) -> None:
        config = tiny_config("photometric")
        augment_batch = one_graph(augment)
        with torch._dynamo.config.patch(error_on_recompile=True):
            for seed in range(2):
                batch = raw_batch(config, seed=seed)
                torch.testing.assert_close(augment_batch(batch), augment(batch), rtol=0, atol=1e-6)


def raw_batch(config: Config, size: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """A batch as the loader gives it, of which `augment` mirrors one sample and changes the colours of all."""
    batch = tiny_batch(config, size, seed)
    del batch["augmented"]
    jitter = 0.9 + 0.2 * torch.rand(size, 5, generator=torch.Generator().manual_seed(seed))
    jitter[:, 0], jitter[:, 4] = torch.arange(size) % 2, jitter[:, 4] - 1
    return {**batch, "images": (batch["images"] * 255).byte(), "jitter": jitter, "index": torch.arange(size)}


class TestCompiledRun:
    @pytest.mark.parametrize(
        ("options", "continues"),
        [(AUTOENCODER, False), pytest.param((), True, marks=LONG)],
        ids=["autoencoder", "photometric and continued"],
    )
    def test_run_and_its_continuation(
        self, options: tuple[str, ...], continues: bool, config_file: Path, tmp_path: Path
    ) -> None:
        plain, directory, continued = (tmp_path / name for name in ("plain", "run", "continued"))
        run_here(config_file, plain, *options)
        counters.clear()
        out = run_here(config_file, directory, *options, ACCELERATE_DYNAMO_BACKEND="eager")
        assert "compilation eager" in out
        # Augmentation in training; networks and losses in training and in validation.
        assert counters["stats"]["unique_graphs"] == 1 + 2 + 2 and not counters["graph_break"]
        assert_same_metrics(directory, plain, tolerance=1e-4)
        FeatDepth.from_pretrained(directory / "model")
        if not continues:
            return

        interrupted_copy(directory, continued, step=1)
        out = run_here(config_file, continued, *options, "--resume", ACCELERATE_DYNAMO_BACKEND="eager")
        assert "continued from" in out and "note:" not in out
        assert differences(directory, continued) == []

    @pytest.mark.parametrize("backend", ["no", pytest.param("eager", marks=LONG)])
    def test_two_processes(self, backend: str, config_file: Path, tmp_path: Path) -> None:
        """Two processes do in a step what one does with the batches of both, batch statistics included."""
        one, two = tmp_path / "one", tmp_path / "two"
        run_here(config_file, one, *AUTOENCODER, "train.batch_size=2")
        words = ["train.py", "--cpu", "--config", config_file, f"run.directory={two}", *SHORT_RUN, *AUTOENCODER]
        result = succeeded(run_program_process(words, processes=2, launcher_options=["--dynamo_backend", backend]))
        assert "2 x cpu" in result.out and ("compilation eager" in result.out) == (backend == "eager")
        losses = [[line["loss"] for line in read_metrics(each)] for each in (one, two)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-3) and len(losses[0]) == 3
        last = checkpoints(two / "checkpoints")[-1]
        assert load_file(last / "model.safetensors").keys() == load_file(one / "model_last/model.safetensors").keys()

    @pytest.mark.parametrize("backends", [("no", "eager"), ("eager", "no")])
    def test_checkpoints_do_not_depend_on_it(
        self, backends: tuple[str, str], config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
    ) -> None:
        config = load_config(config_file)
        models = [nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)) for _ in backends]
        for backend, model in zip(backends, models, strict=True):
            forget_accelerator()
            accelerator = Accelerator(cpu=True, dynamo_backend=backend)
            assert bare_model(accelerator, accelerator.prepare(model)) is model
            conditions = conditions_of(accelerator, config, [], [], 1)
            if model is models[0]:
                save_checkpoint(accelerator, tmp_path, Progress(step=1, interval=[[0.5] * 7]), conditions, keep=1)
            else:
                resume(accelerator, tmp_path, Progress(), conditions)
        forget_accelerator()
        note = f"note: compilation was {backends[0]}, is {backends[1]} (rounding and dropout may differ)"
        assert note in capsys.readouterr().out
        saved, loaded = (model.state_dict() for model in models)
        assert load_file(tmp_path / "step_1" / "model.safetensors").keys() == saved.keys()
        torch.testing.assert_close(loaded, saved, rtol=0, atol=0)

    def test_geometry_keeps_all_digits(self, config_file: Path) -> None:
        """Accelerate allows TF32 for matrix products where it compiles for a GPU."""
        torch.backends.cuda.matmul.allow_tf32 = True
        forget_accelerator()
        make_accelerator(load_config(config_file), cpu=True)
        forget_accelerator()
        assert not torch.backends.cuda.matmul.allow_tf32

    @pytest.mark.parametrize(
        ("backend", "mode", "expected"),
        [
            ("no", "reduce-overhead", False),
            ("inductor", "default", False),
            ("inductor", "reduce-overhead", True),
            ("inductor", "max-autotune", True),
            ("inductor", "max-autotune-no-cudagraphs", False),
            ("cudagraphs", "default", True),
        ],
    )
    def test_cuda_graphs_are_told_where_a_pass_begins(
        self, config_file: Path, monkeypatch: pytest.MonkeyPatch, backend: str, mode: str, expected: bool
    ) -> None:
        """Else what one compiled function gives to the next one is overwritten, and so are gradients that add up."""
        monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", backend)
        monkeypatch.setenv("ACCELERATE_DYNAMO_MODE", mode)
        begun = []
        monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(1))
        forget_accelerator()
        accelerator = make_accelerator(load_config(config_file), cpu=True)
        begin_pass(accelerator)
        records = records_graphs(accelerator)
        forget_accelerator()
        assert records == expected == bool(begun)

    def test_each_shape_has_a_graph(self, config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Else the second shape would be compiled for all others, which is slower."""
        monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "eager")
        forget_accelerator()
        double = compiled(make_accelerator(load_config(config_file), cpu=True), lambda values: 2 * values)
        forget_accelerator()
        counters.clear()
        for size in (2, 3, 4, 3):
            assert torch.equal(double(torch.ones(size)), torch.full((size,), 2.0))
        assert counters["stats"]["unique_graphs"] == 3
