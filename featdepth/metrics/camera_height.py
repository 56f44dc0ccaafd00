"""Metric scale from the height at which the camera was mounted: how high is it above the ground that the depth shows?

A plane n · p = h seen by a camera has the inverse depth (n / h) · ray, ray = K^-1 (x, y, 1): linear in the pixel; and
q = n / h solves q · p = 1 for all points p of the plane. So a plane is three numbers, fitted by linear least squares
in relative errors of depth, and its distance from the camera is 1 / |q|, in the unit of the depth.
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from featdepth.geometry import backproject

# The part of the image in which the ground is looked for: below the first share of its height, and between these
# shares of its width, where a road is free of pavements and parked cars.
TOP, LEFT, RIGHT = 0.6, 0.2, 0.8
MOST_POINTS = 4000  # evenly spread over that part
DRAWS = 300  # planes through three points: with 40 % of the points on the ground, nineteen of them are
TOLERANCE = 0.1  # of the depth: how far points on the ground may be from the plane
LEAST_SHARE = 0.4  # of the points must be on the ground
STEEPEST = math.cos(math.radians(30))  # the ground's normal is at most 30 degrees from the image's vertical
REFITS = 5


def ground_height(depth: Tensor, intrinsics: Tensor) -> float:
    """Height of the camera above the ground, in the unit of `depth` `[1, h, w]`, seen with `intrinsics` `[3, 3]`.

    The ground is the plane that explains most of the lower middle of the image: the best of planes through three points
    drawn at random (RANSAC; the same for the same input), fitted again to the points close to it. nan where that is
    less than 40 % of them, as in an image without a ground.
    """
    height, width = depth.shape[-2:]
    points = backproject(depth[None].double().cpu(), intrinsics[None].double().cpu())[0].unflatten(1, (height, width))
    part = points[:, int(TOP * height) :, int(LEFT * width) : int(RIGHT * width)].flatten(1).numpy().T
    part = part[:: -(-len(part) // MOST_POINTS)]
    plane = most_agreed(part)
    for _ in range(REFITS):
        near = is_near(part, plane)
        if near.mean() < LEAST_SHARE:
            return math.nan
        plane = np.linalg.lstsq(part[near], np.ones(near.sum()), rcond=None)[0]
    return float(1 / np.linalg.norm(plane)) if is_level(plane) else math.nan


def most_agreed(points: np.ndarray) -> np.ndarray:
    """Of level planes q `[3]` through three of the points `[N, 3]`, the one with most of them nearby; 0 for none."""
    drawn = np.random.default_rng(0).integers(len(points), size=(DRAWS, 3))
    corners = points[drawn]
    corners = corners[abs(np.linalg.det(corners)) > 1e-9 * np.prod(np.linalg.norm(corners, axis=2), axis=1)]
    planes = np.linalg.solve(corners, np.ones((len(corners), 3, 1)))[..., 0]
    planes = np.concatenate([planes[is_level(planes)], np.zeros((1, 3))])
    return planes[is_near(points, planes).sum(-1).argmax()]


def is_near(points: np.ndarray, planes: np.ndarray) -> np.ndarray:
    """Which points `[N, 3]` are on the planes q `[..., 3]`, within the tolerance: bool `[..., N]`."""
    return abs(planes @ points.T - 1) < TOLERANCE


def is_level(planes: np.ndarray) -> np.ndarray:
    """Which planes q `[..., 3]` lie below the camera like a ground (camera axes: y is down): bool `[...]`."""
    return planes[..., 1] > STEEPEST * np.linalg.norm(planes, axis=-1)
