"""KITTI raw, or anything in its layout, as a dataset of target frames with their neighbours and stereo frame.

<root>/<date>/calib_cam_to_cam.txt, calib_velo_to_cam.txt
<root>/<date>/<date>_drive_XXXX_sync/image_02|image_03/data/XXXXXXXXXX.png|jpg
<root>/<date>/<date>_drive_XXXX_sync/velodyne_points/data/XXXXXXXXXX.bin   ground truth (optional)
<root>/<date>/<date>_drive_XXXX_sync/moving_02|moving_03/data/XXXXXXXXXX.png   moving things (the synthetic street)
<root>/<date>/<date>_drive_XXXX_sync/oxts/data/XXXXXXXXXX.txt, timestamps.txt beside all these   motion (optional)
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

from featdepth.data.dataset import FrameDataset
from featdepth.data.footage import Camera
from featdepth.data.images import load_depth_image
from featdepth.data.kitti.calibration import Calibration
from featdepth.data.kitti.drives import KITTI_DRIVES, RAW_IMAGE_FORM, KittiFiles
from featdepth.data.kitti.eigen import eigen_split, eigen_test_samples
from featdepth.data.kitti.ground_truth import cached_lidar_depth, writable_cache_folder
from featdepth.data.kitti.oxts import distance_between, read_speed, read_times, steps_between
from featdepth.data.kitti.oxts_poses import camera_poses
from featdepth.data.samples import STEREO, Sample
from featdepth.data.splits import held_out_drives
from featdepth.errors import InputError

if TYPE_CHECKING:
    from featdepth.config import Config

OTHER_SIDE = {"l": "r", "r": "l"}


class KittiRaw(FrameDataset):
    """KITTI raw: a colour stereo rig and a laser scanner, calibrated once a day."""

    calibration_name = "calib_cam_to_cam.txt"

    naming = KITTI_DRIVES
    makes_ground_truth = True
    image_form = RAW_IMAGE_FORM

    def open_root(self, config: Config) -> None:
        self.improved = config.evaluate.protocol == "eigen_improved"
        self.files = KittiFiles(config.data.root)
        self.calibrations: dict[str, Calibration] = {}
        self.camera_poses: dict[str, dict[int, np.ndarray]] = {}  # by drive
        self.steps: dict[str, np.ndarray] = {}  # metres driven from each frame to the next, by drive

    @classmethod
    def built_in_drives(cls, config: Config, part: str) -> Collection[str]:
        return eigen_split()[part] if config.data.split == "eigen" else ()

    def built_in_samples(self, config: Config, part: str) -> list[Sample]:
        files = self.files
        if part == "test":
            # All 697: those that a partial download lacks are counted as left out.
            here = any(files.image(sample.drive, sample.side, sample.frame) for sample in eigen_test_samples())
            samples = eigen_test_samples() if here else []
        elif part == "validation":
            samples = all_samples(files, eigen_split()["validation"], ["l"])
        else:
            samples = all_samples(files, sorted(set(files.drives()) - held_out_drives(config)), ["l", "r"])
        if not samples:
            raise InputError(
                f"{files.root}: no {part} frame of the eigen split is here; download its drives, or name a list file "
                f"with data.{'val' if part == 'validation' else part}_files"
            )
        return samples

    def image_path(self, sample: Sample, frame: int | str) -> str | None:
        side = OTHER_SIDE[sample.side] if frame == STEREO else sample.side
        offset = 0 if frame == STEREO else frame
        return self.files.image(sample.drive, side, sample.frame + offset)

    def camera_of(self, sample: Sample) -> tuple[str, str]:
        return sample.date, sample.side

    def camera_name(self, sample: Sample) -> str:
        """The two cameras of a rectified pair have the same intrinsics."""
        return sample.date

    def camera(self, sample: Sample) -> Camera:
        calibration, side = self.calibration(sample), sample.side
        stereo_pose = calibration.stereo_pose(side) if STEREO in self.frames else None
        return Camera(calibration.size(side), calibration.intrinsics(side), stereo_pose)

    def calibration(self, sample: Sample) -> Calibration:
        """That of the sample's day, read once."""
        if sample.date not in self.calibrations:
            self.calibrations[sample.date] = Calibration(self.files.root / sample.date)
        return self.calibrations[sample.date]

    def depth_path(self, sample: Sample) -> str | None:
        """The sample's scan, or its depth image in the protocol "eigen_improved"."""
        if self.improved:
            return self.files.depth_image(sample.drive, sample.side, sample.frame)
        return self.files.scan(sample.drive, sample.frame)

    def moving_path(self, sample: Sample) -> str | None:
        return self.files.moving_mask(sample.drive, sample.side, sample.frame)

    def times(self, drive: str) -> dict[int, float]:
        times = enumerate(read_times(self.files.root / drive / "image_02" / "timestamps.txt").tolist())
        return {frame: time for frame, time in times if np.isfinite(time)}

    def poses(self, drive: str) -> dict[int, np.ndarray]:
        """From what the inertial unit measured; none where a drive has no packets or no times."""
        if drive not in self.camera_poses:
            folder = self.files.root / drive
            times = read_times(folder / "image_02" / "timestamps.txt")
            packet_times = read_times(folder / "oxts" / "timestamps.txt")
            calibration = self.calibration(Sample(drive, 0, "l"))
            self.camera_poses[drive] = camera_poses(times, packet_times, self.files.packets(drive), calibration)
        return self.camera_poses[drive]

    def distance(self, sample: Sample, frame: int) -> float | None:
        """From the speeds that the inertial unit measured."""
        drive = sample.drive
        if drive not in self.steps:
            folder = self.files.root / drive
            speeds = {packet: read_speed(path) for packet, path in self.files.packets(drive).items()}
            packet_times = read_times(folder / "oxts" / "timestamps.txt")
            self.steps[drive] = steps_between(read_times(folder / "image_02" / "timestamps.txt"), packet_times, speeds)
        return distance_between(self.steps[drive], sample.frame, sample.frame + frame)

    def ground_truth_hint(self) -> str:
        if self.improved:
            return "evaluate.protocol eigen_improved reads <date>/<drive>/proj_depth/groundtruth/image_0X/*.png"
        return "evaluate.protocol eigen reads <date>/<drive>/velodyne_points/data/*.bin"

    def prepare_cameras(self) -> None:
        super().prepare_cameras()
        if self.with_depth and not self.improved:
            scanned = {self.camera_of(sample): sample for sample in self.samples if self.depth_path(sample)}
            for sample in scanned.values():
                self.calibration(sample).projection_of_scan(sample.side)
            self.cache_folder = writable_cache_folder(self.config.ground_truth_cache)

    def read_depth(self, sample: Sample, path: str) -> np.ndarray:
        if self.improved:
            return load_depth_image(path, self.native_sizes[self.camera_of(sample)])
        return cached_lidar_depth(path, self.calibration(sample), sample.side, self.cache_folder)

    def describe(self) -> str:
        first, *others = super().describe().split("\n")
        if self.with_depth and not self.improved and self.cache_folder is None:
            first += ", ground truth not cached (set data.ground_truth_cache to a folder that can be written to)"
        return "\n".join([first, *others])


def all_samples(files: KittiFiles, drives: list[str], sides: list[str]) -> list[Sample]:
    """Every image of these drives' cameras as a target."""
    return [
        Sample(drive, frame, side) for drive in drives for side in sides for frame in files.image_frames(drive, side)
    ]
