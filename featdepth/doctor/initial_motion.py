"""What alignment with the depth of `model.init` shows: how far its pose network is off, or the focal length."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from torch import Tensor

from featdepth.console import count
from featdepth.data.samples import STEREO, Sample
from featdepth.doctor.findings import Finding, ok, skipped
from featdepth.doctor.survey import Survey, spread
from featdepth.models import FeatDepth
from featdepth.odometry.aligned import align_motions
from featdepth.odometry.aligned_focal import focal_by_alignment
from featdepth.odometry.egomotion import motion_gap, predict_motions

CHECK = "initial"
MOST_PAIRS, FEWEST_PAIRS = 12, 5


def check_initial_motion(survey: Survey, faults: set[str]) -> Iterator[Finding]:
    """How far both motions are apart, of which neither need be right; or a focal length to start to learn from."""
    offsets = [frame for frame in survey.train.frames[1:] if frame != STEREO]
    if survey.config.model.init is None or not offsets:
        return
    if faults:
        yield skipped(CHECK, "model.init is not tried on the data before the problems above are solved")
        return
    model = FeatDepth.from_pretrained(survey.config.model.init).eval()
    looked_at = spread(survey.targets, MOST_PAIRS)
    if model.has_depth and survey.intrinsics_are_learned:
        yield focal_finding(survey, model, looked_at, offsets[0])
    if not (model.has_depth and model.has_motion) or survey.intrinsics_are_learned:
        return
    gaps = [gap for target in looked_at if (gap := gap_of(survey, model, target, offsets[0])) is not None]
    aligned = f"{len(gaps)} of {count(len(looked_at), 'pair')} of frames can be aligned by the depth of model.init"
    if len(gaps) < FEWEST_PAIRS:
        yield skipped(CHECK, aligned)
        return
    degrees, share = np.median(gaps, axis=0)
    yield ok(CHECK, f"{aligned}; its pose network is {degrees:.2g} degrees and {share:.0%} off that, in the median")


def focal_finding(survey: Survey, model: FeatDepth, targets: list[Sample], offset: int) -> Finding:
    """The focal length under which the frames fit best."""
    pairs = [frames for target in targets if (frames := frames_of(survey, target, offset)) is not None]
    found = focal_by_alignment(model, *zip(*pairs, strict=True), survey.size) if pairs else None
    if found is None:
        return skipped(CHECK, "the depth of model.init does not show the focal length: the camera turns too little")
    degrees = 2 * math.degrees(math.atan(0.5 / found.widths))
    return ok(
        CHECK,
        f"with the depth of model.init frames fit best with a focal length of {found.widths:.3f} ± {found.spread:.3f} "
        f"widths, a field of view of {degrees:.0f} degrees: start there",
    )


def gap_of(survey: Survey, model: FeatDepth, target: Sample, offset: int) -> tuple[float, float] | None:
    """`motion_gap` of the pose network and alignment; None where a frame is missing or the two cannot be aligned."""
    frames = frames_of(survey, target, offset)
    if frames is None:
        return None
    found = align_motions(model, frames, survey.intrinsics("train", target))
    return motion_gap(predict_motions(model, frames)[0], found.motions[0]) if found.is_aligned.all() else None


def frames_of(survey: Survey, target: Sample, offset: int) -> list[Tensor] | None:
    """The target and its neighbour, in order of time; None where one of them is missing."""
    looks = [survey.look("train", target, frame) for frame in sorted((0, offset))]
    return None if None in looks else [look.colour for look in looks]
