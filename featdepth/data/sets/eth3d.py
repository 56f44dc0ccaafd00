"""The rig's video of ETH3D's low-resolution many-view scenes.

<root>/<scene>/images/images_rig_cam4_undistorted/<nanoseconds>.png      cameras 4 to 7, each a drive "<scene>/cam4"
<root>/<scene>/rig_calibration_undistorted/cameras.txt, images.txt       COLMAP's: intrinsics and poses
<root>/<scene>/ground_truth_depth/images_rig_cam4/<nanoseconds>.png      ground truth (optional), see `read_depth_map`
<root>/<scene>/rig_calibration/cameras.txt, images.txt                   of the lenses, which the ground truth needs

Frames are numbered in the order of time, from 0. The cameras look in different directions: they are no stereo pair.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from featdepth.cameras.intrinsics_files import read_colmap_cameras
from featdepth.console import count
from featdepth.data.footage import Camera
from featdepth.data.listing import LARGEST_TABLE, file_names, list_frames
from featdepth.data.samples import Sample
from featdepth.data.sets.sequences import Recording, SequenceDataset
from featdepth.errors import InputError
from featdepth.files import numbered_lines, read_bytes, read_text
from featdepth.odometry.interpolate import poses_from_quaternions

CAMERA_FOLDER = re.compile(r"images_rig_(cam[0-9]+)_undistorted")
IMAGE_NAME = re.compile(r"([0-9]{1,19})\.png")
NANOSECONDS = 1e9
LENS_PARAMETERS = 12  # of THIN_PRISM_FISHEYE
LARGEST_SIDE = 1 << 14  # pixels


class PosedImage(NamedTuple):
    """An image of COLMAP's images.txt."""

    camera: int  # its id in cameras.txt
    pose: np.ndarray  # world_from_camera 4x4, metres


class DistortedCamera(NamedTuple):
    """A camera of the rig as it is, with its lens."""

    size: tuple[int, int]  # height, width
    parameters: tuple[float, ...]  # of THIN_PRISM_FISHEYE, in COLMAP's order


class Eth3d(SequenceDataset):
    """Several cameras a scene; there is no official split."""

    calibration_name = "cameras.txt"

    def find_drives(self, root: Path) -> list[str]:
        drives = []
        for folder in root.glob("*/images"):
            matches = map(CAMERA_FOLDER.fullmatch, file_names(folder))
            drives += [f"{folder.parent.name}/{match[1]}" for match in matches if match]
        if not drives:
            raise InputError(
                f"{root}: no rig of ETH3D here; expected delivery_area/images/images_rig_cam4_undistorted/*.png"
            )
        return sorted(drives)

    def files(self, drive: str) -> list[tuple[int, str]]:
        """The drive's images in the order of time: nanoseconds and path."""
        scene, camera = drive.split("/")
        folder = self.root / scene / "images" / f"images_rig_{camera}_undistorted"
        return list(list_frames(folder, IMAGE_NAME).items())

    def views(self, drive: str, calibration: str, suffix: str) -> dict[int, PosedImage]:
        """What a folder with COLMAP's files says of the drive's images, by nanoseconds."""
        scene, camera = drive.split("/")
        path = self.root / scene / calibration / "images.txt"
        folder = f"images_rig_{camera}{suffix}/"
        found = {name.removeprefix(folder): view for name, view in read_views(path).items() if name.startswith(folder)}
        views = {int(match[1]): found[match[0]] for match in map(IMAGE_NAME.fullmatch, found) if match}
        if not views:
            raise InputError(f"{path}: has no image in {folder}; download the calibration of this scene again")
        return views

    def read_recording(self, drive: str) -> Recording:
        files = self.files(drive)
        if not files:
            return Recording({}, {})
        views = self.remember("read_views", drive)
        path = self.root / drive.split("/")[0] / "rig_calibration_undistorted" / "cameras.txt"
        lens = camera_of(path, read_colmap_cameras(path), views)
        if lens.model != "pinhole":
            raise InputError(f"{path}: has cameras with distortion; download the undistorted calibration")
        scene, camera = drive.split("/")
        depth = list_frames(self.root / scene / "ground_truth_depth" / f"images_rig_{camera}", IMAGE_NAME)
        return Recording(
            {"l": {frame: image for frame, (_, image) in enumerate(files)}},
            {"l": Camera(lens.size, lens.intrinsics)},
            depth={frame: depth[time] for frame, (time, _) in enumerate(files) if time in depth},
        )

    def read_views(self, drive: str) -> dict[int, PosedImage]:
        return self.views(drive, "rig_calibration_undistorted", "_undistorted")

    def read_poses(self, drive: str) -> dict[int, np.ndarray]:
        views = self.remember("read_views", drive)
        return {frame: views[time].pose for frame, (time, _) in enumerate(self.files(drive)) if time in views}

    def read_times(self, drive: str) -> dict[int, float]:
        return {frame: time / NANOSECONDS for frame, (time, _) in enumerate(self.files(drive))}

    def ground_truth_hint(self) -> str:
        return "it is in ground_truth_depth/images_rig_cam4/*.png"

    def prepare_cameras(self) -> None:
        super().prepare_cameras()
        if self.with_depth:
            for drive in {sample.drive for sample in self.samples if self.depth_path(sample)}:
                self.remember("read_lens", drive)

    def read_lens(self, drive: str) -> tuple[DistortedCamera, np.ndarray]:
        """The drive's camera with its lens, and where that shows the pixels of the undistorted images: int `[h, w, 2]`.

        Row and column of the nearest pixel; -1 outside the distorted image.
        """
        path = self.root / drive.split("/")[0] / "rig_calibration" / "cameras.txt"
        lens = camera_of(path, read_thin_prism_cameras(path), self.views(drive, "rig_calibration", ""))
        size, intrinsics, _ = self.recording(drive).cameras["l"]
        y, x = np.mgrid[: size[0], : size[1]]
        points = (np.stack([x, y], axis=-1) - intrinsics[:2, 2]) / intrinsics[[0, 1], [0, 1]]
        nearest = np.rint(thin_prism_pixels(points, lens.parameters)[..., ::-1]).astype(int)
        is_inside = ((nearest >= 0) & (nearest < lens.size)).all(axis=-1, keepdims=True)
        return lens, np.where(is_inside, nearest, -1)

    def read_depth(self, sample: Sample, path: str) -> np.ndarray:
        lens, nearest = self.remember("read_lens", sample.drive)
        stored = read_depth_map(path, lens.size)
        return np.where(nearest[..., 0] < 0, np.float32(0), stored[nearest[..., 0], nearest[..., 1]])


