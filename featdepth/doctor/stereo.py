"""Whether the second camera is where the calibration says, and the pair rectified."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from featdepth.data.baselines import ENOUGH, FARTHEST, NEAREST, RIGHT_SIGN, likely_units
from featdepth.data.samples import STEREO
from featdepth.doctor.findings import Finding, ok, problem, skipped
from featdepth.doctor.survey import Pair, Survey

CHECK = "stereo"
MOST_PAIRS = 12
FEWEST_PAIRS = 2
ROWS = 0.0025  # of the width: median distance of a point's rows; half of it is what rectified pairs stay below


def check_stereo(survey: Survey, faults: set[str]) -> Iterator[Finding]:
    """Sign of the disparity, and rows that agree."""
    if STEREO not in survey.train.frames:
        yield skipped(CHECK, "data.frames has no second camera")
        return
    targets = survey.targets[:: -(-len(survey.targets) // MOST_PAIRS)]
    pairs = [pair for target in targets if (pair := survey.pair("train", target, STEREO)) and pair.is_matchable]
    if len(pairs) < FEWEST_PAIRS:
        yield problem(
            CHECK,
            "unmatched_stereo",
            "the two cameras' pictures do not show the same",
            "",
            "check the pairing of files",
        )
        return
    sides = sign_finding(survey, pairs)
    yield sides
    if not sides.fault:
        yield unit_finding(survey, pairs)
    yield rows_finding(survey, pairs)


def sign_finding(survey: Survey, pairs: list[Pair]) -> Finding:
    """Points must be shifted to the side that the other camera's position demands."""
    right = float(np.median([share_of_right_sign(survey, pair) for pair in pairs]))
    text = f"{right:.0%} of the points are shifted to the side that the calibration says"
    expected = f"at least {RIGHT_SIGN:.0%}"
    if right >= RIGHT_SIGN:
        return ok(CHECK, text, expected)
    if right <= 1 - RIGHT_SIGN:
        advice = "exchange the left and the right folder, or the sign of the baseline"
        return problem(CHECK, "swapped_stereo", f"left and right are swapped: {text}", expected, advice)
    advice = "the pictures are no rectified pair of these cameras: rectify them"
    return problem(CHECK, "unrectified_stereo", text, expected, advice)


def share_of_right_sign(survey: Survey, pair: Pair) -> float:
    """Share of the clearly shifted points that lie on the side which the stereo pose demands."""
    pose = survey.train.stereo_poses[survey.train.camera_of(pair.sample)].numpy()
    shift = (pair.matches.other - pair.matches.one)[:, 0]
    clear = shift[np.abs(shift) > ENOUGH * survey.size[1]]
    return float((np.sign(clear) == np.sign(pose[0, 3])).mean()) if len(clear) else 1.0


def unit_finding(survey: Survey, pairs: list[Pair]) -> Finding:
    """The depths that baseline and disparities imply must be such as pictures show, and below `model.max_depth`."""
    lengths = [baseline_of(survey, pair) for pair in pairs]
    depths = np.concatenate([implied_depths(survey, pair) for pair in pairs])
    if len(depths) == 0:
        return skipped(CHECK, "no point is clearly shifted between the two cameras")
    settings, length, depth = survey.config.model, float(np.median(lengths)), float(np.median(depths))
    limit = settings.max_depth * (settings.metres_per_unit or 1.0)
    text = f"with the baseline of {length:.3g} m points are {depth:.3g} m away in the median"
    expected = f"from {NEAREST:g} to {min(FARTHEST, limit):g} m"
    if NEAREST <= depth <= min(FARTHEST, limit):
        return ok(CHECK, text, expected)
    advice = "compare the baseline with the cameras, in metres"
    units = likely_units(length, depth) if depth > FARTHEST else []
    if units:
        advice = f"the baseline is probably in {' or '.join(units)}: write it in metres"
    elif depth <= FARTHEST and depth > limit:
        advice += "; or raise model.max_depth"
    return problem(CHECK, "baseline_unit", text, expected, advice)


def baseline_of(survey: Survey, pair: Pair) -> float:
    """Metres between the two cameras, by the calibration."""
    return float(survey.train.stereo_poses[survey.train.camera_of(pair.sample)][:3, 3].norm())


def implied_depths(survey: Survey, pair: Pair) -> np.ndarray:
    """Metres `[N]` to the points of a pair that are clearly shifted, by the baseline and whichever way they are."""
    shift = np.abs((pair.matches.other - pair.matches.one)[:, 0])
    focal = survey.intrinsics("train", pair.sample)[0, 0]
    return baseline_of(survey, pair) * focal / shift[shift > ENOUGH * survey.size[1]]


def rows_finding(survey: Survey, pairs: list[Pair]) -> Finding:
    """Points of a rectified pair keep their row."""
    residuals = [np.abs((pair.matches.other - pair.matches.one)[:, 1]) for pair in pairs]
    rows = float(np.median(np.concatenate(residuals)))
    slope = float(np.median([row_slope(pair) for pair in pairs]))
    text = f"rows of the two cameras differ by {rows:.2f} pixels at a width of {survey.size[1]}"
    expected = f"less than {ROWS * survey.size[1]:.1f}"
    if rows < ROWS * survey.size[1]:
        return ok(CHECK, text, expected)
    if abs(slope) > 0.5 * ROWS:
        text += f", turned against each other by {np.degrees(np.arctan(slope)):.2f} degrees"
    return problem(CHECK, "unrectified_stereo", f"the pair is not rectified: {text}", expected, "rectify it")


def row_slope(pair: Pair) -> float:
    """How fast the difference in rows grows from left to right."""
    x, difference = pair.matches.one[:, 0], (pair.matches.other - pair.matches.one)[:, 1]
    return float(np.polyfit(x, difference, 1)[0])
