"""Which poses the second camera of a rectified pair can have, and in which unit an impossible one probably is."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
from torch import Tensor

from featdepth.errors import InputError

SHORTEST, LONGEST = 0.001, 10.0  # metres: what is called a pair, from endoscopes to masts
USUAL_BASELINE = (0.02, 1.0)  # metres
OFF_AXIS = 0.1  # of the baseline, y and z: cameras are mounted askew by less, and rectification leaves none
TURNED = 0.02  # radians against each other
UNITS = {"millimetres": 1000.0, "centimetres": 100.0}  # by how many of them make a metre
# What recognisable points tell of a rectified pair.
RIGHT_SIGN = 0.8  # share of the points that must be shifted as the calibration says
ENOUGH = 0.001  # of the width: points that are shifted by less have no sign
NEAREST, FARTHEST = 0.05, 150.0  # metres: median depth of the points, from endoscopes to landscapes


def beside(baseline: float) -> np.ndarray:
    """right_from_left 4x4 of a rectified pair whose right camera is `baseline` metres to the right of the left one."""
    pose = np.eye(4)
    pose[0, 3] = -baseline
    return pose


def check_stereo_pose(where: str, pose: np.ndarray, side: str) -> None:
    """Raise InputError, naming `where`, for a pose that the other camera of a rectified pair cannot have.

    pose: source_from_target 4x4 (metres) of a target on `side` ("l" or "r") and the other camera as its source.
    """
    x, y, z = pose[:3, 3]
    length = float(np.linalg.norm(pose[:3, 3]))
    place = f"the second camera is at x {x:.4g}, y {y:.4g}, z {z:.4g} m"
    if not length >= SHORTEST:  # which nan is not
        raise InputError(
            f"{where}: {place}: a stereo baseline of {length:.3g} m shows no depth; correct the calibration (metres), "
            "or take s out of data.frames"
        )
    if max(abs(y), abs(z)) > OFF_AXIS * length:
        raise InputError(f"{where}: {place}, not beside the first one along x; give the calibration of rectified pairs")
    if abs(pose[:3, :3] - np.eye(3)).max() > TURNED:
        raise InputError(f"{where}: the two cameras are turned against each other; rectify the pairs")
    if (x > 0) == (side == "l"):
        raise InputError(
            f"{where}: by the calibration the right camera is to the left of the left one ({abs(x):.4g} m): the sides "
            "are swapped; exchange the two cameras in it, or change the sign of the baseline"
        )


def check_baselines(root: str, poses: Mapping[Hashable, Tensor]) -> None:
    """Raise InputError where a second camera is farther away than any pair's, which is no metres.

    root: of the data, for the message; poses: 4x4 source_from_target by camera, as `FrameDataset.stereo_poses`.
    """
    for camera, pose in poses.items():
        length = float(pose[:3, 3].norm())
        if length > LONGEST:
            units = likely_units(length) or list(UNITS)
            raise InputError(
                f"{root}: the stereo baseline of {name_of(camera)} is {length:.4g} m; is it in "
                f"{' or '.join(units)}? Write it in metres; python -m featdepth.doctor compares depths"
            )


def likely_units(length: float, depth: float | None = None) -> list[str]:
    """In which units a baseline that was taken for `length` metres would be a usual one.

    depth: metres to the median point if it were; those in which the point is no usual place are left out.
    """
    usual = [unit for unit, count in UNITS.items() if USUAL_BASELINE[0] <= length / count <= USUAL_BASELINE[1]]
    return [unit for unit in usual if depth is None or NEAREST <= depth / UNITS[unit] <= FARTHEST]


def name_of(camera: object) -> str:
    """A data set's camera in words: the names that it is found by."""
    return " ".join(map(str, camera)) if isinstance(camera, tuple) else str(camera)
