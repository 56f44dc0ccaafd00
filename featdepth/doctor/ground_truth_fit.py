"""Whether ground-truth depth belongs to its image: it must explain the motion to a neighbour better than others do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from featdepth.console import count, first_names
from featdepth.data.dataset import FrameDataset
from featdepth.data.samples import STEREO, Sample
from featdepth.doctor.findings import Finding, ok, problem, skipped, warning
from featdepth.doctor.reprojection import Fit, fit_motion
from featdepth.doctor.survey import Pair, Survey, samples_by_drive, spread
from featdepth.two_view.relative_pose import Matches, parallax

CHECK = "ground_truth"
MOST_DRIVES = 16
FEWEST_FRAMES, OF_EACH = 12, 2  # frames that are looked at: in all, and of each of many drives
OFFSETS = (1, -1, 2, -2, 4, -4, 8, -8)  # neighbours in time, of which the first that shows depth is taken
CLEAR_PARALLAX = 0.006  # of the width
OTHERS = 8  # depth maps that each frame's own is compared with
FAR_APART = 0.25  # of the frames that are looked at, where there is one drive only
SHIFTS = (0.12, 0.25, 0.5)  # of the width, round the border: how other depth maps are made where there are too few
RADIUS = 2.5  # pixels at a width of 640 in which a point looks for its depth
FEWEST_POINTS, MOST_POINTS = 25, 200
BEATEN = 0.8  # share of the others that a frame's own depth has to explain the motion better than
MOST_MISFITS = 0.5  # share of a drive's frames
SCALE_OFF = 1.3  # ratio of lengths: metres are not metres


class Looked(NamedTuple):
    """A frame with ground truth and its best neighbour."""

    part: str
    pair: Pair
    depth: np.ndarray  # float32 [h, w], metres, 0 = none


class Judgement(NamedTuple):
    """How well a frame's depth explains the motion of its points, against others."""

    looked: Looked
    own: float  # pixels
    others: float  # pixels, median
    beaten: float  # share of the others that explain it worse
    moved: float  # metres, by the own depth

    @property
    def fits(self) -> bool:
        return self.beaten >= BEATEN


def check_ground_truth(survey: Survey, faults: set[str]) -> Iterator[Finding]:
    """Depth of another drive, of another frame, misaligned, or not in metres."""
    if survey.intrinsics_are_learned or faults & {"swapped_axes", "wrong_resolution", "wrong_focal"}:
        yield skipped(CHECK, "cannot be compared with the pictures without right intrinsics")
        return
    if faults & {"static", "shuffled_frames"}:
        yield skipped(CHECK, "cannot be compared with the pictures while these are static or shuffled")
        return
    looked = list(look_at_depth(survey))
    if not looked:
        yield skipped(CHECK, "there is no ground truth, or no neighbours of frames that have it")
        return
    verdicts = [verdict for each in looked if (verdict := judge(survey, each, looked)) is not None]
    if not verdicts:
        yield skipped(CHECK, "too little moves between frames to tell one depth from another")
        return
    yield alignment(survey, verdicts)
    yield from scale(survey, verdicts)


