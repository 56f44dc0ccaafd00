"""EuRoC's micro aerial vehicle, grey stereo, as `python -m featdepth.prepare_euroc` writes it.

<root>/<sequence>/cam0|cam1/000000.png    left and right, rectified
<root>/<sequence>/intrinsics.txt          3x3 of both
<root>/<sequence>/right_from_left.txt     4x4
<root>/<sequence>/times.txt               frame, seconds
<root>/<sequence>/poses.txt               frame, first three rows of world_from_left (optional)
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

import numpy as np

from featdepth.cameras.intrinsics_files import read_intrinsics
from featdepth.console import command
from featdepth.data.footage import Camera
from featdepth.data.images import image_size
from featdepth.data.listing import file_names, list_frames, read_matrix, read_numbers
from featdepth.data.sets.sequences import Recording, SequenceDataset
from featdepth.errors import InputError

IMAGE_NAME = re.compile(r"([0-9]{6})\.png")


class Euroc(SequenceDataset):
    """The machine hall trains, the first Vicon room validates, the second one tests."""

    calibration_name: ClassVar = "intrinsics.txt"

    official: ClassVar = {"train": ("MH_*",), "validation": ("V1_*",), "test": ("V2_*",)}

    def find_drives(self, root: Path) -> list[str]:
        drives = [name for name in file_names(root) if (root / name / "manifest.json").is_file()]
        if not drives:
            raise InputError(
                f"{root}: no prepared EuRoC here; run "
                + command(["python", "-m", "featdepth.prepare_euroc", "DOWNLOADED", "--out", root])
            )
        return drives

    def read_recording(self, drive: str) -> Recording:
        folder = self.root / drive
        images = {side: list_frames(folder / name, IMAGE_NAME) for side, name in (("l", "cam0"), ("r", "cam1"))}
        images = {side: files for side, files in images.items() if files}
        if not images:
            return Recording({}, {})
        size = image_size(next(iter(next(iter(images.values())).values())))
        camera = Camera(size, read_intrinsics(folder / "intrinsics.txt", size).intrinsics)
        right_from_left = read_matrix(folder / "right_from_left.txt", 4, "the pose of the right camera")
        return Recording(images, dict.fromkeys(images, camera), right_from_left)

    def read_poses(self, drive: str) -> dict[int, np.ndarray]:
        path = self.root / drive / "poses.txt"
        if not path.is_file():
            return {}
        rows = read_numbers(path, 13, "a frame and its pose")
        return {int(row[0]): np.vstack([row[1:].reshape(3, 4), [0.0, 0.0, 0.0, 1.0]]) for row in rows}

    def read_times(self, drive: str) -> dict[int, float]:
        rows = read_numbers(self.root / drive / "times.txt", 2, "a frame and its time")
        return {int(frame): seconds for frame, seconds in rows.tolist()}