def camera_of(path: Path, cameras: dict, views: dict[int, PosedImage]):
    """The one of the `cameras` in the file at `path` that took the `views`. Raises InputError unless it is one."""
    ids = {view.camera for view in views.values()}
    if len(ids) != 1 or not ids <= cameras.keys():
        raise InputError(f"{path}: the images of a drive are of the cameras {sorted(ids)}, expected one that is here")
    return cameras[ids.pop()]


def read_views(path: Path) -> dict[str, PosedImage]:
    """The images in COLMAP's images.txt by name: each has two lines, of which the second (its points) is left out.

    Raises InputError, naming file and line.
    """
    lines = enumerate(read_text(path, LARGEST_TABLE, "the calibration").splitlines(), 1)
    views = {}
    for number, line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        words = line.split()
        try:
            values = np.array([float(word) for word in words[1:8]])
            (w, *xyz), translation, camera, name = values[:4], values[4:], int(words[8]), words[9]
        except (ValueError, IndexError):
            raise InputError(f"{path}:{number}: {line[:60]!r} is no image of COLMAP's; download it again") from None
        if not np.isfinite(values).all() or not np.any(values[:4]):
            raise InputError(f"{path}:{number}: the pose of {name} is not one; download it again")
        camera_from_world = poses_from_quaternions(translation[None], np.array([[*xyz, w]]))[0]
        views[name] = PosedImage(camera, np.linalg.inv(camera_from_world))
        next(lines, None)
    return views


def read_thin_prism_cameras(path: Path) -> dict[int, DistortedCamera]:
    """The cameras in a COLMAP cameras.txt whose lenses are all of the model THIN_PRISM_FISHEYE. Raises InputError."""
    cameras = {}
    for number, line in numbered_lines(path, LARGEST_TABLE, "the calibration"):
        words = line.split()
        try:
            camera, model, width, height = int(words[0]), words[1], int(words[2]), int(words[3])
            parameters = tuple(float(word) for word in words[4:])
        except (ValueError, IndexError):
            raise InputError(f"{path}:{number}: {line[:60]!r} is no camera of COLMAP's; download it again") from None
        is_complete = len(parameters) == LENS_PARAMETERS and np.isfinite(parameters).all()
        if model != "THIN_PRISM_FISHEYE" or not is_complete or not 0 < min(width, height) <= LARGEST_SIDE:
            raise InputError(f"{path}:{number}: {line[:60]!r} should be a THIN_PRISM_FISHEYE camera, 12 parameters")
        cameras[camera] = DistortedCamera((height, width), parameters)
    return cameras


def thin_prism_pixels(points: np.ndarray, parameters: tuple[float, ...]) -> np.ndarray:
    """Pixels (x, y) `[..., 2]`, centres at integers, at which COLMAP's THIN_PRISM_FISHEYE shows normalised points.

    The angle off the axis takes the place of its tangent (an equidistant fisheye); to that the radial, tangential and
    thin-prism terms are added.
    """
    fx, fy, cx, cy, k1, k2, p1, p2, k3, k4, sx, sy = parameters
    radius = np.linalg.norm(points, axis=-1)
    x, y = np.moveaxis(points, -1, 0) * np.divide(np.arctan(radius), radius, out=np.ones_like(radius), where=radius > 0)
    square = x**2 + y**2
    radial = square * (k1 + square * (k2 + square * (k3 + square * k4)))
    bent_x = x + x * radial + 2 * p1 * x * y + p2 * (square + 2 * x**2) + sx * square
    bent_y = y + y * radial + 2 * p2 * x * y + p1 * (square + 2 * y**2) + sy * square
    # COLMAP has pixel corners at integers.
    return np.stack([fx * bent_x + cx - 0.5, fy * bent_y + cy - 0.5], axis=-1)


def read_depth_map(path: str, size: tuple[int, int]) -> np.ndarray:
    """Depth float32 `[h, w]` (metres, 0 = none) of a ground-truth file, at the `size` of the distorted images.

    Whatever its name says, the file is no image: float32, little-endian, row by row, without a header, infinite where
    there is none. Raises InputError for another number of bytes.
    """
    expected = 4 * size[0] * size[1]
    content = read_bytes(path, 4 * LARGEST_SIDE**2, "the depth map")
    if len(content) != expected:
        raise InputError(
            f"{path}: {count(len(content), 'byte')}, but a depth map of {size[1]} x {size[0]} float32 has {expected}; "
            "download it again"
        )
    depth = np.frombuffer(content, dtype="<f4").reshape(size)
    return np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0))
