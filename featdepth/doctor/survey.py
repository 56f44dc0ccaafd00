"""The sample of the data that all checks share: which frames are looked at, each loaded and matched once."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from typing import NamedTuple, TypeVar

import numpy as np
from torch import Tensor

from featdepth.config import Config
from featdepth.data import build_dataset
from featdepth.data.dataset import FrameDataset
from featdepth.data.images import NothingSeen
from featdepth.data.samples import LIST_FILES, STEREO, Sample
from featdepth.errors import InputError
from featdepth.two_view.matching import Features, find_features, match_features
from featdepth.two_view.relative_pose import Matches, fundamental, motion

WIDTH = 640  # pixels that frames are looked at with, or what they have if that is less
HELD_LOOKS, HELD_FEATURES = 160, 48
MOST_SOURCES = 4  # of a target that are matched
FEWEST_MATCHES = 25  # a pair with fewer that agree is not matchable
LUMA = (0.299, 0.587, 0.114)

Item = TypeVar("Item")


class Look(NamedTuple):
    """A frame as it is looked at."""

    colour: Tensor  # uint8 [3, h, w]
    grey: np.ndarray  # uint8 [h, w]


class Pair(NamedTuple):
    """Two frames that were matched. `frame` is the second's place relative to the sample, as in `data.frames`."""

    sample: Sample
    frame: int | str
    matches: Matches  # those that agree with one epipolar geometry
    matchable: float  # share of the first frame's corners that found their match
    motion: float  # median displacement as a share of the width; nan where the pair is not matchable

    @property
    def is_matchable(self) -> bool:
        return len(self.matches.one) >= FEWEST_MATCHES


class Survey:
    """The configured parts of the data at a size of the doctor's own, and what was sampled of them.

    parts: {"train" | "validation" | "test": dataset}; missing: why a part cannot be built; unreadable: {path: error},
    among them the `blank` frames, which are of one colour all over.
    """

    def __init__(self, config: Config, count: int) -> None:
        """count: how many target frames are sampled. Raises InputError where there is no training part."""
        self.config, self.count = config, count
        self.parts, self.missing = build_parts(config)
        self.train = self.parts["train"]
        shown = max(map(self.train.shown_size, self.train.native_sizes), key=lambda size: size[1])
        width = min(WIDTH, shown[1])
        self.size = (round(width * shown[0] / shown[1]), width)
        for dataset in self.parts.values():
            dataset.size, dataset.cache = self.size, None
            dataset.prepare_cameras()
        self.unreadable: dict[str, str] = {}
        self.blank: set[str] = set()
        self.look = lru_cache(HELD_LOOKS)(self.read)
        self.features = lru_cache(HELD_FEATURES)(self.find_features)
        self.pair = lru_cache(None)(self.match)

    @property
    def intrinsics_are_learned(self) -> bool:
        return self.config.model.intrinsics == "learned"

    @cached_property
    def targets(self) -> list[Sample]:
        """Training samples, spread over the drives and over each drive."""
        return spread_samples(self.train, self.count)

    @cached_property
    def pairs(self) -> list[Pair]:
        """The targets, each with its sources in time, nearest first."""
        offsets = sorted((frame for frame in self.train.frames[1:] if frame != STEREO), key=abs)[:MOST_SOURCES]
        found = (self.pair("train", sample, frame) for sample in self.targets for frame in offsets)
        return [pair for pair in found if pair is not None]

    def read(self, part: str, sample: Sample, frame: int | str) -> Look | None:
        """`look`: a frame of a sample; None where it is not there or cannot be read, which `unreadable` tells."""
        dataset = self.parts[part]
        path = dataset.image_path(sample, frame)
        if path is None:
            return None
        try:
            colour = dataset.load_frame(path, dataset.camera_of(sample))
        except InputError as error:
            self.unreadable[path] = str(error)
            self.blank |= {path} if isinstance(error, NothingSeen) else set()
            return None
        grey = np.tensordot(LUMA, colour.numpy(), axes=1)
        return Look(colour, np.round(grey).astype(np.uint8))

    def find_features(self, part: str, sample: Sample, frame: int | str) -> Features | None:
        """`features`: the corners of a frame; None as for `look`."""
        seen = self.look(part, sample, frame)
        return None if seen is None else find_features(seen.grey)

    def match(self, part: str, sample: Sample, frame: int | str) -> Pair | None:
        """`pair`: a sample's frame 0 matched with another of its frames; None where one cannot be looked at."""
        one = self.features(part, sample, 0)
        # As the target of a sample of its own a neighbour in time is found among the features that are held.
        beside = sample if frame == STEREO else sample._replace(frame=sample.frame + frame)
        other = self.features(part, beside, STEREO if frame == STEREO else 0)
        if one is None or other is None:
            return None
        matches = agreeing(match_features(one, other))
        share = len(matches.one) / max(len(one.points), 1)
        moved = motion(matches) / self.size[1] if len(matches.one) >= FEWEST_MATCHES else float("nan")
        return Pair(sample, frame, matches, share, moved)

    def intrinsics(self, part: str, sample: Sample) -> np.ndarray:
        """3x3 intrinsics of a sample's camera at the size of the looks."""
        dataset = self.parts[part]
        return dataset.intrinsics[dataset.camera_of(sample)].double().numpy()


