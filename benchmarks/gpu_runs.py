"""Checks of gpu_check.py that run train.py: waiting, compiled, killed and resumed, on two processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from gpu_rows import Context, Row, verdict
from measure import REPOSITORY
from safetensors.torch import load_file
from torch import Tensor
from waiting import blocking_calls, train_without_waiting

from featdepth.config import load_config
from featdepth.data.synthetic import write_street
from featdepth.models import FeatDepth

CONFIG = REPOSITORY / "configs/demo.yaml"
LARGEST_DIFFERENCE = 0.3  # of weights, in parts of what the steps have changed: rounding, which Adam magnifies
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


def compiled(context: Context) -> dict[str, Callable[[], Iterable[Row]]]:
    if context.is_small:  # no CUDA graphs; the graphs are made, what takes minutes is to compile them
        missing = Row("reduce-overhead", "not run", note="CUDA graphs are a GPU's")
        return {"default": partial(compare_compiled, context, "eager", "default"), missing.name: lambda: [missing]}
    return {mode: partial(compare_compiled, context, "inductor", mode) for mode in ("default", "reduce-overhead")}


def compare_compiled(context: Context, backend: str, mode: str) -> Iterator[Row]:
    words, eager = [*small_words(context), "train.accumulate=2"], plain_run(context)
    environment = {"ACCELERATE_DYNAMO_BACKEND": backend, "ACCELERATE_DYNAMO_MODE": mode}
    run = train_until(context, words, 4, mode, **environment)
    yield compare_runs(f"{backend}, {mode}, against eager", run, eager, LARGEST_DIFFERENCE)


def plain_run(context: Context) -> Path:
    """The directory of a run of one process that is not compiled, with accumulation."""
    run = context.folder / "plain"
    return run if run.exists() else train_until(context, [*small_words(context), "train.accumulate=2"], 4, run.name)


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
    words = [*small_words(context), "train.accumulate=2", "train.batch_size=1"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]
    two = train_until(context, words, 4, "two", launcher=launcher)
    one = plain_run(context)
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
    command += ["--cpu", "data.frames=[0,s]"] if context.is_small else []  # half of a checkpoint is the pose network's
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
