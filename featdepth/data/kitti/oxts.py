"""How far a car drove between two pictures, from what KITTI's inertial unit measured.

Speeds are integrated over the time between the pictures, rather than positions subtracted:

- a picture comes with the nearest of a hundred packets a second, not with a simultaneous one: the packets of two
  neighbouring pictures are 0.10 or 0.11 s apart, the pictures 0.1035 s, and positions have that error of some per cent;
- positions jump where the reception of satellites changes, and wander while the car stands; speeds do neither;
- a lost packet does no harm, since the speed is interpolated in time and nothing counts on a packet every 0.1 s.

It is the way of the inertial unit. The cameras, 0.3 m (left) and 0.8 m (right) to its right, make another in bends:
with a radius of 15 m 2 % and 5 % more in those to the left, and as much less in those to the right.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from featdepth.console import count
from featdepth.data.listing import LARGEST_TABLE, read_numbers
from featdepth.errors import InputError
from featdepth.files import read_text

NUMBERS = 30  # of a packet
SPEEDS = slice(8, 11)  # those that are forward, leftward and upward, m/s
REACH = 0.5  # seconds from the nearest packet: farther away the speed is unknown
TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?")


def read_times(path: str | Path) -> np.ndarray:
    """Seconds float64 `[N]` at each frame from 0, of a `timestamps.txt`; NaN for a blank line, empty without a file.

    Raises InputError, naming file and line, for a line that is no date and time.
    """
    if not Path(path).is_file():
        return np.zeros(0)
    lines = read_text(path, LARGEST_TABLE, "the times").splitlines()
    times = np.full(len(lines), np.nan)
    for frame, line in enumerate(map(str.strip, lines)):
        if not line:
            continue
        try:
            if not TIME.fullmatch(line):
                raise ValueError
            times[frame] = np.datetime64(line, "ns").astype(np.int64) / 1e9
        except ValueError:
            raise InputError(
                f"{path}:{frame + 1}: {line[:60]!r} is no time such as 2011-09-26 13:10:51.175862102"
            ) from None
    return times


def read_speed(path: str | Path) -> float:
    """The speed (m/s, never negative) in the file of a packet. Raises InputError."""
    rows = read_numbers(path, NUMBERS, "an inertial measurement")
    if len(rows) != 1:
        raise InputError(f"{path}: has {count(len(rows), 'line')} with measurements, it should have one; copy it again")
    return float(np.linalg.norm(rows[0, SPEEDS]))


def steps_between(times: np.ndarray, packet_times: np.ndarray, speeds: Mapping[int, float]) -> np.ndarray:
    """Metres `[N - 1]` from each picture to the next, NaN where unknown.

    times: of the pictures `[N]`, packet_times: of the packets, by frame (seconds, NaN: unknown); speeds: m/s by frame.
    """
    frames = [frame for frame in speeds if frame < len(packet_times) and np.isfinite(packet_times[frame])]
    if not frames or len(times) < 2:
        return np.full(max(len(times) - 1, 0), np.nan)
    known_times, first = np.unique(packet_times[frames], return_index=True)
    known_speeds = np.array([speeds[frame] for frame in frames])[first]
    # Linear between two packets, and constant before the first and after the last.
    at_pictures = np.interp(times, known_times, known_speeds)
    nearest = np.abs(times[:, None] - known_times[nearest_two(times, known_times)]).min(1)
    at_pictures[~(nearest <= REACH)] = np.nan
    intervals = np.diff(times)
    steps = (at_pictures[:-1] + at_pictures[1:]) / 2 * intervals
    steps[~((intervals > 0) & (intervals <= 2 * REACH))] = np.nan
    return steps


def nearest_two(times: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Indices `[N, 2]` of the `known` times (ascending) before and after each of `times` `[N]`."""
    after = np.searchsorted(known, times)
    return np.stack([after - 1, after], axis=1).clip(0, len(known) - 1)


def distance_between(steps: np.ndarray, one: int, other: int) -> float | None:
    """Metres driven between two frames, in either order; None where unknown. steps: of `steps_between`."""
    first, last = sorted((one, other))
    if first < 0 or last > len(steps):
        return None
    distance = float(steps[first:last].sum())
    return distance if np.isfinite(distance) else None
