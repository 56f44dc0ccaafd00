"""Trajectories: poses from positions and quaternions, and between the times at which they were measured."""

from __future__ import annotations

import numpy as np


def poses_from_quaternions(positions: np.ndarray, quaternions: np.ndarray) -> np.ndarray:
    """Rigid transforms `[N, 4, 4]` of positions `[N, 3]` and quaternions `[N, 4]` (x, y, z, w) of any length but 0."""
    x, y, z, w = (quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True)).T
    poses = np.tile(np.eye(4), (len(positions), 1, 1))
    poses[:, 0, :3] = np.stack([1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)], axis=1)
    poses[:, 1, :3] = np.stack([2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)], axis=1)
    poses[:, 2, :3] = np.stack([2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)], axis=1)
    poses[:, :3, 3] = positions
    return poses


def interpolate_poses(
    times: np.ndarray, positions: np.ndarray, quaternions: np.ndarray, wanted: np.ndarray, reach: float
) -> dict[int, np.ndarray]:
    """Poses 4x4 at the `wanted` times, by index; none where the nearest measured one is more than `reach` s away.

    times: `[N]` (seconds) at which `positions` `[N, 3]` and `quaternions` `[N, 4]` (x, y, z, w) were measured.
    Positions are interpolated linearly and rotations along the shortest arc; nothing is extrapolated.
    """
    times, order = np.unique(times, return_index=True)
    if len(times) < 2:
        return {}
    positions = positions[order]
    quaternions = quaternions[order] / np.linalg.norm(quaternions[order], axis=1, keepdims=True)
    after = np.searchsorted(times, wanted).clip(1, len(times) - 1)
    before = after - 1
    share = ((wanted - times[before]) / (times[after] - times[before]))[:, None]
    nearest = np.minimum(abs(wanted - times[before]), abs(times[after] - wanted))
    is_known = (share[:, 0] >= 0) & (share[:, 0] <= 1) & (nearest <= reach)

    position = (1 - share) * positions[before] + share * positions[after]
    cosine = (quaternions[before] * quaternions[after]).sum(axis=1, keepdims=True)
    sign = np.where(cosine < 0, -1.0, 1.0)  # q and -q are the same rotation
    arc = np.arccos(np.minimum(abs(cosine), 1.0)) / np.pi
    # sin((1 - s) a) / sin(a) and sin(s a) / sin(a), in a form that holds for a = 0.
    quaternion = (1 - share) * np.sinc((1 - share) * arc) * quaternions[before]
    quaternion += share * np.sinc(share * arc) * sign * quaternions[after]
    poses = poses_from_quaternions(position[is_known], quaternion[is_known])
    return dict(zip(np.flatnonzero(is_known).tolist(), poses, strict=True))
