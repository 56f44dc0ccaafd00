"""Point clouds of depth maps, and PLY files of them.

Camera axes: x right, y down, z forward; pixel centres at integers. Coordinates are in the unit of the depth: metres
where the scale is known, else the network's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from featdepth.errors import InputError
from featdepth.files import write_bytes
from featdepth.geometry import backproject

# Degrees between a line of sight and the surface it meets. Below it the "surface" is mostly a ramp that a network draws
# from a near thing to what is behind it. A road seen from 1.65 m is kept up to 95 m.
GRAZING_ANGLE = 1.0
VERTEX = np.dtype([*((axis, "<f4") for axis in "xyz"), *((colour, "u1") for colour in ("red", "green", "blue"))])
PLY_TYPES = {"<f4": "float", "|u1": "uchar"}


class PointCloud(NamedTuple):
    """Coloured points."""

    points: np.ndarray  # float32 [N, 3]
    colours: np.ndarray  # uint8 [N, 3]


def depth_to_points(
    depth: np.ndarray,
    image: np.ndarray,
    intrinsics: np.ndarray,
    farthest: float | None = None,
    grazing_angle: float | None = GRAZING_ANGLE,
) -> PointCloud:
    """The points, in camera axes, that the pixels of a depth map `[H, W]` show, row by row.

    image: their colours, uint8 `[H, W, 3]`; intrinsics: 3x3, pixels at that size. Left out are pixels without a depth
    (not finite, or not above 0), beyond a depth of `farthest`, and those at the jumps of depth, where the surface makes
    less than `grazing_angle` degrees with the line of sight (None: none of them).
    """
    points = camera_points(depth, intrinsics)
    kept = has_depth(depth) & (depth <= (np.inf if farthest is None else farthest))
    if grazing_angle is not None:
        kept &= ~is_grazing(points, grazing_angle)
    return PointCloud(points[kept], image[kept])


def has_depth(depth: np.ndarray) -> np.ndarray:
    """Where a depth map has a depth: bool of its shape."""
    return np.isfinite(depth) & (depth > 0)


def camera_points(depth: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """Points float32 `[H, W, 3]` in camera axes of a depth map `[H, W]`; 0 where it has no depth."""
    known = np.where(has_depth(depth), depth, 0).astype(np.float32)
    points = backproject(torch.from_numpy(known)[None, None], torch.as_tensor(intrinsics, dtype=torch.float32)[None])
    return points[0].T.reshape(*depth.shape, 3).numpy()


def is_grazing(points: np.ndarray, angle: float) -> np.ndarray:
    """Whether the surface through a point and one of its four neighbours makes less than `angle` degrees with its ray.

    points: `[H, W, 3]` in camera axes; bool `[H, W]`.
    """
    grazing = np.zeros(points.shape[:2], bool)
    limit = np.sin(np.radians(angle))
    for one, other in (
        ((slice(None), slice(1, None)), (slice(None), slice(None, -1))),
        ((slice(1, None), slice(None)), (slice(None, -1), slice(None))),
    ):
        near, far = points[one], points[other]
        # |a x b| = |a| |b - a| sin(angle between them): the surface runs along b - a, the ray along a.
        area = np.linalg.norm(np.cross(near, far), axis=-1)
        steep = area < limit * np.linalg.norm(far - near, axis=-1) * np.linalg.norm(near, axis=-1)
        grazing[one] |= steep
        grazing[other] |= steep
    return grazing


def write_ply(path: str | Path, points: np.ndarray, colours: np.ndarray, unit: str) -> None:
    """Write `points` `[N, 3]` and `colours` uint8 `[N, 3]` as binary PLY, whole or not at all; makes the folder.

    unit: METRES or RELATIVE of `featdepth.scale`, in a comment of the file. Raises OSError where it cannot be written.
    """
    vertices = np.empty(len(points), VERTEX)
    for column, name in enumerate(VERTEX.names):
        vertices[name] = (points if column < 3 else colours)[:, column % 3]
    properties = [f"property {PLY_TYPES[VERTEX[name].str]} {name}" for name in VERTEX.names]
    lines = ["ply", "format binary_little_endian 1.0", f"comment unit: {unit}"]
    lines += ["comment axes of the camera: x right, y down, z forward", f"element vertex {len(vertices)}"]
    header = "\n".join([*lines, *properties, "end_header", ""])
    write_bytes(path, header.encode("ascii") + vertices.tobytes())


def thin(cloud: PointCloud, most: int) -> PointCloud:
    """At most `most` points of a cloud, evenly spread over its order; the same ones each time."""
    if most < 1:
        raise InputError(f"a cloud of at most {most} points has no points; allow at least 1")
    count = len(cloud.points)
    if count <= most:
        return cloud
    # A stride that shares a factor with the width of the image would leave columns: positions are jittered instead.
    edges = np.linspace(0, count, most + 1).astype(np.int64)
    chosen = edges[:-1] + (np.random.default_rng(0).random(most) * np.diff(edges)).astype(np.int64)
    return PointCloud(cloud.points[chosen], cloud.colours[chosen])
