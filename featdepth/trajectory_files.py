"""Trajectory files of the two formats that the field's tools read.

KITTI: a line for each frame, the 12 numbers of the upper 3x4 of world_from_camera.
TUM: lines `time tx ty tz qx qy qz qw`, seconds, metres and a unit quaternion of world_from_camera.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from featdepth.data.listing import LARGEST_TABLE, read_numbers
from featdepth.data.trajectory import poses_from_quaternions
from featdepth.errors import InputError
from featdepth.files import read_text, write_text
from featdepth.rotations import is_rotation, quaternions_from_rotations

KITTI_COLUMNS, TUM_COLUMNS = 12, 8


class Trajectory(NamedTuple):
    """A camera's way."""

    poses: np.ndarray  # world_from_camera float64 [N, 4, 4]
    times: np.ndarray | None  # [N] seconds, ascending; None: the format has none


def read_trajectory(path: str | Path) -> Trajectory:
    """The trajectory in a KITTI or a TUM file, whichever it is. Raises InputError, naming file and line."""
    rows = data_lines(path)
    if not rows:
        raise InputError(f"{path}: holds no trajectory; it should have a pose a line, in KITTI's or TUM's format")
    number, words = rows[0]
    if len(words) == KITTI_COLUMNS:
        return Trajectory(read_kitti(path), None)
    if len(words) == TUM_COLUMNS:
        return read_tum(path)
    raise InputError(
        f"{path}:{number}: a pose has {KITTI_COLUMNS} numbers in KITTI's format and {TUM_COLUMNS} in TUM's, "
        f"this line has {len(words)}"
    )


def read_kitti(path: str | Path) -> np.ndarray:
    """world_from_camera float64 `[N, 4, 4]` of a KITTI file. Raises InputError, naming file and line."""
    rows = read_numbers(path, KITTI_COLUMNS, "a pose in KITTI's format").reshape(-1, 3, 4)
    refuse(path, ~is_rotation(rows[:, :, :3]), "the first three columns of its 3x4 matrix are no rotation")
    poses = np.tile(np.eye(4), (len(rows), 1, 1))
    poses[:, :3] = rows
    return poses


def read_tum(path: str | Path) -> Trajectory:
    """The trajectory of a TUM file. Raises InputError, naming file and line; times have to increase."""
    rows = read_numbers(path, TUM_COLUMNS, "a pose in TUM's format")
    lengths = np.linalg.norm(rows[:, 4:], axis=1)
    refuse(path, abs(lengths - 1) > 0.01, "its quaternion (the last four numbers) is not of length 1")
    refuse(path, np.diff(rows[:, 0], prepend=-np.inf) <= 0, "its time is not after that of the pose before")
    return Trajectory(poses_from_quaternions(rows[:, 1:4], rows[:, 4:]), rows[:, 0])


def refuse(path: str | Path, is_bad: np.ndarray, reason: str) -> None:
    """Raise InputError that names the line of the first pose which `is_bad` `[N]`."""
    if is_bad.any():
        number, words = data_lines(path)[int(is_bad.argmax())]
        raise InputError(f"{path}:{number}: {' '.join(words)[:60]!r}: {reason}")


def data_lines(path: str | Path) -> list[tuple[int, list[str]]]:
    """The lines that are neither blank nor a comment, with their numbers from 1, in words; those of `read_numbers`."""
    lines = read_text(path, LARGEST_TABLE, "the trajectory").splitlines()
    words = ((number, line.replace(",", " ").split()) for number, line in enumerate(lines, 1))
    return [(number, each) for number, each in words if each and not each[0].startswith("#")]


def write_kitti(path: str | Path, poses: np.ndarray) -> None:
    """Write world_from_camera `[N, 4, 4]` in KITTI's format, whole or not at all. Raises OSError."""
    write_text(path, "".join(line_of(pose[:3]) for pose in poses))


def write_tum(path: str | Path, poses: np.ndarray, times: Sequence[float] | np.ndarray, comment: str = "") -> None:
    """Write world_from_camera `[N, 4, 4]` at `times` (seconds) in TUM's format, whole or not at all. Raises OSError.

    comment: a line that is put above, and that readers leave out.
    """
    quaternions = quaternions_from_rotations(poses[:, :3, :3])
    rows = zip(times, np.concatenate([poses[:, :3, 3], quaternions], axis=1), strict=True)
    lines = [f"# {comment}\n"] if comment else []
    write_text(path, "".join([*lines, *(f"{time:.6f} {line_of(row)}" for time, row in rows)]))


def line_of(values: np.ndarray) -> str:
    """Numbers as a line of text."""
    return " ".join(f"{value:.10g}" for value in np.ravel(values)) + "\n"
