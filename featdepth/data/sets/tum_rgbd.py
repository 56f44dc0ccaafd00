"""The RGB-D benchmark of the Technical University of Munich, or anything in its layout.

<root>/<sequence>/rgb.txt           time (seconds) and file, as in "1305031102.175304 rgb/1305031102.175304.png"
<root>/<sequence>/depth.txt         ground truth (optional): uint16, 5000 a metre, 0 where there is none
<root>/<sequence>/groundtruth.txt   time tx ty tz qx qy qz qw of world_from_camera, metres (optional)
intrinsics.txt                      3x3 (optional): in the sequence or in the root

The root may also be a single sequence. Frames are numbered by their lines in rgb.txt, from 0. Colour, depth and motion
were recorded by clocks of their own: the depth of a frame is the nearest in time, its pose is interpolated.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from featdepth.cameras.intrinsics_files import read_pinhole
from featdepth.cameras.pinhole import matrix
from featdepth.data.footage import Camera
from featdepth.data.images import image_size, load_depth_image
from featdepth.data.listing import LARGEST_TABLE, read_numbers
from featdepth.data.samples import Sample
from featdepth.data.sets.sequences import Recording, SequenceDataset
from featdepth.errors import InputError
from featdepth.files import numbered_lines
from featdepth.odometry.interpolate import interpolate_poses

UNITS_PER_METRE = 5000.0
DEPTH_REACH = 0.02  # seconds between a frame and its depth
POSE_REACH = 0.05  # seconds between a frame and the nearest measured pose; there are 100 a second
LISTED_FILE = re.compile(r"\s*([0-9]{1,12}(?:\.[0-9]{1,9})?)\s+(\S+)\s*")
CAMERA_NAME = re.compile(r"freiburg[123]")
SIZE = (480, 640)  # of the benchmark's images
# fx, fy, cx, cy that the benchmark publishes; what is left of the lenses' distortion is not undone.
KNOWN_CAMERAS = {
    "freiburg1": (517.3, 516.5, 318.6, 255.3),
    "freiburg2": (520.9, 521.0, 325.1, 249.7),
    "freiburg3": (535.4, 539.2, 320.1, 247.6),
}


class TumRgbd(SequenceDataset):
    """Hand-held and robot sequences; there is no official split."""

    def find_drives(self, root: Path) -> list[str]:
        if (root / "rgb.txt").is_file():
            self.folders = {Path(os.path.abspath(root)).name: root}
        else:
            self.folders = {path.parent.name: path.parent for path in sorted(root.glob("*/rgb.txt"))}
        if not self.folders:
            raise InputError(f"{root}: nothing in the layout of TUM RGB-D; expected <sequence>/rgb.txt")
        return list(self.folders)

    def read_recording(self, drive: str) -> Recording:
        folder = self.folders[drive]
        times, paths = read_file_list(folder / "rgb.txt")
        images = {frame: path for frame, path in enumerate(paths) if os.path.isfile(path)}
        if not images:
            return Recording({}, {})
        size = image_size(next(iter(images.values())))
        camera = Camera(size, self.read_camera(drive, size))
        return Recording({"l": images}, {"l": camera}, depth=match_depth(folder / "depth.txt", times))

    def read_camera(self, drive: str, size: tuple[int, int]) -> np.ndarray:
        """3x3 intrinsics of a sequence whose images are of `size`: the nearest file's, or the benchmark's."""
        for place in (self.folders[drive], self.root):
            path = place / "intrinsics.txt"
            if path.is_file():
                return read_pinhole(path, size)
        match = CAMERA_NAME.search(drive)
        if match is None or size != SIZE:
            raise InputError(
                f"{self.folders[drive]}: no intrinsics.txt, and images of {size[1]} x {size[0]} pixels in a folder of "
                "this name are not of the cameras freiburg1 to freiburg3 (640 x 480); write the 3x3 intrinsics there"
            )
        return matrix(*KNOWN_CAMERAS[match[0]])

    def read_times(self, drive: str) -> dict[int, float]:
        return dict(enumerate(read_file_list(self.folders[drive] / "rgb.txt")[0].tolist()))

    def read_poses(self, drive: str) -> dict[int, np.ndarray]:
        path = self.folders[drive] / "groundtruth.txt"
        if not path.is_file():
            return {}
        rows = read_numbers(path, 8, "the poses")
        if (abs(np.linalg.norm(rows[:, 4:], axis=1) - 1) > 0.01).any():
            raise InputError(f"{path}: has quaternions that are not of length 1; download it again")
        times = np.array(list(self.times(drive).values()))
        return interpolate_poses(rows[:, 0], rows[:, 1:4], rows[:, 4:], times, POSE_REACH)

    def ground_truth_hint(self) -> str:
        return "it is in depth/*.png, which depth.txt lists"

    def read_depth(self, sample: Sample, path: str) -> np.ndarray:
        return load_depth_image(path, self.camera(sample).size, UNITS_PER_METRE)


def read_file_list(path: Path) -> tuple[np.ndarray, list[str]]:
    """The times `[N]` (seconds, never decreasing) and paths in a rgb.txt or depth.txt; lines with # are left out.

    Raises InputError, naming file and line, for anything else.
    """
    times, paths = [], []
    for number, line in numbered_lines(path, LARGEST_TABLE, "the list of images"):
        match = LISTED_FILE.fullmatch(line)
        if match is None:
            raise InputError(f"{path}:{number}: {line.strip()[:60]!r} should be a time in seconds and a file")
        if times and float(match[1]) < times[-1]:
            raise InputError(f"{path}:{number}: the time is before that of the line above; sort the lines by time")
        times.append(float(match[1]))
        paths.append(str(path.parent / match[2]))
    return np.array(times), paths


def match_depth(path: Path, times: np.ndarray) -> dict[int, str]:
    """The depth images that the depth.txt at `path` lists, by the index of that of `times` that they belong to.

    That is for each the nearest one, if it is within DEPTH_REACH and the file is there; none where there is no list.
    """
    if not path.is_file():
        return {}
    depth_times, paths = read_file_list(path)
    if not paths:
        return {}
    nearest = np.searchsorted((depth_times[1:] + depth_times[:-1]) / 2, times)
    is_near = abs(depth_times[nearest] - times) <= DEPTH_REACH
    found = {frame: paths[nearest[frame]] for frame in np.flatnonzero(is_near).tolist()}
    return {frame: depth for frame, depth in found.items() if os.path.isfile(depth)}
