"""The focal length of a camera that nobody calibrated, by alignment with a model's depth.

Frames between which a camera turns fit each other best with the true focal length, once motion is fitted to each that
is tried. The depth has to be about right, but may be that of a model which has only seen other cameras; with that of
an untrained model the residual says nothing of the focal length (docs/intrinsics.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from featdepth.alignment import align
from featdepth.geometry import resize_intrinsics
from featdepth.models import FeatDepth
from featdepth.odometry.egomotion import seen_frame

FOCALS = np.geomspace(0.35, 1.6, 12)  # that are tried, in widths
FEWEST_PAIRS = 6
BOOTSTRAPS, LARGEST_SPREAD = 100, 0.05  # random choices of the pairs; standard deviation of the logarithm


class AlignedFocal(NamedTuple):
    """A focal length in widths of the image."""

    widths: float
    spread: float  # standard deviation over random choices of the pairs


@torch.no_grad()
def focal_by_alignment(
    model: FeatDepth, earlier: Sequence[Tensor], later: Sequence[Tensor], size: tuple[int, int]
) -> AlignedFocal | None:
    """The focal length under which the frames `earlier` and `later`, N each of `[3, h, w]`, size (h, w), fit best.

    Pixels are taken to be square and the principal point to be the centre. None where too few pairs can be aligned, or
    no focal length stands out: a camera that does not turn shows none.
    """
    images = [torch.stack([seen_frame(model, frame) for frame in frames]) for frames in (earlier, later)]
    depth = model.to_depth(model.predict_disparity(images[0]))
    grey = [image.mean(1, keepdim=True) for image in images]
    height, width = size
    residuals = []
    for focal in FOCALS * width:
        rows = [[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]]
        intrinsics = resize_intrinsics(torch.tensor(rows), size, (model.height, model.width)).to(depth)
        found = align(*grey, depth, intrinsics.expand(len(depth), 3, 3))
        residuals.append(torch.where(found.is_known, found.residual.log(), torch.nan).cpu().numpy())
    table = np.stack(residuals)
    table = table[:, np.isfinite(table).all(0)]
    pairs = table.shape[1]
    if pairs < FEWEST_PAIRS:
        return None
    drawn = np.random.default_rng(0).integers(pairs, size=(BOOTSTRAPS, pairs))
    best = [lowest(table[:, places].mean(1)) for places in (np.arange(pairs), *drawn)]
    spread = float(np.std(best[1:]))
    if not spread <= LARGEST_SPREAD:  # nan where one is nan
        return None
    return AlignedFocal(float(np.exp(best[0])), float(np.exp(best[0]) * spread))


def lowest(costs: np.ndarray) -> float:
    """The logarithm of the focal length where a parabola through the least cost and its neighbours is lowest.

    nan where that is beyond those that were tried.
    """
    place, logs = int(np.argmin(costs)), np.log(FOCALS)
    if not 0 < place < len(costs) - 1:
        return float("nan")
    before, least, after = costs[place - 1 : place + 2]
    shift = (before - after) / (2 * (before - 2 * least + after))
    return float(logs[place] + shift * (logs[1] - logs[0]))
