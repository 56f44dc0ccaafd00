"""Cityscapes' stereo video.

<root>/leftImg8bit_sequence/<split>/<city>/<city>_<sequence>_<frame>_leftImg8bit.png   17 a second
<root>/rightImg8bit_sequence/...   ..._rightImg8bit.png   the right camera (optional)
<root>/camera/...                  ..._camera.json        of a snippet's 20th frame; or camera_sequence, of all frames
<root>/disparity_sequence/...      ..._disparity.png      ground truth (optional); or disparity, of the 20th frames
<root>/vehicle_sequence/...        ..._vehicle.json       speed (optional)
<root>/timestamp_sequence/...      ..._timestamp.txt      nanoseconds (optional)

A snippet is 30 frames in a row, of which the benchmark uses the 20th. A drive is one of a city's sequences, as in
"train/aachen/000000": in most cities a single snippet, in some many of them with gaps, where the numbers jump too.
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from featdepth.cameras.pinhole import matrix
from featdepth.data.footage import Camera
from featdepth.data.images import image_size, load_depth_image
from featdepth.data.kitti.calibration import LARGEST_NUMBER, check_pinhole
from featdepth.data.listing import file_names
from featdepth.data.samples import STEREO, Sample
from featdepth.data.sets.sequences import Recording, SequenceDataset
from featdepth.errors import InputError
from featdepth.files import read_object, read_text

if TYPE_CHECKING:
    from featdepth.config import Config

SPLITS = ("train", "val", "test")
FILE_NAME = re.compile(r"[^.].*_([0-9]{6})_([0-9]{6})_[A-Za-z0-9]+\.[a-z]+")  # sequence and frame
FRAMES_A_SECOND = 17.0
AFTER_THE_CAMERA_FILE = 10  # frames of a snippet after its 20th
LARGEST_JSON = 1 << 16  # bytes; they have a few hundred


class StereoCamera(NamedTuple):
    """A camera file."""

    intrinsics: np.ndarray  # 3x3 of both cameras, pixel centres at integers
    baseline: float  # metres


class Cityscapes(SequenceDataset):
    """The official parts are those of the folders; validation's and test's targets are the snippets' 20th frames."""

    calibration_name: ClassVar = "camera/*.json"

    official: ClassVar = {"train": ("train/*",), "validation": ("val/*",), "test": ("test/*",)}

    def open_root(self, config: Config) -> None:
        self.listings: dict[tuple[str, str], dict[str, dict[int, str]]] = {}  # see `city_files`
        super().open_root(config)

    def find_drives(self, root: Path) -> list[str]:
        cities = [f"{split}/{city}" for split in SPLITS for city in file_names(root / "leftImg8bit_sequence" / split)]
        drives = [f"{city}/{number}" for city in cities for number in self.city_files("leftImg8bit_sequence", city)]
        if not drives:
            raise InputError(
                f"{root}: no video of Cityscapes here; expected "
                "leftImg8bit_sequence/train/aachen/aachen_000000_000000_leftImg8bit.png"
            )
        return sorted(drives)

    def files(self, package: str, drive: str) -> dict[int, str]:
        """The files {frame: path} that one of the data set's packages has of a drive, in order."""
        city, number = drive.rsplit("/", 1)
        return self.city_files(package, city).get(number, {})

    def city_files(self, package: str, city: str) -> dict[str, dict[int, str]]:
        """The same of all sequences of a city ("train/aachen"), by their numbers; its thousands are listed once."""
        if (package, city) not in self.listings:
            folder = self.root / package / city
            found: dict[str, dict[int, str]] = {}
            for name in file_names(folder):
                if match := FILE_NAME.fullmatch(name):
                    found.setdefault(match[1], {})[int(match[2])] = f"{folder}/{name}"
            self.listings[package, city] = found
        return self.listings[package, city]

    def read_recording(self, drive: str) -> Recording:
        images = {"l": self.files("leftImg8bit_sequence", drive), "r": self.files("rightImg8bit_sequence", drive)}
        return Recording(
            images={side: files for side, files in images.items() if files},
            cameras={},  # each snippet has its own
            depth=self.files("disparity", drive) | self.files("disparity_sequence", drive),
        )

    def built_in_samples(self, config: Config, part: str) -> list[Sample]:
        samples = super().built_in_samples(config, part)
        if self.split != "official" or part == "train":
            return samples
        # Where only camera_sequence is there, nothing tells which frames these are.
        return [sample for sample in samples if sample.frame in self.files("camera", sample.drive)] or samples

    def camera_of(self, sample: Sample) -> tuple[str, str]:
        return self.camera_path(sample), sample.side

    def camera_name(self, sample: Sample) -> str:
        return sample.drive.rsplit("/", 1)[0]

    def camera_path(self, sample: Sample) -> str:
        """The camera file of the sample's snippet."""
        paths = self.files("camera", sample.drive) or self.files("camera_sequence", sample.drive)
        if not paths:
            raise InputError(
                f"{self.root}: no camera of {sample.drive}; download camera_trainvaltest.zip, which has "
                f"camera/{sample.drive.rsplit('/', 1)[0]}/*_camera.json"
            )
        if sample.frame in paths:
            return paths[sample.frame]
        later = (path for frame, path in paths.items() if frame >= sample.frame - AFTER_THE_CAMERA_FILE)
        return next(later, paths[max(paths)])

    def camera(self, sample: Sample) -> Camera:
        camera = self.remember("read_camera", self.camera_path(sample))
        size = self.remember("read_size", sample.drive.rsplit("/", 1)[0])
        if STEREO not in self.frames:
            return Camera(size, camera.intrinsics)
        source_from_target = np.eye(4)
        source_from_target[0, 3] = -camera.baseline if sample.side == "l" else camera.baseline
        return Camera(size, camera.intrinsics, source_from_target)

    def read_camera(self, path: str) -> StereoCamera:
        """What a camera file says. Raises InputError where that is no camera."""
        values = read_values(path, "the camera")
        fx, fy, cx, cy = (number_in(values, path, "intrinsic", name) for name in ("fx", "fy", "u0", "v0"))
        intrinsics = matrix(fx, fy, cx, cy)
        check_pinhole(path, "intrinsic", intrinsics)
        baseline = number_in(values, path, "extrinsic", "baseline")
        if baseline <= 0:
            raise InputError(f"{path}: the baseline is {baseline:g} m, it must be above 0; download the file again")
        return StereoCamera(intrinsics, baseline)

    def read_size(self, city: str) -> tuple[int, int]:
        """Height and width of a city's images: of its first one, which each image is compared with when it is read."""
        first_sequence = next(iter(self.city_files("leftImg8bit_sequence", city).values()))
        return image_size(next(iter(first_sequence.values())))

    def ground_truth_hint(self) -> str:
        return "it is made of disparity_sequence/*/*/*_disparity.png, or disparity for the benchmark's frames"

    def read_depth(self, sample: Sample, path: str) -> np.ndarray:
        intrinsics, baseline = self.remember("read_camera", self.camera_path(sample))
        stored = load_depth_image(path, self.camera(sample).size, units_per_metre=1.0)
        disparity = (stored - 1) / 256  # pixels; 0 is stored where there is none
        depth = np.zeros_like(disparity)
        return np.divide(baseline * intrinsics[0, 0], disparity, out=depth, where=disparity > 0)

    def distance(self, sample: Sample, frame: int) -> float | None:
        """From the speed of the vehicle."""
        speeds, times = self.remember("read_speeds", sample.drive), self.times(sample.drive)
        first, last = sorted((sample.frame, sample.frame + frame))
        if any(each not in speeds or each not in times for each in range(first, last + 1)):
            return None
        return sum(
            (speeds[one] + speeds[other]) / 2 * (times[other] - times[one])
            for one, other in pairwise(range(first, last + 1))
        )

    def read_speeds(self, drive: str) -> dict[int, float]:
        """Metres a second at each frame where that is known; never negative."""
        return {
            frame: abs(number_in(read_values(path, "the vehicle's state"), path, "speed"))
            for frame, path in self.files("vehicle_sequence", drive).items()
        }

    def read_times(self, drive: str) -> dict[int, float]:
        """Of the files, or at the camera's rate where there are none."""
        paths = self.files("timestamp_sequence", drive)
        if not paths:
            return {frame: frame / FRAMES_A_SECOND for frame in self.files("leftImg8bit_sequence", drive)}
        return {frame: read_timestamp(path) for frame, path in paths.items()}


def read_timestamp(path: str) -> float:
    """The seconds in a file that has one whole number of nanoseconds. Raises InputError."""
    text = read_text(path, LARGEST_JSON, "the time").strip()
    if not re.fullmatch("[0-9]{1,19}", text, re.ASCII):
        raise InputError(f"{path}: {text[:40]!r} is no time in nanoseconds; download the file again")
    return int(text) / 1e9


def read_values(path: str, what: str) -> dict[str, Any]:
    """The content of a small JSON file; `what` it should be is said in errors. Raises InputError."""
    return read_object(path, LARGEST_JSON, what, f"{what} is no JSON object; download the file again")


def number_in(values: Any, path: str, *keys: str) -> float:
    """The number at `keys` of nested dicts that were read from the file at `path`. Raises InputError."""
    for key in keys:
        values = values.get(key) if isinstance(values, dict) else None
    if not isinstance(values, int | float) or not abs(values) <= LARGEST_NUMBER:  # which nan is not
        raise InputError(f"{path}: {'.'.join(keys)} should be a number; download the file again")
    return float(values)
