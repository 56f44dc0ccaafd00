"""A page to look at predictions: one file that needs no network and no other program than a browser.

It shows the frames, their depth, point clouds that can be turned, and the camera's path. Nothing in it is loaded
from elsewhere, and its Content-Security-Policy lets nothing run but the script that this module puts there.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from featdepth.drawing import jpeg_address
from featdepth.errors import InputError
from featdepth.files import write_text
from featdepth.predict.point_cloud import PointCloud, thin

MOST_SHOWN = 60
MOST_POINTS = 60_000  # of one cloud
MOST_FRAME_POINTS = 600_000  # of the clouds of all frames together
MOST_POSES = 5000
WIDEST = 640  # pixels of a picture
JPEG_QUALITY = 85
LEVELS = 65535  # steps that the extent of a cloud is divided into, on each axis
NEIGHBOURS_OF = 400  # points whose nearest neighbours tell how dense a cloud is


class PageFrame(NamedTuple):
    """One frame on the page."""

    name: str
    image: np.ndarray  # uint8 [h, w, 3]
    depth: np.ndarray  # the picture of its depth, uint8 [h, w, 3]
    cloud: PointCloud | None = None  # in its own camera's axes
    index: int | None = None  # of its pose in the trajectory


def write_page(
    path: str | Path,
    title: str,
    frames: Sequence[PageFrame],
    scale_source: str | None,
    cloud: PointCloud | None = None,
    trajectory: np.ndarray | None = None,
    notes: Sequence[str] = (),
    total: int | None = None,
    warning: str = "",
) -> None:
    """Write the page of `frames` to `path`, whole or not at all.

    scale_source: where the metres come from (`FeatDepth.scale_source`), None: relative depth. cloud: of the whole
    sequence, in the first camera's axes; trajectory: world_from_camera `[N, 4, 4]` in the unit of the depth; notes:
    lines to be shown as they are; total: number of frames that there were, where `frames` are some of them;
    warning: shown above everything else.

    At most MOST_SHOWN frames, MOST_POINTS points of a cloud, MOST_FRAME_POINTS of the frames' clouds in all and
    MOST_POSES poses are kept, evenly spread, which the page says. Raises InputError where there is no frame, OSError
    where the page cannot be written.
    """
    if not frames:
        raise InputError(f"{path}: a page needs at least one frame")
    shown = [frames[place] for place in spread(len(frames), MOST_SHOWN)]
    most = min(MOST_POINTS, MOST_FRAME_POINTS // len(shown))
    first_from_world = None if trajectory is None else np.linalg.inv(trajectory[0])
    poses = None if trajectory is None else first_from_world @ trajectory
    statement = (
        f"Distances are in metres (scale: {scale_source})."
        if scale_source
        else "Distances are relative: their unit is not known."
    )
    data = {
        "title": title,
        "statement": statement,
        "metres": scale_source is not None,
        "warning": warning,
        "notes": [*notes, *limits(shown, cloud, trajectory, most, total or len(frames))],
        "frames": [frame_data(frame, poses, most) for frame in shown],
        "cloud": None if cloud is None else cloud_data(thin(cloud, MOST_POINTS), neighbour_distance(cloud), False),
        "trajectory": None if poses is None else rounded(poses[spread(len(poses), MOST_POSES), :3, 3]),
    }
    write_text(path, page_text(title, data))


def limits(
    shown: list[PageFrame], cloud: PointCloud | None, trajectory: np.ndarray | None, most: int, total: int
) -> list[str]:
    """What the page leaves out, in sentences."""
    said = []
    if len(shown) < total:
        said.append(f"{len(shown)} of {total} frames are shown.")
    if any(frame.cloud is not None and len(frame.cloud.points) > most for frame in shown):
        said.append(f"The point cloud of a frame is thinned to {most} points.")
    if cloud is not None and len(cloud.points) > MOST_POINTS:
        said.append(f"{MOST_POINTS} of the {len(cloud.points)} points of the fused cloud are shown.")
    if trajectory is not None and len(trajectory) > MOST_POSES:
        said.append(f"{MOST_POSES} of {len(trajectory)} camera positions are shown.")
    return said


def spread(count: int, most: int) -> np.ndarray:
    """At most `most` of the places 0 .. count - 1, evenly spread, the first and the last among them."""
    return np.unique(np.rint(np.linspace(0, count - 1, min(count, most))).astype(int))


def frame_data(frame: PageFrame, poses: np.ndarray | None, most: int) -> dict[str, Any]:
    """What the script gets of a frame; `poses`: first_from_camera `[N, 4, 4]`; `most`: points of its cloud."""
    height, width = frame.image.shape[:2]
    cloud = None
    if frame.cloud is not None and len(frame.cloud.points):
        few = thin(frame.cloud, most)
        cloud = cloud_data(few, pixel_distance(few), True)
    has_pose = poses is not None and frame.index is not None
    return {
        "name": frame.name,
        "width": width,
        "height": height,
        "image": data_address(frame.image),
        "depth": data_address(frame.depth),
        "cloud": cloud,
        "pose": rounded(poses[frame.index, :3].ravel()) if has_pose else None,
    }


def data_address(picture: np.ndarray) -> str:
    """A picture uint8 `[h, w, 3]` as the address of a JPEG, at most WIDEST pixels wide."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    if image.width > WIDEST:
        height = max(1, round(image.height * WIDEST / image.width))
        image = image.resize((WIDEST, height), Image.Resampling.LANCZOS)
    return jpeg_address(np.asarray(image), JPEG_QUALITY)


