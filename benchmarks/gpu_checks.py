"""The checks of gpu_check.py: each is a few parts, which give rows of their own.

On a GPU sizes are such that a step is a matter of milliseconds, but in `speed`; on a CPU everything is as small as can
be, and what needs a GPU is replaced by what comes closest, or named as not run.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from measure import REPOSITORY, WARM_UP, peak_memory, run_python, synchronise
from safetensors.torch import load_file
from step_time import (
    OBJECTIVES,
    Case,
    accelerator_for,
    bare_networks,
    build,
    configuration,
    make_batch,
    training_step,
)
from torch import Tensor, nn
from waiting import blocking_calls, train_without_waiting

from featdepth.badsteps import BadSteps
from featdepth.config import Config, load_config
from featdepth.data import augment
from featdepth.data.synthetic import write_street
from featdepth.models import FeatDepth, Prediction
from featdepth.objective import compute_losses

CONFIG = REPOSITORY / "configs/demo.yaml"
# Relative errors of a loss, and of a whole gradient, against float64. The minimum over sources and the automask choose:
# where two errors are nearly alike another precision chooses otherwise, which shows in gradients.
TOLERANCES = {
    torch.float32: (1e-4, 0.02),
    torch.bfloat16: (0.05, 0.5),
    torch.float16: (0.01, 0.2),
}
LOSS_SCALE = 2.0**8  # float16's gradients vanish without
LARGEST_DIFFERENCE = 0.3  # of weights, in parts of what the steps have changed: rounding, which Adam magnifies
POISONED = {10, 20, 21, 22}  # steps of every hundred whose loss is made NaN
LEAST_SECONDS, COMPILING_SECONDS = 10, 100  # that have to be left for a row of `speed`
NO_TIME = "no time is left; --only speed --seconds 1800"
BARE_SECONDS: dict[str, float] = {}  # of the bare networks, by the name of the row
WAITING = {
    "photometric": ["data.frames=[0,-1,s]", "loss.automask=true", "loss.identity_noise=1e-5"],
    "autoencoder": ["model.objective=autoencoder", "data.frames=[0]"],
    "feature_metric": ["model.objective=feature_metric", "model.feature_encoder={folder}/stage_1"],
    "joint": ["model.objective=joint", "train.accumulate=2"],
    "loss.pyramid": ["loss.pyramid=true"],
    "loss.velocity": ["loss.velocity=0.1", "data.frames=[0,-1,1]"],
    "learned intrinsics": [
        "model.intrinsics=learned",
        "data.field_of_view=60",
        "model.metres_per_unit=null",
        "data.frames=[0,-1,1]",
    ],
    "recomputed": ["train.gradient_checkpointing=true"],
}


class Context(NamedTuple):
    """Where a check runs."""

    device: torch.device
    folder: Path  # what is written there is for this run of all checks
    ends: float  # of time.monotonic()

    @property
    def is_small(self) -> bool:
        return self.device.type == "cpu"

    def seconds_left(self) -> float:
        return self.ends - time.monotonic()


class Row(NamedTuple):
    """A line of the table."""

    name: str
    status: str  # PASS, FAIL, figure or not run
    figures: Mapping[str, float] = MappingProxyType({})  # by unit
    note: str = ""

    def describe(self) -> dict[str, object]:
        return self._asdict() | {"figures": dict(self.figures)}


class Check(NamedTuple):
    """Parts by name, what they take on a recent GPU and on two cores of a CPU, and what they may take at most."""

    parts: Callable[[Context], dict[str, Callable[[], Iterable[Row]]]]
    seconds_on_gpu: float
    seconds_on_cpu: float
    least_gpus: int = 0  # 0: runs on a CPU too

    def usual_seconds(self, context: Context) -> float:
        return self.seconds_on_cpu if context.is_small else self.seconds_on_gpu

    def most_seconds(self, context: Context) -> float:
        return 3 * self.usual_seconds(context)

    def reason_not_to_run(self, context: Context) -> str | None:
        found = torch.cuda.device_count()
        if context.is_small or found >= self.least_gpus:
            return None
        return f"needs {self.least_gpus} GPUs, here is {found}"


def verdict(passed: bool) -> str:
    return "PASS" if passed else "FAIL"


# Numbers


def numbers(context: Context) -> dict[str, Callable[[], Iterable[Row]]]:
    return {objective: partial(compare_precisions, context, objective) for objective in OBJECTIVES}


def compare_precisions(context: Context, objective: str) -> Iterator[Row]:
    """A step's losses and gradients in each precision against those in float64 on the CPU."""
    case = Case(64, 96, 2, objective, "float32", 18)
    true_losses, true_gradient = losses_and_gradient(case, torch.device("cpu"), torch.float64)
    for precision, (loss_tolerance, gradient_tolerance) in TOLERANCES.items():
        name = f"{objective}, {str(precision).removeprefix('torch.')}"
        if precision == torch.float16 and context.is_small:
            yield Row(name, "not run", note="CPUs have no float16 convolutions of any use")
            continue
        losses, gradient = losses_and_gradient(case, context.device, precision)
        loss_error = float(((losses - true_losses).abs() / true_losses.abs()).max())
        gradient_error = float((gradient - true_gradient).norm() / true_gradient.norm())
        passed = loss_error <= loss_tolerance and gradient_error <= gradient_tolerance
        figures = {"of a loss": loss_error, "of the gradient": gradient_error}
        yield Row(name, verdict(passed), figures, f"at most {loss_tolerance:g} and {gradient_tolerance:g}")


