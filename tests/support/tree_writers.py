"""Drives of the synthetic street as the data sets have them on the disk, each kind in its true format.

WRITERS has one for each kind: `write(root, drives)` writes the rendered drives below `root` and gives their names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from cityscapes_tree import write_cityscapes
from drive_writer import RenderedDrive, quaternion_of
from euroc_tree import write_pinhole_sequence
from PIL import Image

from featdepth.prepare_euroc import prepare

Writer = Callable[[Path, Sequence[RenderedDrive]], list[str]]

START = 1305031102.175304  # seconds since 1970 of a first frame
KITTI_DAYS = ("2031_09_26", "2031_09_28", "2031_09_30")  # on which KITTI recorded nothing
LEFT_X, RIGHT_X = 0.06, -0.48  # x of KITTI's camera 0 seen from its colour cameras, metres
# KITTI's scanner: x forward, y left, z up; 8 cm above camera 0 and not before it, so that its x is the depth.
CAMERA_FROM_SCANNER = np.array([[0.0, -1, 0, 0], [0, 0, -1, -0.08], [1, 0, 0, 0], [0, 0, 0, 1]])
FISHEYE_SIZE = (72, 112)  # of ETH3D's distorted images: height, width


def write_image(path: Path, pixels: np.ndarray) -> None:
    """A png; uint16 makes a 16-bit one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, compress_level=1)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def text_of(values: np.ndarray | Sequence[float]) -> str:
    return " ".join(f"{value:.9f}" for value in np.ravel(values))


def stored_depth(depth: np.ndarray, units_per_metre: float) -> np.ndarray:
    """Depth (metres) as uint16; 0 where it does not fit."""
    units = np.rint(np.where(np.isfinite(depth), depth, 0) * units_per_metre)
    return np.where(units < 65535, units, 0).astype(np.uint16)


