"""Metres from the height at which the camera was mounted: one scale for a clip, and one for each single image.

A scale of its own for each frame of a clip would make depth flicker; that of a clip is the median of the heights that
frames from all over it show.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from featdepth.console import count
from featdepth.data.films import read_pictures
from featdepth.errors import InputError
from featdepth.geometry import resize_intrinsics
from featdepth.metrics.camera_height import ground_height
from featdepth.models import FeatDepth
from featdepth.predict.frames import load_photo, resize
from featdepth.predict.intrinsics import Cameras
from featdepth.predict.page import spread
from featdepth.predict.sources import FrameSource
from featdepth.scale import CAMERA_HEIGHT, Scale

MOST_LOOKED_AT = 40  # frames of a clip
LEAST_SHOWN, UNSTEADY = 0.5, 0.15  # share of these that show the ground; spread of its height, a part of the median
NO_GROUND = "a ground plane in the lower middle, which --camera-height needs; leave it out for relative depth"


def scale_of_clip(
    source: FrameSource,
    height: float,
    model: FeatDepth,
    cameras: Cameras,
    predict: Callable[[Tensor], Tensor],
    batch_size: int,
) -> Scale:
    """The scale of a clip whose camera was `height` metres above the ground.

    predict: sigmoid disparities `[B, 1, h, w]` of images uint8 `[B, 3, H, W]` at the model's size. Raises InputError
    where no frame shows the ground or the intrinsics are unknown.
    """
    heights: list[float] = []
    looks = list(some_frames(source, (model.height, model.width)))
    for start in range(0, len(looks), batch_size):
        images, sizes = zip(*looks[start : start + batch_size], strict=True)
        for disparity, size in zip(predict(torch.stack(images)), sizes, strict=True):
            heights.append(height_in(disparity, size, model, cameras.need(source.path, size, "--camera-height")))
    shown = [each for each in heights if not math.isnan(each)]
    if not shown:
        raise InputError(f"{source.path}: none of {count(len(heights), 'frame')} that were looked at shows {NO_GROUND}")
    low, median, high = np.quantile(shown, (1 / 6, 1 / 2, 5 / 6))
    unit, spread_of_height = height / float(median), float((high - low) / 2 / median)
    looked_at = f"of {count(len(heights), 'frame')} that were looked at {len(shown)}"
    shows = "shows" if len(shown) == 1 else "show"
    found = f"{height:g} m of camera height, {unit:.4g} m in a unit; {looked_at} {shows} the ground"
    found += f", whose height differs by {spread_of_height:.0%} between them" if len(shown) > 1 else ""
    if len(shown) < LEAST_SHOWN * len(heights) or spread_of_height > UNSTEADY:
        found += "; that is not steady, and metres are rough"
    return Scale(unit, CAMERA_HEIGHT, found)


def scale_of_image(disparity: Tensor, size: tuple[int, int], height: float, model: FeatDepth, intrinsics: np.ndarray):
    """The `Scale` of a single image of `size` with `intrinsics` at that size; None where it shows no ground."""
    units = height_in(disparity, size, model, intrinsics)
    return None if math.isnan(units) else Scale(height / units, CAMERA_HEIGHT)


def height_in(disparity: Tensor, size: tuple[int, int], model: FeatDepth, intrinsics: np.ndarray) -> float:
    """How high the camera is in units of the network, by a disparity `[1, h, w]`; nan where no ground shows.

    intrinsics: 3x3 of the frame of `size` (height, width).
    """
    seen = resize_intrinsics(torch.from_numpy(intrinsics), size, tuple(disparity.shape[-2:]))
    return ground_height(model.to_depth(disparity), seen)


def some_frames(source: FrameSource, size: tuple[int, int]) -> Iterator[tuple[Tensor, tuple[int, int]]]:
    """Frames from all over a clip, uint8 `[3, H, W]` at `size`, each with its own size; damaged ones are left out."""
    if not source.is_video:
        paths = list(source.files.values())
        for place in spread(len(paths), MOST_LOOKED_AT):
            try:
                pixels = load_photo(paths[place])
            except InputError:
                continue  # is reported when its turn comes
            yield resize(pixels, size), pixels.shape[:2]
        return
    kept, stride = [], 1
    try:
        for index, picture in enumerate(read_pictures(source.path)):
            if index % stride == 0:
                kept.append((resize(picture.pixels, size).clone(), picture.pixels.shape[:2]))
            if len(kept) == 2 * MOST_LOOKED_AT:
                kept, stride = kept[::2], 2 * stride
    except InputError:
        pass  # the same, with the frames before the damage
    yield from kept
