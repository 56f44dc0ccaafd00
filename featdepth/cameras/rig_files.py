"""Two cameras side by side in the files of calibration programs: their lenses, and where the right one is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from featdepth.cameras.intrinsics_files import read_intrinsics, split_name
from featdepth.cameras.lenses import Lens
from featdepth.cameras.parts import parse_numbers
from featdepth.cameras.plain_formats import LARGEST_FILE, numbered_lines, read_cameras
from featdepth.cameras.yaml_formats import ODDITIES, Values, is_yaml, numbers_in, plain
from featdepth.config.values import parse_yaml
from featdepth.errors import InputError
from featdepth.files import read_text

ORTHONORMAL = 1e-3  # error of a rotation's products; calibrations are written with six digits


class CameraPair(NamedTuple):
    """Two cameras as they are, not rectified."""

    lenses: tuple[Lens, Lens]  # left, right
    right_from_left: np.ndarray | None  # 4x4, in the calibration's unit of length; None: no file tells


def read_pair(files: Sequence[str], extrinsics: str | None, size: tuple[int, int]) -> CameraPair:
    """The cameras of images of `size` (height, width) in one or two files `FILE[#NAME]`, as `read_intrinsics` reads.

    One file with two cameras has the left one first; one with a single camera tells of both. The right camera's pose
    is read from `extrinsics`, or else from the same files. Raises InputError, naming the file, as `read_intrinsics`
    does, and for a pose that is no rigid transform.
    """
    names = list(files) * 2 if len(files) == 1 else list(files)
    file, chosen = split_name(names[0])
    if len(files) == 1 and chosen is None and len(cameras := list(read_cameras(file, size))) == 2:
        names = [f"{file}#{name}" for name in cameras]
    lenses = tuple(read_intrinsics(name, size) for name in names)
    if extrinsics is not None:
        pose = read_extrinsics(Path(extrinsics))
        if pose is None:
            raise InputError(
                f"{extrinsics}: no pose of a right camera; expected R and T as OpenCV writes them, T_cn_cnm1 of "
                "Kalibr, or right_from_left as a 4x4 matrix"
            )
        return CameraPair(lenses, pose)
    (left, left_name), (right, right_name) = map(split_name, names)
    if left == right:
        return CameraPair(lenses, read_pose(left, (left_name, right_name)))
    mounts = [read_mount(path) for path in (left, right)]
    known = all(mount is not None for mount in mounts)
    return CameraPair(lenses, np.linalg.inv(mounts[1]) @ mounts[0] if known else None)


def read_extrinsics(path: Path) -> np.ndarray | None:
    """right_from_left 4x4 in a file that holds nothing but a matrix, or as `read_pose`."""
    rows = numbered_lines(read_text(path, LARGEST_FILE, "the calibration"))
    if [len(words) for _, words in rows] not in ([4] * 3, [4] * 4):
        return read_pose(path, (None, None))
    return rigid(str(path), [x for line, words in rows for x in parse_numbers(f"{path}:{line}", words, 4)])


def read_pose(path: Path, names: tuple[str | None, str | None]) -> np.ndarray | None:
    """right_from_left 4x4 in a YAML file, in its own unit; names: of the two cameras in it. None: it does not tell."""
    content = read_content(path)
    chained = {str(name): value for name, value in content.items() if isinstance(value, dict)}
    if len(chained) > 1 and any("T_cn_cnm1" in value for value in chained.values()):
        return pose_in_chain(path, chained, names)
    values = {name: value for name, value in plain(content).items() if isinstance(value, list | dict)}
    if "r" in values and "t" in values:
        rotation, translation = numbers_in(str(path), values, "r"), numbers_in(str(path), values, "t", 3)
        if len(rotation) == 3:
            raise InputError(f"{path}: R has 3 numbers; write the rotation matrix, 3x3")
        rows = np.column_stack([np.reshape(rotation, (-1, 3))[:3], translation]) if len(rotation) == 9 else []
        return rigid(f"{path}: R and T", np.ravel(rows))
    if "p2" in values and "m1" not in values:  # of rectified pictures
        projection = numbers_in(str(path), values, "p2", 12)
        pose = np.eye(4)
        pose[0, 3] = projection[3] / projection[0]
        return pose if pose[0, 3] else None
    return None


def read_content(path: Path) -> Values:
    """What a YAML file of calibration holds by name; nothing in a file of another kind."""
    text = read_text(path, LARGEST_FILE, "the calibration")
    content = parse_yaml(ODDITIES.sub("", text), str(path)) if is_yaml(text) else None
    return content if isinstance(content, dict) else {}


def pose_in_chain(path: Path, chain: Values, names: tuple[str | None, str | None]) -> np.ndarray:
    """right_from_left in a Kalibr camchain, in which each camera but the first has its pose from the one before."""
    poses, previous = {}, np.eye(4)
    for name, values in chain.items():
        if "T_cn_cnm1" in values:
            previous = rigid(f"{path}: {name}: T_cn_cnm1", numbers_in(str(path), plain(values), "tcncnm1")) @ previous
        poses[name] = previous
    left, right = (given or known for given, known in zip(names, list(poses)[:2], strict=True))
    return poses[right] @ np.linalg.inv(poses[left])


def read_mount(path: Path) -> np.ndarray | None:
    """body_from_camera 4x4 in a camera's own file, EuRoC's T_BS; None where it has none."""
    values = plain(read_content(path))
    return rigid(f"{path}: T_BS", numbers_in(str(path), values, "tbs")) if "tbs" in values else None


def rigid(where: str, values: Sequence[float]) -> np.ndarray:
    """The rigid transform 4x4 of 12 or 16 numbers, row by row. Raises InputError for any other matrix."""
    pose = np.eye(4)
    if len(values) in (12, 16):
        pose[: len(values) // 4] = np.reshape(values, (-1, 4))
    rotation = pose[:3, :3]
    is_rotation = np.allclose(rotation @ rotation.T, np.eye(3), rtol=0, atol=ORTHONORMAL)
    if len(values) not in (12, 16) or not is_rotation or np.linalg.det(rotation) < 0 or (pose[3] != (0, 0, 0, 1)).any():
        raise InputError(f"{where}: is no rigid transform; a rotation 3x3 with a translation is meant")
    return pose