def directions_of(intrinsics: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Points [H, W, 3] of the plane z = 1 that the pixels see."""
    y, x = np.mgrid[: size[0], : size[1]]
    return np.stack([x, y, np.ones_like(x)], axis=-1) @ np.linalg.inv(intrinsics).T


def kitti_projection(drive: RenderedDrive, x: float) -> str:
    """[K | K (x, 0, 0)] as KITTI writes it, pixels from 1; x: of camera 0's origin seen from the camera, metres."""
    counted_from_one = np.add(drive.intrinsics, [[0, 0, 1], [0, 0, 1], [0, 0, 0]])
    return text_of(np.column_stack([counted_from_one, counted_from_one @ [x, 0, 0]]))


def write_scans(folder: Path, drive: RenderedDrive, digits: int) -> None:
    """KITTI's laser scans of each frame, with the points that the left colour camera's pixels see."""
    folder.mkdir(parents=True)
    left_from_zero = np.eye(4)
    left_from_zero[0, 3] = LEFT_X
    scanner_from_left = np.linalg.inv(left_from_zero @ CAMERA_FROM_SCANNER)
    for frame, depth in enumerate(drive.depths):
        points = (directions_of(drive.intrinsics, depth.shape) * depth[..., None])[np.isfinite(depth)]
        points = points @ scanner_from_left[:3, :3].T + scanner_from_left[:3, 3]
        np.pad(points, ((0, 0), (0, 1))).astype("<f4").tofile(folder / f"{frame:0{digits}}.bin")


def write_kitti_raw(root: Path, drives: Sequence[RenderedDrive]) -> list[str]:
    """At most three drives, a day for each, with stereo and scans."""
    names = [f"{day}/{day}_drive_0001_sync" for day in KITTI_DAYS[: len(drives)]]
    for name, drive in zip(names, drives, strict=True):
        for number, images in ((2, drive.images), (3, drive.right_images)):
            for frame, image in enumerate(images):
                write_image(root / name / f"image_{number:02}" / "data" / f"{frame:010}.png", image)
        height, width = drive.depths[0].shape
        rows = [f"R_rect_00: {text_of(np.eye(3))}"]
        for number, x in ((2, LEFT_X), (3, RIGHT_X)):
            rows += [f"S_rect_{number:02}: {width} {height}", f"P_rect_{number:02}: {kitti_projection(drive, x)}"]
        rotation, position = CAMERA_FROM_SCANNER[:3, :3], CAMERA_FROM_SCANNER[:3, 3]
        day = root / name.split("/")[0]
        write_lines(day / "calib_cam_to_cam.txt", rows)
        write_lines(day / "calib_velo_to_cam.txt", [f"R: {text_of(rotation)}", f"T: {text_of(position)}"])
        write_scans(root / name / "velodyne_points" / "data", drive, digits=10)
    return names


def write_kitti_odometry(root: Path, drives: Sequence[RenderedDrive]) -> list[str]:
    """Sequences 00, 01, ... with colour stereo, scans, poses and times."""
    names = [f"{number:02}" for number in range(len(drives))]
    for name, drive in zip(names, drives, strict=True):
        folder = root / "sequences" / name
        for number, images in ((2, drive.images), (3, drive.right_images)):
            for frame, image in enumerate(images):
                write_image(folder / f"image_{number}" / f"{frame:06}.png", image)
        shifts = enumerate((0.0, RIGHT_X - LEFT_X, LEFT_X, RIGHT_X))
        rows = [f"P{camera}: {kitti_projection(drive, x)}" for camera, x in shifts]
        write_lines(folder / "calib.txt", [*rows, f"Tr: {text_of(CAMERA_FROM_SCANNER[:3])}"])
        write_lines(folder / "times.txt", (f"{time:e}" for time in drive.times))
        left_from_zero = np.eye(4)
        left_from_zero[0, 3] = LEFT_X
        poses = np.array(drive.poses) @ left_from_zero  # of camera 0, relative to the first
        write_lines(root / "poses" / f"{name}.txt", (text_of(row[:3]) for row in np.linalg.inv(poses[0]) @ poses))
        write_scans(folder / "velodyne", drive, digits=6)
    return names


def write_seven_scenes(root: Path, drives: Sequence[RenderedDrive]) -> list[str]:
    """Sequences chess/seq-01, seq-02, ... with depth and poses."""
    names = [f"chess/seq-{number:02}" for number in range(1, len(drives) + 1)]
    for name, drive in zip(names, drives, strict=True):
        for frame, (image, depth, pose) in enumerate(zip(drive.images, drive.depths, drive.poses, strict=True)):
            stem = f"frame-{frame:06}"
            write_image(root / name / f"{stem}.color.png", image)
            stored = stored_depth(depth, 1000)
            write_image(root / name / f"{stem}.depth.png", np.where(stored > 0, stored, 65535).astype(np.uint16))
            write_lines(root / name / f"{stem}.pose.txt", map(text_of, pose))
        write_lines(root / name / "camera-intrinsics.txt", map(text_of, drive.intrinsics))
    return names


def write_tum_rgbd(root: Path, drives: Sequence[RenderedDrive]) -> list[str]:
    """Sequences with depth images that are 5 ms later, poses at the times of the images, intrinsics in a file."""
    names = [f"rgbd_dataset_freiburg1_{number}" for number in range(1, len(drives) + 1)]
    for name, drive in zip(names, drives, strict=True):
        folder, times = root / name, [START + time for time in drive.times]
        for kind, delay in (("rgb", 0.0), ("depth", 0.005)):
            lines = [f"{time + delay:.6f} {kind}/{time + delay:.6f}.png" for time in times]
            write_lines(folder / f"{kind}.txt", ["# images", "# timestamp filename", *lines])
        for time, image, depth in zip(times, drive.images, drive.depths, strict=True):
            write_image(folder / "rgb" / f"{time:.6f}.png", image)
            write_image(folder / "depth" / f"{time + 0.005:.6f}.png", stored_depth(depth, 5000))
        poses = [
            f"{time:.6f} {text_of([*pose[:3, 3], *quaternion_of(pose[:3, :3])])}"
            for time, pose in zip(times, drive.poses, strict=True)
        ]
        write_lines(folder / "groundtruth.txt", ["# timestamp tx ty tz qx qy qz qw", *poses])
        write_lines(folder / "intrinsics.txt", map(text_of, drive.intrinsics))
    return names


def write_eth3d(root: Path, drives: Sequence[RenderedDrive]) -> list[str]:
    """A scene for each drive, seen by the rig's camera 4; ground truth at the pixels of its fisheye lens."""
    names = [f"scene_{number}/cam4" for number in range(1, len(drives) + 1)]
    for name, drive in zip(names, drives, strict=True):
        scene, size = root / name.split("/")[0], drive.depths[0].shape
        (fx, _, cx), (_, fy, cy), _ = drive.intrinsics
        nanoseconds = [round((START + time) * 1e9) for time in drive.times]
        for time, image in zip(nanoseconds, drive.images, strict=True):
            write_image(scene / "images" / "images_rig_cam4_undistorted" / f"{time}.png", image)
        # COLMAP has pixel corners at integers.
        fisheye = np.array([[fx, 0, FISHEYE_SIZE[1] / 2 - 0.5], [0, fy, FISHEYE_SIZE[0] / 2 - 0.5], [0, 0, 1]])
        pinhole_line = f"7 PINHOLE {size[1]} {size[0]} {text_of([fx, fy, cx + 0.5, cy + 0.5])}"
        lens = [fx, fy, fisheye[0, 2] + 0.5, fisheye[1, 2] + 0.5, *[0] * 8]
        lens_line = f"7 THIN_PRISM_FISHEYE {FISHEYE_SIZE[1]} {FISHEYE_SIZE[0]} {text_of(lens)}"
        for suffix, camera in (("_undistorted", pinhole_line), ("", lens_line)):
            images = []
            for number, (time, pose) in enumerate(zip(nanoseconds, drive.poses, strict=True)):
                inverse = np.linalg.inv(pose)
                x, y, z, w = quaternion_of(inverse[:3, :3])
                values = text_of([w, x, y, z, *inverse[:3, 3]])
                images += [f"{number} {values} 7 images_rig_cam4{suffix}/{time}.png", "12.5 7.25 -1 3.5 8.5 2"]
            write_lines(scene / f"rig_calibration{suffix}" / "images.txt", ["# Image list", *images])
            write_lines(scene / f"rig_calibration{suffix}" / "cameras.txt", ["# Camera list", camera])
        folder = scene / "ground_truth_depth" / "images_rig_cam4"
        folder.mkdir(parents=True)
        bent = directions_of(fisheye, FISHEYE_SIZE)[..., :2]
        angle = np.linalg.norm(bent, axis=-1, keepdims=True)  # off the axis, in an equidistant fisheye
        seen = np.rint(bent * np.tan(angle) / angle * [fx, fy] + [cx, cy]).astype(int)
        inside = ((seen >= 0) & (seen < [size[1], size[0]])).all(axis=-1) & (angle[..., 0] < np.pi / 2)
        column, row = np.moveaxis(np.where(inside[..., None], seen, 0), -1, 0)
        for time, depth in zip(nanoseconds, drive.depths, strict=True):
            np.where(inside, depth[row, column], np.inf).astype("<f4").tofile(folder / f"{time}.png")
    return names


def write_cityscapes_drives(root: Path, drives: Sequence[RenderedDrive]) -> list[str]:
    """A sequence of Aachen, in the folder of training, for each drive, with all that Cityscapes has."""
    names = [f"train/aachen/{number:06}" for number in range(len(drives))]
    write_cityscapes(root, dict(zip(names, drives, strict=True)))
    return names


def write_euroc(root: Path, drives: Sequence[RenderedDrive]) -> list[str]:
    """Sequences MH_01, MH_02, ... as they were prepared; the downloaded ones are beside `root`."""
    names = [f"MH_{number:02}" for number in range(1, len(drives) + 1)]
    for name, drive in zip(names, drives, strict=True):
        sequence = root.with_name(f"{root.name}_downloaded") / name
        write_pinhole_sequence(sequence, drive)
        prepare(sequence, root / name)
    return names


def write_video(root: Path, drives: Sequence[RenderedDrive]) -> list[str]:
    """Folders of images without preparation, with intrinsics in a file."""
    names = [f"walk_{number}" for number in range(1, len(drives) + 1)]
    for name, drive in zip(names, drives, strict=True):
        for frame, image in enumerate(drive.images):
            write_image(root / name / f"{frame}.png", image)
        write_lines(root / name / "intrinsics.txt", map(text_of, drive.intrinsics))
    return names


WRITERS: dict[str, Writer] = {
    "kitti_raw": write_kitti_raw,
    "kitti_odometry": write_kitti_odometry,
    "seven_scenes": write_seven_scenes,
    "tum_rgbd": write_tum_rgbd,
    "eth3d": write_eth3d,
    "cityscapes": write_cityscapes_drives,
    "euroc": write_euroc,
    "video": write_video,
}
