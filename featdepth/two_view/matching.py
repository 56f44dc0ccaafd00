"""Points of one frame found again in another, to a fraction of a pixel.

Corners (Shi and Tomasi, CVPR 1994) spread over the frame are described by the directions of the gradients around them
(after Tola et al., PAMI 2010), matched where each is the other's nearest and no second one is as near, and then shifted
until the patches agree (Lucas and Kanade, IJCAI 1981). The same frames always give the same matches.

Limits: points may move by up to a quarter of the width; the camera may roll by some 15 degrees and a thing may grow by
a third from frame to frame. Repeated and blurred patterns give few matches, moving things give right ones.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from featdepth.geometry import sample

MOST_CORNERS = 1000
CELL = 40  # pixels: side of the squares that have an equal share of the corners
SEPARATION = 2  # pixels between corners
MARGIN = 6  # pixels at the border without corners
WEAKEST_CORNER = 1.0  # smaller eigenvalue of the mean product of gradients, squared grey levels per squared pixel
DIRECTIONS = 8
SPACING = 6  # pixels between the 4 x 4 places at which a descriptor looks
REACH = 0.25  # of the width: longest displacement that is looked for
BEST_TO_SECOND = 0.85  # ratio of the distances of two descriptors beyond which a match is ambiguous
PATCH = 5  # pixels from the centre of the patches that are aligned to their edge
ALIGNMENT_STEPS = 8
LARGEST_CORRECTION = 3.0  # pixels
WORST_CORRELATION = 0.75  # of aligned patches


class Matches(NamedTuple):
    """Pixels (x, y), float64 `[N, 2]`, at which two frames show the same points."""

    one: np.ndarray
    other: np.ndarray


class Features(NamedTuple):
    """The corners of a frame."""

    points: Tensor  # int64 [N, 2]: pixels (x, y)
    descriptors: Tensor  # float32 [N, 128], of length 1
    image: Tensor  # float32 [h, w], grey levels, a little smoothed
    gradient: Tensor  # float32 [2, h, w] of the image along x and y, grey levels a pixel


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
    image = smooth(torch.from_numpy(np.ascontiguousarray(frame)).float()[None], 3)[0]
    padded = functional.pad(image[None], (1, 1, 1, 1), mode="replicate")[0]
    gradient = torch.stack([padded[1:-1, 2:] - padded[1:-1, :-2], padded[2:, 1:-1] - padded[:-2, 1:-1]]) / 2
    points = find_corners(gradient)
    return Features(points, describe(points, gradient), image, gradient)


def smooth(maps: Tensor, side: int) -> Tensor:
    """Maps `[C, h, w]` averaged over squares of `side` pixels (odd), the border repeated."""
    channels, reach = len(maps), side // 2
    column = maps.new_full((channels, 1, side, 1), 1 / side)
    padded = functional.pad(maps[None], (reach, reach, reach, reach), mode="replicate")
    # One axis after the other, as convolutions: ten times as fast as pooling.
    columns = functional.conv2d(padded, column, groups=channels)
    return functional.conv2d(columns, column.mT.contiguous(), groups=channels)[0]


def find_corners(gradient: Tensor) -> Tensor:
    """Pixels (x, y) int64 `[N, 2]` with strong gradients in all directions, the strongest of their surroundings."""
    along_x, along_y = gradient
    xx, yy, xy = smooth(torch.stack([along_x * along_x, along_y * along_y, along_x * along_y]), 5)
    strength = (xx + yy) / 2 - ((xx - yy) / 2).square().add(xy.square()).sqrt()
    side = 2 * SEPARATION + 1
    highest = functional.max_pool2d(strength[None], (side, 1), 1, (SEPARATION, 0))
    highest = functional.max_pool2d(highest, (1, side), 1, (0, SEPARATION))[0]
    corners = (strength == highest) & (strength > WEAKEST_CORNER)
    corners[:MARGIN] = corners[-MARGIN:] = False
    corners[:, :MARGIN] = corners[:, -MARGIN:] = False
    y, x = corners.nonzero(as_tuple=True)
    y, x = (each[torch.argsort(strength[y, x], descending=True, stable=True)] for each in (y, x))
    cells_high, cells_wide = (-(-side // CELL) for side in strength.shape)
    kept = first_of_each(y // CELL * cells_wide + x // CELL, -(-MOST_CORNERS // (cells_high * cells_wide)))
    return torch.stack([x[kept], y[kept]], dim=1)


def first_of_each(groups: Tensor, count: int) -> Tensor:
    """Indices, ascending, of the first `count` members of each of the groups int64 `[N]`."""
    order = torch.argsort(groups, stable=True)
    _, sizes = torch.unique_consecutive(groups[order], return_counts=True)
    starts = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    return order[torch.arange(len(groups)) - starts < count].sort().values


def describe(points: Tensor, gradient: Tensor) -> Tensor:
    """Descriptors float32 `[N, 128]` of length 1: how strong gradients of 8 directions are at 4 x 4 places around."""
    angles = torch.arange(DIRECTIONS) * (2 * torch.pi / DIRECTIONS)
    along = angles.cos()[:, None, None] * gradient[0] + angles.sin()[:, None, None] * gradient[1]
    strengths = smooth(functional.avg_pool2d(along.relu_(), 2, ceil_mode=True), 5)
    height, width = strengths.shape[1:]
    offsets = torch.arange(4) * SPACING - 3 * SPACING // 2
    x = ((points[:, 0, None, None] + offsets) // 2).clamp(0, width - 1)
    y = ((points[:, 1, None, None] + offsets[:, None]) // 2).clamp(0, height - 1)
    values = strengths[:, y, x].permute(1, 0, 2, 3).flatten(1)
    # The root makes the scalar product of two descriptors compare histograms; the floor keeps flat ones harmless.
    return functional.normalize((values + 0.01).sqrt(), dim=1)


def match_features(one: Features, other: Features) -> Matches:
    """The points that the features of two frames of the same size have in common."""
    if one.image.shape != other.image.shape:
        raise ValueError(f"frames of different sizes: {tuple(one.image.shape)} and {tuple(other.image.shape)}")
    if min(len(one.points), len(other.points)) < 2:
        return Matches(np.empty((0, 2)), np.empty((0, 2)))
    similarity = one.descriptors @ other.descriptors.T
    displacement = torch.cdist(one.points.float(), other.points.float())
    similarity[displacement > REACH * one.image.shape[1]] = -1.0
    (best, second), (partner, _) = (each.T for each in similarity.topk(2, dim=1))
    mutual = similarity.argmax(0)[partner] == torch.arange(len(partner))
    # For descriptors of length 1 the squared distance is 2 - 2 * similarity.
    kept = mutual & (best > 0) & (1 - best < BEST_TO_SECOND**2 * (1 - second))
    start, partner = one.points[kept], other.points[partner[kept]]
    end, good = align(one, other, start, partner.float())
    return Matches(start[good].double().numpy(), end[good].double().numpy())


def align(one: Features, other: Features, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Shift `end` (pixels float32 `[N, 2]` of `other`) until the patch there looks as the one at `start` does.

    Patches may differ in brightness and contrast. Returns the shifted pixels and whether each is to be trusted.
    """
    offsets = torch.cartesian_prod(*[torch.arange(-PATCH, PATCH + 1.0)] * 2)
    maps = torch.cat([one.image[None], one.gradient])
    pattern, *slopes = centred(look_up(maps, start[:, None].float() + offsets))
    slopes = torch.stack(slopes, dim=-1)  # [N, P, 2]
    normal = slopes.mT @ slopes + 1e-3 * torch.eye(2)
    contrast = pattern.norm(dim=1, keepdim=True)
    shift = torch.zeros_like(end)
    for _ in range(ALIGNMENT_STEPS):
        (found,) = centred(look_up(other.image[None], (end + shift)[:, None] + offsets))
        found_contrast = found.norm(dim=1, keepdim=True).clamp(min=1e-3)
        difference = pattern - found * (contrast / found_contrast)
        step = torch.linalg.solve(normal, slopes.mT @ difference[..., None])[..., 0]
        shift = shift + step.clamp(-1, 1)
    correlation = (pattern * found).sum(1) / (contrast * found_contrast)[:, 0].clamp(min=1e-3)
    settled = (step.norm(dim=1) < 0.1) & (shift.norm(dim=1) < LARGEST_CORRECTION)
    return end + shift, settled & (correlation > WORST_CORRELATION)


def look_up(maps: Tensor, pixels: Tensor) -> Tensor:
    """Values `[C, N, P]` of maps `[C, h, w]` at pixels (x, y) `[N, P, 2]`."""
    return sample(maps[None], pixels.permute(2, 0, 1)[None])[0]


def centred(patches: Tensor) -> Tensor:
    """Patches `[..., P]` less their means."""
    return patches - patches.mean(-1, keepdim=True)
