"""Whether the focal lengths agree with what pairs of frames show of them, where the camera turns."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from featdepth.doctor.findings import Finding, ok, problem, skipped, warning
from featdepth.doctor.survey import Pair, Survey
from featdepth.two_view.epipolar import best_rotation, rays
from featdepth.two_view.relative_pose import focal_from_matches

CHECK = "focal_length"
MOST_PAIRS = 10
LEAST_TURN = 0.5  # degrees between two frames
SURE = 3.0  # standard deviations of the estimate
NEAR, FAR = 1.25, 1.6  # factors between the given focal length and the estimate


def check_focal_length(survey: Survey, faults: set[str]) -> Iterator[Finding]:
    """The given focal length against the one with which pairs of frames agree best."""
    if faults & {"no_texture", "shuffled_frames", "static", "step_too_large", "swapped_axes", "wrong_resolution"}:
        yield skipped(CHECK, "means nothing before the problems above are solved")
        return
    pairs = turning_pairs(survey)
    estimate = focal_from_matches([pair.matches for pair in pairs], survey.size)
    if estimate is None:
        yield skipped(CHECK, "the camera turns too little in the frames that were looked at to show its focal length")
        return
    width = survey.size[1]
    seen = (
        f"pairs of frames show a focal length of {estimate.pixels / width:.3f} ± {estimate.spread / width:.3f} widths"
    )
    if survey.intrinsics_are_learned:
        yield ok(CHECK, f"{seen}; it is learned")
        return
    given = float(np.median([survey.intrinsics("train", pair.sample)[0, 0] for pair in pairs]))
    text = f"{seen}, given are {given / width:.3f}"
    factor = max(given / estimate.pixels, estimate.pixels / given)
    if factor < NEAR or abs(given - estimate.pixels) < SURE * estimate.spread:
        yield ok(CHECK, text)
    else:
        advice = "calibrate the camera again, or set model.intrinsics=learned"
        make = problem if factor > FAR else warning
        yield make(CHECK, "wrong_focal", text, f"equal to a factor of {NEAR}", advice)


def turning_pairs(survey: Survey) -> list[Pair]:
    """The pairs between which the camera turns most: only they show its focal length."""
    turns = {index: turn(survey, pair) for index, pair in enumerate(survey.pairs) if pair.is_matchable}
    chosen = sorted((index for index in turns if turns[index] > LEAST_TURN), key=lambda index: -turns[index])
    return [survey.pairs[index] for index in chosen[:MOST_PAIRS]]


def turn(survey: Survey, pair: Pair) -> float:
    """Degrees of the rotation that explains most of a pair's matches."""
    intrinsics = survey.intrinsics("train", pair.sample)
    rotation = best_rotation(*(rays(pixels, intrinsics) for pixels in pair.matches), intrinsics)
    return float(np.degrees(np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1))))
