"""Loader processes: whether the batches that they have ready fit into shared memory, and how they end.

They hand batches over in it. Containers have little of it (docker: 64 MiB), and Linux kills a process that writes
beyond.
"""

from __future__ import annotations

import atexit
import math
import multiprocessing
import os
import signal
import sys
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from featdepth.config import Config
from featdepth.console import count
from featdepth.errors import InputError
from featdepth.parallel.processes import on_all_processes

if TYPE_CHECKING:
    from featdepth.data.dataset import FrameDataset
    from featdepth.data.mix import MixedDataset

SHARED_MEMORY = "/dev/shm"
PREFETCHED = 2  # batches that each loader process has ready, as torch has it by default
IN_USE = 2  # batches: that of the step, and the next one, which Accelerate takes ahead
LOADER_GRACE = 60  # seconds


def free_shared_memory() -> int | None:
    """Bytes that are free; None where the system keeps shared memory elsewhere, or without a limit."""
    if sys.platform != "linux" or not os.path.isdir(SHARED_MEMORY):
        return None
    status = os.statvfs(SHARED_MEMORY)
    return status.f_bavail * status.f_frsize if status.f_blocks else None


def sample_bytes(dataset: FrameDataset | MixedDataset) -> int:
    """Bytes of the largest sample: its images, and the ground truth where it has some."""
    return max(
        len(member.frames) * 3 * math.prod(member.size) + (4 * math.prod(member.depth_size) if member.with_depth else 0)
        for member in dataset.members
    )


def check_shared_memory(
    accelerator: Accelerator,
    what: str,
    batch_bytes: int,
    batches: int,
    workers: int,
    option: str = "data.workers=",
    beside: int = 0,
) -> None:
    """Raise InputError where the batches in flight do not fit. Every process enters.

    what: that is loaded, in words; batches: that there are at all; workers: loader processes of each process; option:
    that sets them; beside: bytes of a batch of another loader that stops in the middle of its data, and whose
    processes, as many, keep what they have ready.
    """

    def check() -> None:
        free = free_shared_memory()
        if free is None or not accelerator.is_local_main_process:
            return
        # All processes of a machine share it.
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))

        def needed_with(workers: int) -> int:
            return processes * (bytes_in_flight(batch_bytes, batches, workers) + beside * workers * PREFETCHED)

        needed = needed_with(workers)
        if needed <= free:
            return
        fitting = max(each for each in range(workers) if needed_with(each) <= free)
        of_all = f" of each of {processes} processes" if processes > 1 else ""
        others = f", beside {workers * PREFETCHED} of {in_mib(beside)}" if beside else ""
        raise InputError(
            f"{what}: the loader processes ({workers}{of_all}) have up to {in_mib(needed)} of batches "
            f"({in_mib(batch_bytes)} each{others}) in shared memory, and {SHARED_MEMORY} has {in_mib(free)} free; give "
            f"a container more (docker run --shm-size={ample(needed)}; Kubernetes: an emptyDir of medium Memory at "
            f"{SHARED_MEMORY}), or set {option}{fitting}"
        )

    on_all_processes(accelerator, check)


def bytes_in_flight(batch_bytes: int, batches: int, workers: int) -> int:
    """The most that loader processes and the process they serve hold at a time; without workers nothing is shared."""
    return batch_bytes * min(batches, workers * PREFETCHED + IN_USE) if workers else 0


def in_mib(count: int) -> str:
    return f"{count / 2**20:.3g} MiB" if count < 2**30 else f"{count / 2**30:.3g} GiB"


def ample(needed: int) -> str:
    """Twice as much or more, in whole gigabytes, as docker's option takes them."""
    return f"{2 ** math.ceil(math.log2(max(1.0, 2 * needed / 2**30)))}g"


def make_loader(
    dataset: FrameDataset | MixedDataset, config: Config, shuffle: bool, pinned: bool = False
) -> DataLoader:
    """Batches of `train.batch_size`, on each process; training shuffles and drops an incomplete last batch.

    pinned: in memory from which a GPU copies while the host goes on.
    """
    return DataLoader(
        dataset,
        batch_size=config.train.batch_size,
        shuffle=shuffle,
        drop_last=shuffle,
        num_workers=config.data.workers,
        persistent_workers=config.data.workers > 0,
        pin_memory=pinned,
        worker_init_fn=keep_loading_at_signals,
        # An iterator draws a seed when it is made; from the global state that would shift dropout after a resume.
        generator=torch.Generator().manual_seed(config.train.seed),
    )


def check_loaders(accelerator: Accelerator, config: Config, training: DataLoader, validation: DataLoader) -> None:
    """Raise InputError where there is no batch for each process, or the batches of these loaders need too much memory.

    Every process enters, before the loaders are prepared.
    """
    if len(training) < accelerator.num_processes:
        processes = count(accelerator.num_processes, "process", "processes")
        raise InputError(
            f"train.batch_size {config.train.batch_size} x {processes} is more than the "
            f"{count(len(training.dataset), 'training sample')}; lower it"
        )
    left = 0  # bytes of a batch of the training, whose loader processes keep theirs where it stops within an epoch
    for part, loader in (("training", training), ("validation", validation)):
        batch_bytes = config.train.batch_size * sample_bytes(loader.dataset)
        check_shared_memory(accelerator, part, batch_bytes, len(loader), config.data.workers, beside=left)
        left = batch_bytes if config.train.max_steps else 0


def keep_loading_at_signals(_worker: int) -> None:
    """The `worker_init_fn` of loaders: what stops a program leaves its loader processes at work until it has saved.

    They end with it; as orphans, or where somebody terminates them, at the latest a minute later.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, lambda _number, _frame: signal.alarm(LOADER_GRACE))


@atexit.register
def end_loader_processes() -> None:
    """At exit nobody waits for their samples any more, and Python would wait for them."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for child in multiprocessing.active_children():
        child.kill()