def build_parts(config: Config) -> tuple[dict[str, FrameDataset], dict[str, str]]:
    """The datasets of the parts as training and evaluation build them, and why one is not there, by part.

    Parts that share drives are built too, and static samples: the doctor reports them. Raises InputError where there is
    no training part.
    """
    config = copy.deepcopy(config)
    config.data.allow_leakage, config.data.cache = True, None
    # All of the own data, and nothing that is mixed in: each data set is looked at by itself.
    config.data.min_motion, config.data.min_distance = None, None
    config.data.mix, config.data.mix_weights, config.data.drive_balance = [], None, 0.0
    parts, missing = {"train": build_dataset(config, "train", with_depth=True)}, {}
    for part in LIST_FILES:
        if part == "train":
            continue
        try:
            parts[part] = build_dataset(config, part, frames=[0] if part == "test" else None)
        except InputError as error:
            missing[part] = str(error)
    return parts, missing


def agreeing(matches: Matches) -> Matches:
    """The matches that agree with one epipolar geometry; none where too few do."""
    found = fundamental(matches)
    kept = np.zeros(len(matches.one), dtype=bool) if found is None else found[1]
    return Matches(matches.one[kept], matches.other[kept])


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """`count` of the items, evenly spaced, from the middle of as many equal parts; all where there are no more."""
    if len(items) <= count:
        return list(items)
    return [items[int((index + 0.5) * len(items) / count)] for index in range(count)]


def spread_samples(dataset: FrameDataset, count: int) -> list[Sample]:
    """About `count` samples, spread over drives and over each drive."""
    drives = spread(dataset.drives, count)
    of_drive = samples_by_drive(dataset.samples, set(drives))
    return [sample for drive in drives for sample in spread(of_drive[drive], -(-count // len(drives)))]


def samples_by_drive(samples: Sequence[Sample], drives: set[str]) -> dict[str, list[Sample]]:
    """The samples of these drives, those of the left camera first, in order."""
    found: dict[str, list[Sample]] = {drive: [] for drive in sorted(drives)}
    for sample in sorted(samples, key=lambda sample: (sample.side, sample.frame)):
        if sample.drive in found:
            found[sample.drive].append(sample)
    return found


def consecutive(dataset: FrameDataset, sample: Sample, count: int) -> Iterator[Sample]:
    """Up to `count` samples of consecutive frames of the same camera around a sample, as far as there are images."""
    first = last = sample.frame
    while last - first + 1 < count:
        has_next = dataset.image_path(sample._replace(frame=last + 1), 0) is not None
        has_previous = dataset.image_path(sample._replace(frame=first - 1), 0) is not None
        if not has_next and not has_previous:
            break
        last += has_next
        first -= has_previous and last - first + 1 < count
    return (sample._replace(frame=frame) for frame in range(first, last + 1))
