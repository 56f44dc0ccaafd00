"""Depth as a picture for people: near is bright, with a scale bar below that tells which colour is how far.

Colours follow inverse depth, from the `nearest` depth (brightest) to infinity (darkest), so that one number says what a
colour means.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from featdepth.files import write_bytes
from featdepth.predict.depth_files import PNG_LEVEL, image_bytes
from featdepth.scale import METRES
from featdepth.training.journal import DEPTH_COLOURS, colour

TABLE = colour(torch.linspace(0, 1, 1024)[None], DEPTH_COLOURS)[0]  # uint8 [1024, 3], far to near
NEAREST_SHARE = 0.05  # of the pixels that are nearer than the brightest colour, unless it is chosen
MOST_RANGED = 1 << 20  # pixels that this share is measured on
SMALLEST_BAR, BAR_SHARE = 24, 0.08  # height of the scale bar: pixels, and part of the picture's height
NARROWEST = 160  # pixels: what is narrower has no room for the numbers, and gets a margin
ROUND_NUMBERS = (1.0, 2.0, 3.0, 5.0, 7.0)


def nearest_depth(*depths: np.ndarray) -> float:
    """The depth that should have the brightest colour in pictures of `depths`, each `[h, w]`."""
    stride = max(1, -(-sum(depth.size for depth in depths) // MOST_RANGED))
    return float(np.quantile(np.concatenate([depth.ravel()[::stride] for depth in depths]), NEAREST_SHARE))


def colour_depth(depth: np.ndarray, nearest: float) -> np.ndarray:
    """uint8 `[h, w, 3]` of depth `[h, w]` above 0."""
    return TABLE[(np.minimum(nearest / depth, 1) * (len(TABLE) - 1)).astype(np.int16)]


def draw_depth(depth: np.ndarray, unit: str, nearest: float | None = None) -> Image.Image:
    """Depth `[h, w]` in colour, and below it the scale bar; what is narrower than the bar has a margin on its right.

    unit: METRES or RELATIVE; nearest: depth of the brightest colour and of all that is nearer (None: `nearest_depth`).
    """
    nearest = nearest or nearest_depth(depth)
    height, width = depth.shape
    bar = draw_scale_bar(max(width, NARROWEST), bar_height(height), unit, nearest)
    picture = Image.new("RGB", (bar.width, height + bar.height))
    picture.paste(Image.fromarray(colour_depth(depth, nearest)), (0, 0))
    picture.paste(bar, (0, height))
    return picture


def write_picture(path: Path, picture: Image.Image) -> None:
    """Write a png, whole or not at all. Raises OSError where it cannot be written."""
    write_bytes(path, image_bytes(picture, "PNG", compress_level=PNG_LEVEL))


def bar_height(height: int) -> int:
    """Pixels of the scale bar of a picture of this height."""
    return max(SMALLEST_BAR, round(BAR_SHARE * height))


def draw_scale_bar(width: int, height: int, unit: str, nearest: float) -> Image.Image:
    """What the colours mean: near on the left, infinity at the right end; numbers in metres, or the word "relative"."""
    image = Image.new("RGB", (width, height), "black")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(0.5 * height)
    ramp_height, ending = round(0.36 * height), " m" if unit == METRES else ""
    ramp = TABLE[np.linspace(len(TABLE) - 1, 0, width).astype(int)]
    image.paste(Image.fromarray(np.broadcast_to(ramp, (ramp_height, width, 3)).copy()), (0, 0))
    free, right = 0.0, width
    if unit != METRES:
        right = width - draw.textlength(unit, font) - 0.2 * height
        draw.text((right, ramp_height), unit, "white", font)
    for value in round_depths(nearest):
        x, text = (1 - nearest / value) * (width - 1), f"{value:g}{ending}"
        length = draw.textlength(text, font)
        left = max(0.0, x - length / 2)
        if left >= free and left + length <= right - 0.5 * height:
            draw.line((x, 0, x, ramp_height + 0.1 * height), "white", max(1, height // 24))
            draw.text((left, ramp_height), text, "white", font)
            free = left + length + 0.8 * height
    return image


def round_depths(nearest: float) -> list[float]:
    """Round numbers from `nearest` to a hundred times as far."""
    power = 10.0 ** np.floor(np.log10(nearest))
    values = [factor * power * 10.0**exponent for exponent in range(3) for factor in ROUND_NUMBERS]
    return [float(f"{value:.1g}") for value in values if value >= nearest]
