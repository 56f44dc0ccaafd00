"""What data sets of named drives have in common, each drive an ordered series of frames with cameras of its own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from featdepth.data.dataset import FrameDataset
from featdepth.data.footage import Camera
from featdepth.data.samples import STEREO, Sample
from featdepth.data.splits import held_out_drives, is_among
from featdepth.errors import InputError

if TYPE_CHECKING:
    from featdepth.config import Config


@dataclass
class Recording:
    """What is on the disk of one drive. Sides: "l" is the left or only camera, "r" the right one."""

    images: dict[str, dict[int, str]]  # {side: {frame: path}}, frames in order
    cameras: dict[str, Camera]  # by side; their stereo_pose is left empty
    right_from_left: np.ndarray | None = None  # 4x4, metres, of a rectified pair
    depth: dict[int, str] = field(default_factory=dict)  # ground truth of the left camera {frame: path}


class SequenceDataset(FrameDataset):
    """Named drives below a root folder. A kind of them says what is there: `find_drives`, `read_recording`, and so on.

    Built-in splits: "official", by the names of drives, where the kind has one; "time": each drive's first 80 % are
    training, the next 10 % validation, the last 10 % test, with gaps so that no frame is in a sample of two parts.
    """

    official: ClassVar[dict[str, tuple[str, ...]]] = {}  # {part: names or patterns of its drives}

    @abstractmethod
    def find_drives(self, root: Path) -> list[str]:
        """Names of the drives below `root`, sorted. Raises InputError where there are none, with the expected tree."""

    @abstractmethod
    def read_recording(self, drive: str) -> Recording:
        """What is there of a drive; InputError for a bad calibration. Called once for each drive that is used."""

    def read_poses(self, drive: str) -> dict[int, np.ndarray]:
        """`poses` of a drive, from its files."""
        return {}

    def read_times(self, drive: str) -> dict[int, float]:
        """`times` of a drive, from its files."""
        return {}

    @classmethod
    def built_in_drives(cls, config: Config, part: str) -> Collection[str]:
        return cls.official[part] if config.data.split == "official" else ()

    def open_root(self, config: Config) -> None:
        self.root = Path(config.data.root)
        self.split = config.data.split
        self.all_drives = self.find_drives(self.root)
        self.drive_names = frozenset(self.all_drives)
        self.known: dict[tuple[str, str], object] = {}  # what was read, by method and drive

    def remember(self, read: str, drive: str) -> object:
        """What the method `read` says of a drive, read once."""
        if (read, drive) not in self.known:
            self.known[read, drive] = getattr(self, read)(drive)
        return self.known[read, drive]

    def recording(self, drive: str) -> Recording | None:
        """A drive's recording; None where there is no such drive."""
        return self.remember("read_recording", drive) if drive in self.drive_names else None

    def poses(self, drive: str) -> dict[int, np.ndarray]:
        return self.remember("read_poses", drive)

    def times(self, drive: str) -> dict[int, float]:
        return self.remember("read_times", drive)

    def built_in_samples(self, config: Config, part: str) -> list[Sample]:
        """Training has the frames of both cameras as targets, the other parts those of the left one."""
        drives, names = self.all_drives, self.built_in_drives(config, part)
        if self.split == "official":
            held_out = held_out_drives(config) if part == "train" else ()
            drives = [each for each in drives if is_among(each, names) and not is_among(each, held_out)]
        sides = ("l", "r") if part == "train" and STEREO in self.frames else ("l",)
        samples = [
            Sample(drive, frame, side)
            for drive in drives
            for side in sides
            for frame in self.part_frames(list(self.recording(drive).images.get(side, ())), part)
        ]
        if not samples and self.split == "time":
            raise InputError(
                f"{self.root}: no drive is long enough to be divided in time with data.frames {self.config.frames}; "
                "record longer ones, or name list files in data.split"
            )
        if not samples:
            raise InputError(
                f"{self.root}: no {part} frame of the {self.split} split is here; its drives are "
                f"{', '.join(names) or 'all'}; download them, or name list files in data.split"
            )
        return samples

    def part_frames(self, frames: list[int], part: str) -> list[int]:
        """Those of a drive's `frames`, in order, that a part has as targets."""
        if self.split != "time":
            return frames
        reach = max((abs(frame) for frame in self.config.frames if frame != STEREO), default=0)
        first, last = time_parts(len(frames), reach)[part]
        # A target's neighbours belong to its own part.
        inner_first = first + reach if first > 0 else first
        inner_last = last - reach if last < len(frames) else last
        return frames[inner_first:inner_last]

    def recordings(self) -> list[str]:
        if self.split != "time":
            return self.drives
        spans = {}
        for sample in self.samples:
            first, last = spans.get(sample.drive, (sample.frame, sample.frame))
            spans[sample.drive] = min(first, sample.frame), max(last, sample.frame)
        return sorted(f"{drive} {first}-{last}" for drive, (first, last) in spans.items())

    def image_path(self, sample: Sample, frame: int | str) -> str | None:
        recording = self.recording(sample.drive)
        if recording is None:
            return None
        if frame == STEREO:
            return recording.images.get("r" if sample.side == "l" else "l", {}).get(sample.frame)
        return recording.images.get(sample.side, {}).get(sample.frame + frame)

    def camera_of(self, sample: Sample) -> tuple[str, str]:
        return sample.drive, sample.side

    def camera_name(self, sample: Sample) -> str:
        """The two cameras of a rectified pair have the same intrinsics."""
        return sample.drive

    def camera(self, sample: Sample) -> Camera:
        recording = self.recording(sample.drive)
        camera = recording.cameras[sample.side]
        if STEREO not in self.frames:
            return camera
        right, left = recording.cameras["r"], recording.cameras["l"]
        if right.size != left.size or not np.allclose(right.intrinsics, left.intrinsics, rtol=0, atol=1e-3):
            raise InputError(
                f"{self.root}/{sample.drive}: the two cameras differ in intrinsics; a rectified pair shares them"
            )
        pose = recording.right_from_left
        return camera._replace(stereo_pose=pose if sample.side == "l" else np.linalg.inv(pose))

    def depth_path(self, sample: Sample) -> str | None:
        recording = self.recording(sample.drive)
        if recording is None or sample.side != "l":
            return None
        return recording.depth.get(sample.frame)

    def ground_truth_hint(self) -> str:
        return f"data.kind {self.config.kind} has none here; see docs/data"

    def read_depth(self, sample: Sample, path: str) -> np.ndarray:
        raise InputError(f"{path}: data.kind {self.config.kind} names ground truth that its reader does not read")


def time_parts(count: int, reach: int) -> dict[str, tuple[int, int]]:
    """First frame and the one after the last of each part of a drive of `count` frames in the split "time".

    Validation and test have room for at least one target with its neighbours, up to `reach` frames away; all of a drive
    that is too short for it is training.
    """
    smallest = 2 * reach + 1
    test = min(round(0.9 * count), count - smallest)
    validation = min(round(0.8 * count), test - smallest)
    if validation < smallest:
        test = validation = count
    return {"train": (0, validation), "validation": (validation, test), "test": (test, count)}
