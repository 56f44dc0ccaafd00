"""One point cloud of a sequence: depth maps aligned in scale, checked against each other, averaged in voxels."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain, repeat
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from featdepth.console import count
from featdepth.errors import InputError
from featdepth.geometry import project, sample
from featdepth.predict.point_cloud import GRAZING_ANGLE, PointCloud, camera_points, has_depth, is_grazing

REACH = 2  # views before, and after, that a view is checked against
MOST_PIXELS = 1 << 18  # of a view; of larger ones every second, third ... row and column is used
MOST_POINTS = 2_000_000
VOXEL = 0.01  # side of a voxel, in median depths of the first view, unless given
MOST_RATIOS = 1 << 14  # pixels that the scale of a view is estimated from
REFITS = 10
KNOWN_MOTION = 0.01  # spread of motion / depth below which the depths say no more of the motion than the poses do
CELL_BITS = 21  # of a voxel's place on one axis
BUFFERED = 1_000_000  # points that wait to be merged


class DepthView(NamedTuple):
    """One frame of a sequence."""

    depth: np.ndarray  # [H, W]
    image: np.ndarray  # uint8 [H, W, 3]
    intrinsics: np.ndarray  # 3x3, pixels at that size
    world_from_camera: np.ndarray  # 4x4, translation in the unit of the depth


class FusedCloud(NamedTuple):
    """A point cloud in the axes of the first view's camera."""

    points: np.ndarray  # float32 [N, 3]
    colours: np.ndarray  # uint8 [N, 3]
    scales: np.ndarray  # float64, of each view: what its depth was multiplied by
    voxel: float  # side of a voxel, in the unit of the depth
    note: str | None  # what was left out for the limit of points


class PreparedView(NamedTuple):
    """A view, ready to be compared with others."""

    points: Tensor  # [1, 3, N], camera axes
    inverse_depth: Tensor  # [1, 1, H, W]; 0: none
    colours: np.ndarray  # [N, 3]
    usable: np.ndarray  # bool [N]: may become part of the cloud
    intrinsics: Tensor  # [1, 3, 3]
    first_from_camera: np.ndarray  # 4x4
    scale: float = 1.0


def fuse(
    views: Iterable[DepthView],
    align: bool = False,
    voxel: float | None = None,
    farthest: float | None = None,
    least_views: int = 3,
    tolerance: float = 0.1,
    most_points: int = MOST_POINTS,
    grazing_angle: float | None = GRAZING_ANGLE,
) -> FusedCloud:
    """One cloud of the `views` of a sequence, in the first camera's axes. Views are read one by one, few are held.

    align: multiply each view's depth by the factor that makes it agree with the view before it, for models whose scale
    varies from frame to frame. voxel: side of the voxels whose points are averaged (None: VOXEL median depths of the
    first view). A pixel counts when `least_views` views, itself and the REACH before and after it, agree within
    `tolerance` (relative) about the depth of its point, or all of them in a shorter sequence. It is no farther than
    `farthest` and no jump of depth (see `depth_to_points`). Where there would be more than `most_points`, voxels double
    their side until there are not, and `note` says so. Raises InputError where there is no view or nothing agrees.
    """
    scales: list[float] = []
    grid: VoxelGrid | None = None
    for seen, neighbours in with_neighbours(aligned(prepared(views, farthest, grazing_angle), align), REACH):
        scales.append(seen.scale)
        grid = grid or VoxelGrid(voxel or VOXEL * median_depth(seen), most_points)
        agreeing = 1 + sum(agrees(seen, other, tolerance) for other in neighbours)
        kept = seen.usable & (agreeing >= min(least_views, 1 + len(neighbours)))
        points = seen.scale * seen.points[0].T.numpy()[kept].astype(np.float64)
        grid.add(points @ seen.first_from_camera[:3, :3].T + seen.first_from_camera[:3, 3], seen.colours[kept])
    if grid is None:
        raise InputError("a fused point cloud needs at least one frame")
    cloud = grid.cloud()
    if len(cloud.points) == 0:
        raise InputError(
            f"the depths of {count(len(scales), 'frame')} agree nowhere within {tolerance:.0%}: no fused point cloud; "
            "poses and depths have to be in the same unit"
        )
    return FusedCloud(*cloud, np.array(scales), grid.side, grid.note())


