"""Sizes that images are trained at."""

from __future__ import annotations

import math

from featdepth.config.checks import SMALLEST_SIDE, STRIDE


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