def losses_and_gradient(case: Case, device: torch.device, precision: torch.dtype) -> tuple[Tensor, Tensor]:
    """Means of the loss terms `[T]` and the gradient `[N]` of a step, float64 on the CPU."""
    config = small_configuration(case)
    model = without_dropout(build(config, torch.device("cpu"))).to(device)
    batch = augment(make_batch(case, device))
    if precision == torch.float64:
        model = model.double()
        batch = {name: value.double() for name, value in batch.items()}
    is_half = precision in (torch.float16, torch.bfloat16)
    torch.backends.cudnn.allow_tf32 = False
    with torch.autocast(device.type, precision if is_half else torch.bfloat16, enabled=is_half):
        prediction = model(batch)
    losses = compute_losses(as_type(prediction, torch.promote_types(precision, torch.float32)), batch, config)
    scale = LOSS_SCALE if precision == torch.float16 else 1.0
    (scale * torch.stack(list(losses.values())).sum(0).mean()).backward()
    means = torch.stack([values.detach().mean() for values in losses.values()])
    gradients = [each.grad.flatten() / scale for each in model.parameters() if each.grad is not None]
    return means.double().cpu(), torch.cat(gradients).double().cpu()


def small_configuration(case: Case) -> Config:
    """Narrow decoders; the automask, which is off by default, is on."""
    config = configuration(case)
    config.model.decoder_width, config.loss.automask = 16, True
    return config


def as_type(prediction: Prediction, dtype: torch.dtype) -> Prediction:
    """The prediction with all of its tensors in a precision."""

    def convert(value: object) -> object:
        if isinstance(value, tuple):
            return tuple(convert(each) for each in value)
        return value.to(dtype) if isinstance(value, Tensor) else value

    return Prediction(*map(convert, prediction))


def without_dropout(model: FeatDepth) -> FeatDepth:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


# Bad steps


def bad_steps(context: Context) -> dict[str, Callable[[], Iterable[Row]]]:
    return {"steps": partial(train_with_bad_steps, context)}