def prepared(views: Iterable[DepthView], farthest: float | None, grazing_angle: float | None) -> Iterator[PreparedView]:
    """The views as tensors, in the axes of the first; large ones at every second, third ... row and column."""
    camera_from_world = None
    for view in views:
        if camera_from_world is None:
            camera_from_world = np.linalg.inv(view.world_from_camera)
        step = int(np.ceil(np.sqrt(view.depth.size / MOST_PIXELS)))
        depth, image = view.depth[::step, ::step], view.image[::step, ::step]
        # Pixel i of what is left is pixel step * i of the view.
        intrinsics = view.intrinsics / np.array([[step], [step], [1.0]])
        points, known = camera_points(depth, intrinsics), has_depth(depth)
        usable = known & (depth <= (np.inf if farthest is None else farthest))
        if grazing_angle is not None:
            usable &= ~is_grazing(points, grazing_angle)
        inverse = np.divide(1.0, depth, out=np.zeros(depth.shape), where=known)
        yield PreparedView(
            torch.from_numpy(points.reshape(1, -1, 3)).transpose(1, 2),
            torch.from_numpy(inverse).float()[None, None],
            image.reshape(-1, 3),
            usable.ravel(),
            torch.from_numpy(intrinsics).float()[None],
            camera_from_world @ view.world_from_camera,
        )


def aligned(views: Iterable[PreparedView], align: bool) -> Iterator[PreparedView]:
    """The views with their scales: products of the ratios from view to view, the first view's being 1."""
    previous, scale = None, 1.0
    for view in views:
        if align and previous is not None:
            scale *= scale_ratio(previous, view)
        yield view._replace(scale=scale)
        previous = view


