"""A few frames of the synthetic street in Cityscapes' layout and file formats."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from drive_writer import RenderedDrive
from PIL import Image

SPEED = 9.5  # metres a second, at the first frame; one more at each further one
INTERVAL = 58_823_529  # nanoseconds between frames, 17 a second


def write_cityscapes(root: Path, drives: dict[str, RenderedDrive], first_frame: int = 0) -> None:
    """Each drive, by its name ("train/aachen/000000"), in all packages; its last frame but one has the camera file."""
    for name, drive in drives.items():
        for frame in range(len(drive.images)):
            write_image(city_file(root, "leftImg8bit_sequence", name, first_frame + frame), drive.images[frame])
            write_image(city_file(root, "rightImg8bit_sequence", name, first_frame + frame), drive.right_images[frame])
            disparity = stored_disparity(drive, frame)
            write_image(city_file(root, "disparity_sequence", name, first_frame + frame), disparity)
            vehicle = {"gpsHeading": 281.0, "speed": SPEED + frame, "yawRate": -0.0017}
            city_file(root, "vehicle_sequence", name, first_frame + frame).write_text(json.dumps(vehicle))
            time = city_file(root, "timestamp_sequence", name, first_frame + frame)
            time.write_text(f"{frame * INTERVAL}\n")
        camera = city_file(root, "camera", name, first_frame + len(drive.images) - 2)
        camera.write_text(camera_json(drive.intrinsics, -drive.right_from_left[0, 3]))


def city_file(root: Path, package: str, drive: str, frame: int) -> Path:
    """Where a package of Cityscapes has a frame of a drive; its folder is made."""
    split, city, sequence = drive.split("/")
    kind = package.removesuffix("_sequence")
    suffix = {"camera": "json", "vehicle": "json", "timestamp": "txt"}.get(kind, "png")
    folder = root / package / split / city
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{city}_{sequence}_{frame:06}_{kind}.{suffix}"


def write_image(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(path)


def stored_disparity(drive: RenderedDrive, frame: int) -> np.ndarray:
    """uint16 `[H, W]`: 256 times the disparity plus 1, 0 where there is none."""
    disparity = -drive.right_from_left[0, 3] * drive.intrinsics[0, 0] / drive.depths[frame]
    return np.where(np.isfinite(drive.depths[frame]), np.rint(256 * disparity) + 1, 0).astype(np.uint16)


def camera_json(intrinsics: np.ndarray, baseline: float) -> str:
    """A camera file; the position on the vehicle is that of the published one of aachen_000000_000019."""
    (fx, _, u0), (_, fy, v0), _ = intrinsics.tolist()
    extrinsic = {"baseline": baseline, "pitch": 0.038, "roll": 0.0, "x": 1.7, "y": 0.1, "yaw": -0.0195, "z": 1.22}
    return json.dumps({"extrinsic": extrinsic, "intrinsic": {"fx": fx, "fy": fy, "u0": u0, "v0": v0}}, indent=4)
