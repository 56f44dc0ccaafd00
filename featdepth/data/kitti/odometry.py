"""KITTI's odometry benchmark, colour or grey stereo.

<root>/sequences/XX/image_2|image_3/XXXXXX.png   colour; where a sequence has none, image_0|image_1: grey
<root>/sequences/XX/calib.txt                    P0 .. P3, Tr
<root>/sequences/XX/times.txt                    seconds (optional)
<root>/sequences/XX/velodyne/XXXXXX.bin          ground truth (optional)
<root>/poses/XX.txt                              of camera 0, sequences 00 to 10 (optional)

Its sequences are cut from drives of KITTI raw, many of which the Eigen split tests on: a model that has seen them
remembers those drives.
"""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from featdepth.data.footage import Camera
from featdepth.data.images import image_size
from featdepth.data.kitti.calibration import RectifiedCameras, check_pinhole, parse_row, read_rows
from featdepth.data.kitti.ground_truth import cached_lidar_depth, writable_cache_folder
from featdepth.data.listing import IMAGE_SUFFIXES, list_frames, read_numbers
from featdepth.data.samples import Naming, Sample
from featdepth.data.sets.sequences import Recording, SequenceDataset
from featdepth.errors import InputError

if TYPE_CHECKING:
    from featdepth.config import Config

SEQUENCE = re.compile(r"[0-9]{2}")
IMAGE_NAME = re.compile(rf"([0-9]{{6}})\.(?:{IMAGE_SUFFIXES})", re.IGNORECASE)
IMAGE_FORM = "by six digits, as in 000005.png"
SCAN_NAME = re.compile(r"([0-9]{6})\.bin")
SEQUENCES = Naming(re.compile(r"[0-9]{1,2}"), "<sequence>", "09 95 l", digits=2)
COLOUR, GREY = {"l": 2, "r": 3}, {"l": 0, "r": 1}
# The development kit's table: where the sequences with public poses come from.
RAW_DRIVES = {
    "00": "2011_10_03/2011_10_03_drive_0027_sync",
    "01": "2011_10_03/2011_10_03_drive_0042_sync",
    "02": "2011_10_03/2011_10_03_drive_0034_sync",
    "03": "2011_09_26/2011_09_26_drive_0067_sync",
    "04": "2011_09_30/2011_09_30_drive_0016_sync",
    "05": "2011_09_30/2011_09_30_drive_0018_sync",
    "06": "2011_09_30/2011_09_30_drive_0020_sync",
    "07": "2011_09_30/2011_09_30_drive_0027_sync",
    "08": "2011_09_30/2011_09_30_drive_0028_sync",
    "09": "2011_09_30/2011_09_30_drive_0033_sync",
    "10": "2011_09_30/2011_09_30_drive_0034_sync",
}
FIRST_RAW_FRAMES = {"08": 1100}  # the others start at 0


