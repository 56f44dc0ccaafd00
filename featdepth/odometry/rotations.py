"""Rotations as float64 numpy arrays `[N, 3, 3]`: checked, repaired, measured, and as quaternions."""

from __future__ import annotations

import numpy as np


def is_rotation(matrices: np.ndarray, tolerance: float = 0.01) -> np.ndarray:
    """Which of `matrices` `[N, 3, 3]` are rotations, as files of a few digits have them: bool `[N]`."""
    products = matrices @ matrices.transpose(0, 2, 1)
    return (abs(products - np.eye(3)) <= tolerance).all((1, 2)) & (np.linalg.det(matrices) > 0)


def nearest_rotations(matrices: np.ndarray) -> np.ndarray:
    """The rotations `[N, 3, 3]` nearest to `matrices` that are nearly ones."""
    left, _, right = np.linalg.svd(matrices)
    return left @ right


def rotation_angles(rotations: np.ndarray) -> np.ndarray:
    """By how much `rotations` `[N, 3, 3]` turn: radians `[N]`, 0 to pi; exact for small angles too."""
    return np.arctan2(np.linalg.norm(axes(rotations), axis=1), np.trace(rotations, axis1=1, axis2=2) - 1)


def axes(rotations: np.ndarray) -> np.ndarray:
    """The axes `[N, 3]` of `rotations`, as long as twice the sine of the angle."""
    r = rotations
    return np.stack([r[:, 2, 1] - r[:, 1, 2], r[:, 0, 2] - r[:, 2, 0], r[:, 1, 0] - r[:, 0, 1]], axis=1)


def quaternions_from_rotations(rotations: np.ndarray) -> np.ndarray:
    """Unit quaternions `[N, 4]` (x, y, z, w), w >= 0, of rotations `[N, 3, 3]`; of what is nearly one, the nearest.

    They are eigenvectors, of the largest eigenvalue, of symmetric 4x4 matrices (Bar-Itzhack 2000): no angle is special.
    """
    trace = np.trace(rotations, axis1=1, axis2=2)
    matrices = np.empty((len(rotations), 4, 4))
    matrices[:, :3, :3] = rotations + rotations.transpose(0, 2, 1) - trace[:, None, None] * np.eye(3)
    matrices[:, :3, 3] = matrices[:, 3, :3] = axes(rotations)
    matrices[:, 3, 3] = trace
    quaternions = np.linalg.eigh(matrices)[1][:, :, -1]
    return np.where(quaternions[:, 3:] < 0, -quaternions, quaternions)