def train_with_bad_steps(context: Context) -> Iterator[Row]:
    """float16 with a scaler that begins too high; on a CPU float32, with a scale that overflows even that."""
    precision, first_scale = (torch.float32, 2.0**127) if context.is_small else (torch.float16, 2.0**28)
    case = Case(64, 96, 2, "photometric", "float32", 18)
    config = small_configuration(case)
    model = without_dropout(build(config, context.device))
    trainable = list(model.parameters())
    optimizer = torch.optim.Adam(trainable, lr=1e-4, fused=True)
    scaler = torch.amp.GradScaler(context.device.type, init_scale=first_scale)
    guard = BadSteps(model, optimizer, limit=20, scaler=scaler)
    batch = augment(make_batch(case, context.device))
    flags, changes, losses, scales = [], [], [], []
    steps = 28 if context.is_small else 300
    for step in range(steps):
        before = [each.detach().clone() for each in trainable]
        with torch.autocast(context.device.type, torch.float16, enabled=not context.is_small):
            prediction = model(batch)
        loss = torch.stack(list(compute_losses(as_type(prediction, torch.float32), batch, config).values())).sum(0)
        loss = loss.mean() * (torch.nan if step % 100 in POISONED else 1.0)
        scaler.scale(guard.watch(loss)).backward()
        scaler.unscale_(optimizer)
        bad = guard.judge(nn.utils.clip_grad_norm_(trainable, config.optimizer.clip_norm))
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        guard.settle(step, bad)
        flags.append(bool(bad))
        changes.append(any(not torch.equal(old, new) for old, new in zip(before, trainable, strict=True)))
        losses.append(float(loss.detach()))
        scales.append(scaler.get_scale())
    poisoned = [step % 100 in POISONED for step in range(steps)]
    overflows = sum(not changed and not bad for changed, bad in zip(changes, flags, strict=True))
    yield Row("bad steps are found, and no others", verdict(flags == poisoned), {"bad steps": sum(flags)})
    undone = not any(changed and bad for changed, bad in zip(changes, flags, strict=True))
    yield Row("bad steps change no weight", verdict(undone))
    yield Row(
        "overflows are no bad steps", verdict(overflows > 0 and int(guard.longest) == 3), {"overflows": overflows}
    )
    kept = all(scales[step] == scales[step - 1] for step in range(1, steps) if poisoned[step])
    yield Row("bad steps leave the scale", verdict(kept), {"scale at the end": scales[-1]})
    state = [*model.state_dict().values(), *(each for values in optimizer.state.values() for each in values.values())]
    yield Row("weights, statistics and moments are finite", verdict(all(each.isfinite().all() for each in state)))
    learned = {"at first": losses[0], "at last": losses[-1]}
    yield Row("the loss falls", verdict(losses[-1] < losses[0]), learned, str(precision).removeprefix("torch."))


# Waiting


def waiting(context: Context) -> dict[str, Callable[[], Iterable[Row]]]:
    find = look_for_blocking_calls if context.is_small else train_watched
    # Their forward part is that of others.
    names = WAITING.keys() - {"autoencoder", "recomputed"} if context.is_small else WAITING.keys()
    return {name: partial(find, context, name) for name in sorted(names)}


def waiting_words(context: Context, name: str) -> list[str]:
    return [word.format(folder=context.folder) for word in WAITING[name]]


def train_watched(context: Context, name: str) -> Iterator[Row]:
    words = [*small_words(context), *waiting_words(context, name), f"run.directory={context.folder}/waiting {name}"]
    write_data(context)
    problem = train_without_waiting(context.device, ["--config", CONFIG, *words])
    yield Row(name, verdict(problem is None), note=problem or "")


def look_for_blocking_calls(context: Context, name: str) -> Iterator[Row]:
    """On a CPU: a step on tensors without data, see there."""
    config = load_config(CONFIG, [*small_words(context), *waiting_words(context, name)], check_files=False)
    problems = blocking_calls(config)
    yield Row(name, verdict(not problems), note="; ".join(problems) or "on tensors without data")


# train.py


def compiled(context: Context) -> dict[str, Callable[[], Iterable[Row]]]:
    if context.is_small:  # no CUDA graphs, and a compiler that has none takes their options for a mistake
        missing = Row("reduce-overhead", "not run", note="CUDA graphs are a GPU's")
        return {"default": partial(compare_compiled, context, "aot_eager", "default"), missing.name: lambda: [missing]}
    return {mode: partial(compare_compiled, context, "inductor", mode) for mode in ("default", "reduce-overhead")}


