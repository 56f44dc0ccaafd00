"""Colours and pictures of depth for people: near is bright.

In a picture with a scale bar below, which tells what colour is how far, colours follow inverse depth, from the
`nearest` depth (brightest) to infinity (darkest), so that one number says what a colour means.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from featdepth.errors import InputError
from featdepth.files import written_whole
from featdepth.scale import METRES

# Far to near; interpolated linearly between.
DEPTH_COLOURS = np.array(
    [[10, 8, 40], [60, 20, 110], [130, 35, 125], [200, 60, 95], [245, 120, 60], [252, 190, 90], [252, 250, 190]], float
)
ERROR_COLOURS = np.array([[0, 0, 0], [90, 0, 20], [220, 60, 20], [255, 200, 60], [255, 255, 255]], float)
NEAREST_SHARE = 0.05  # of the pixels that are nearer than the brightest colour, unless it is chosen
MOST_RANGED = 1 << 20  # pixels that this share is measured on
SMALLEST_BAR, BAR_SHARE = 24, 0.08  # height of the scale bar: pixels, and part of the picture's height
NARROWEST = 160  # pixels: what is narrower has no room for the numbers, and gets a margin
DOT = 2  # pixels: side of a measurement
ROUND_NUMBERS = (1.0, 2.0, 3.0, 5.0, 7.0)


def colour(values: Tensor, colours: np.ndarray) -> np.ndarray:
    """uint8 `[H, W, 3]` of `values` `[H, W]` in [0, 1] through a table of colours."""
    positions = values.detach().float().clamp(0, 1).cpu().numpy() * (len(colours) - 1)
    channels = [np.interp(positions, np.arange(len(colours)), colours[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def picture(image: Tensor) -> np.ndarray:
    """uint8 `[H, W, 3]` of an image `[3, H, W]` in [0, 1]."""
    return (image.detach().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()


def colour_disparity(disparity: Tensor, size: tuple[int, int]) -> np.ndarray:
    """uint8 `[H, W, 3]` of a disparity `[1, h, w]`: near is bright; the range is the picture's own 95th percentile."""
    resized = torch.nn.functional.interpolate(disparity[None].float(), size, mode="bilinear", align_corners=False)[0, 0]
    return colour(resized / torch.quantile(resized, 0.95).clamp(min=1e-6), DEPTH_COLOURS)


TABLE = colour(torch.linspace(0, 1, 1024)[None], DEPTH_COLOURS)[0]  # uint8 [1024, 3], far to near


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


def paint_dots(painted: np.ndarray, places: np.ndarray, colours: np.ndarray) -> None:
    """Paint dots into `painted` uint8 `[h, w, 3]`; of those at one place the last is seen.

    places: row and column `[N, 2]` of each, whole pixels; colours: uint8 `[N, 3]`.
    """
    last = np.array(painted.shape[:2]) - 1
    for shift in np.ndindex(DOT, DOT):
        row, column = np.minimum(places + shift, last).T
        painted[row, column] = colours


def jpeg_address(pixels: np.ndarray, quality: int) -> str:
    """A picture uint8 `[h, w, 3]` as a JPEG inside an address, so that a page needs no other file."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode("ascii")


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG whole or not at all. Raises InputError where it cannot be written."""
    try:
        with written_whole(path) as temporary:
            picture.save(temporary, format="PNG")
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error}); free some space or choose another directory"
        ) from error
