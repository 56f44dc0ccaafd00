"""Distance along the way from a record of the camera's speed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from featdepth.console import count
from featdepth.data.listing import read_numbers
from featdepth.errors import InputError

LONGEST_GAP = 3.0  # seconds between two speeds: receivers give one a second; beyond it too much may have happened


class SpeedRecord(NamedTuple):
    """Speeds over time; between two of them the speed changes evenly."""

    seconds: np.ndarray  # [N], from the source's first frame on, increasing
    speeds: np.ndarray  # [N], metres a second, below 0 backwards
    travelled: np.ndarray  # [N], metres since the first of them


def read_speeds(path: str) -> SpeedRecord:
    """The record in a text file, a line `time, speed` each: seconds after the video's first frame, metres a second.

    Lines that start with # are comments. Raises InputError, naming the file, for anything else, times that do not
    increase, and gaps of more than 3 seconds.
    """
    table = read_numbers(path, 2, "time (seconds) and speed (metres a second)")
    if len(table) < 2:
        raise InputError(f"{path}: has {count(len(table), 'line')} of time and speed, at least two are needed")
    seconds, speeds = table.T
    steps = np.diff(seconds)
    if steps.min() <= 0:
        late = seconds[steps.argmin()]
        raise InputError(f"{path}: times have to increase, and that after {late:g} s does not; sort or mend the file")
    if steps.max() > LONGEST_GAP:
        start = seconds[steps.argmax()]
        raise InputError(
            f"{path}: no speed for {steps.max():.1f} s after {start:g} s; at most {LONGEST_GAP:g} s can be bridged, "
            "cut the video there"
        )
    return SpeedRecord(seconds, speeds, np.concatenate([[0.0], np.cumsum(steps * (speeds[1:] + speeds[:-1]) / 2)]))


def odometer(record: SpeedRecord, time: float) -> float | None:
    """Metres travelled since the record began, at `time` (seconds); None outside of it."""
    if not record.seconds[0] <= time <= record.seconds[-1]:
        return None
    index = min(int(np.searchsorted(record.seconds, time, side="right")), len(record.seconds) - 1)
    passed, step = time - record.seconds[index - 1], record.seconds[index] - record.seconds[index - 1]
    start, end = record.speeds[index - 1], record.speeds[index]
    return float(record.travelled[index - 1] + passed * (start + (end - start) * passed / step / 2))