def compare_compiled(context: Context, backend: str, mode: str) -> Iterator[Row]:
    words = [*small_words(context), "train.accumulate=2"]
    if not (context.folder / "eager").exists():
        train_until(context, words, 4, "eager")
    environment = {"ACCELERATE_DYNAMO_BACKEND": backend, "ACCELERATE_DYNAMO_MODE": mode}
    run = train_until(context, words, 4, mode, **environment)
    yield compare_runs(f"{backend}, {mode}, against eager", run, context.folder / "eager", LARGEST_DIFFERENCE)


def resume(context: Context) -> dict[str, Callable[[], Iterable[Row]]]:
    return {"train.py": partial(kill_and_resume, context)}


def kill_and_resume(context: Context) -> Iterator[Row]:
    words = [*small_words(context), "train.accumulate=2", "model.dropout=0.5"]
    whole = train_until(context, words, 4, "whole")
    train_until(context, words, 2, "killed", signal.SIGKILL)
    run = train_until(context, [*words, "--resume"], 4, "killed")
    # The gradient of sampling adds up in another order each time on a GPU, and only there.
    yield compare_runs("killed and resumed, against whole", run, whole, 1e-6 if context.is_small else 0.1)


def processes(context: Context) -> dict[str, Callable[[], Iterable[Row]]]:
    return {"batch norms": partial(train_on_two, context), "lost process": partial(lose_a_process, context)}


def train_on_two(context: Context) -> Iterator[Row]:
    words = [*small_words(context), "data.frames=[0,-1,1]"]
    one = train_until(context, words, 4, "one")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]
    two = train_until(context, [*words, "train.batch_size=1"], 4, "two", launcher=launcher)
    yield compare_runs("two processes, against one with the whole batch", two, one, LARGEST_DIFFERENCE)


def lose_a_process(context: Context) -> Iterator[Row]:
    run = context.folder / "lost"
    words = [*small_words(context), "train.timeout=30", f"run.directory={run}"]
    started = []
    for rank in range(2):
        port = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(29500 + os.getpid() % 1000)}
        launch = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        started.append(start_training(context, words, launch | port))
    wait_for_checkpoint(run, 2, started)
    started[1].kill()
    killed = time.monotonic()
    code = started[0].wait(120)
    yield Row("a lost process is noticed", verdict(code == 1), {"s": time.monotonic() - killed}, f"code {code}")


def small_words(context: Context) -> list[object]:
    """A configuration of train.py that is quick to run."""
    street = context.folder / "street"
    words = [f"data.root={street}", f"data.split={street}/splits", f"data.ground_truth_cache={context.folder}/truth"]
    words += [
        "data.workers=1",
        "data.width=96",
        "model.pose_size=null",
        "model.decoder_width=16",
        "model.feature_layers=18",
    ]
    words += ["train.batch_size=2", "train.checkpoint_every=2", "train.keep_checkpoints=9", "train.panel_samples=0"]
    return [*words, "train.log_every=1", "schedule.warmup_steps=0"]


def write_data(context: Context) -> None:
    """What `small_words` and `WAITING` name, where it is not there yet."""
    write_street(context.folder / "street", drives=6, height=64, width=192)
    if not (context.folder / "stage_1").exists():
        config = load_config(CONFIG, ["model.objective=autoencoder", "data.frames=[0]"], check_files=False)
        model = FeatDepth(config.model, config.data.frames, config.data.height, config.data.width)
        model.save_pretrained(context.folder / "stage_1")


def train_until(
    context: Context,
    words: list[object],
    step: int,
    name: str,
    by: signal.Signals = signal.SIGTERM,
    launcher: Iterable[object] = (),
    **environment: str,
) -> Path:
    """The directory of a run of train.py that is ended by a signal when its checkpoint of a step is there."""
    run = context.folder / name
    process = start_training(context, [*words, f"run.directory={run}"], environment, launcher)
    wait_for_checkpoint(run, step, [process])
    process.send_signal(by)
    process.wait(120)
    return run


