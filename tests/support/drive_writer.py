"""A few frames of the synthetic street with their exact geometry, for tests that write them as a data set would."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from featdepth.data.street.kitti_formats import INTERVAL
from featdepth.data.synthetic import Drive, Street, render_frame


class RenderedDrive(NamedTuple):
    """A stereo rig's drive. Shared by all tests of a session: not to be changed."""

    images: list[np.ndarray]  # uint8 [H, W, 3] of the left camera
    right_images: list[np.ndarray]  # the same of the right one
    depths: list[np.ndarray]  # float32 [H, W]: metres at the left camera's pixel centres, inf for the sky
    poses: list[np.ndarray]  # world_from_camera 4x4 of the left camera, metres
    right_from_left: np.ndarray  # 4x4, metres
    intrinsics: np.ndarray  # 3x3 of both cameras, pixel centres at integers
    times: list[float]  # seconds


@cache
def render_drive(frames: int = 8, height: int = 64, width: int = 96, index: int = 0) -> RenderedDrive:
    """Drive `index` of a street; others have other scenes, and lenses that repeat after three."""
    drive = Drive(Street(frames=max(frames, 3), height=height, width=width), index)
    left = [render_frame(drive, frame) for frame in range(frames)]
    poses = [drive.camera_pose(frame) for frame in range(frames)]
    return RenderedDrive(
        [frame.image for frame in left],
        [drive.image(frame, camera=3) for frame in range(frames)],
        [frame.depth for frame in left],
        poses,
        np.linalg.inv(drive.camera_pose(0, camera=3)) @ poses[0],
        drive.rig.intrinsics,
        [INTERVAL * frame for frame in range(frames)],
    )


def quaternion_of(rotation: np.ndarray) -> np.ndarray:
    """The quaternion [4] (x, y, z, w) of a rotation 3x3: the one whose own rotation has the largest product with it."""
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rotation
    products = np.array(
        [
            [xx - yy - zz, yx + xy, zx + xz, zy - yz],
            [yx + xy, yy - xx - zz, zy + yz, xz - zx],
            [zx + xz, zy + yz, zz - xx - yy, yx - xy],
            [zy - yz, xz - zx, yx - xy, xx + yy + zz],
        ]
    )
    return np.linalg.eigh(products)[1][:, -1]
