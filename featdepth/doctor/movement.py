"""How much moves between a target and its sources: nothing, too little, too much; and how bright they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from featdepth.console import count
from featdepth.data.samples import STEREO, Sample
from featdepth.doctor.findings import Finding, ok, problem, skipped, warning
from featdepth.doctor.survey import Pair, Survey
from featdepth.doctor.times import drive_intervals
from featdepth.two_view.relative_pose import parallax

STILL = 0.001  # of the width: pairs that move less are static
MANY_STILL, MOST_STILL = 0.2, 0.7  # shares of the pairs
NO_PARALLAX, LITTLE_PARALLAX = 0.0005, 0.002  # of the width, medians
LARGE = 0.1  # of the width: median motion beyond which warping seldom finds its way
# Share of a frame's corners that are found again in its source: KITTI 0.36 to 0.4, at three times the speed 0.12.
LOST, FEW_FOUND = 0.15, 0.25
FAR_FEWER = 0.4  # of what the next frames find
LONG = 0.35  # seconds between a target and its source
BRIGHTER = 0.15  # natural logarithm of the ratio of two neighbours' brightness: a jump
FEWEST_CORNERS = 30  # of a frame that shows something
MANY_PLAIN, MOST_PLAIN = 0.1, 0.5  # shares of the frames
MANY_JUMPS = 0.1  # share of the pairs


def check_texture(survey: Survey, faults: set[str]) -> Iterator[Finding]:
    """Frames in which there is nothing to recognise, whatever lies between them."""
    plain = [sample for sample in survey.targets if is_plain(survey, sample)]
    share = len(plain) / max(len(survey.targets), 1)
    text = (
        f"{len(plain)} of {count(len(survey.targets), 'frame')} without texture (fewer than {FEWEST_CORNERS} corners)"
    )
    expected = f"at most {MANY_PLAIN:.0%}"
    if share <= MANY_PLAIN:
        yield ok("texture", text, expected)
        return
    worst = Counter(sample.drive for sample in plain).most_common(1)[0][0]
    advice = (
        f"look at them, most are in {worst}: overexposed, dark, blurred or empty ones teach nothing, leave them out"
    )
    make = problem if share > MOST_PLAIN else warning
    yield make("texture", "no_texture", text, expected, advice)


def is_plain(survey: Survey, sample: Sample) -> bool:
    """Whether a frame has next to no corners, or is of one colour all over."""
    features = survey.features("train", sample, 0)
    if features is None:
        return survey.train.image_path(sample, 0) in survey.blank
    return len(features.points) < FEWEST_CORNERS


def check_motion(survey: Survey, faults: set[str]) -> Iterator[Finding]:
    """Static share, frame step too small or too large."""
    pairs = survey.pairs
    if set(survey.train.frames[1:]) <= {STEREO}:
        yield skipped("motion", "data.frames has no source in time")
        return
    if "shuffled_frames" in faults:
        yield skipped("motion", "means nothing while frames are shuffled")
        return
    pairs = [pair for pair in pairs if not is_plain(survey, pair.sample)]
    if not survey.pairs and not survey.blank:
        yield skipped("motion", "no frame could be compared with its neighbour")
        return
    if "no_texture" in faults or not pairs:
        yield skipped("motion", "frames without texture do not show how far the camera moves")
        return
    still = [pair for pair in pairs if pair.motion < STILL]
    share = len(still) / len(pairs)
    text = f"{len(still)} of {count(len(pairs), 'pair')} without motion"
    expected = f"at most {MANY_STILL:.0%}"
    if share > MOST_STILL:
        yield problem("motion", "static", f"the camera does not move: {text}", expected, "depth cannot be learned")
        return
    if share > MANY_STILL:
        worst = Counter(pair.sample.drive for pair in still).most_common(1)[0][0]
        advice = f"set loss.automask=true and leave static samples out, most are in {worst}"
        yield warning("motion", "many_static", text, expected, advice)
    else:
        yield ok("motion", text, expected)
    yield from check_step(survey, [pair for pair in pairs if pair not in still])


def check_step(survey: Survey, pairs: list[Pair]) -> Iterator[Finding]:
    """Whether what moves moves by a useful amount."""
    matched = [pair for pair in pairs if pair.is_matchable]
    moved = float(np.median([pair.motion for pair in matched])) if matched else float("nan")
    found = median_found(pairs)
    text = f"{found:.0%} of the points are found again in frames {sorted({pair.frame for pair in pairs})}"
    if matched:
        text += f", where they moved by {moved:.1%} of the width"
    reason = is_too_far(survey, pairs, found)
    if reason or moved > LARGE:
        advice = "use nearer frames in data.frames, or a recording with more frames a second"
        expected = f"at most {LARGE:.0%}, and more than {LOST:.0%} found"
        yield problem("step", "step_too_large", f"the frame step is too large: {text}{reason}", expected, advice)
        return
    if survey.intrinsics_are_learned or not matched:
        yield ok("step", text)
        return
    shifts = [parallax(pair.matches, survey.intrinsics("train", pair.sample)) / survey.size[1] for pair in matched]
    shift = float(np.median(shifts))
    text += f", {shift:.2%} of it parallax"
    if shift < NO_PARALLAX:
        advice = "use frames farther apart in data.frames; a camera that only turns shows no depth"
        expected = f"at least {NO_PARALLAX:.2%}, better {LITTLE_PARALLAX:.1%}"
        yield warning("step", "step_too_small", f"too little parallax: {text}", expected, advice)
    else:
        note = "; note: little, frames farther apart would show more depth" if shift < LITTLE_PARALLAX else ""
        yield ok("step", text + note)


def median_found(pairs: list[Pair]) -> float:
    """Median share of the corners that were found again."""
    return float(np.median([pair.matchable for pair in pairs])) if pairs else float("nan")


def is_too_far(survey: Survey, pairs: list[Pair], found: float) -> str:
    """Why sources are too far away, where `found` is the share of corners found again; empty: they are not.

    A fast car's next frame may show as little: a middling share counts only where nearer frames or the time between
    the frames say that it need not be so.
    """
    if found < LOST:
        return ": hardly anything is in both"
    if found > FEW_FOUND:
        return ""
    offsets = {abs(pair.frame) for pair in pairs}
    if 1 not in offsets:
        beside = (survey.pair("train", pair.sample, int(np.sign(pair.frame))) for pair in pairs)
        nearer = median_found([pair for pair in beside if pair is not None])
        if found < FAR_FEWER * nearer:
            return f"; in the next frame {nearer:.0%}"
    if any(survey.train.drops(pair.sample.drive) is not None for pair in pairs):
        return ""  # frames were chosen by what is in both: a slow camera's are far apart in time
    intervals = np.concatenate([drive_intervals(survey.train, pair.sample.drive) for pair in pairs])
    seconds = float(np.median(intervals)) * min(offsets) if len(intervals) else 0.0
    return f"; they are {seconds:.2f} s apart" if seconds > LONG else ""


def check_exposure(survey: Survey, faults: set[str]) -> Iterator[Finding]:
    """Neighbours of different brightness, which the photometric loss takes for wrong depth."""
    if faults & {"shuffled_frames", "step_too_large"}:
        yield skipped("exposure", "means nothing while frames are shuffled or too far apart")
        return
    changes = [brightening(survey, pair) for pair in survey.pairs if pair.is_matchable]
    if not changes:
        yield skipped("exposure", "no neighbours to compare")
        return
    jumps = sum(change > BRIGHTER for change in changes)
    text = f"{jumps} of {count(len(changes), 'pair')} with a change of brightness by more than {np.expm1(BRIGHTER):.0%}"
    if jumps <= MANY_JUMPS * len(changes):
        yield ok("exposure", f"{text}, median {np.expm1(np.median(changes)):.1%}")
        return
    advice = "exposure is not fixed: fix it when recording, or leave those stretches out"
    yield warning("exposure", "exposure_jumps", text, f"at most {MANY_JUMPS:.0%}", advice)


def brightening(survey: Survey, pair: Pair) -> float:
    """Absolute logarithm of the median ratio between the brightness of matched points."""
    one, other = (survey.look("train", pair.sample, frame) for frame in (0, pair.frame))
    (x, y), (other_x, other_y) = (np.round(each).astype(int).T for each in pair.matches)
    height, width = survey.size
    inside = (other_x >= 0) & (other_x < width) & (other_y >= 0) & (other_y < height)
    before, after = one.grey[y[inside], x[inside]], other.grey[other_y[inside], other_x[inside]]
    return abs(float(np.median(np.log((after + 1.0) / (before + 1.0)))))
