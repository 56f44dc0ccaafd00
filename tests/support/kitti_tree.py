"""A tiny drive collection in KITTI's raw layout for tests: noise images, true calibration files, a few scan points."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from featdepth.config import Config

DAY = "2011_09_26"
FOCAL, BASELINE = 60.0, 0.5
SIZE = (40, 120)  # height, width of the images on disk


def drive_name(number: int, day: str = DAY) -> str:
    return f"{day}/{day}_drive_{number:04d}_sync"


def write_calibration(root: Path, day: str = DAY, size: tuple[int, int] = SIZE) -> None:
    """Pixels from 1: the principal point of both cameras is ((w - 1) / 2, (h - 1) / 2) when pixels count from 0."""
    height, width = size
    cx, cy = (width - 1) / 2 + 1, (height - 1) / 2 + 1
    identity = "1 0 0 0 1 0 0 0 1"
    rows = ["calib_time: 01-Jan-2012 00:00:00", f"R_rect_00: {identity}"]
    for camera, x in (("02", 0.06), ("03", 0.06 - BASELINE)):
        rows.append(f"S_rect_{camera}: {width} {height}")
        rows.append(f"P_rect_{camera}: {FOCAL} 0 {cx} {FOCAL * x} 0 {FOCAL} {cy} 0 0 0 1 0")
    (root / day).mkdir(parents=True, exist_ok=True)
    (root / day / "calib_cam_to_cam.txt").write_text("\n".join(rows) + "\n")
    # Scanner axes (x forward, y left, z up) to camera axes (x right, y down, z forward), at the same place.
    (root / day / "calib_velo_to_cam.txt").write_text("R: 0 -1 0 0 0 -1 1 0 0\nT: 0 0 0\n")


def write_drive(
    root: Path,
    drive: str,
    frames: range | list[int],
    sides: str = "lr",
    scans: bool = False,
    suffix: str = "png",
    size: tuple[int, int] = SIZE,
) -> None:
    """Images of value `frame` (left) or `frame + 100` (right) with some noise; scans of 50 points in front."""
    for side in sides:
        folder = root / drive / f"image_0{2 if side == 'l' else 3}" / "data"
        folder.mkdir(parents=True)
        for frame in frames:
            noise = np.random.default_rng(frame).integers(0, 3, (*size, 3))
            Image.fromarray((frame + 100 * (side == "r") + noise).astype(np.uint8)).save(
                folder / f"{frame:010d}.{suffix}"
            )
    for frame in frames if scans else []:
        folder = root / drive / "velodyne_points" / "data"
        folder.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(frame)
        points = np.stack([random.uniform(5, 40, 50), random.uniform(-3, 3, 50), random.uniform(-1, 1, 50)], axis=1)
        np.pad(points, ((0, 0), (0, 1))).astype("<f4").tofile(folder / f"{frame:010d}.bin")


def write_list(path: Path, lines: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def make_config(tmp_path: Path, **data: object) -> Config:
    """A configuration at 32x96 for the data in `tmp_path/raw` with lists in `tmp_path/split`."""
    config = Config()
    values = {"root": str(tmp_path / "raw"), "split": str(tmp_path / "split"), "height": 32, "width": 96}
    values |= {"frames": [0, -1, 1], "ground_truth_cache": str(tmp_path / "cache"), **data}
    for key, value in values.items():
        assert hasattr(config.data, key)
        setattr(config.data, key, value)
    return config
