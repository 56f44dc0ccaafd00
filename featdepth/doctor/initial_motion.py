"""What the pose network of `model.init` says of the data, beside alignment with the same model's depth."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from featdepth.console import count
from featdepth.data.samples import STEREO, Sample
from featdepth.doctor.findings import Finding, ok, skipped
from featdepth.doctor.survey import Survey, spread
from featdepth.models import FeatDepth
from featdepth.odometry.aligned import align_motions
from featdepth.odometry.egomotion import motion_gap, predict_motions

CHECK = "initial"
MOST_PAIRS, FEWEST_PAIRS = 12, 5


def check_initial_motion(survey: Survey, faults: set[str]) -> Iterator[Finding]:
    """How far both motions are from each other; which of them is wrong they do not tell."""
    offsets = [frame for frame in survey.train.frames[1:] if frame != STEREO]
    if survey.config.model.init is None or not offsets:
        return
    if faults or survey.intrinsics_are_learned:
        yield skipped(CHECK, "the motion of model.init means nothing without intrinsics, or while there are problems")
        return
    model = FeatDepth.from_pretrained(survey.config.model.init).eval()
    if not (model.has_depth and model.has_motion):
        return
    looked_at = spread(survey.targets, MOST_PAIRS)
    gaps = [gap for target in looked_at if (gap := gap_of(survey, model, target, offsets[0])) is not None]
    aligned = f"{len(gaps)} of {count(len(looked_at), 'pair')} of frames can be aligned by the depth of model.init"
    if len(gaps) < FEWEST_PAIRS:
        yield skipped(CHECK, aligned)
        return
    degrees, share = np.median(gaps, axis=0)
    yield ok(CHECK, f"{aligned}; its pose network is {degrees:.2g} degrees and {share:.0%} off that, in the median")


def gap_of(survey: Survey, model: FeatDepth, target: Sample, offset: int) -> tuple[float, float] | None:
    """`motion_gap` of the pose network and alignment; None where a frame is missing or the two cannot be aligned."""
    looks = [survey.look("train", target, frame) for frame in sorted((0, offset))]
    if None in looks:
        return None
    frames = [look.colour for look in looks]
    found = align_motions(model, frames, survey.intrinsics("train", target))
    return motion_gap(predict_motions(model, frames)[0], found.motions[0]) if found.is_aligned.all() else None
