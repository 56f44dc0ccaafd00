"""What all camera files consist of, checked: numbers, sizes, matrices, coefficients."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from featdepth.cameras.lenses import COEFFICIENTS, Lens, check_pinhole
from featdepth.config.values import shown
from featdepth.console import count
from featdepth.errors import InputError

LARGEST_SIDE = 100_000  # pixels
SHARES = 10.0  # focal lengths below it, with a principal point up to LARGEST_SHARE, are shares of the image's size
LARGEST_SHARE = 1.5
NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]{1,3})?")


def make_lens(
    where: str, model: str, intrinsics: np.ndarray, coefficients: Sequence[float], size: tuple[int, int] | None
) -> Lens:
    """The lens with these coefficients; without any, or with a radtan's all 0, a pinhole.

    Raises InputError, naming `where`, for intrinsics that cannot be inverted, an unknown size, and a number of
    coefficients that the model does not have. OpenCV's longer radtans serve where what is beyond the fifth is 0.
    """
    check_normalised(where, intrinsics, size)
    if intrinsics[2, 0] > 1 and intrinsics[2, 1] > 1 and not intrinsics[:2, 2].any():
        raise InputError(
            f"{where}: the camera matrix is transposed, as MATLAB has it, and Open3D; write [fx s cx; 0 fy cy; 0 0 1]"
        )
    check_pinhole(where, "the camera matrix", intrinsics)
    if size is None:
        raise InputError(f"{where}: nothing says how large the images are; give their size too")
    if model == "radtan" and not any(coefficients[5:]):
        coefficients = coefficients[:5]
    if not coefficients or (model == "radtan" and not any(coefficients)):
        return Lens("pinhole", intrinsics, (), size)
    if len(coefficients) not in COEFFICIENTS[model]:
        counts = " or ".join(map(str, COEFFICIENTS[model]))
        found = count(len(coefficients), "distortion coefficient")
        again = "calibrate again" + (" without the rational model" if len(coefficients) > 5 else "")
        raise InputError(f"{where}: {found}, but {model} lenses have {counts}; {again}")
    return Lens(model, intrinsics, tuple(coefficients), size)


def checked_size(where: str | Path, height: object, width: object) -> tuple[int, int]:
    """Height and width as whole numbers; InputError where they are no size of an image."""
    for side in (height, width):
        if not isinstance(side, numbers.Real) or not 1 <= side <= LARGEST_SIDE or side % 1:
            raise InputError(f"{where}: {shown(width)} x {shown(height)} is no image size")
    return int(height), int(width)


def check_normalised(where: str, intrinsics: np.ndarray, size: tuple[int, int] | None) -> None:
    """Raise InputError, which says what to write instead, for a K in shares of the image's width and height."""
    fx, fy, cx, cy = intrinsics[0, 0], intrinsics[1, 1], intrinsics[0, 2], intrinsics[1, 2]
    if not (min(fx, fy) > 0 and max(fx, fy) < SHARES and min(cx, cy) > 0 and max(cx, cy) <= LARGEST_SHARE):
        return
    advice = "multiply fx and cx by the width, fy and cy by the height, and take 0.5 off cx and cy"
    if size is not None:
        height, width = size
        pixels = f"{fx * width:.6g} {fy * height:.6g} {cx * width - 0.5:.6g} {cy * height - 0.5:.6g}"
        advice = f"write pixels: `{pixels}` for images of {width} x {height}"
    raise InputError(f"{where}: the camera matrix is normalised, in shares of the image's width and height; {advice}")


def parse_numbers(where: str, words: Sequence[str], expected: int) -> list[float]:
    """`words` as `expected` finite numbers; InputError, naming `where` they stand, for anything else."""
    if len(words) != expected or not all(map(NUMBER.fullmatch, words)):
        raise InputError(f"{where}: {shown(' '.join(words))} should be {count(expected, 'number')}")
    values = [float(word) for word in words]
    if not all(map(math.isfinite, values)):
        raise InputError(f"{where}: {shown(' '.join(words))} has a number that is not finite")
    return values
