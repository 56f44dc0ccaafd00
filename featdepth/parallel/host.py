"""Threads and memory that a process takes of its machine."""

from __future__ import annotations

import ctypes
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for what torch does inside: on small images and matrices several wait for one another, spinning."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def keep_freed_memory() -> None:
    """Let glibc keep for the next step what a step on the CPU has freed.

    It would give large tensors back to Linux, which fills each of their pages with zeros when they come again: a tenth
    of a step, and far more on a machine that is shared.
    """
    if hasattr(ctypes.CDLL(None), "mallopt"):
        ctypes.CDLL(None).mallopt(M_MMAP_MAX, 0)
        ctypes.CDLL(None).mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def peak_memory_gb(device: torch.device) -> float:
    """Largest memory in use so far, in GB: of the GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
