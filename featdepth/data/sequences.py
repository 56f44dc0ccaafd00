"""What data sets of named drives have in common, each drive an ordered series of frames with cameras of its own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from featdepth.data.dataset import STEREO, Camera, FrameDataset
from featdepth.data.splits import Sample, held_out_drives, is_among
from featdepth.errors import InputError

if TYPE_CHECKING:
    from featdepth.config import Config

# The split "time": parts of a drive's frames, with gaps so that no frame is in a sample of two parts.
TIME_PARTS = {"train": (0.0, 0.8), "validation": (0.8, 0.9), "test": (0.9, 1.0)}


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
    training, the next 10 % validation, the last 10 % test.
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
    def built_in_drives(cls, split: str, part: str) -> Collection[str]:
        return cls.official[part] if split == "official" else ()

    def open_root(self, config: Config) -> None:
        self.root = Path(config.data.root)
        self.split = config.data.split
        self.all_drives = self.find_drives(self.root)
        self.known: dict[tuple[str, str], object] = {}  # what was read, by method and drive

    def remember(self, read: str, drive: str) -> object:
        """What the method `read` says of a drive, read once."""
        if (read, drive) not in self.known:
            self.known[read, drive] = getattr(self, read)(drive)
        return self.known[read, drive]

    def recording(self, drive: str) -> Recording | None:
        """A drive's recording; None where there is no such drive."""
        return self.remember("read_recording", drive) if drive in self.all_drives else None

    def poses(self, drive: str) -> dict[int, np.ndarray]:
        return self.remember("read_poses", drive)

    def times(self, drive: str) -> dict[int, float]:
        return self.remember("read_times", drive)

    def built_in_samples(self, config: Config, part: str) -> list[Sample]:
        """Training has the frames of both cameras as targets, the other parts those of the left one."""
        drives = self.all_drives
        if self.split == "official":
            held_out = held_out_drives(config, type(self)) if part == "train" else ()
            drives = [each for each in drives if is_among(each, self.official[part]) and not is_among(each, held_out)]
        sides = ("l", "r") if part == "train" and STEREO in self.frames else ("l",)
        samples = [
            Sample(drive, frame, side)
            for drive in drives
            for side in sides
            for frame in self.part_frames(list(self.recording(drive).images.get(side, ())), part)
        ]
        if not samples:
            raise InputError(
                f"{self.root}: no {part} frame of the {self.split} split is here; its drives are "
                f"{', '.join(self.official.get(part, ())) or 'all'}; download them, or name list files in data.split"
            )
        return samples

    def part_frames(self, frames: list[int], part: str) -> list[int]:
        """Those of a drive's `frames`, in order, that a part has as targets."""
        if self.split != "time":
            return frames
        first, last = (round(share * len(frames)) for share in TIME_PARTS[part])
        reach = max((abs(frame) for frame in self.config.frames if frame != STEREO), default=0)
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
        raise NotImplementedError(f"{type(self).__name__} finds ground truth and cannot read it")
