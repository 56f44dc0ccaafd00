"""Which frames of a video teach depth: enough parallax since the last one, sharp, lit, and of the same scene.

Every frame is compared with the one that was kept last. So the step between frames follows the speed of the camera:
the next frame is kept as soon as it has seen enough parallax, and a camera that stands still adds none.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

from featdepth.two_view.matching import Features, find_features, match_features, motion
from featdepth.two_view.relative_pose import parallax

ANALYSED_WIDTH = 480  # pixels: wider frames are looked at in this width, which takes most of the time
# Of the width: median displacement that no rotation explains, at which a frame is kept. KITTI's cars, 10 frames a
# second, see 0.007 to 0.016 from frame to frame, a hand-held camera indoors 0.001, 30 frames a second.
PARALLAX = 0.005
TURN = 0.1  # of the width: median displacement at which a frame is kept whatever the parallax: neighbours must overlap
STATIC = 0.001  # of the width: median displacement below which the camera is standing still
OVERLAP = 0.1  # share of a frame's corners that are found again; two scenes have up to 0.06 in common by chance
FEWEST_CORNERS = 100  # of which the overlap is a share: a frame with next to none overlaps with nothing
DARKEST = 32.0  # grey level that the brightest hundredth of a frame has to reach
SAME = 0.25  # mean difference in grey levels from the last frame that was none, below which one is a duplicate
BLURRED = 0.7  # of the usual sharpness
USUAL = 31  # frames over which the usual sharpness is the median
FEWEST_LEVELS = 1  # grey levels from the darkest to the brightest pixel of a frame that shows nothing
FEWEST_USUAL = 5  # frames that make a usual sharpness

THRESHOLDS = {
    "analysed_width": ANALYSED_WIDTH,
    "parallax": PARALLAX,
    "turn": TURN,
    "static": STATIC,
    "overlap": OVERLAP,
    "fewest_corners": FEWEST_CORNERS,
    "darkest": DARKEST,
    "fewest_levels": FEWEST_LEVELS,
    "same": SAME,
    "blurred": BLURRED,
    "usual": USUAL,
    "fewest_usual": FEWEST_USUAL,
}
NEW_CLIP = ("first", "cut")  # verdicts on frames that begin a clip
KEPT = (*NEW_CLIP, "kept", "turned")  # and on all that stay


class Verdict(NamedTuple):
    """What becomes of a frame, and why."""

    name: str  # one of KEPT, or why the frame is dropped
    measured: dict[str, float]  # in the order in which it was; the last decided
    limit: float | None = None  # of the last


class State(NamedTuple):
    """What the frames so far leave behind; as much after an hour as after a second."""

    distinct: np.ndarray | None = None  # the last frame that was no duplicate, grey uint8 [h, w]
    kept: Features | None = None  # of the frame that was kept last
    sharpness: tuple[float, ...] = ()  # of the last USUAL frames that are neither dark nor repeated


def analysed(pixels: np.ndarray, most: int = ANALYSED_WIDTH) -> np.ndarray:
    """The frame uint8 RGB `[h, w, 3]` as `judge` takes it: grey uint8 `[h, w]`, at most `most` pixels wide."""
    height, width = pixels.shape[:2]
    height, width = (round(height * most / width), most) if width > most else (height, width)
    return np.array(Image.fromarray(pixels).convert("L").resize((width, height), Image.Resampling.BILINEAR))


def judge(state: State, frame: np.ndarray, intrinsics: np.ndarray) -> tuple[Verdict, State]:
    """The verdict on the next frame (grey uint8 `[h, w]`) of a camera (3x3, its pixels), and the state after it."""
    light = float(np.percentile(frame, 99))
    if light < DARKEST:
        return Verdict("black", {"light": light}, DARKEST), state._replace(distinct=frame)
    levels = float(np.ptp(frame))
    if levels <= FEWEST_LEVELS:
        return Verdict("blank", {"levels": levels}, FEWEST_LEVELS), state._replace(distinct=frame)
    difference = grey_difference(state.distinct, frame)
    if difference < SAME:
        return Verdict("duplicate", {"difference": difference}, SAME), state
    sharp = sharpness(frame)
    recent = (*state.sharpness, sharp)[-USUAL:]
    dropped = state._replace(distinct=frame, sharpness=recent)
    usual = float(np.median(recent))
    if len(recent) >= FEWEST_USUAL and sharp < BLURRED * usual:
        return Verdict("blurred", {"sharpness": sharp}, BLURRED * usual), dropped
    features = find_features(frame)
    verdict = Verdict("first", {}) if state.kept is None else compare(state.kept, features, intrinsics)
    verdict = verdict._replace(measured={"sharpness": sharp, **verdict.measured})
    return verdict, dropped._replace(kept=features) if verdict.name in KEPT else dropped


def compare(kept: Features, features: Features, intrinsics: np.ndarray) -> Verdict:
    """The verdict on a good frame by what has moved since the frame that was kept last."""
    width = features.image.shape[1]
    matches = match_features(kept, features)
    overlap = len(matches.one) / max(FEWEST_CORNERS, min(len(kept.points), len(features.points)))
    measured = {"overlap": overlap}
    if overlap < OVERLAP:
        return Verdict("cut", measured, OVERLAP)
    measured["motion"] = motion(matches) / width
    if measured["motion"] < STATIC:
        return Verdict("static", measured, STATIC)
    if measured["motion"] >= TURN:
        return Verdict("turned", measured, TURN)
    measured["parallax"] = parallax(matches, intrinsics) / width
    return Verdict("kept" if measured["parallax"] >= PARALLAX else "close", measured, PARALLAX)


def grey_difference(one: np.ndarray | None, other: np.ndarray) -> float:
    """Mean absolute difference of two grey frames, grey levels; infinite where there is no first one."""
    return float("inf") if one is None else float(np.abs(one.astype(np.int16) - other).mean())


def sharpness(frame: np.ndarray) -> float:
    """Share, 0 to 1, of a grey frame's variation from pixel to pixel that a blur of nine pixels takes away.

    Along rows or columns, whichever loses less: motion blurs one of them (after Crété et al., "The blur effect", 2007).
    It hardly depends on what is in the picture: what is blurred already loses little more.
    """
    return round(min(lost_variation(frame), lost_variation(frame.T)), 6)  # as it is recorded, to go on from there


def lost_variation(frame: np.ndarray) -> float:
    """Of the differences between neighbours in a row, the share that a mean over nine pixels takes away."""
    sums = np.cumsum(np.pad(frame.astype(np.float64), ((0, 0), (5, 4)), mode="edge"), axis=1)
    blurred = (sums[:, 9:] - sums[:, :-9]) / 9
    before = np.abs(np.diff(frame.astype(np.float64)))
    after = np.abs(np.diff(blurred))
    return float(np.maximum(before - after, 0).sum() / max(before.sum(), 1e-9))
