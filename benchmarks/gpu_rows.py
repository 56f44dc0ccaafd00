"""What the checks of gpu_check.py have in common: where they run, and the rows that they give."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch


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
        # What a CPU needs depends on what else it has to do.
        return math.inf if context.is_small else 3 * self.usual_seconds(context)

    def reason_not_to_run(self, context: Context) -> str | None:
        found = torch.cuda.device_count()
        if context.is_small or found >= self.least_gpus:
            return None
        return f"needs {self.least_gpus} GPUs, here is {found}"


def verdict(passed: bool) -> str:
    return "PASS" if passed else "FAIL"
