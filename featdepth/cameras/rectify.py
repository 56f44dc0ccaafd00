"""Stereo rectification: two distorted cameras, turned against each other, as one pinhole camera at two places."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from featdepth.cameras.lenses import Lens, undistort_points
from featdepth.errors import InputError

ROUNDING = 1e-6  # pixels
SMALLEST_PART = 0.25  # of the cameras' height and width that has to be left


class RectifiedPair(NamedTuple):
    """Two pinhole cameras side by side, with equal axes and intrinsics: what one sees in a row, the other does too."""

    size: tuple[int, int]  # height, width of both images, pixels
    intrinsics: np.ndarray  # 3x3 of both, pixel centres at integers
    left_from_rectified: np.ndarray  # 3x3 rotation into the left camera as it was
    right_from_rectified: np.ndarray  # 3x3 rotation into the right camera as it was
    baseline: float  # metres from the left to the right centre


def rectify(left: Lens, right: Lens, right_from_left: np.ndarray) -> RectifiedPair:
    """The rectified cameras of a pair, each turned as little as that takes (Fusiello et al., 2000).

    right_from_left: 4x4 rigid transform, metres. Every rectified pixel lies within both original images, and at their
    mean focal length details keep their size. Raises InputError where the right camera is not to the right of the left
    one, or they look into different directions.
    """
    left_from_rectified, baseline = rectifying_rotation(right_from_left)
    right_from_rectified = right_from_left[:3, :3] @ left_from_rectified
    first, second = view(left, left_from_rectified), view(right, right_from_rectified)
    (x, y), (end_x, end_y) = np.maximum(first[0], second[0]), np.minimum(first[1], second[1])
    focal = np.mean([lens.intrinsics[axis, axis] for lens in (left, right) for axis in (0, 1)])
    width, height = (int(focal * length + ROUNDING) + 1 for length in (end_x - x, end_y - y))
    if height < SMALLEST_PART * left.size[0] or width < SMALLEST_PART * left.size[1]:
        raise InputError("the two cameras see too little in common for a stereo pair; check their calibration")
    intrinsics = np.array([[focal, 0.0, -focal * x], [0.0, focal, -focal * y], [0.0, 0.0, 1.0]])
    return RectifiedPair((height, width), intrinsics, left_from_rectified, right_from_rectified, baseline)


def rectifying_rotation(right_from_left: np.ndarray) -> tuple[np.ndarray, float]:
    """left_from_rectified 3x3 and the baseline (metres).

    Rectified axes: x from the left to the right centre, z as near as possible to the mean of the optical axes.
    """
    rotation, translation = right_from_left[:3, :3], right_from_left[:3, 3]
    right_centre = -rotation.T @ translation
    baseline = float(np.linalg.norm(right_centre))
    if right_centre[0] <= abs(right_centre[1:]).max():
        raise InputError(
            f"the right camera's centre is at {right_centre.round(3).tolist()} (x, y, z in metres) as seen from the "
            "left one, not to its right; check which camera is which, and their calibration"
        )
    x = right_centre / baseline
    y = np.cross([0.0, 0.0, 1.0] + rotation[2], x)
    y /= np.linalg.norm(y)
    return np.column_stack([x, y, np.cross(x, y)]), baseline


def view(lens: Lens, lens_from_rectified: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Top left and bottom right corner (x, y) on the rectified camera's image plane z = 1 of what the lens saw whole.

    The largest rectangle between the four curves that the image's borders become there.
    """
    height, width = lens.size
    rows, columns = np.arange(height, dtype=np.float64), np.arange(width, dtype=np.float64)
    left, right = (border(np.full(height, x), rows, lens, lens_from_rectified)[:, 0] for x in (0.0, width - 1.0))
    top, bottom = (border(columns, np.full(width, y), lens, lens_from_rectified)[:, 1] for y in (0.0, height - 1.0))
    return np.array([left.max(), top.max()]), np.array([right.min(), bottom.min()])


def border(x: np.ndarray, y: np.ndarray, lens: Lens, lens_from_rectified: np.ndarray) -> np.ndarray:
    """Where pixels x, y `[N]` of the lens lie on the rectified camera's image plane, `[N, 2]`."""
    points = undistort_points(np.stack([x, y], axis=1), lens)
    rays = np.column_stack([points, np.ones(len(points))]) @ lens_from_rectified  # rectified_from_lens, row by row
    if not (rays[:, 2] > 0).all():  # nan where the distortion has no inverse
        raise InputError("the cameras look into different directions, or their distortion is no lens's; check both")
    return rays[:, :2] / rays[:, 2:]
