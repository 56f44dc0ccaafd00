"""What two frames of a video say about the camera: how it moved, and its focal length.

Everything starts from `match_frames`. Two frames give rotation and the direction of the translation, never its length;
where the camera only turned, or sees nothing but things far away, the direction means nothing: `parallax` tells. A
plane that fills both frames leaves two explanations, of which either may be found. Moving things count as outliers.
All estimates are the same for the same matches: what is drawn by chance, by OpenCV too, starts from a fixed seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from featdepth.two_view.epipolar import (
    best_rotation,
    epipolar_errors,
    essential_of,
    rays,
    refine,
    rotation_residuals,
    sampson,
)
from featdepth.two_view.matching import Matches, match_frames, median, motion
from featdepth.two_view.opencv import opencv

__all__ = [
    "Focal",
    "Matches",
    "TwoView",
    "focal_from_matches",
    "fundamental",
    "match_frames",
    "motion",
    "parallax",
    "relative_pose",
    "triangulate",
]

FEWEST_AGREEING = 12  # with fewer, chance agrees with itself
THRESHOLD = 1.5  # pixels: the error of an inlier is below
FOCAL_RANGE, FOCALS = (0.25, 4.0), 21  # tried focal lengths, in widths: fields of view from 127 to 14 degrees
FOCAL_MATCHES = 200  # of each pair
FEWEST_PAIRS = 4
BOOTSTRAPS = 200
LARGEST_SPREAD = 0.2  # relative: above it the focal length counts as unobservable
FIRST_STEPS, LAST_STEPS = 4, 15  # of refinement: from the solution of a focal length beside it, and from a rough one
CONFIDENCE = 0.9999  # that one of the random samples of OpenCV is right throughout
MOST_DRAWS, REFITS = 1000, 3  # of such samples for a fundamental matrix; fits to the inliers
FARTHEST = 1e6  # units of the camera's translation: points beyond do not tell which way it went


class TwoView(NamedTuple):
    """The camera's motion between two frames: a point p of the first is at rotation @ p + s * translation, s > 0."""

    rotation: np.ndarray  # 3x3, other_from_one
    translation: np.ndarray  # [3], other_from_one, of length 1
    inliers: np.ndarray  # bool [N]: the matches that agree
    error: float  # pixels: median distance of the inliers from their epipolar lines


class Focal(NamedTuple):
    """A focal length in pixels, with the standard deviation that other pairs of the same kind would show."""

    pixels: float
    spread: float


def parallax(matches: Matches, intrinsics: np.ndarray) -> float:
    """Median displacement (pixels) that no rotation of the camera explains; nan without matches.

    It is what depth is learned from. Below a pixel two frames are as good as taken from one place. A sideways motion
    past things that are all equally far looks much like a rotation, so there it comes out too small.
    """
    if not len(matches.one):
        return float("nan")
    one, other = rays(matches.one, intrinsics), rays(matches.other, intrinsics)
    return median(rotation_residuals(best_rotation(one, other, intrinsics), one, matches.other, intrinsics))


def relative_pose(matches: Matches, intrinsics: np.ndarray) -> TwoView | None:
    """How the camera with these intrinsics (3x3, pixels) moved between the frames.

    OpenCV's essential matrix (MAGSAC++, Barath et al., CVPR 2020), refined to the smallest robust Sampson distance: on
    a plane the first alone is wrong. None where fewer than 12 matches agree.
    """
    if len(matches.one) < FEWEST_AGREEING:
        return None
    cv2 = opencv()
    found, _ = cv2.findEssentialMat(*matches, intrinsics, cv2.USAC_MAGSAC, CONFIDENCE, THRESHOLD)
    if found is None:
        return None
    rotation, _, translation = cv2.decomposeEssentialMat(found)
    rotation, translation, _ = refine(rotation, translation[:, 0], intrinsics, matches, LAST_STEPS)
    errors = np.abs(epipolar_errors(rotation, translation, intrinsics, matches))
    inliers = errors < THRESHOLD
    if inliers.sum() < FEWEST_AGREEING:
        return None
    # Of the four motions with these epipolar lines the one with most points in front of both cameras.
    essential, agreeing = essential_of(rotation, translation), Matches(*(each[inliers] for each in matches))
    _, rotation, translation, *_ = cv2.recoverPose(essential, *agreeing, intrinsics, FARTHEST)
    return TwoView(rotation, translation[:, 0], inliers, median(errors[inliers]))


def triangulate(matches: Matches, intrinsics: np.ndarray, view: TwoView) -> np.ndarray:
    """Depths float64 `[N]` of the matches in the first frame, in units of the camera's translation.

    Negative or huge where the lines of sight are parallel or the match is wrong.
    """
    turned = rays(matches.one, intrinsics) @ view.rotation.T
    other = rays(matches.other, intrinsics)
    across = np.cross(other, turned)
    along = np.cross(np.broadcast_to(view.translation, other.shape), other)
    return (across * along).sum(1) / np.maximum((across * across).sum(1), 1e-18)