class KittiOdometry(SequenceDataset):
    """Sequences 00 to 08 are for training, 09 and 10 for testing; four of those without public poses validate."""

    calibration_name: ClassVar = "calib.txt"

    naming: ClassVar = SEQUENCES
    makes_ground_truth: ClassVar = True
    image_form: ClassVar = IMAGE_FORM
    official: ClassVar = {
        "train": tuple(f"{number:02}" for number in range(9)),
        "validation": ("11", "14", "17", "20"),
        "test": ("09", "10"),
    }

    def open_root(self, config: Config) -> None:
        self.calibrations: dict[str, OdometryCalibration] = {}
        super().open_root(config)

    def find_drives(self, root: Path) -> list[str]:
        drives = sorted(path.name for path in root.glob("sequences/*") if SEQUENCE.fullmatch(path.name))
        if not drives:
            raise InputError(f"{root}: no KITTI odometry here; expected sequences/00/image_2/000000.png")
        return drives

    def read_recording(self, drive: str) -> Recording:
        folder = self.root / "sequences" / drive
        numbers = COLOUR if (folder / "image_2").is_dir() else GREY
        images = {
            side: list_frames(folder / f"image_{number}", IMAGE_NAME, IMAGE_FORM) for side, number in numbers.items()
        }
        images = {side: files for side, files in images.items() if files}
        if not images:
            return Recording({}, {})
        first_image = next(iter(next(iter(images.values())).values()))
        calibration = self.calibrations[drive] = OdometryCalibration(folder, numbers, image_size(first_image))
        return Recording(
            images,
            {side: Camera(calibration.size(side), calibration.intrinsics(side)) for side in images},
            calibration.offset("l", "r") if len(images) == 2 else None,
            list_frames(folder / "velodyne", SCAN_NAME),
        )

    def read_poses(self, drive: str) -> dict[int, np.ndarray]:
        path = self.root / "poses" / f"{drive}.txt"
        if not path.is_file():
            return {}
        # That module is above this package, and needs it itself.
        from featdepth.odometry.trajectory_files import read_trajectory

        trajectory = read_trajectory(path)
        if trajectory.times is not None:
            raise InputError(f"{path}: the poses have times; write them in KITTI's format, 12 numbers a line")
        # Those of camera 0; the colour camera is beside it.
        self.recording(drive)
        left_from_zero = np.eye(4)
        left_from_zero[:3, 3] = self.calibrations[drive].position("l")
        poses = trajectory.poses @ np.linalg.inv(left_from_zero)
        frames = range(len(poses)) if trajectory.frames is None else trajectory.frames.tolist()
        return dict(zip(frames, poses, strict=True))

    def read_times(self, drive: str) -> dict[int, float]:
        path = self.root / "sequences" / drive / "times.txt"
        return dict(enumerate(read_numbers(path, 1, "the times")[:, 0].tolist())) if path.is_file() else {}

    def recordings(self) -> list[str]:
        """The same frames of KITTI raw too."""
        names = super().recordings()
        return sorted([*names, *(raw_name(name) for name in names if name.split()[0] in RAW_DRIVES)])

    def ground_truth_hint(self) -> str:
        return "it is made of sequences/XX/velodyne/*.bin"

    def prepare_cameras(self) -> None:
        super().prepare_cameras()
        if self.with_depth:
            for drive in {sample.drive for sample in self.samples if self.depth_path(sample)}:
                self.calibrations[drive].projection_of_scan("l")
            self.cache_folder = writable_cache_folder(self.config.ground_truth_cache)

    def read_depth(self, sample: Sample, path: str) -> np.ndarray:
        return cached_lidar_depth(path, self.calibrations[sample.drive], sample.side, self.cache_folder)


def raw_name(recording: str) -> str:
    """What KITTI raw calls a recording, the whole of a sequence or a range of its frames."""
    sequence, *span = recording.split()
    if not span:
        return RAW_DRIVES[sequence]
    first, last = (int(frame) + FIRST_RAW_FRAMES.get(sequence, 0) for frame in span[0].split("-"))
    return f"{RAW_DRIVES[sequence]} {first}-{last}"


class OdometryCalibration(RectifiedCameras):
    """A sequence's `calib.txt`; as in all of KITTI its pixels count from 1."""

    def __init__(self, folder: Path, numbers: dict[str, int], size: tuple[int, int]) -> None:
        """numbers: of the cameras on each side; size: height and width of their images. Raises InputError."""
        self.path, self.numbers, self.image_size = folder / "calib.txt", numbers, size

    @cached_property
    def rows(self) -> dict[str, str]:
        return read_rows(self.path)

    def size(self, side: str) -> tuple[int, int]:
        """Height and width of the images (pixels), the same on both sides."""
        return self.image_size

    def projection(self, side: str) -> np.ndarray:
        name = f"P{self.numbers[side]}"
        projection = parse_row(self.path, self.rows, name, 12).reshape(3, 4)
        check_pinhole(self.path, name, projection)
        return projection

    def projection_of_scan(self, side: str) -> np.ndarray:
        """3x4 matrix P · Tr: scanner coordinates (metres) to homogeneous pixels from 1."""
        camera_from_scanner = np.eye(4)
        camera_from_scanner[:3] = parse_row(self.path, self.rows, "Tr", 12).reshape(3, 4)
        return self.projection(side) @ camera_from_scanner
