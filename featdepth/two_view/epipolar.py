"""The algebra of two views: the rotation between them, and how far matches are from an epipolar geometry in pixels.

Pixels are (x, y); rays are their directions (x, y, 1) in camera axes; rotations and translations are other_from_one.
"""

from __future__ import annotations

import numpy as np
import torch

from featdepth.geometry import pose_from_vector
from featdepth.two_view.matching import Matches

SCALE = 0.5  # pixels: errors well above it count as outliers
ROTATION_STEPS = 10


def homogeneous(pixels: np.ndarray) -> np.ndarray:
    """Pixels `[N, 2]` as (x, y, 1) `[N, 3]`."""
    return np.concatenate([pixels, np.ones((len(pixels), 1))], axis=1)


def rays(pixels: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """The directions (x, y, 1) `[N, 3]` in which a camera sees its pixels `[N, 2]`."""
    return homogeneous(pixels) @ np.linalg.inv(intrinsics).T


def best_rotation(one: np.ndarray, other: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """The rotation 3x3, other_from_one, that explains most of the rays `[N, 3]`: smallest sum of distances."""
    other_pixels = (other @ intrinsics.T)[:, :2]
    one, other = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (one, other))
    weights = np.ones(len(one))
    for _ in range(ROTATION_STEPS):
        u, _, v = np.linalg.svd((other * weights[:, None]).T @ one)
        rotation = u @ np.diag([1, 1, np.linalg.det(u @ v)]) @ v
        weights = 1 / np.maximum(rotation_residuals(rotation, one, other_pixels, intrinsics), SCALE)
    return rotation


def rotation_residuals(
    rotation: np.ndarray, one: np.ndarray, other_pixels: np.ndarray, intrinsics: np.ndarray
) -> np.ndarray:
    """Distances in pixels `[N]` between `other_pixels` `[N, 2]` and where a rotation takes the rays `one` `[N, 3]`."""
    turned = one @ rotation.T @ intrinsics.T
    return np.linalg.norm(turned[:, :2] / np.maximum(turned[:, 2:], 1e-6) - other_pixels, axis=1)


def sampson(matrices: np.ndarray, matches: Matches) -> np.ndarray:
    """Signed distances `[..., N]` (pixels) of matches from fundamental matrices `[..., 3, 3]`, to first order."""
    one, other = homogeneous(matches.one), homogeneous(matches.other)
    lines_other = one @ matrices.swapaxes(-1, -2)
    lines_one = other @ matrices
    squared = (lines_other[..., :2] ** 2).sum(-1) + (lines_one[..., :2] ** 2).sum(-1)
    return (other * lines_other).sum(-1) / np.sqrt(np.maximum(squared, 1e-30))


def epipolar_errors(
    rotation: np.ndarray, translation: np.ndarray, intrinsics: np.ndarray, matches: Matches
) -> np.ndarray:
    """`sampson` `[..., N]` of rotations `[..., 3, 3]` and translations `[..., 3]`, other_from_one."""
    inverse = np.linalg.inv(intrinsics)
    return sampson(inverse.T @ essential_of(rotation, translation) @ inverse, matches)


def essential_of(rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """The essential matrices `[..., 3, 3]` of rotations `[..., 3, 3]` and translations `[..., 3]`, other_from_one."""
    # Column by column: the cross product of the translation with the rotation.
    return np.cross(translation[..., None, :], rotation.swapaxes(-1, -2)).swapaxes(-1, -2)


def robust_cost(errors: np.ndarray) -> np.ndarray:
    """Mean `[...]` of errors `[..., N]` (pixels) of which large ones hardly count: log(1 + (error / SCALE)^2)."""
    return np.log1p((errors / SCALE) ** 2).mean(-1)


def refine(
    rotation: np.ndarray,
    translation: np.ndarray,
    intrinsics: np.ndarray,
    matches: Matches,
    steps: int,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Rotation and unit translation nearby with the smallest `robust_cost`, and that cost (Levenberg-Marquardt)."""
    damping, step = 1e-3, 1e-6
    errors = epipolar_errors(rotation, translation, intrinsics, matches)
    cost = robust_cost(errors)
    for _ in range(steps):
        moved = [move(rotation, translation, step * direction) for direction in np.eye(5)]
        nearby = epipolar_errors(*map(np.stack, zip(*moved, strict=True)), intrinsics, matches)
        slopes = (nearby - errors) / step
        weighted = slopes / (1 + (errors / SCALE) ** 2)
        normal = weighted @ slopes.T
        change = np.linalg.solve(normal + damping * np.diag(normal.diagonal() + 1e-9), -weighted @ errors)
        candidate = move(rotation, translation, change)
        candidate_errors = epipolar_errors(*candidate, intrinsics, matches)
        candidate_cost = robust_cost(candidate_errors)
        if candidate_cost >= cost:
            damping *= 10
            continue
        settled = cost - candidate_cost < 1e-6 * cost
        (rotation, translation), errors, cost = candidate, candidate_errors, candidate_cost
        damping /= 10
        if settled:
            break
    return rotation, translation, float(cost)


def move(rotation: np.ndarray, translation: np.ndarray, change: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotation and unit translation changed by `[5]`: a rotation vector, then along two directions across."""
    across = np.linalg.svd(translation[None])[2][1:]
    moved = translation + change[3:] @ across
    return rotation_of(change[:3]) @ rotation, moved / np.linalg.norm(moved)


def rotation_of(vector: np.ndarray) -> np.ndarray:
    """The rotation 3x3 of a rotation vector `[3]` (radians)."""
    vector = torch.from_numpy(vector)
    return pose_from_vector(vector, torch.zeros_like(vector))[:3, :3].numpy()
