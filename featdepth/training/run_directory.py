"""The folder of a run, and the header that says what it is: devices, data, versions."""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TextIO, TypeVar

import accelerate
import torch
import torchvision
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DynamoBackend,
    InitProcessGroupKwargs,
    TorchDynamoPlugin,
    set_seed,
)
from torch import nn

from featdepth.config import Config, save_config
from featdepth.errors import InputError
from featdepth.parallel.launcher import check_accelerator, check_choices
from featdepth.parallel.processes import end_with_launcher, keep_freed_memory, together
from featdepth.wording import count

LOCK = ".lock"
# Compilers that tell what a segment computes again in the backward pass from the statistics that it changes.
RECOMPUTING_BACKENDS = {DynamoBackend.NO, DynamoBackend.AOT_EAGER, DynamoBackend.INDUCTOR}
GRAPH_MODES = {"reduce-overhead", "max-autotune"}  # of inductor

Function = TypeVar("Function", bound=Callable)


def make_accelerator(config: Config, cpu: bool) -> Accelerator:
    """The Accelerator of a program, seeded; precision and compilation are left to the launcher and `accelerate config`.

    Raises InputError when the launcher meant several processes and each would run alone, a tracker is not installed, or
    the compiler and gradient checkpointing do not go together.
    """
    end_with_launcher()
    check_choices()
    try:
        accelerator = start_accelerator(config, cpu)
    # What it says of libraries, precisions and devices that the launcher chose and that are not here.
    except (ValueError, ImportError, NotImplementedError) as error:
        raise InputError(f"Accelerate does not start as the launcher chose: {' '.join(str(error).split())}") from error
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    check_accelerator(accelerator, config.train.accumulate)
    if config.train.gradient_checkpointing and accelerator.state.dynamo_plugin.backend not in RECOMPUTING_BACKENDS:
        raise InputError(
            f"train.gradient_checkpointing does not go with the dynamo backend {compilation(accelerator)}, which would "
            "count batch statistics twice; choose inductor, aot_eager or no"
        )
    # Accelerate turns TF32 on where it compiles float32; the geometry needs all digits.
    torch.backends.cuda.matmul.allow_tf32 = False
    # Accelerate drops what is not installed with a warning only.
    missing = set(config.run.trackers) - {str(getattr(tracker, "value", tracker)) for tracker in accelerator.log_with}
    if missing:
        raise InputError(f"run.trackers: {', '.join(sorted(missing))} is not installed; pip install it, or remove it")
    set_seed(config.train.seed)
    return accelerator


def start_accelerator(config: Config, cpu: bool) -> Accelerator:
    return Accelerator(
        cpu=cpu,
        gradient_accumulation_steps=config.train.accumulate,
        step_scheduler_with_optimizer=False,
        log_with=config.run.trackers or None,
        project_dir=config.run.directory,
        # Without a data seed of its own each process would draw another permutation, and samples would be lost.
        dataloader_config=DataLoaderConfiguration(
            use_seedable_sampler=True, data_seed=config.train.seed, non_blocking=True
        ),
        # The launcher chooses the compiler; one graph for each size, as nearly all batches have the same.
        dynamo_plugin=TorchDynamoPlugin(dynamic=False),
        kwargs_handlers=[
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=timedelta(seconds=config.train.timeout)),
        ],
    )


def compilation(accelerator: Accelerator) -> str:
    """The compiler that the launcher asks for, e.g. inductor, or "no"."""
    return accelerator.state.dynamo_plugin.backend.value.lower()


def precision(accelerator: Accelerator) -> str:
    """What the networks compute in, e.g. bf16; "no" is float32, and so is what the device cannot do."""
    chosen = accelerator.mixed_precision
    return chosen if chosen == "no" or accelerator.native_amp else f"no ({chosen} is not for {accelerator.device.type})"


def compiled(accelerator: Accelerator, function: Function) -> Function:
    """`function` compiled in the way that Accelerate compiles the networks, if it does."""
    if compilation(accelerator) == "no":
        return function
    return torch.compile(function, **accelerator.state.dynamo_plugin.to_kwargs())


