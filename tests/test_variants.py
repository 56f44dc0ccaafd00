"""The same training by other means: compiled, with recomputed activations, channels innermost, in bfloat16."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import check_reference
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from check_reference import network_case, to_float32
from conftest import call_program, forget_accelerator, run_program_process, succeeded
from run_records import differences, interrupted_copy, read_metrics
from safetensors.torch import load_file
from tiny_models import OBJECTIVES, tiny_batch, tiny_config, tiny_model
from torch import Tensor, nn
from torch._dynamo.utils import counters

import train
from featdepth.config import Config, load_config
from featdepth.data import augment
from featdepth.models import FeatDepth, Prediction
from featdepth.objective import compute_losses, compute_terms
from featdepth.parallel.accelerator import bare_model, begin_pass, compiled, make_accelerator, records_graphs
from featdepth.training.checkpoint import Progress, checkpoints, resume, save_checkpoint
from featdepth.training.conditions import conditions_of

REFERENCE = Path(__file__).parent / "data"
# Sums in another order: of a loss, and of a gradient relative to the largest of its tensor.
ROUNDING, GRADIENT_ROUNDING = 1e-5, 1e-4
# Of bfloat16 networks under a float32 objective, relative to float32's loss.
BFLOAT16_LOSS = 0.03
LONG = pytest.mark.long  # what one other case of the same tests, or a smaller one, covers


@pytest.fixture(autouse=True)
def forget_compiled() -> Iterator[None]:
    """Each test compiles for itself."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def one_graph(function: Callable, backend: str = "eager") -> Callable:
    """`function` compiled; an error where it cannot be one graph of fixed shapes."""
    return torch.compile(function, fullgraph=True, dynamic=False, backend=backend)


def training_step(
    model: FeatDepth,
    batch: dict[str, Tensor],
    config: Config,
    networks: Callable | None = None,
    losses_of: Callable = compute_losses,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses and gradients of a step without its optimizer; `networks`, if given: `model` compiled."""
    model.zero_grad()
    losses = losses_of((model if networks is None else networks)(batch), batch, config)
    torch.stack(list(losses.values())).sum(0).mean().backward()
    gradients = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    return {name: values.detach() for name, values in losses.items()}, gradients


def assert_same_step(found: tuple[dict[str, Tensor], ...], expected: tuple[dict[str, Tensor], ...]) -> None:
    """Losses and gradients are equal but for rounding."""
    torch.testing.assert_close(found[0], expected[0], rtol=ROUNDING, atol=1e-9)
    assert found[1].keys() == expected[1].keys() and found[1]
    for name, gradient in expected[1].items():
        error = (found[1][name] - gradient).abs().max() / gradient.abs().max().clamp(min=1e-12)
        assert error <= GRADIENT_ROUNDING, (name, float(error))


def assert_same_statistics(one: nn.Module, other: nn.Module) -> None:
    torch.testing.assert_close(dict(one.named_buffers()), dict(other.named_buffers()), rtol=ROUNDING, atol=1e-7)


class TestCompiledStep:
    @pytest.mark.parametrize(
        "objective", [each if each == "feature_metric" else pytest.param(each, marks=LONG) for each in OBJECTIVES]
    )
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


SHORT_RUN = (
    "data.frames=[0, -1]",
    "model.metres_per_unit=null",
    "train.batch_size=1",
    "train.max_steps=2",
    "train.log_every=1",
    "train.checkpoint_every=1",
    "train.panel_samples=1",
)


def run_here(config_file: Path, directory: Path, *options: object, **environment: str) -> str:
    """train.py in this process, under `environment`: what it printed."""
    words = ["--config", config_file, f"run.directory={directory}", *SHORT_RUN, *options]
    return succeeded(call_program(train.main, *words, environment=environment)).out


def assert_same_metrics(one: Path, other: Path, tolerance: float) -> None:
    """Losses and scores of two runs differ by at most `tolerance`, relative; the steps and rates are the same."""
    lines = list(zip(read_metrics(one), read_metrics(other), strict=True))
    assert len(lines) == 3
    for found, expected in lines:
        names = {"loss", "photometric", "smoothness", "abs_rel", "silog"} & expected.keys()
        assert found["loss"] > 0 and found["step"] == expected["step"] and found.get("lr") == expected.get("lr")
        assert {name: found[name] for name in names} == pytest.approx(
            {name: expected[name] for name in names}, rel=tolerance
        )


@pytest.fixture(scope="module")
def plain_run(config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("plain") / "run"
    run_here(config_file, directory)
    return directory


AUTOENCODER = ("model.objective=autoencoder", "data.frames=[0]")  # the quickest to compile


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


def kept_bytes(model: FeatDepth, run: Callable[[], object]) -> int:
    """Memory that `run` keeps for the backward pass, less the parameters'."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = run()  # a tensor that is freed meanwhile would lend its address to another
    parameters = {each.untyped_storage().data_ptr() for each in model.parameters()}
    del kept
    return sum(size for address, size in sizes.items() if address not in parameters)


class TestGradientCheckpointing:
    @pytest.mark.parametrize(
        ("objective", "precision"),
        [
            *((objective, torch.float32) for objective in OBJECTIVES if objective != "joint"),
            pytest.param("joint", torch.float32, marks=LONG),
            ("joint", torch.bfloat16),
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