def fundamental(matches: Matches) -> tuple[np.ndarray, np.ndarray] | None:
    """The fundamental matrix 3x3 (other^T F one = 0, pixels) and the inliers bool `[N]`; None where under 12 agree.

    OpenCV's, by RANSAC (its MAGSAC++ ends in an error on some planes) and fitted again to the inliers. With
    little parallax, or a plane in view, many matrices fit alike, and only the distances from the epipolar lines mean
    something.
    """
    if len(matches.one) < FEWEST_AGREEING:
        return None
    cv2 = opencv()
    matrix, _ = cv2.findFundamentalMat(*matches, cv2.FM_RANSAC, THRESHOLD, CONFIDENCE, MOST_DRAWS)
    if matrix is None:
        return None
    for _ in range(REFITS):
        inliers = np.abs(sampson(matrix, matches)) < THRESHOLD
        if inliers.sum() < FEWEST_AGREEING:
            return None
        refitted, _ = cv2.findFundamentalMat(*(pixels[inliers] for pixels in matches), cv2.FM_8POINT)
        if refitted is None:  # many fit alike, as where nothing moves
            break
        matrix = refitted
    matrix /= np.linalg.norm(matrix)
    return matrix, np.abs(sampson(matrix, matches)) < THRESHOLD


def focal_from_matches(pairs: Sequence[Matches], size: tuple[int, int]) -> Focal | None:
    """The focal length of a camera with square pixels and its centre in the middle of images of `size` (h, w).

    It is the one that brings the matches of all pairs closest to epipolar lines. Only a camera that turns while it
    moves shows it: None with fewer than 4 pairs of 12 matches, or where chance decides, which is seen from how little
    the errors rise beside the best, and from estimates on random choices of the pairs. Pairs of one drive share their
    errors, so that the spread is the least to expect. A principal point off the middle shifts the estimate.
    """
    pairs = [thinned(matches) for matches in pairs if len(matches.one) >= FEWEST_AGREEING]
    if len(pairs) < FEWEST_PAIRS:
        return None
    logs = np.linspace(*np.log(FOCAL_RANGE), FOCALS)
    costs = np.stack([focal_costs(matches, np.exp(logs) * size[1], size) for matches in pairs])
    # How often each pair counts: once in the first row, else as often as it is drawn.
    drawn = np.random.default_rng(0).integers(len(pairs), size=(BOOTSTRAPS, len(pairs)))
    counts = np.stack([np.ones(len(pairs)), *(np.bincount(each, minlength=len(pairs)) for each in drawn)])
    best, *others = (lowest(logs, total) for total in counts @ costs)
    spread = max(float(np.std(others)), tolerance(logs, costs.sum(0), sum(len(matches.one) for matches in pairs)))
    if spread > LARGEST_SPREAD or not logs[1] < best < logs[-2]:
        return None
    focal = float(np.exp(best) * size[1])
    return Focal(focal, spread * focal)


def tolerance(logs: np.ndarray, costs: np.ndarray, matches: int) -> float:
    """The standard deviation of the logarithm of the focal length that the errors of the matches leave; inf: no bounds.

    costs `[F]`: sums over all `matches` at each of `logs`. In units of the mean error they rise as a chi-squared
    statistic does: by 4 at two standard deviations to either side.
    """
    places = np.union1d(np.linspace(logs[0], logs[-1], 1000), logs)
    likely = places[np.interp(places, logs, costs) <= costs.min() * (1 + 4 / matches)]
    if likely[0] == logs[0] or likely[-1] == logs[-1]:
        return float("inf")
    return float(likely[-1] - likely[0]) / 4


def thinned(matches: Matches) -> Matches:
    """At most FOCAL_MATCHES of the matches, evenly chosen."""
    stride = -(-len(matches.one) // FOCAL_MATCHES)
    return Matches(matches.one[::stride], matches.other[::stride])


def focal_costs(matches: Matches, focals: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The sum of robust errors `[F]` that a pair has at best with each of the ascending focal lengths (pixels)."""
    middle = len(focals) // 2
    costs = np.zeros(len(focals))
    view = relative_pose(matches, centred_intrinsics(focals[middle], size))
    if view is None:
        return costs
    # Each solution starts from that of the focal length beside it.
    for indices in (range(middle, len(focals)), range(middle, -1, -1)):
        rotation, translation = view.rotation, view.translation
        for index in indices:
            intrinsics = centred_intrinsics(focals[index], size)
            rotation, translation, cost = refine(rotation, translation, intrinsics, matches, FIRST_STEPS)
            costs[index] = cost * len(matches.one)
    return costs


def centred_intrinsics(focal: float, size: tuple[int, int]) -> np.ndarray:
    """Intrinsics 3x3 of square pixels with the principal point in the middle of an image of `size` (h, w)."""
    return np.array([[focal, 0, (size[1] - 1) / 2], [0, focal, (size[0] - 1) / 2], [0, 0, 1]])


def lowest(places: np.ndarray, values: np.ndarray) -> float:
    """Where the parabola through the smallest of `values` and its neighbours at evenly spaced `places` is lowest."""
    index = int(np.clip(values.argmin(), 1, len(values) - 2))
    before, here, after = values[index - 1 : index + 2]
    bend = before - 2 * here + after
    shift = (before - after) / (2 * bend) if bend > 0 else 0.0
    return float(places[index] + np.clip(shift, -1, 1) * (places[1] - places[0]))
