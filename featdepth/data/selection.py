"""Which samples are worth training and validating on: those in which the camera moves.

How far it went is known from poses or speed (`Footage.distance`, metres). How far the picture moved (pixels at the
training width) is measured once by `python -m featdepth.data.motion` and kept in a record.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from featdepth.console import count
from featdepth.data.footage import Footage
from featdepth.data.samples import Sample
from featdepth.errors import InputError

if TYPE_CHECKING:
    from featdepth.data.motion_record import MotionRecord, Pair


def neighbours(footage: Footage) -> list[int]:
    """The offsets in time of the source frames."""
    return [frame for frame in footage.frames[1:] if isinstance(frame, int)]


def pairs_of(footage: Footage, sample: Sample) -> list[Pair]:
    """The sample's target with each of its neighbours in time."""
    target = footage.image_path(sample, 0)
    return [(target, footage.image_path(sample, frame)) for frame in neighbours(footage)]


def smallest_distance(footage: Footage, sample: Sample) -> float:
    """Metres between the sample's target and its nearest neighbour in time; NaN where none is known."""
    distances = (footage.distance(sample, frame) for frame in neighbours(footage))
    return min((distance for distance in distances if distance is not None), default=math.nan)


def smallest_motion(footage: Footage, sample: Sample, record: MotionRecord) -> float | None:
    """How far the picture moves from the sample's target to the neighbour that is most like it (pixels).

    NaN where nothing is recognised in any neighbour; None where one of them is not measured yet.
    """
    motions = [record.find(pair) for pair in pairs_of(footage, sample)]
    if None in motions:
        return None
    return min((motion for motion in motions if not math.isnan(motion)), default=math.nan)


def read_record(footage: Footage) -> MotionRecord:
    """What was measured of these frames; see `MotionRecord` for errors."""
    from featdepth.data.motion_record import MotionRecord  # most runs select nothing by it

    return MotionRecord(footage.config)


def count_unknown(footage: Footage, samples: list[Sample]) -> int:
    """How many of the `samples` no rule can judge, for a distance or a motion that it needs is not known."""
    data = footage.config
    if not neighbours(footage):
        return 0
    record = None if data.min_motion is None else read_record(footage)
    return sum(
        (data.min_distance is not None and math.isnan(smallest_distance(footage, sample)))
        or (record is not None and math.isnan(smallest_motion(footage, sample, record)))
        for sample in samples
    )


def moving_samples(footage: Footage, samples: list[Sample]) -> list[Sample]:
    """Those of the `samples` that move by at least `data.min_distance` and `data.min_motion` to each neighbour in time.

    One whose motion is unknown stays. Raises InputError where none moves, or where the pictures are not measured yet.
    """
    data = footage.config
    if not neighbours(footage):
        return samples
    moving = samples
    if data.min_distance is not None:
        moving = [each for each in moving if not smallest_distance(footage, each) < data.min_distance]
    if data.min_motion is not None:
        record = read_record(footage)
        motions = [smallest_motion(footage, each, record) for each in moving]
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
