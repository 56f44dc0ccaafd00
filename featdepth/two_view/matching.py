"""Points of one frame found again in another, to a fraction of a pixel.

OpenCV's SIFT features (Lowe, IJCV 2004), spread over the frame, are matched where each is the other's nearest and no
second one is as near, and then shifted until the patches agree (Lucas and Kanade, IJCAI 1981), which makes them twice
as exact in blurred pictures. The same frames always give the same matches.

Limits: points may move by up to a quarter of the width. Repeated and blurred patterns give few matches, moving things
give right ones.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from featdepth.two_view.opencv import opencv

MOST_CORNERS = 1000
CELL = 40  # pixels: side of the squares that have an equal share of the corners
WEAKEST_CORNER = 0.01  # SIFT's contrast of a corner; a quarter of OpenCV's own choice, so that faint ones count too
REACH = 0.25  # of the width: longest displacement that is looked for
BEST_TO_SECOND = 0.8  # ratio of the distances of two descriptors beyond which a match is ambiguous
PATCH = 11  # pixels: side of the patches that are aligned
ALIGNMENT = (3, 20, 0.01)  # OpenCV's criteria: at most 20 steps, until they are below a hundredth of a pixel
LARGEST_CORRECTION = 3.0  # pixels
SURROUNDINGS, SPREAD = 6.0, 48.0  # an even contrast: pixels that are surroundings, and deviation of their grey levels


class Matches(NamedTuple):
    """Pixels (x, y), float64 `[N, 2]`, at which two frames show the same points: whole ones in the first frame."""

    one: np.ndarray
    other: np.ndarray


class Features(NamedTuple):
    """The corners of a frame."""

    points: np.ndarray  # float64 [N, 2]: pixels (x, y)
    descriptors: np.ndarray  # float32 [N, 128], of length 1
    image: np.ndarray  # uint8 [h, w], the frame with an even contrast


def match_frames(one: np.ndarray, other: np.ndarray) -> Matches:
    """Points that two grey frames uint8 `[h, w]` of the same size share; none where there is nothing to see."""
    return match_features(find_features(one), find_features(other))


def motion(matches: Matches) -> float:
    """How far points move: the median displacement in pixels; nan without matches."""
    return median(np.linalg.norm(matches.other - matches.one, axis=1))


def median(values: np.ndarray) -> float:
    """The median; nan of nothing."""
    return float(np.median(values)) if len(values) else float("nan")


def find_features(frame: np.ndarray) -> Features:
    """The corners of a grey frame uint8 `[h, w]`: `match_features` compares them with another frame's."""
    sift, image = opencv().SIFT_create(contrastThreshold=WEAKEST_CORNER), with_even_contrast(frame)
    found = sift.detect(frame, None)
    if not found:
        return Features(np.empty((0, 2)), np.empty((0, 128), np.float32), image)
    points = np.array([corner.pt for corner in found])
    kept = strongest(points, np.array([corner.response for corner in found]), frame.shape)
    _, histograms = sift.compute(frame, [found[index] for index in kept])
    # The root makes the scalar product of two descriptors compare histograms (Arandjelovic and Zisserman, CVPR 2012).
    descriptors = np.sqrt(histograms / histograms.sum(axis=1, keepdims=True))
    return Features(points[kept], descriptors, image)


def with_even_contrast(frame: np.ndarray) -> np.ndarray:
    """A grey frame uint8 `[h, w]` whose brightness varies by as much everywhere: comparable in any exposure."""
    blur, grey = opencv().GaussianBlur, frame.astype(np.float32)
    difference = grey - blur(grey, (0, 0), SURROUNDINGS)
    deviation = np.sqrt(blur(difference**2, (0, 0), SURROUNDINGS))
    return np.clip(128 + SPREAD * difference / (deviation + 1), 0, 255).astype(np.uint8)


def strongest(points: np.ndarray, strengths: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Indices of the strongest of points `[N, 2]` in each square of a frame of `size` (height, width)."""
    cells_high, cells_wide = (-(-side // CELL) for side in size)
    cells = (points // CELL).astype(int) @ [1, cells_wide]
    order = np.lexsort((-strengths, cells))
    _, starts, sizes = np.unique(cells[order], return_index=True, return_counts=True)
    rank = np.arange(len(order)) - np.repeat(starts, sizes)
    return order[rank < -(-MOST_CORNERS // (cells_high * cells_wide))]


def match_features(one: Features, other: Features) -> Matches:
    """The points that the features of two frames of the same size have in common."""
    if one.image.shape != other.image.shape:
        raise ValueError(f"frames of different sizes: {one.image.shape} and {other.image.shape}")
    if min(len(one.points), len(other.points)) < 2:
        return Matches(np.empty((0, 2)), np.empty((0, 2)))
    similarity = one.descriptors @ other.descriptors.T
    displacement = np.linalg.norm(one.points[:, None] - other.points, axis=2)
    similarity[displacement > REACH * one.image.shape[1]] = -1.0
    second, best = np.partition(similarity, -2)[:, -2:].T
    partner = similarity.argmax(axis=1)
    mutual = similarity.argmax(axis=0)[partner] == np.arange(len(partner))
    # For descriptors of length 1 the squared distance is 2 - 2 * similarity.
    kept = mutual & (best > 0) & (1 - best < BEST_TO_SECOND**2 * (1 - second))
    start = np.rint(one.points[kept])
    return align(one.image, other.image, start, other.points[partner[kept]] + start - one.points[kept])


def align(one: np.ndarray, other: np.ndarray, start: np.ndarray, end: np.ndarray) -> Matches:
    """Matches of pixels `start` of the image `one` shifted until the patches agree, without those that find none."""
    if not len(start):
        return Matches(start, end)
    cv2 = opencv()
    before, guess = (points.astype(np.float32)[:, None] for points in (start, end))
    options = {"winSize": (PATCH, PATCH), "maxLevel": 0, "criteria": ALIGNMENT, "flags": cv2.OPTFLOW_USE_INITIAL_FLOW}
    aligned, found, _ = cv2.calcOpticalFlowPyrLK(one, other, before, guess.copy(), **options)
    kept = (found[:, 0] > 0) & (np.linalg.norm((aligned - guess)[:, 0], axis=1) < LARGEST_CORRECTION)
    return Matches(start[kept], aligned[kept, 0].astype(np.float64))
