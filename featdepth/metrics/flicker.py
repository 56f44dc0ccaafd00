"""Flicker: by how much depth changes from one frame to the next where the scene does not.

Every point of a frame is moved with the camera into the next one, whose own depth is compared where the point is seen
there. The median of the logarithms is how the scale of the picture has changed; the median of their sizes is how much a
point that is tracked jumps. Medians leave out what moves by itself and what is hidden in one of both frames.
"""

from __future__ import annotations

import torch
from torch import Tensor

from featdepth.geometry import backproject, correspondences, sample


def flicker(earlier_depth: Tensor, later_depth: Tensor, intrinsics: Tensor, later_from_earlier: Tensor) -> Tensor:
    """Change of scale and jump of points `[B, 2]` between neighbouring frames; NaN where they have no pixel in common.

    Both are logarithms of a ratio, 0.01 being one percent: the first with its sign, later against earlier. Depths
    `[B, 1, H, W]` and later_from_earlier `[B, 4, 4]` are in one unit; intrinsics `[B, 3, 3]`.
    """
    ratios = log_ratios(earlier_depth, later_depth, intrinsics, later_from_earlier).flatten(1)
    return torch.stack([ratios.nanmedian(1).values, ratios.abs().nanmedian(1).values], dim=1)


def log_ratios(earlier_depth: Tensor, later_depth: Tensor, intrinsics: Tensor, later_from_earlier: Tensor) -> Tensor:
    """log of the later frame's depth over that of the earlier frame's points as seen from there, `[B, 1, H, W]`.

    At the pixels of the earlier frame; NaN for points that are not in the later picture.
    """
    height, width = earlier_depth.shape[-2:]
    pixels = correspondences(earlier_depth, intrinsics, later_from_earlier)
    along = later_from_earlier[:, 2:3]  # the row that gives a point's depth in the later frame
    moved = along[..., :3] @ backproject(earlier_depth, intrinsics) + along[..., 3:]
    moved = moved.unflatten(2, (height, width))
    x, y = pixels[:, :1], pixels[:, 1:]
    is_seen = (moved > 0) & (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return torch.where(is_seen, (sample(later_depth, pixels) / moved).log(), torch.nan)