def look_at_depth(survey: Survey) -> Iterator[Looked]:
    """Frames with ground truth and a neighbour, of up to 16 drives, first those of validation and test."""
    drives: dict[str, tuple[str, list[Sample]]] = {}
    for part, dataset in survey.parts.items():
        if not dataset.with_depth:
            continue
        samples = [sample for sample in dataset.samples if dataset.depth_path(sample)]
        for drive, own in samples_by_drive(samples, {sample.drive for sample in samples}).items():
            # Of a drive that is divided in time the longest part: its frames differ most.
            if drive not in drives or len(own) > len(drives[drive][1]):
                drives[drive] = part, own
    evaluated = [drive for drive, (part, _) in drives.items() if part != "train"]
    chosen = spread(evaluated, MOST_DRIVES)
    chosen += spread([drive for drive in drives if drive not in evaluated], MOST_DRIVES - len(chosen))
    for drive in chosen:
        part, samples = drives[drive]
        for sample in spread(samples, max(OF_EACH, FEWEST_FRAMES // len(chosen))):
            pair = best_pair(survey, part, sample)
            if pair is not None:
                yield Looked(part, pair, survey.parts[part].load_depth(sample))


def best_pair(survey: Survey, part: str, sample: Sample) -> Pair | None:
    """The stereo pair, else the nearest neighbour in time that shows depth; None where nothing can be matched."""
    beside = survey.pair(part, sample, STEREO)
    if beside is not None and beside.is_matchable:
        return beside
    best, most = None, 0.0
    for frame in OFFSETS:
        pair = survey.pair(part, sample, frame)
        if pair is None or not pair.is_matchable:
            continue
        shift = parallax(pair.matches, survey.intrinsics(part, sample)) / survey.size[1]
        if shift > most:
            best, most = pair, shift
        if shift > CLEAR_PARALLAX:
            break
    return best


def judge(survey: Survey, looked: Looked, all_looked: list[Looked]) -> Judgement | None:
    """The own depth against others; None where too few points have one."""
    pair = looked.pair
    intrinsics = survey.intrinsics(looked.part, pair.sample)
    own = depth_at(looked.depth, pair.matches.one, survey.size)
    fit = fit_where(own > 0, pair.matches, own, intrinsics)
    if fit is None:
        return None
    ratios = []
    for depth in other_depths(looked, all_looked):
        other = depth_at(depth, pair.matches.one, survey.size)
        both = (own > 0) & (other > 0)
        fits = [fit_where(both, pair.matches, depths, intrinsics) for depths in (own, other)]
        if None not in fits:
            ratios.append(fits[1].misfit / fits[0].misfit)
    if not ratios:
        return None
    others, beaten = float(np.median(ratios)) * fit.misfit, float((np.array(ratios) > 1).mean())
    return Judgement(looked, fit.misfit, others, beaten, float(np.linalg.norm(fit.translation)))


def other_depths(looked: Looked, all_looked: list[Looked]) -> list[np.ndarray]:
    """Depth maps that do not belong to a frame: of other drives, else of distant frames, then its own moved about."""
    own, place = looked.depth, next(place for place, each in enumerate(all_looked) if each is looked)
    foreign = [each.depth for each in all_looked if each.pair.sample.drive != looked.pair.sample.drive]
    if not foreign:
        distant = (other for other in range(len(all_looked)) if abs(other - place) > FAR_APART * len(all_looked))
        foreign = [all_looked[other].depth for other in distant]
    foreign = [depth for depth in foreign if depth.shape == own.shape]
    shifted = [np.roll(own, int(share * own.shape[1]), axis=1) for share in SHIFTS]
    made = [own[:, ::-1], *shifted, *(depth[:, ::-1] for depth in shifted)]
    return [*spread(foreign, OTHERS), *made][:OTHERS]


def fit_where(known: np.ndarray, matches: Matches, depths: np.ndarray, intrinsics: np.ndarray) -> Fit | None:
    """`fit_motion` with the points that are `known` (bool `[N]`), or some of them; None where they are too few."""
    chosen = np.flatnonzero(known)
    if len(chosen) < FEWEST_POINTS:
        return None
    chosen = chosen[:: -(-len(chosen) // MOST_POINTS)]
    return fit_motion(Matches(matches.one[chosen], matches.other[chosen]), depths[chosen], intrinsics)


def depth_at(depth: np.ndarray, pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Depths `[N]` (0 = none) near pixels (x, y) `[N, 2]` of an image of `size`, from a map of another size.

    The median of what is known within a few pixels.
    """
    scale = np.array(depth.shape[::-1]) / size[::-1]
    x, y = np.round((pixels + 0.5) * scale - 0.5).astype(int).T
    reach = max(1, round(RADIUS * depth.shape[1] / 640))
    padded = np.pad(np.where(depth > 0, depth, np.nan), reach, constant_values=np.nan)
    steps = range(2 * reach + 1)
    around = np.stack([padded[y + down, x + right] for down in steps for right in steps])
    known = np.isfinite(around).any(0)
    found = np.zeros(len(pixels))
    found[known] = np.nanmedian(around[:, known], axis=0)
    return found


def alignment(survey: Survey, verdicts: list[Judgement]) -> Finding:
    """Drive by drive: does the depth fit better than that of others?"""
    by_drive: dict[str, list[Judgement]] = {}
    for verdict in verdicts:
        by_drive.setdefault(verdict.looked.pair.sample.drive, []).append(verdict)
    wrong = [
        drive for drive, own in by_drive.items() if sum(not verdict.fits for verdict in own) > MOST_MISFITS * len(own)
    ]
    own, others = (float(np.median([getattr(each, name) for each in verdicts])) for name in ("own", "others"))
    fitting = sum(verdict.fits for verdict in verdicts)
    text = (
        f"in {fitting} of {count(len(verdicts), 'frame')} it explains the motion of points better than that of other "
        f"frames ({own:.2f} against {others:.2f} pixels at a width of {survey.size[1]})"
    )
    expected = f"in more than {1 - MOST_MISFITS:.0%} of each drive's frames"
    if not wrong:
        return ok(CHECK, text, expected)
    advice = "look at ground_truth.png: it is of another drive or frame, or shifted"
    what = f"ground truth does not belong to the images of {first_names(wrong)}: {text}"
    return problem(CHECK, "foreign_ground_truth", what, expected, advice)


def scale(survey: Survey, verdicts: list[Judgement]) -> Iterator[Finding]:
    """Lengths by the depth against those by the baseline, speed or poses."""
    ratios = []
    for verdict in verdicts:
        known = known_distance(survey.parts[verdict.looked.part], verdict.looked.pair)
        if known and verdict.fits:
            ratios.append(verdict.moved / known)
    if len(ratios) < 3:
        return
    ratio = float(np.median(ratios))
    text = f"lengths by the ground truth are {ratio:.3g} times those by the baseline or the poses"
    expected = f"1 to a factor of {SCALE_OFF}"
    if max(ratio, 1 / ratio) < SCALE_OFF:
        yield ok(CHECK, text, expected)
    else:
        advice = "one of the two is not in metres"
        yield warning(CHECK, "ground_truth_scale", text, expected, advice)


def known_distance(dataset: FrameDataset, pair: Pair) -> float | None:
    """Metres between the two frames of a pair, by the baseline, speed or poses; None: unknown."""
    if pair.frame != STEREO:
        return dataset.distance(pair.sample, pair.frame)
    pose = dataset.stereo_poses.get(dataset.camera_of(pair.sample))
    return None if pose is None else float(pose[:3, 3].norm())
