"""What a kind of data has on the disk: the methods that its class writes, and those that it may."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable
from typing import ClassVar, NamedTuple

import numpy as np

from featdepth.config.keys import Config, Data
from featdepth.data.samples import FOLDERS, Naming, Sample


class Camera(NamedTuple):
    """What a sample's images were taken with."""

    size: tuple[int, int]  # height, width of the files, pixels
    intrinsics: np.ndarray  # 3x3 at that size, pixel centres at integers
    stereo_pose: np.ndarray | None = None  # 4x4 source_from_target of the other camera, metres


class Footage(ABC):
    """The recordings below a root folder, asked for one sample or one drive at a time.

    config: the data section of the configuration; frames: those of a sample, the target first; drives: of the samples,
    sorted.
    """

    config: Data
    frames: list[int | str]
    drives: list[str]

    naming: ClassVar[Naming] = FOLDERS  # of drives in lists
    image_form: ClassVar[str] = ""  # how images are called, in words
    calibration_name: ClassVar[str] = "the data's calibration"  # where intrinsics come from, for people
    makes_ground_truth: ClassVar[bool] = False  # from scans, which takes time; `data.ground_truth_cache` keeps it

    @classmethod
    @abstractmethod
    def built_in_drives(cls, config: Config, part: str) -> Collection[str]:
        """Names, or patterns such as "val/*", of the drives of a part of a built-in split."""

    @abstractmethod
    def open_root(self, config: Config) -> None:
        """Open the folder of the data. Raises InputError where it holds nothing of this kind."""

    @abstractmethod
    def built_in_samples(self, config: Config, part: str) -> list[Sample]:
        """The samples of a part of a built-in split; InputError where it has none."""

    @abstractmethod
    def image_path(self, sample: Sample, frame: int | str) -> str | None:
        """The image of one of the sample's frames: an offset in time or "s" (the other camera); None: there is none."""

    @abstractmethod
    def camera_of(self, sample: Sample) -> Hashable:
        """What samples of the same camera (intrinsics, size and stereo pose) have in common."""

    @abstractmethod
    def camera(self, sample: Sample) -> Camera:
        """The sample's camera, with a stereo pose where "s" is among the frames. InputError for a bad calibration."""

    @abstractmethod
    def depth_path(self, sample: Sample) -> str | None:
        """Where the sample's ground truth comes from, if there is any."""

    @abstractmethod
    def ground_truth_hint(self) -> str:
        """Where ground truth is looked for."""

    @abstractmethod
    def read_depth(self, sample: Sample, path: str) -> np.ndarray:
        """Ground truth float32 `[h, w]` (metres, 0 = none) at the size of the camera's files."""

    def camera_name(self, sample: Sample) -> str:
        """The sample's camera, where intrinsics are learned: samples of one name have one intrinsics."""
        return str(self.camera_of(sample))

    def assumes_intrinsics(self, sample: Sample) -> bool:
        """Whether the intrinsics of the sample's drive are those of `data.field_of_view`, for want of a calibration."""
        return False

    def intrinsics_source(self, sample: Sample) -> str:
        """Where the intrinsics of the sample's drive come from, in words."""
        return self.calibration_name

    def recordings(self) -> list[str]:
        """What a model remembers of its training: drives or "<drive> <first>-<last>" for some of its frames; sorted."""
        return self.drives

    def moving_path(self, sample: Sample) -> str | None:
        """Where the mask of moving things in the sample's target image lies, if there is one."""
        return None

    def poses(self, drive: str) -> dict[int, np.ndarray]:
        """world_from_camera 4x4 (metres) of the left or only camera at each frame where it is known."""
        return {}

    def times(self, drive: str) -> dict[int, float]:
        """Seconds at which each frame was taken, where that is known."""
        return {}

    def drops(self, drive: str) -> np.ndarray | None:
        """Where frames were chosen by motion, so that uneven times are meant: bool `[N-1]`, between which neighbours
        the camera itself recorded none, or the clock went back; None: the times should be even."""
        return None

    def distance(self, sample: Sample, frame: int) -> float | None:
        """Metres between the camera at the target and at the frame `frame` later or earlier; None: unknown."""
        poses = self.poses(sample.drive)
        one, other = poses.get(sample.frame), poses.get(sample.frame + frame)
        return None if one is None or other is None else float(np.linalg.norm(other[:3, 3] - one[:3, 3]))