def scale_ratio(previous: PreparedView, view: PreparedView) -> float:
    """What the depth of `view` has to be multiplied by to agree with that of the view before it; 1 where unknown.

    A point at depth z, after the turn of the camera and before its motion t along the axis, is seen by `view` at a
    depth of z (1 + g t / z) / ratio. The true length g of the motion, in units of t, is fitted too: taken for granted,
    a motion that is 10 % wrong would change the scale a little at each view, always in the same direction.
    """
    step = max(1, previous.points.shape[2] // MOST_RATIOS)
    points = previous.points[:, :, ::step]
    view_from_previous = np.linalg.inv(view.first_from_camera) @ previous.first_from_camera
    turned = torch.from_numpy(view_from_previous[2, :3]).float() @ points[0]
    _, seen = look_up(points, view, view_from_previous)
    turned, seen = turned.numpy().astype(float), seen.numpy().astype(float)
    valid = np.isfinite(seen) & (turned > 0)
    if not valid.any():
        return 1.0
    # The nearer half: what is predicted at one depth in every view, as the sky often is, seems to come along.
    valid &= turned <= np.median(turned[valid])
    y, motion = seen[valid] / turned[valid], view_from_previous[2, 3] / turned[valid]
    # Least absolute deviations of y - (a + b t / z), by weighted least squares; b = a, so g = 1, where t is small.
    columns, weights = np.stack([np.ones_like(motion), motion], 1), np.ones_like(y)
    prior = KNOWN_MOTION**2 * np.array([[1.0, -1.0], [-1.0, 1.0]])
    for _ in range(REFITS):
        weighted = columns * weights[:, None]
        fit = np.linalg.solve(weighted.T @ columns + weights.sum() * prior, weighted.T @ y)
        weights = 1 / np.maximum(np.abs(y - columns @ fit), 1e-3)
    return float(1 / fit[0])


def look_up(points: Tensor, view: PreparedView, view_from_points: np.ndarray) -> tuple[Tensor, Tensor]:
    """Depths `[N]` of `points` `[1, 3, N]` in the camera of `view`, and those that `view` has where it sees them.

    The second, without the view's scale, is NaN where it does not see them or has no depth.
    """
    pose = torch.from_numpy(view_from_points).float()
    expected = pose[2, :3] @ points[0] + pose[2, 3]
    pixels = project(points, view.intrinsics, pose[None])
    # The inverse depth of a plane is linear in the pixels, so that bilinear values of it are exact.
    inverse = sample(view.inverse_depth, pixels[:, :, None])[0, 0, 0]
    x, y = pixels[0]
    height, width = view.inverse_depth.shape[-2:]
    inside = (expected > 0) & (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1) & (inverse > 0)
    return expected, torch.where(inside, 1 / inverse, torch.nan)


def agrees(view: PreparedView, other: PreparedView, tolerance: float) -> np.ndarray:
    """Whether `other` sees the points of `view` at their depth, within `tolerance` (relative): bool `[N]`."""
    expected, seen = look_up(
        view.points * view.scale, other, np.linalg.inv(other.first_from_camera) @ view.first_from_camera
    )
    return ((seen * other.scale / expected - 1).abs() <= tolerance).numpy()


def median_depth(view: PreparedView) -> float:
    """The median depth of a view; 1 where it has none."""
    depths = view.points[0, 2][torch.from_numpy(view.usable)]
    return float(depths.median()) if len(depths) else 1.0


def with_neighbours(items: Iterable[PreparedView], reach: int) -> Iterator[tuple[PreparedView, list[PreparedView]]]:
    """Each item with up to `reach` before and up to `reach` after it; no more than these are held."""
    earlier: list[PreparedView] = []
    later: deque[PreparedView | None] = deque()
    for item in chain(items, repeat(None, reach)):
        later.append(item)
        if len(later) > reach and later[0] is not None:
            current = later.popleft()
            yield current, earlier + [each for each in later if each is not None]
            earlier = [*earlier, current][-reach:]


class VoxelGrid:
    """Means of points and colours in cubes of one side; memory grows with the cubes that hold points, up to a limit."""

    def __init__(self, side: float, most_points: int) -> None:
        self.first_side = self.side = float(side)
        self.most_points = most_points
        self.keys = np.empty(0, np.int64)  # of the cubes, sorted
        self.sums = np.empty((0, 7))  # of x, y, z, red, green, blue and the number of points
        self.waiting: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, points: np.ndarray, colours: np.ndarray) -> None:
        """Take in points `[N, 3]` and colours `[N, 3]`. Raises InputError for points too far away for such cubes."""
        cells = np.floor(points / self.side)
        if np.abs(cells).max(initial=0) >= 2 ** (CELL_BITS - 1):
            extent = np.abs(points).max()
            raise InputError(
                f"a point cloud {extent:.3g} wide has no room in voxels of {self.side:.3g}; use larger ones"
            )
        sums = np.concatenate([points, colours, np.ones((len(points), 1))], axis=1)
        self.waiting.append((pack(cells.astype(np.int64)), sums))
        if sum(len(keys) for keys, _ in self.waiting) > BUFFERED:
            self.merge()

    def merge(self) -> None:
        """Join what waits; where there are too many cubes, eight become one, until there are not."""
        keys = np.concatenate([self.keys, *(keys for keys, _ in self.waiting)])
        sums = np.concatenate([self.sums, *(sums for _, sums in self.waiting)])
        self.waiting = []
        self.keys, self.sums = joined(keys, sums)
        while len(self.keys) > self.most_points:
            self.side *= 2
            self.keys, self.sums = joined(pack(unpack(self.keys) >> 1), self.sums)

    def cloud(self) -> PointCloud:
        """The mean point and colour of each cube, in the order of their places."""
        self.merge()
        means = self.sums[:, :6] / self.sums[:, 6:]
        return PointCloud(means[:, :3].astype(np.float32), np.rint(means[:, 3:]).astype(np.uint8))

    def note(self) -> str | None:
        """What was done to keep to the limit of points; None: nothing."""
        if self.side == self.first_side:
            return None
        return f"voxels of {self.side:.3g} instead of {self.first_side:.3g}, for at most {self.most_points} points"


def joined(keys: np.ndarray, sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct `keys` `[N]`, sorted, and the sums of their rows of `sums` `[N, K]`."""
    distinct, place = np.unique(keys, return_inverse=True)
    columns = [np.bincount(place, column, minlength=len(distinct)) for column in sums.T]
    return distinct, np.stack(columns, axis=1)


def pack(cells: np.ndarray) -> np.ndarray:
    """One number `[N]` for the place `[N, 3]` of each voxel."""
    x, y, z = (cells + 2 ** (CELL_BITS - 1)).T
    return (x << 2 * CELL_BITS) | (y << CELL_BITS) | z


def unpack(keys: np.ndarray) -> np.ndarray:
    """The places `[N, 3]` that `pack` made one number of."""
    mask = (1 << CELL_BITS) - 1
    return np.stack([keys >> 2 * CELL_BITS, (keys >> CELL_BITS) & mask, keys & mask], axis=1) - 2 ** (CELL_BITS - 1)
