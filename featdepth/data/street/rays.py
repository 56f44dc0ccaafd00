"""Ray casting in a synthetic scene: what each ray of a camera or a laser scanner meets first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from featdepth.data.street.scene import Solids

SKY, GROUND = -1, 0  # surface numbers; blocks and rounds follow
NEAREST, FARTHEST = 0.1, 2000.0  # metres


@dataclass
class Rays:
    """A grid [h, w] of rays from one point.

    Direction(row, column) = scale[row] * across[column] + down[row], in the world frame.
    """

    origin: np.ndarray  # [3]
    across: np.ndarray  # [w, 3]
    down: np.ndarray  # [h, 3]
    scale: np.ndarray  # [h]
    rotation: np.ndarray  # world_from_sensor [3, 3]
    window: Callable[
        [np.ndarray], np.ndarray
    ]  # corners [N, 8, 3], sensor's frame -> rows from, to, columns from, to [N, 4]

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.down), len(self.across)

    def dot(self, vector: np.ndarray, rows: slice = slice(None), columns: slice = slice(None)) -> np.ndarray:
        """direction · `vector` [3] for a window of rays, float32 [h, w]; without BLAS, to be reproducible."""
        across = (self.across[columns] * vector).sum(1, dtype=np.float64).astype(np.float32)
        down = (self.down[rows] * vector).sum(1, dtype=np.float64).astype(np.float32)
        return self.scale[rows, None] * across + down[:, None]


def camera_rays(intrinsics: np.ndarray, height: int, width: int, pose: np.ndarray, samples: int = 1) -> Rays:
    """The rays of a pinhole camera (x right, y down, z forward), `samples` squared a pixel; their lengths are depths.

    intrinsics: [3, 3], pixel centres at integers from 0. pose: world_from_camera [4, 4].
    """
    columns = ((np.arange(width * samples) + 0.5) / samples - 0.5 - intrinsics[0, 2]) / intrinsics[0, 0]
    rows = ((np.arange(height * samples) + 0.5) / samples - 0.5 - intrinsics[1, 2]) / intrinsics[1, 1]

    def window(corners: np.ndarray) -> np.ndarray:
        x, y, z = np.moveaxis(corners, -1, 0)
        away = z.max(1) < NEAREST
        z = np.maximum(z, NEAREST)
        x, y = x / z, y / z
        left, right = np.searchsorted(columns, x.min(1)), np.searchsorted(columns, x.max(1))
        top, bottom = np.searchsorted(rows, y.min(1)), np.searchsorted(rows, y.max(1))
        return np.stack([top, np.where(away, top, bottom), left, right], 1)

    right, down, forward = pose[:3, :3].T
    scale = np.ones(len(rows), np.float32)
    return Rays(pose[:3, 3], columns[:, None] * right, rows[:, None] * down + forward, scale, pose[:3, :3], window)


def scanner_rays(elevations: np.ndarray, azimuths: np.ndarray, pose: np.ndarray) -> Rays:
    """The rays of a laser scanner (x forward, y left, z up), of unit length.

    elevations, azimuths: radians; azimuths ascending. pose: world_from_scanner [4, 4].
    """

    def window(corners: np.ndarray) -> np.ndarray:
        angles = np.arctan2(corners[..., 1], corners[..., 0])
        low, high = angles.min(1), angles.max(1)
        around = high - low > np.pi  # it stands across the direction backwards
        first, end = np.searchsorted(azimuths, low), np.searchsorted(azimuths, high)
        rows = np.full(len(corners), len(elevations))
        return np.stack([0 * rows, rows, np.where(around, 0, first), np.where(around, len(azimuths), end)], 1)

    forward, left, up = pose[:3, :3].T
    across = np.cos(azimuths)[:, None] * forward + np.sin(azimuths)[:, None] * left
    scale = np.cos(elevations).astype(np.float32)
    return Rays(pose[:3, 3], across, np.sin(elevations)[:, None] * up, scale, pose[:3, :3], window)


def cast(rays: Rays, solids: Solids) -> tuple[np.ndarray, np.ndarray]:
    """First hits: length along each ray (float32 [h, w], inf: sky) and surface number (int32 [h, w]).

    Surface 1 + 6 i + j is side j of block i; rounds follow.
    """
    falling = rays.dot(np.array([0, 0, 1.0]))
    with np.errstate(divide="ignore"):
        length = np.float32(-rays.origin[2]) / falling
    length[(falling >= 0) | (length > FARTHEST)] = np.inf
    surface = np.where(np.isinf(length), SKY, GROUND).astype(np.int32)
    blocks = len(solids.planes)
    for index, rows, columns in visible(rays, solids, length):
        if index < blocks:
            near, face = cast_block(rays, solids.planes[index], rows, columns)
            face += 1 + 6 * index
        else:
            near = cast_round(rays, solids.round_shapes[index - blocks], rows, columns)
            face = np.full(near.shape, 1 + 5 * blocks + index, np.int32)
        closer = near < length[rows, columns]
        np.copyto(length[rows, columns], near, where=closer)
        np.copyto(surface[rows, columns], face, where=closer)
    return length, surface


def visible(rays: Rays, solids: Solids, length: np.ndarray) -> Iterator[tuple[int, slice, slice]]:
    """Yields (number, rows, columns) of the solids that may be hit, near ones first, without those already hidden."""
    x, y, _, inverse_x, inverse_y = solids.round_shapes.T[:5]
    signs = np.array([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (0, 1)])
    boxes = np.stack(
        [
            x[:, None] + signs[:, 0] / inverse_x[:, None],
            y[:, None] + signs[:, 1] / inverse_y[:, None],
            np.where(signs[:, 2], round_top(solids)[:, None], round_bottom(solids)[:, None]),
        ],
        axis=-1,
    )
    offsets = np.concatenate([solids.corners, boxes]) - rays.origin
    local = np.einsum("nkj,ji->nki", offsets, rays.rotation)
    windows = np.clip(rays.window(local), 0, np.array(rays.shape).repeat(2))
    middle, distance = offsets.mean(1), np.linalg.norm(offsets, axis=-1)
    reach = np.linalg.norm(offsets - middle[:, None], axis=-1).max(1)
    corners = rays.scale[[0, -1], None, None] * rays.across[None, [0, -1]] + rays.down[[0, -1], None]
    closest = (np.linalg.norm(middle, axis=-1) - reach) / np.linalg.norm(
        corners, axis=-1
    ).max()  # as a length along rays
    for index in np.argsort(distance.min(1), kind="stable"):
        top, bottom, left, right = windows[index]
        if top >= bottom or left >= right:
            continue
        rows, columns = slice(top, bottom), slice(left, right)
        if length[rows, columns].max() > closest[index]:
            yield index, rows, columns


def round_bottom(solids: Solids) -> np.ndarray:
    """Lowest z of each round [M]."""
    _, _, z, _, _, inverse, low, _ = solids.round_shapes.T
    return np.where(inverse > 0, np.maximum(low, z - 1 / np.where(inverse > 0, inverse, 1)), low)


def round_top(solids: Solids) -> np.ndarray:
    """Highest z of each round [M]."""
    _, _, z, _, _, inverse, _, high = solids.round_shapes.T
    return np.where(inverse > 0, np.minimum(high, z + 1 / np.where(inverse > 0, inverse, 1)), high)


def cast_block(rays: Rays, planes: np.ndarray, rows: slice, columns: slice) -> tuple[np.ndarray, np.ndarray]:
    """Entry length into a convex block (inf: missed) and the side 0..5 that is entered, for a window of rays."""
    heights = planes[:, :3] @ rays.origin + planes[:, 3]
    enter = leave = face = None
    with np.errstate(divide="ignore", invalid="ignore"):
        for side, height in enumerate(heights):
            slope = rays.dot(planes[side, :3], rows, columns)
            length = np.float32(-height) / slope
            if height > 0:  # seen from outside: rays must come in through it
                length = np.where(slope < 0, length, np.float32(np.inf))
                if enter is None:
                    enter, face = length, np.full(length.shape, side, np.int32)
                else:
                    np.copyto(face, side, where=length > enter)
                    np.maximum(enter, length, out=enter)
            else:
                length = np.where(slope > 0, length, np.float32(np.inf))
                leave = length if leave is None else np.minimum(leave, length, out=leave)
    if enter is None:
        raise ValueError("the viewer is inside a block")
    if leave is not None:
        enter[enter >= leave] = np.inf
    return enter, face


def cast_round(rays: Rays, shape: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
    """Length to an ellipsoid or cylinder (inf: missed) for a window of rays."""
    inverse, (low, high) = shape[3:6], shape[6:]
    start = (rays.origin - shape[:3]) * inverse
    steps = [rays.dot(inverse[axis] * np.eye(3)[axis], rows, columns) for axis in range(3) if inverse[axis] > 0]
    squared = sum(step * step for step in steps)
    along = sum(step * np.float32(value) for step, value in zip(steps, start[inverse > 0], strict=True))
    inside = along * along - squared * np.float32(start @ start - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        length = (-along - np.sqrt(np.maximum(inside, 0))) / squared
    hit_z = np.float32(rays.origin[2]) + length * rays.dot(np.array([0, 0, 1.0]), rows, columns)
    return np.where((inside > 0) & (length > NEAREST) & (hit_z > low) & (hit_z < high), length, np.float32(np.inf))
