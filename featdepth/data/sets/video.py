"""Own video: clips that `prepare_video` or `prepare_stereo` has written, or folders of images as they are.

<root>/<clip>/XXXXXX.jpg|png   prepared frames
<root>/<clip>/clip.json        camera, size, intrinsics or null, seconds and, where they are known, metres travelled
<root>/<clip>/right/XXXXXX...  of a stereo pair the right camera's frames, rectified; its record has the baseline

<root>/<drive>/*.png|jpg|...   images of any format that is read, in natural order, without preparation
intrinsics.txt                 of them, in the drive or in the root (optional)

Frames are numbered from 0 in their order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from featdepth.cameras.intrinsics_files import read_pinhole
from featdepth.cameras.pinhole import field_of_view_intrinsics
from featdepth.console import count
from featdepth.data.baselines import beside
from featdepth.data.footage import Camera
from featdepth.data.frame_folders import list_sequence
from featdepth.data.images import image_size
from featdepth.data.listing import file_names, list_images, other_photos
from featdepth.data.samples import Sample
from featdepth.data.sets.clips import CLIP, RIGHT, SUMMARY, read_record
from featdepth.data.sets.sequences import Recording, SequenceDataset
from featdepth.errors import InputError

INTRINSICS_NAME = "intrinsics.txt"
# A film of variable frame rate waits between frames for up to this many seconds, and times its usual interval.
LONGEST_INTERVAL, LONG_INTERVAL = 0.5, 5.0


class Video(SequenceDataset):
    """Drives are the clips or folders."""

    def find_drives(self, root: Path) -> list[str]:
        if (root / SUMMARY).is_file() and not read_record(root / SUMMARY).get("complete"):
            raise InputError(f"{root}: its preparation is not finished; run python -m featdepth.prepare_video again")
        drives = [name for name in file_names(root) if list_images(root / name) or other_photos(root / name)]
        if not drives:
            raise InputError(
                f"{root}: no folder with png or jpg images (or in another format that is read) here; make one by "
                "python -m featdepth.prepare_video, or put images into folders below, as in <drive>/0001.jpg"
            )
        return drives

    def read_recording(self, drive: str) -> Recording:
        images = {"l": list_sequence(self.root / drive)}
        size, baseline = image_size(images["l"][0]), self.clip_record(drive).get("baseline")
        if baseline is not None:
            images["r"] = list_sequence(self.root / drive / RIGHT)
            if len(images["r"]) != len(images["l"]):
                raise InputError(
                    f"{self.root / drive / RIGHT}: has {count(len(images['r']), 'image')} for "
                    f"{len(images['l'])} of the left camera; prepare the pairs again"
                )
        camera = Camera(size, self.find_intrinsics(drive, size))
        numbered = {side: dict(enumerate(files)) for side, files in images.items()}
        return Recording(numbered, dict.fromkeys(images, camera), None if baseline is None else beside(baseline))

    def find_intrinsics(self, drive: str, size: tuple[int, int]) -> np.ndarray:
        """Intrinsics 3x3 of a drive's images of `size` (height, width): its own, else from `data.field_of_view`.

        Raises InputError where there is neither.
        """
        if (known := self.clip_record(drive).get("intrinsics")) is not None:
            return read_matrix(self.root / drive / CLIP, known)
        for path in (self.root / drive / INTRINSICS_NAME, self.root / INTRINSICS_NAME):
            if path.is_file():
                return read_pinhole(path, size)
        if self.config.field_of_view is not None:
            return field_of_view_intrinsics(self.config.field_of_view, size)
        raise InputError(
            f"{self.root / drive}: nothing tells its camera's intrinsics; write a 3x3 {INTRINSICS_NAME} there, or set "
            "data.field_of_view (degrees), which model.intrinsics=learned takes as a start"
        )

    def assumes_intrinsics(self, sample: Sample) -> bool:
        folders = (self.root / sample.drive, self.root)
        is_known = self.clip_record(sample.drive).get("intrinsics") is not None
        return not is_known and not any((folder / INTRINSICS_NAME).is_file() for folder in folders)

    def intrinsics_source(self, sample: Sample) -> str:
        if self.assumes_intrinsics(sample):
            return f"data.field_of_view ({self.config.field_of_view:g} degrees)"
        return CLIP if self.clip_record(sample.drive).get("intrinsics") is not None else INTRINSICS_NAME

    def clip_record(self, drive: str) -> dict[str, Any]:
        """What the preparation knew of a clip; nothing for a plain folder."""
        return self.remember("read_clip_record", drive)

    def read_clip_record(self, drive: str) -> dict[str, Any]:
        path = self.root / drive / CLIP
        if not path.is_file():
            return {}
        clip = read_record(path)
        frames = len(list_images(self.root / drive))
        if "baseline" in clip and not is_list_of_numbers([clip["baseline"]]):
            raise InputError(f"{path}: baseline should be a number of metres; prepare the pairs again")
        for key in ("seconds", "odometer"):
            if key in clip and not (is_list_of_numbers(clip[key]) and len(clip[key]) == frames):
                raise InputError(
                    f"{path}: {key} should have a number for each of {count(frames, 'image')}; prepare them again"
                )
        return clip

    def camera_name(self, sample: Sample) -> str:
        """Clips of one preparation share a camera, and so do plain folders of one size."""
        height, width = self.recording(sample.drive).cameras[sample.side].size
        return self.clip_record(sample.drive).get("camera", f"camera {width}x{height}")

    def read_times(self, drive: str) -> dict[int, float]:
        return known_values(self.clip_record(drive).get("seconds", []))

    def drops(self, drive: str) -> np.ndarray | None:
        """Of a prepared clip, by the times and numbers that its frames have in the film; see `FrameDataset.drops`."""
        clip = self.clip_record(drive)
        numbers, times = np.array(clip.get("index", []), dtype=float), self.read_times(drive)
        if not clip:
            return None
        if len(numbers) != len(times) or len(times) < 2:
            return np.zeros(max(len(numbers) - 1, 0), dtype=bool)
        passed = np.diff([times[frame] for frame in sorted(times)])
        interval = passed / np.maximum(np.diff(numbers), 1)  # from one frame of the film to the next
        return (passed <= 0) | (interval > max(LONGEST_INTERVAL, LONG_INTERVAL * float(np.median(interval))))

    def distance(self, sample: Sample, frame: int) -> float | None:
        """Along the way, from the speeds that the preparation was given."""
        travelled = self.remember("read_travelled", sample.drive)
        one, other = travelled.get(sample.frame), travelled.get(sample.frame + frame)
        return None if one is None or other is None else abs(other - one)

    def read_travelled(self, drive: str) -> dict[int, float]:
        """Metres travelled at each frame where that is known."""
        return known_values(self.clip_record(drive).get("odometer", []))


def is_list_of_numbers(values: Any) -> bool:
    """Whether it is a list of numbers, or null where one is unknown."""
    return isinstance(values, list) and all(value is None or type(value) in (int, float) for value in values)


def known_values(values: list[float | None]) -> dict[int, float]:
    """The numbers in a list, by their place."""
    return {place: float(value) for place, value in enumerate(values) if value is not None}


def read_matrix(path: Path, rows: Any) -> np.ndarray:
    """The 3x3 float64 matrix in JSON `rows`; InputError, naming the file, for anything else."""
    try:
        matrix = np.array(rows, dtype=np.float64)
    except (ValueError, TypeError):
        matrix = np.empty(0)
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all():
        raise InputError(f"{path}: intrinsics should be 3x3 numbers; prepare the frames again")
    return matrix
