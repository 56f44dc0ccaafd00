"""Point-cloud F-score: predicted and true depth as points in space, and how many of each have the other nearby.

Precision is the share of predicted points within a distance of a true one, recall the share of true points within the
same distance of a predicted one, the F-score their harmonic mean (Knapitsch et al., 2017; for depth maps Spencer et
al., 2022). Every pixel is a point, so it needs dense ground truth (`featdepth.metrics.edges.is_dense`).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from featdepth.geometry import backproject

POINT_THRESHOLDS = (0.1, 0.5)  # metres: that of Spencer et al., and one that a street can meet
MOST_POINTS = 10_000  # evenly spread over the image, are looked for near the other cloud: 0.5 % of chance, no bias
THINNING = 8  # of the other cloud's points one is kept in each cube with this part of the threshold as edge
CHUNK = 1000  # points that are looked up at a time


class FScore(NamedTuple):
    """Of one image at one distance, each in [0, 1]; NaN without pixels."""

    fscore: float
    precision: float
    recall: float


def point_scores(predicted: Tensor, truth: Tensor, mask: Tensor, intrinsics: Tensor, threshold: float) -> FScore:
    """F-score of a predicted depth map `[h, w]` against the dense truth `[h, w]` (metres) at `threshold` metres.

    mask: bool `[h, w]`, the pixels that are compared, where both depths are positive and finite; intrinsics: `[3, 3]`
    of the depth maps, pixel centres at integers.
    """
    if not mask.any():
        return FScore(math.nan, math.nan, math.nan)
    camera, pixels = intrinsics[None].double(), mask.flatten()
    clouds = [backproject(depth[None, None].double(), camera)[0, :, pixels].T for depth in (predicted, truth)]
    precision = float(is_near(evenly(clouds[0]), clouds[1], threshold).double().mean())
    recall = float(is_near(evenly(clouds[1]), clouds[0], threshold).double().mean())
    fscore = 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0
    return FScore(fscore, precision, recall)


def evenly(points: Tensor) -> Tensor:
    """At most MOST_POINTS of `points` `[N, 3]`, at equal steps."""
    return points[torch.linspace(0, len(points) - 1, min(len(points), MOST_POINTS)).round().long()]


def is_near(points: Tensor, others: Tensor, threshold: float) -> Tensor:
    """Which of `points` `[N, 3]` lie within `threshold` of one of the `others` `[M, 3]` (metres): bool `[N]`.

    Space is cut into cubes with the threshold as edge: what is near lies in the same cube or one beside it. The others
    are sorted by cube, so that three cubes in a row are one run of them. They are thinned before, which can only miss
    some at the very threshold: no point moves, and one is left within 1/8 of it in each direction.
    """
    lowest = torch.minimum(points.amin(0), others.amin(0)) - threshold
    span = ((torch.maximum(points.amax(0), others.amax(0)) - lowest) / threshold).long() + 2
    stride = torch.stack([span[1] * span[2], span[2], torch.ones_like(span[2])])

    fine = ((others - lowest) * (THINNING / threshold)).long()
    cube = fine // THINNING @ stride
    order = (cube * THINNING**3 + fine % THINNING @ fine.new_tensor([THINNING**2, THINNING, 1])).sort(stable=True)
    first = torch.ones_like(order.values, dtype=torch.bool)
    first[1:] = order.values[1:] != order.values[:-1]
    others, cube = others[order.indices[first]], cube[order.indices[first]]

    sides = torch.cartesian_prod(*[torch.arange(-1, 2, device=points.device)] * 2) @ stride[:2]
    found = []
    for some in points.split(CHUNK):
        middle = (((some - lowest) / threshold).long() @ stride)[:, None] + sides
        start = torch.searchsorted(cube, middle - 1).flatten()
        count = torch.searchsorted(cube, middle + 1, right=True).flatten() - start
        # One entry for each pair of a point and one of the others in a run of its own.
        run = torch.repeat_interleave(count)
        position = torch.arange(len(run), device=run.device) - (count.cumsum(0) - count)[run]
        point = run // len(sides)
        near = (others[start[run] + position] - some[point]).square().sum(1) <= threshold**2
        found.append(torch.zeros_like(some[:, 0], dtype=torch.bool).index_put_((point[near],), torch.tensor(True)))
    return torch.cat(found)
