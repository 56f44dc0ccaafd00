"""How well depths explain where points are seen in a second frame, whatever the camera's motion was."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from featdepth.two_view.epipolar import best_rotation, rays, rotation_of
from featdepth.two_view.matching import Matches

STEPS = 15
SETTLED = 1e-3  # part of the cost: a step that gains less is the last
SCALE = 0.5  # pixels: errors well above it count little
CLOSEST = 0.05  # of the median depth: where points behind the camera are taken to be


class Fit(NamedTuple):
    """The camera's motion that makes depths explain matches best."""

    rotation: np.ndarray  # 3x3, other_from_one
    translation: np.ndarray  # [3], in the depths' unit
    misfit: float  # pixels: median distance between where points are seen and where they should be


def fit_motion(matches: Matches, depths: np.ndarray, intrinsics: np.ndarray) -> Fit:
    """The motion for which points of `depths` `[N]` at `matches.one` project nearest to `matches.other`.

    Robust Gauss-Newton steps with damping, from the best rotation.
    """
    unit = float(np.median(depths))
    one, other = rays(matches.one, intrinsics), rays(matches.other, intrinsics)
    points = one * depths[:, None] / unit
    rotation, translation = best_rotation(one, other, intrinsics), np.zeros(3)
    residuals = errors(points, rotation, translation, intrinsics, matches)
    damping = 1e-3
    for _ in range(STEPS):
        slopes = derivatives(points, rotation, translation, intrinsics)
        weights = 1 / (1 + (residuals**2).sum(1) / SCALE**2)
        weighted = slopes * weights[:, None, None]
        normal = np.einsum("nij,nik->jk", weighted, slopes)
        gradient = np.einsum("nij,ni->j", weighted, residuals)
        change = np.linalg.solve(normal + damping * np.diag(normal.diagonal() + 1e-9), -gradient)
        turn = rotation_of(change[:3])
        moved = turn @ rotation, turn @ translation + change[3:]
        moved_residuals = errors(points, *moved, intrinsics, matches)
        gain = 1 - cost(moved_residuals) / max(cost(residuals), 1e-9)
        if gain > 0:
            (rotation, translation), residuals = moved, moved_residuals
        if 0 <= gain < SETTLED:
            break
        damping = max(damping / 10, 1e-9) if gain > 0 else damping * 10
    return Fit(rotation, translation * unit, float(np.median(np.linalg.norm(residuals, axis=1))))


def cost(residuals: np.ndarray) -> float:
    """Sum over errors `[N, 2]` (pixels) of which large ones hardly count."""
    return float(np.log1p((residuals**2).sum(1) / SCALE**2).sum())


def moved_points(points: np.ndarray, rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """Points `[N, 3]` in the other camera, none of them behind it."""
    moved = points @ rotation.T + translation
    moved[:, 2] = np.maximum(moved[:, 2], CLOSEST)
    return moved


def errors(
    points: np.ndarray, rotation: np.ndarray, translation: np.ndarray, intrinsics: np.ndarray, matches: Matches
) -> np.ndarray:
    """Pixels `[N, 2]` from where the other frame shows points to where it should."""
    projected = moved_points(points, rotation, translation) @ intrinsics.T
    return projected[:, :2] / projected[:, 2:] - matches.other


def derivatives(
    points: np.ndarray, rotation: np.ndarray, translation: np.ndarray, intrinsics: np.ndarray
) -> np.ndarray:
    """Of the projections `[N, 2]` along a small turn and shift of the other camera's points: `[N, 2, 6]`."""
    x, y, z = moved_points(points, rotation, translation).T
    zero = np.zeros_like(z)
    along = np.stack([np.stack([1 / z, zero, -x / z**2], 1), np.stack([zero, 1 / z, -y / z**2], 1)], 1)
    along = np.einsum("ij,njk->nik", intrinsics[:2, :2], along)
    # A turn by w moves a point p by w x p = -[p]x w.
    cross = np.stack(
        [np.stack([zero, z, -y], 1), np.stack([-z, zero, x], 1), np.stack([y, -x, zero], 1)],
        axis=1,
    )
    return np.concatenate([along @ cross, along], axis=2)
