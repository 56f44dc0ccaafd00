"""Predictors that look at no image, so that a reader of a table sees what a model has learned."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# The per-pixel median is taken in cells of the image and over logarithmic bins of depth, 2 % wide.
GRID = (48, 160)
BINS = 256
NEAREST, FARTHEST = 0.8, 120.0  # metres, of the first and the last bin


def depth_histogram(depth: np.ndarray) -> Tensor:
    """How often each depth occurs in each cell of the image: `[48, 160, 256]`, of ground truth `[h, w]` in metres.

    Counts of several images add up; 0 in `depth` means none.
    """
    rows, columns = np.nonzero(depth)
    position = np.log(depth[rows, columns] / NEAREST) / np.log(FARTHEST / NEAREST)
    bins = (position * BINS).astype(np.int64).clip(0, BINS - 1)
    cells = (rows * GRID[0] // depth.shape[0]) * GRID[1] + columns * GRID[1] // depth.shape[1]
    counts = np.bincount(cells * BINS + bins, minlength=GRID[0] * GRID[1] * BINS)
    return torch.from_numpy(counts.astype(np.float32)).view(*GRID, BINS)


def median_depth(histogram: Tensor) -> Tensor:
    """Median depth of each cell `[48, 160]` in metres; a cell without any takes that of the block around it."""
    counts = histogram.double()
    result = torch.full(GRID, torch.nan, dtype=torch.float64)
    for high, wide in ((1, 1), (2, 2), (4, 4), (8, 8), (16, 16), GRID):
        pooled = counts.unflatten(0, (-1, high)).unflatten(2, (-1, wide)).sum((1, 3))
        pooled = pooled.repeat_interleave(high, 0).repeat_interleave(wide, 1)
        result = torch.where(result.isnan(), histogram_median(pooled), result)
    return result.float()


def histogram_median(counts: Tensor) -> Tensor:
    """The depth of the bin in which half of the counts `[..., 256]` is reached; NaN where there are none."""
    cumulative = counts.cumsum(-1)
    total = cumulative[..., -1]
    middle = (cumulative < total[..., None] / 2).sum(-1)
    depth = NEAREST * (FARTHEST / NEAREST) ** ((middle + 0.5) / BINS)
    return torch.where(total > 0, depth, torch.nan)