def records_graphs(accelerator: Accelerator) -> bool:
    """Whether the launcher asks for CUDA graphs, which overwrite what they gave when they run again."""
    plugin = accelerator.state.dynamo_plugin
    if plugin.backend == DynamoBackend.INDUCTOR:
        return plugin.mode in GRAPH_MODES
    return plugin.backend == DynamoBackend.CUDAGRAPHS


def begin_pass(accelerator: Accelerator) -> None:
    """Before each batch: what CUDA graphs gave for the one before is not needed any more.

    They would guess so at each of the functions that are compiled one by one, and take from one what another gave it.
    """
    if records_graphs(accelerator):
        torch.compiler.cudagraph_mark_step_begin()


def bare_model(accelerator: Accelerator, model: nn.Module) -> nn.Module:
    """The model inside what compiles and distributes it. (Accelerate's default would leave the latter out for good.)"""
    return accelerator.unwrap_model(model, keep_torch_compile=False)


class RunDirectory:
    """The folder of a run, used by one run at a time. Every process calls this; the main one does the work."""

    def __init__(self, accelerator: Accelerator, config: Config, resume: bool) -> None:
        """Look at the folder, and lock it where it exists; nothing else is written.

        Raises InputError for one that is in use or holds links, and unless `resume` for one that is not empty.
        """
        self.accelerator, self.config, self.resume = accelerator, config, resume
        self.path = Path(config.run.directory)
        self.lock: TextIO | None = None  # the main process's, for as long as it lives
        together(accelerator, self.check, main_only=True)

    def check(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path}: is a file; choose another run.directory")
        if not self.path.is_dir():
            return
        if not self.resume and any(path.name != LOCK for path in self.path.iterdir()):
            raise InputError(
                f"{self.path}: holds a run already; continue it with --resume, or choose another run.directory"
            )
        for path in (*self.path.iterdir(), *self.path.glob("checkpoints/*")):
            if path.is_symlink():
                raise InputError(
                    f"{path}: is a symbolic link, and the run would write or remove what it leads to; remove it "
                    "(run.directory itself may be a link)"
                )
        self.take_lock()

    def take_lock(self) -> None:
        """Lock the folder against other runs. The lock ends with this process, however that ends."""
        if self.lock is not None:
            return
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
            self.lock = open(os.open(self.path / LOCK, flags, 0o644), "r+")  # noqa: SIM115
            fcntl.lockf(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = self.lock.read(200).strip()
            raise InputError(f"{self.path}: in use by another run ({holder}); wait for it, or stop it") from None
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written to ({error.strerror}); set run.directory") from error
        self.lock.truncate(0)
        self.lock.write(f"process {os.getpid()} on {platform.node()}")
        self.lock.flush()

    def make(self) -> None:
        """Make the folder and note what the run is made with. InputError if it cannot be written, or not by all."""
        together(self.accelerator, self.write, main_only=True)
        together(self.accelerator, self.see)

    def write(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.check()  # another run may have come first
            save_config(self.config, self.path / "config.yaml", "\n".join(versions()))
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written to ({error.strerror}); set run.directory") from error

    def see(self) -> None:
        if not self.path.is_dir() or "config.yaml" not in os.listdir(self.path):
            raise InputError(
                f"{self.path}: process {self.accelerator.process_index} on {platform.node()} does not see what the "
                "main process writes there; run.directory must be on a disk that all machines share"
            )


def versions() -> list[str]:
    """What the run was made with."""
    return [
        f"featdepth commit {git_commit()}",
        f"python {platform.python_version()}, torch {torch.__version__}, torchvision {torchvision.__version__}, "
        f"accelerate {accelerate.__version__}",
    ]


def git_commit() -> str:
    """The commit of this checkout, or "unknown" outside one."""
    if shutil.which("git") is None:
        return "unknown"
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "unknown"


def device_name(accelerator: Accelerator) -> str:
    """The device of this process in words."""
    if accelerator.device.type == "cuda":
        return f"{accelerator.device} ({torch.cuda.get_device_name(accelerator.device)})"
    return f"{accelerator.device} ({count(torch.get_num_threads(), 'thread')})"
