"""Which samples are worth training and validating on: those in which the camera moves.

How far it went is known from poses or speed (`FrameDataset.distance`, metres). How far the picture moved (pixels at the
training width) is measured once by `python -m featdepth.data.motion` and kept in a record.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from featdepth.data.cached.frame_cache import digest_of
from featdepth.data.cached.shards import identify, size_folder
from featdepth.data.kitti.ground_truth import default_cache_folder
from featdepth.errors import InputError
from featdepth.files import locked, read_bytes
from featdepth.wording import count

if TYPE_CHECKING:
    from featdepth.config import Data
    from featdepth.data.dataset import FrameDataset
    from featdepth.data.splits import Sample

VERSION = 1  # of what is measured: raise it when that changes, and everything is measured anew
LARGEST_RECORD = 1 << 30  # bytes; a pair of frames takes 40
LINE = re.compile(rb"([0-9a-f]{32}) (nan|[0-9]+\.[0-9]+)")

Pair = tuple[str, str]  # paths of two frames of one camera


class MotionRecord:
    """How far the picture moves between pairs of frames (pixels at the training width), in a file that only grows.

    A pair is found by its files' paths, sizes and times of change, so that a changed file is measured again. Several
    programs may add to the file.
    """

    def __init__(self, data: Data) -> None:
        """The record of frames as `data` decodes them: in `data.cache`, or else in the user's cache folder.

        Raises InputError where there is neither.
        """
        self.size = (data.height, data.width)
        default = default_cache_folder()
        if data.cache is None and default is None:
            raise InputError("data.cache: is not set, and this user has no home folder to keep measurements in; set it")
        folder = default.with_name("motion") if data.cache is None else Path(data.cache) / "motion"
        self.path = folder / f"{size_folder(self.size, data.crop)}-{VERSION}.txt"
        lines = read_bytes(self.path, LARGEST_RECORD, "the record of motion").split(b"\n") if self.path.exists() else []
        # What follows the last end of line was cut; a damaged line is measured again.
        matches = (LINE.fullmatch(line) for line in lines[:-1])
        self.known = {match[1]: float(match[2]) for match in matches if match}
        self.identities: dict[str, bytes] = {}

    def find(self, pair: Pair) -> float | None:
        """The motion between two frames, NaN where nothing could be recognised; None: not measured yet."""
        return self.known.get(self.key(pair))

    def add(self, motions: Mapping[Pair, float]) -> None:
        """Keep measurements. Raises InputError where they cannot be written."""
        lines = {self.key(pair): f"{motion:.3f}" for pair, motion in motions.items()}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with locked(self.path.with_suffix(".lock")), self.path.open("ab") as file:
                # The empty line ends one that a killed process has cut.
                file.write(b"".join([b"\n", *(b"%s %s\n" % (key, text.encode()) for key, text in lines.items())]))
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written to ({error.strerror}); set data.cache") from error
        self.known |= {key: float(text) for key, text in lines.items()}

    def key(self, pair: Pair) -> bytes:
        """What a pair is found by, in whatever order its frames are."""
        for path in pair:
            if path not in self.identities:
                self.identities[path] = identify(path, self.size).as_line()
        return digest_of(b"".join(sorted(self.identities[path] for path in pair))).hex().encode()


def neighbours(dataset: FrameDataset) -> list[int]:
    """The offsets in time of the data set's source frames."""
    return [frame for frame in dataset.frames[1:] if isinstance(frame, int)]


def pairs_of(dataset: FrameDataset, sample: Sample) -> list[Pair]:
    """The sample's target with each of its neighbours in time."""
    target = dataset.image_path(sample, 0)
    return [(target, dataset.image_path(sample, frame)) for frame in neighbours(dataset)]


def smallest_distance(dataset: FrameDataset, sample: Sample) -> float:
    """Metres between the sample's target and its nearest neighbour in time; NaN where none is known."""
    distances = (dataset.distance(sample, frame) for frame in neighbours(dataset))
    return min((distance for distance in distances if distance is not None), default=math.nan)


def smallest_motion(dataset: FrameDataset, sample: Sample, record: MotionRecord) -> float | None:
    """How far the picture moves from the sample's target to the neighbour that is most like it (pixels).

    NaN where nothing is recognised in any neighbour; None where one of them is not measured yet.
    """
    motions = [record.find(pair) for pair in pairs_of(dataset, sample)]
    if None in motions:
        return None
    return min((motion for motion in motions if not math.isnan(motion)), default=math.nan)


def count_unknown(dataset: FrameDataset, samples: list[Sample]) -> int:
    """How many of the `samples` no rule can judge, for a distance or a motion that it needs is not known."""
    data = dataset.config
    if not neighbours(dataset) or (data.min_distance is None and data.min_motion is None):
        return 0
    record = None if data.min_motion is None else MotionRecord(data)
    return sum(
        (data.min_distance is not None and math.isnan(smallest_distance(dataset, sample)))
        or (record is not None and math.isnan(smallest_motion(dataset, sample, record)))
        for sample in samples
    )


def moving_samples(dataset: FrameDataset, samples: list[Sample]) -> list[Sample]:
    """Those of the `samples` that move by at least `data.min_distance` and `data.min_motion` to each neighbour in time.

    One whose motion is unknown stays. Raises InputError where none moves, or where the pictures are not measured yet.
    """
    data = dataset.config
    if not neighbours(dataset):
        return samples
    moving = samples
    if data.min_distance is not None:
        moving = [each for each in moving if not smallest_distance(dataset, each) < data.min_distance]
    if data.min_motion is not None:
        record = MotionRecord(data)
        motions = [smallest_motion(dataset, each, record) for each in moving]
        if None in motions:
            raise InputError(
                f"data.min_motion: {motions.count(None)} of {count(len(moving), 'sample')} below {data.root} are "
                "not measured yet; run python -m featdepth.data.motion with the same configuration first"
            )
        moving = [each for each, motion in zip(moving, motions, strict=True) if not motion < data.min_motion]
    if not moving:
        raise InputError(
            f"data.min_distance, data.min_motion: none of {count(len(samples), 'sample')} below {data.root} moves so "
            "much; lower them, or choose frames that are further apart in data.frames"
        )
    return moving