def start_training(
    context: Context, words: list[object], environment: dict[str, str], launcher: Iterable[object] = ()
) -> subprocess.Popen:
    write_data(context)
    command = [sys.executable, *launcher, "train.py", "--config", CONFIG, *words]
    command += ["--cpu"] if context.is_small else []
    # Without TF32, so that what is compared differs by rounding alone.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_")}
    return subprocess.Popen(map(str, command), cwd=REPOSITORY, env=kept | {"NVIDIA_TF32_OVERRIDE": "0"} | environment)


def wait_for_checkpoint(run: Path, step: int, processes: list[subprocess.Popen]) -> None:
    """Wait until the checkpoint of a step is whole. RuntimeError where a process ends before."""
    while not (run / f"checkpoints/step_{step}/manifest.json").is_file():
        ended = [process.poll() for process in processes if process.poll() is not None]
        if ended:
            raise RuntimeError(f"train.py ended with code {ended[0]} before step {step} of {run.name}")
        time.sleep(0.05)


def compare_runs(name: str, run: Path, other: Path, most: float) -> Row:
    """How far weights are apart after four steps, in parts of what the last two of them have changed."""
    before, last, other_last = (
        load_file(path / f"checkpoints/step_{step}/model.safetensors")
        for path, step in ((other, 2), (run, 4), (other, 4))
    )
    distance, change = weights_apart(last, other_last), weights_apart(before, other_last)
    figures = {"of the change": distance / change}
    return Row(name, verdict(distance <= most * change), figures, f"at most {most:g}")


def weights_apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The L2 norm of the difference of all weights."""
    assert one.keys() == other.keys()
    return sum(float((one[name].double() - other[name].double()).square().sum()) for name in one) ** 0.5


# Speed


def loader(context: Context) -> dict[str, Callable[[], Iterable[Row]]]:
    return {"data_wait.py": partial(wait_for_data, context)}


def wait_for_data(context: Context) -> Iterator[Row]:
    words = ["data_wait.py", "--repeat", 1, "--drives", 6]
    if context.is_small:
        words += ["--steps", 4, "--frame-size", "64x192", "--cpu", "train.log_every=2", "train.batch_size=2"]
        words += ["model.decoder_width=16"]
    else:
        words += ["--steps", 60, "--frame-size", "128x416", "train.batch_size=12", "data.workers=8", "data.height=192"]
        words += ["data.width=640", "model.depth_layers=50", "model.decoder_width=256", "model.pose_size=null"]
    for name, row in run_benchmark(context, words).items():
        note = "after the first interval; most of what is left is the exchange of epochs where they are short"
        yield Row(f"waiting, frames {name}", "figure", {"%": row["later"], "images/s": row["images_per_second"]}, note)


def prediction(context: Context) -> dict[str, Callable[[], Iterable[Row]]]:
    return {"prediction.py": partial(predict_frames, context)}


def predict_frames(context: Context) -> Iterator[Row]:
    words = ["prediction.py", "--batches", 1, 8, "--precisions", "float32", "bfloat16", "--no-compile"]
    words += ["--layers", 18, "--sizes", "64x96", "--repeat", 1, "--cpu"] if context.is_small else ["--layers", 18, 50]
    for row in run_benchmark(context, words):
        figures = {"frames/s": row["frames_per_second"]}
        yield Row(f"{row['name']}, {row['height']}x{row['width']}, batch {row['batch']}", "figure", figures)


def run_benchmark(context: Context, words: list[object]) -> dict | list:
    """The rows that another benchmark writes."""
    file = context.folder / f"{words[0]}.json"
    run_python([REPOSITORY / "benchmarks" / str(words[0]), *words[1:], "--json", file])
    return json.loads(file.read_text())["rows"]


def speed(context: Context) -> dict[str, Callable[[], Iterable[Row]]]:
    sizes, layers = ([(64, 96, 2)], 18) if context.is_small else ([(192, 640, 12), (320, 1024, 4)], 50)
    cases = [Case(*size, objective, "float32", layers) for size in sizes for objective in OBJECTIVES]
    parts = {title(case): partial(time_steps, context, case) for case in cases}
    if context.is_small:
        return parts
    compiled_parts = {f"{title(case)}, compiled": partial(time_compiled, context, case) for case in cases}
    # What most of a training is spent with is compiled before the larger size is looked at.
    names = [*parts, *compiled_parts]
    names.insert(len(OBJECTIVES), names.pop(len(parts) + OBJECTIVES.index("feature_metric")))
    return {name: (parts | compiled_parts)[name] for name in names}


def title(case: Case) -> str:
    return f"{case.objective}, {case.batch} of {case.height}x{case.width}"


def time_steps(context: Context, case: Case) -> Iterator[Row]:
    """Steps in each precision, with cuDNN's first choice of algorithms and with the best of those it has tried."""
    variants = {"float32": ["float32"] if context.is_small else ["float32", "TF32"], "bfloat16": ["bfloat16"]}
    for precision, names in variants.items():
        case = case._replace(precision=precision)
        for make in (bare_networks, training_step):
            run = make(case, accelerator_for(case, context.device))
            for name, benchmark in product(names, [False] if context.is_small else [False, True]):
                key = f"{title(case)}, {name}{', cudnn.benchmark' if benchmark else ''}"
                if context.seconds_left() < LEAST_SECONDS:
                    yield Row(key, "not run", note=NO_TIME)
                    return
                measured = time_calls(run, context, name == "TF32", benchmark)
                if make is bare_networks:
                    BARE_SECONDS[key] = measured["s"]
                else:
                    yield Row(key, "figure", {**speed_of(case, measured), "x bare": measured["s"] / BARE_SECONDS[key]})
            del run


