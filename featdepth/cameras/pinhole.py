"""Intrinsics of pinhole cameras, from their numbers or from a field of view."""

from __future__ import annotations

import math

import numpy as np

from featdepth.errors import InputError


def matrix(fx: float, fy: float, cx: float, cy: float) -> np.ndarray:
    """Intrinsics float64 3x3, in pixels."""
    return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])


def field_of_view_intrinsics(degrees: float, size: tuple[int, int]) -> np.ndarray:
    """Intrinsics 3x3 of a camera that sees `degrees` from its left border to its right one.

    Square pixels, principal point at the centre of the image of `size` (height, width). Raises InputError unless
    degrees lie between 1 and 170.
    """
    if not 1 <= degrees <= 170:
        raise InputError(f"a field of view of {degrees:g} degrees is impossible for a flat picture (1 to 170)")
    height, width = size
    focal = width / 2 / math.tan(math.radians(degrees) / 2)
    return matrix(focal, focal, (width - 1) / 2, (height - 1) / 2)
