"""Depth edges: how far predicted edges are from true ones (accuracy), and true ones from predicted (completeness).

The two scores are the depth boundary errors of iBims-1 (Koch et al., 2018), with one edge detector for both maps, since
only iBims-1 has edges marked by hand. They need dense ground truth: between the points of a laser scanner there is no
telling where an edge is, and `is_dense` decides that for each image.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

# What counts as dense: truth at this share of all pixels (the sky has none), most of it surrounded by more.
DENSE_SHARE, INNER_SHARE = 0.5, 0.8
JUMP = math.log(1.1)  # an edge: depth changes by 10 % or more within two pixels, and most so here
LARGEST_DISTANCE = 10  # pixels: at which distances are truncated, as in iBims-1


class EdgeErrors(NamedTuple):
    """Edge errors of one image in pixels, 0 (best) to 10; NaN where nothing can be said, its count is then 0."""

    accuracy: float  # mean distance of predicted edge pixels from the nearest true one; 10 where none is predicted
    completeness: float  # mean distance of true edge pixels from the nearest predicted one; 10 where none is predicted
    predicted: int  # edge pixels of the prediction
    true: int  # edge pixels of the truth; without any, both errors are NaN


def is_dense(truth: Tensor) -> bool:
    """Whether a depth map `[h, w]` (0 = none) is dense enough for edges and point clouds.

    At least half of all pixels have truth, and at least 80 % of these in all eight neighbours too. A laser scanner's
    points cover 5 % of KITTI's images, and the accumulated ones of its improved ground truth less than a third.
    """
    known = truth > 0
    count = int(known.sum())
    return count >= DENSE_SHARE * known.numel() and int(inner(known).sum()) >= INNER_SHARE * count > 0


def edge_errors(predicted: Tensor, truth: Tensor, mask: Tensor) -> EdgeErrors:
    """Edge errors of a predicted depth map `[h, w]` against the dense truth `[h, w]`, in pixels.

    Depths in any unit, their own each: edges are of relative depth. predicted: positive everywhere; truth: 0 = none;
    mask: bool `[h, w]`, the pixels that are compared. An edge counts, in both maps, where all pixels within two of it
    are in the mask and have truth; so the outline of things before the sky, which has no depth, is left out.
    """
    inside = inner(inner(mask & (truth > 0)))
    true_edges = depth_edges(torch.where(truth > 0, truth, 1.0)) & inside
    predicted_edges = depth_edges(predicted) & inside
    predicted_count, true_count = int(predicted_edges.sum()), int(true_edges.sum())
    if true_count == 0:
        return EdgeErrors(math.nan, math.nan, predicted_count, 0)
    if predicted_count == 0:
        return EdgeErrors(float(LARGEST_DISTANCE), float(LARGEST_DISTANCE), 0, true_count)
    accuracy = distance_to(true_edges)[predicted_edges].mean()
    completeness = distance_to(predicted_edges)[true_edges].mean()
    return EdgeErrors(float(accuracy), float(completeness), predicted_count, true_count)


def depth_edges(depth: Tensor) -> Tensor:
    """Where a positive depth map `[h, w]` has an edge: bool `[h, w]`, lines one pixel wide along rows or columns.

    A pixel is on an edge where the logarithm of depth differs by JUMP or more between its two neighbours in the row,
    and by no less than around the pixels beside it; or so in the column. A plane, however steep, has no edge: seen
    along a line, its relative slope only grows or only falls.
    """
    log_depth = depth.double().log()
    return steepest(log_depth) | steepest(log_depth.T).T


def steepest(values: Tensor) -> Tensor:
    """Where in the rows of `values` `[h, w]` a slope of JUMP or more is greatest: bool `[h, w]`, not at the border."""
    slope = functional.pad((values[:, 2:] - values[:, :-2]).abs(), (2, 2), value=math.inf)  # beyond all is possible
    before, here, after = slope[:, :-2], slope[:, 1:-1], slope[:, 2:]
    # Both pixels beside a step have its slope, or nearly so; the first of them is taken.
    return (here >= JUMP) & here.isfinite() & (here > before + 1e-9) & (here >= after - 1e-9)


def inner(mask: Tensor) -> Tensor:
    """The pixels of a mask `[h, w]` whose eight neighbours all belong to it: bool `[h, w]`, no border pixels."""
    outside = functional.pad((~mask)[None, None].float(), (1, 1, 1, 1), value=1.0)
    return functional.max_pool2d(outside, 3, stride=1)[0, 0] == 0


def distance_to(edges: Tensor) -> Tensor:
    """Distance of each pixel from the nearest of `edges` (bool `[h, w]`), pixels `[h, w]`, truncated at 10.

    First within each row, then over rows: squared distances are sums of the two.
    """
    height, width = edges.shape
    reach = LARGEST_DISTANCE
    along = torch.where(edges, 0.0, math.inf)
    padded = functional.pad(along, (reach, reach), value=math.inf)
    shifts = range(2 * reach + 1)
    row_wise = torch.stack([padded[:, shift : shift + width] + (shift - reach) ** 2 for shift in shifts]).amin(0)
    padded = functional.pad(row_wise, (0, 0, reach, reach), value=math.inf)
    squared = torch.stack([padded[shift : shift + height] + (shift - reach) ** 2 for shift in shifts]).amin(0)
    return squared.sqrt().clamp(max=reach)