def cloud_data(cloud: PointCloud, spacing: float, spreads: bool) -> dict[str, Any]:
    """A cloud in 16 bits an axis.

    spacing: distance of neighbours, which the dots are as large as; spreads: at a depth of 1, and growing with it.
    """
    points = cloud.points.astype(np.float64)
    low = points.min(0) if len(points) else np.zeros(3)
    step = np.maximum((points.max(0) - low if len(points) else np.ones(3)) / LEVELS, 1e-12)
    return {
        "count": len(points),
        "low": low.tolist(),
        "step": step.tolist(),
        "points": encoded(np.rint((points - low) / step).astype("<u2").tobytes()),
        "colours": encoded(np.ascontiguousarray(cloud.colours, np.uint8).tobytes()),
        "spacing": spacing,
        "spreads": spreads,
    }


def pixel_distance(cloud: PointCloud) -> float:
    """Distance at a depth of 1 of the neighbours in a cloud of one camera, which fill most of its view."""
    x, y, z = cloud.points.astype(np.float64).T
    area = np.ptp(x / z) * np.ptp(y / z)
    return float(np.sqrt(area / len(z)))


def neighbour_distance(cloud: PointCloud) -> float:
    """Median distance of the points of a cloud, thinned as the page shows it, to their nearest neighbours."""
    points = thin(cloud, MOST_POINTS).points.astype(np.float64)
    if len(points) < 2:
        return 0.0
    some = points[spread(len(points), NEIGHBOURS_OF)]
    squared = (points**2).sum(1)
    nearest = [np.partition(squared - 2 * points @ point + point @ point, 1)[1] for point in some]
    return float(np.sqrt(max(0.0, np.median(nearest))))


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def rounded(values: np.ndarray) -> list:
    """Numbers with five digits after the point, which is 0.01 mm in metres."""
    return np.round(values.astype(np.float64), 5).tolist()


def page_text(title: str, data: dict[str, Any]) -> str:
    """The page. Names may hold anything: the title is escaped, and in the data no "<" can end its element."""
    template, style, script = (
        resources.files("featdepth.predict").joinpath(name).read_text(encoding="utf-8")
        for name in ("page.html", "page.css", "page.js")
    )
    policy = (
        f"default-src 'none'; img-src data:; style-src {policy_hash(style)}; script-src {policy_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {
        "policy": policy,
        "title": html.escape(title),
        "style": style,
        "script": script,
        "data": json.dumps(data, allow_nan=False).replace("<", "\\u003c"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], template)


def policy_hash(text: str) -> str:
    """How a policy names a script or style: by its hash."""
    return f"'sha256-{encoded(hashlib.sha256(text.encode()).digest())}'"
