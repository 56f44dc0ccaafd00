"""Trajectory files in the formats that the field's tools read and write.

KITTI: a line for each frame, the 12 numbers of the upper 3x4 of world_from_camera; with a frame's number before them,
as KITTI-360 has them, and with all 16 of the 4x4.
TUM: lines `time tx ty tz qx qy qz qw`, seconds, metres and a unit quaternion of world_from_camera; with a number
before them.
EuRoC: a csv of 17 columns, nanoseconds, position, quaternion with w first, and what is not needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from featdepth.cameras.parts import NUMBER
from featdepth.data.listing import LARGEST_TABLE
from featdepth.errors import InputError
from featdepth.files import read_text, write_text
from featdepth.odometry.interpolate import poses_from_quaternions
from featdepth.odometry.rotations import is_rotation, quaternions_from_rotations

KITTI_COLUMNS, TUM_COLUMNS, EUROC_COLUMNS = 12, 8, 17
NANOSECONDS = 1e16  # times beyond it are nanoseconds


class TrajectoryFile(NamedTuple):
    """What a trajectory file holds."""

    poses: np.ndarray  # world_from_camera float64 [N, 4, 4]
    times: np.ndarray | None  # [N] seconds, ascending; None: the format has none
    frames: np.ndarray | None = None  # int [N], ascending; None: the format has none, lines count from 0


def read_trajectory(path: str | Path) -> TrajectoryFile:
    """The trajectory in a file of any of the formats. Raises InputError, naming file and line."""
    rows = data_lines(path)
    if not rows:
        raise InputError(f"{path}: holds no trajectory; it should have a pose a line, in KITTI's or TUM's format")
    number, words = rows[0]
    if len(words) in (KITTI_COLUMNS, 16):
        return TrajectoryFile(read_kitti(path), None)
    if len(words) in (KITTI_COLUMNS + 1, 17) and all(is_whole(words[0]) for _, words in rows):
        table = read_table(path, len(words), "a frame's number and its pose")
        if is_kitti(table[:, 1:]):
            return TrajectoryFile(kitti_poses(path, table[:, 1:]), None, frame_numbers(path, table))
    if len(words) == EUROC_COLUMNS:
        return read_euroc(path)
    if len(words) == TUM_COLUMNS:
        return read_tum(path)
    if len(words) == TUM_COLUMNS + 1 and len(rows) > 1:  # a single line may be a rotation
        table = read_table(path, TUM_COLUMNS + 1, "a number and a pose in TUM's format")
        if is_unit(table[:, 5:]).all():
            return tum_trajectory(path, table[:, 1:])
    raise InputError(
        f"{path}:{number}: a pose has {KITTI_COLUMNS} numbers in KITTI's format and {TUM_COLUMNS} in TUM's, "
        f"this line has {len(words)}"
    )


def read_kitti(path: str | Path) -> np.ndarray:
    """world_from_camera float64 `[N, 4, 4]` of a KITTI file. Raises InputError, naming file and line."""
    rows = data_lines(path)
    columns = 16 if rows and len(rows[0][1]) == 16 else KITTI_COLUMNS
    return kitti_poses(path, read_table(path, columns, "a pose in KITTI's format"))


def kitti_poses(path: str | Path, table: np.ndarray) -> np.ndarray:
    """world_from_camera float64 `[N, 4, 4]` of the numbers `[N, 12]` or `[N, 16]` of the lines of a file."""
    rows = table[:, :KITTI_COLUMNS].reshape(-1, 3, 4)
    refuse(path, ~is_rotation(rows[:, :, :3]), "the first three columns of its 3x4 matrix are not a rotation")
    poses = np.tile(np.eye(4), (len(rows), 1, 1))
    poses[:, :3] = rows
    return poses


def is_kitti(table: np.ndarray) -> bool:
    """Whether the first line of numbers `[N, 12 or 16]` is a pose, and not another format of as many numbers."""
    return bool(is_rotation(table[:1, :KITTI_COLUMNS].reshape(-1, 3, 4)[:, :, :3]).all())


def frame_numbers(path: str | Path, table: np.ndarray) -> np.ndarray:
    """The first column as the numbers of frames, int `[N]`. Raises InputError where they do not increase."""
    refuse(path, np.diff(table[:, 0], prepend=-np.inf) <= 0, "its frame is not after that of the pose before")
    return table[:, 0].astype(int)


def read_tum(path: str | Path) -> TrajectoryFile:
    """The trajectory of a TUM file. Raises InputError, naming file and line; times have to increase."""
    return tum_trajectory(path, read_table(path, TUM_COLUMNS, "a pose in TUM's format"))


def read_euroc(path: str | Path) -> TrajectoryFile:
    """The trajectory of EuRoC's ground truth. Raises InputError, naming file and line."""
    table = read_table(path, EUROC_COLUMNS, "the ground truth of EuRoC")
    return tum_trajectory(path, table[:, [0, 1, 2, 3, 5, 6, 7, 4]])


def tum_trajectory(path: str | Path, rows: np.ndarray) -> TrajectoryFile:
    """The trajectory of the lines `[N, 8]` of a file: time, position, quaternion."""
    refuse(path, ~is_unit(rows[:, 4:]), "its quaternion (the last four numbers) is not of length 1")
    refuse(path, np.diff(rows[:, 0], prepend=-np.inf) <= 0, "its time is not after that of the pose before")
    times = rows[:, 0] / 1e9 if len(rows) and rows[0, 0] > NANOSECONDS else rows[:, 0]
    return TrajectoryFile(poses_from_quaternions(rows[:, 1:4], rows[:, 4:]), times)


def is_unit(quaternions: np.ndarray) -> np.ndarray:
    """Which of `quaternions` `[N, 4]` are of length 1: bool `[N]`."""
    return abs(np.linalg.norm(quaternions, axis=1) - 1) <= 0.01


def is_whole(word: str) -> bool:
    """Whether a word is a whole number, also as tables write it: 12 or 12.0 or 1.2e+01."""
    return is_number(word) and float(word).is_integer()


def is_number(word: str) -> bool:
    return NUMBER.fullmatch(word) is not None


def read_table(path: str | Path, columns: int, what: str) -> np.ndarray:
    """The numbers float64 `[N, columns]` of the lines of a trajectory. Raises InputError, naming file and line."""
    table = []
    for number, words in data_lines(path):
        if len(words) != columns or not all(map(is_number, words)) or not np.isfinite(list(map(float, words))).all():
            raise InputError(f"{path}:{number}: {' '.join(words)[:60]!r} should be {columns} numbers of {what}")
        table.append([float(word) for word in words])
    return np.array(table, dtype=np.float64).reshape(-1, columns)


def refuse(path: str | Path, is_bad: np.ndarray, reason: str) -> None:
    """Raise InputError that names the line of the first pose which `is_bad` `[N]`."""
    if is_bad.any():
        number, words = data_lines(path)[int(is_bad.argmax())]
        raise InputError(f"{path}:{number}: {' '.join(words)[:60]!r}: {reason}")


def data_lines(path: str | Path) -> list[tuple[int, list[str]]]:
    """The lines of poses with their numbers from 1, in words.

    Left out are blank lines, comments (#, % and //), and the first line where it has no number: a table's header.
    """
    lines = read_text(path, LARGEST_TABLE, "the trajectory").splitlines()
    words = ((number, line.replace(",", " ").split()) for number, line in enumerate(lines, 1))
    found = [(number, each) for number, each in words if each and not each[0].startswith(("#", "%", "//"))]
    return found[1:] if found and not any(map(is_number, found[0][1])) else found


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