def time_compiled(context: Context, case: Case) -> Iterator[Row]:
    """bfloat16 with networks, augmentation and objective compiled; the bare networks are those of `time_steps`."""
    case, name = case._replace(precision="bfloat16"), f"{title(case)}, bfloat16, compiled"
    if context.seconds_left() < COMPILING_SECONDS:
        yield Row(name, "not run", note=NO_TIME)
        return
    accelerator = accelerator_for(case, context.device)
    started = time.monotonic()
    measured = time_calls(training_step(case, accelerator, compile_objective=True, compile_all=True), context)
    figures = {**speed_of(case, measured), "s to compile": time.monotonic() - started}
    bare = BARE_SECONDS.get(f"{title(case)}, bfloat16")
    yield Row(name, "figure", figures | ({} if bare is None else {"x bare": measured["s"] / bare}))


def speed_of(case: Case, measured: dict[str, float]) -> dict[str, float]:
    return {"s": measured["s"], "images/s": case.batch / measured["s"], "peak GB": measured["peak GB"]}


def time_calls(
    run: Callable[[], object], context: Context, tf32: bool = False, benchmark: bool = False
) -> dict[str, float]:
    """Seconds of a call, the mean of as many as fit into a second, and the peak of memory meanwhile."""
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = tf32, benchmark
    if not context.is_small:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    for _ in range(WARM_UP):
        run()
    started = time.perf_counter()
    run()
    synchronise(context.device)
    calls = 1 if context.is_small else max(3, min(20, int(1 / (time.perf_counter() - started))))
    started = time.perf_counter()
    for _ in range(calls):
        run()
    synchronise(context.device)
    return {"s": (time.perf_counter() - started) / calls, "peak GB": peak_memory(context.device)}


CHECKS = {
    "numbers": Check(numbers, 30, 15),
    "bad_steps": Check(bad_steps, 25, 30),
    "waiting": Check(waiting, 40, 25),
    "compiled": Check(compiled, 120, 30),
    "resume": Check(resume, 40, 30),
    "processes": Check(processes, 60, 40, least_gpus=2),
    "loader": Check(loader, 50, 40),
    "prediction": Check(prediction, 15, 8),
    "speed": Check(speed, 160, 30),
}
