"""The folder of a run, and the header that says what it is: devices, data, versions."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import accelerate
import torch
import torchvision
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import DistributedDataParallelKwargs, set_seed

from featdepth.config import Config, save_config
from featdepth.errors import InputError


def make_accelerator(config: Config, cpu: bool) -> Accelerator:
    """The Accelerator of a program, seeded; precision and compilation are left to the launcher and `accelerate config`.

    Raises InputError when the launcher meant several processes and each would run alone, or a tracker is not installed.
    """
    accelerator = Accelerator(
        cpu=cpu,
        gradient_accumulation_steps=config.train.accumulate,
        step_scheduler_with_optimizer=False,
        log_with=config.run.trackers or None,
        project_dir=config.run.directory,
        # Without a data seed of its own each process would draw another permutation, and samples would be lost.
        dataloader_config=DataLoaderConfiguration(
            use_seedable_sampler=True, data_seed=config.train.seed, non_blocking=True
        ),
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise InputError(
            f"launched as {launched} processes, but each runs alone; on CPUs start with "
            "accelerate launch --config_file configs/accelerate/two_cpu.yaml train.py --cpu ..."
        )
    # Accelerate drops what is not installed with a warning only.
    missing = set(config.run.trackers) - {str(getattr(tracker, "value", tracker)) for tracker in accelerator.log_with}
    if missing:
        raise InputError(f"run.trackers: {', '.join(sorted(missing))} is not installed; pip install it, or remove it")
    set_seed(config.train.seed)
    return accelerator


def check_directory(config: Config, resume: bool) -> Path:
    """The run's folder, still untouched; a non-empty one is refused unless the run is to be resumed. InputError."""
    directory = Path(config.run.directory)
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{directory}: is a file; choose another run.directory")
    if not resume and directory.is_dir() and any(directory.iterdir()):
        raise InputError(
            f"{directory}: holds a run already; continue it with --resume, or choose another run.directory"
        )
    return directory


def make_directory(accelerator: Accelerator, directory: Path, config: Config) -> None:
    """Make the run's folder and note what it is made with. Every process enters. InputError if it cannot be written."""
    # Every process has looked at the folder before the first one writes.
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            save_config(config, directory / "config.yaml", "\n".join(versions()))
        except OSError as error:
            raise InputError(f"{directory}: cannot be written to ({error.strerror}); set run.directory") from error
    accelerator.wait_for_everyone()


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
    return f"{accelerator.device} ({torch.get_num_threads()} threads)"
