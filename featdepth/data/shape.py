"""Sizes that images are trained at, and whether their shape is that of the images."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from featdepth.config.checks import SMALLEST_SIDE, STRIDE

if TYPE_CHECKING:
    from featdepth.data.dataset import FrameDataset
    from featdepth.data.mix import MixedDataset

MOST_SQUEEZED = 1.25  # ratio of two aspect ratios: beyond it pictures are noticeably squeezed


def squeezed(size: tuple[int, int], other: tuple[int, int]) -> float:
    """By how much, at least 1, resizing from one size (height, width) to another changes the aspect ratio."""
    ratio = (size[1] / size[0]) / (other[1] / other[0])
    return max(ratio, 1 / ratio)


def fitting_size(size: tuple[int, int], pixels: int) -> tuple[int, int]:
    """Height and width in multiples of 32 with the shape of `size` (height, width) and about as many `pixels`."""

    def misfit(height: int, width: int) -> float:
        return math.log(squeezed(size, (height, width))) + abs(math.log(height * width / pixels)) / 2

    sides = range(SMALLEST_SIDE, max(SMALLEST_SIDE + 1, 4 * math.isqrt(pixels)), STRIDE)
    return min(((height, width) for height in sides for width in sides), key=lambda each: misfit(*each))


def shape_note(data: FrameDataset | MixedDataset, size: tuple[int, int]) -> str | None:
    """A note where images of the data are squeezed to be trained at `size` (height, width); None: they are not."""
    shapes = [member.shown_size(camera) for member in data.members for camera in member.native_sizes]
    worst = max(shapes, key=lambda shape: squeezed(shape, size))
    if squeezed(worst, size) <= MOST_SQUEEZED:
        return None
    height, width = fitting_size(worst, size[0] * size[1])
    return (
        f"images of {worst[1]} x {worst[0]} pixels are squeezed by a factor of {squeezed(worst, size):.2f} to "
        f"{size[1]} x {size[0]}; data.height={height} data.width={width} would keep their shape"
    )
