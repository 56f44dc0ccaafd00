"""Points of one frame found again in another, to a fraction of a pixel.

SIFT's features (Lowe, IJCV 2004), by OpenCV, spread over the frame, and matched where each is the other's nearest and
no second one is as near. The same frames always give the same matches.

Limits: points may move by up to a quarter of the width. Repeated and blurred patterns give few matches, moving things
give right ones.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from featdepth.cameras.opencv import opencv

MOST_CORNERS = 1000
CELL = 40  # pixels: side of the squares that have an equal share of the corners
WEAKEST_CORNER = 0.01  # SIFT's contrast of a corner; a quarter of OpenCV's own choice, so that faint ones count too
REACH = 0.25  # of the width: longest displacement that is looked for
BEST_TO_SECOND = 0.8  # ratio of the distances of two descriptors beyond which a match is ambiguous


class Matches(NamedTuple):
    """Pixels (x, y), float64 `[N, 2]`, at which two frames show the same points: whole ones in the first frame."""

    one: np.ndarray
    other: np.ndarray


class Features(NamedTuple):
    """The corners of a frame."""

    points: np.ndarray  # float64 [N, 2]: pixels (x, y)
    descriptors: np.ndarray  # float32 [N, 128], of length 1
    size: tuple[int, int]  # height, width of the frame


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
    sift = opencv().SIFT_create(contrastThreshold=WEAKEST_CORNER)
    found = sift.detect(frame, None)
    if not found:
        return Features(np.empty((0, 2)), np.empty((0, 128), np.float32), frame.shape)
    points = np.array([corner.pt for corner in found])
    kept = strongest(points, np.array([corner.response for corner in found]), frame.shape)
    _, histograms = sift.compute(frame, [found[index] for index in kept])
    # The root makes the scalar product of two descriptors compare histograms (Arandjelovic and Zisserman, CVPR 2012).
    descriptors = np.sqrt(histograms / histograms.sum(axis=1, keepdims=True))
    return Features(points[kept], descriptors, frame.shape)


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
    if one.size != other.size:
        raise ValueError(f"frames of different sizes: {one.size} and {other.size}")
    if min(len(one.points), len(other.points)) < 2:
        return Matches(np.empty((0, 2)), np.empty((0, 2)))
    similarity = one.descriptors @ other.descriptors.T
    displacement = np.linalg.norm(one.points[:, None] - other.points, axis=2)
    similarity[displacement > REACH * one.size[1]] = -1.0
    second, best = np.partition(similarity, -2)[:, -2:].T
    partner = similarity.argmax(axis=1)
    mutual = similarity.argmax(axis=0)[partner] == np.arange(len(partner))
    # For descriptors of length 1 the squared distance is 2 - 2 * similarity.
    kept = mutual & (best > 0) & (1 - best < BEST_TO_SECOND**2 * (1 - second))
    start, end = one.points[kept], other.points[partner[kept]]
    whole = np.rint(start)
    return Matches(whole, end + whole - start)
