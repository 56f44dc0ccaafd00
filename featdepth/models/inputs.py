"""Images as people have them, tensors, arrays and PIL images, as the networks take them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from featdepth.data.images import on_white

EXPECTED = (
    "expected RGB as a tensor [N, 3, H, W] or [3, H, W], an array [H, W, 3] or a PIL image, uint8 or floats in [0, 1]"
)
ROUNDING = 1e-3  # by which resized floats may lie outside [0, 1]
# Modes of PIL images that lose nothing on their way to RGB; 16 and 32 bits would be cut to 8.
PIL_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV")


def as_images(given: Tensor | np.ndarray | Image.Image, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The image or images `given` as `[N, 3, H, W]` in [0, 1]. Raises ValueError, saying what was expected."""
    if isinstance(given, Image.Image):
        if given.mode not in PIL_MODES:
            raise ValueError(f"a PIL image of mode {given.mode}: {EXPECTED}; convert it to RGB first")
        given = np.array(on_white(given))
    if isinstance(given, np.ndarray):
        if given.ndim != 3 or given.shape[2] != 3:
            raise ValueError(f"an array {list(given.shape)}: {EXPECTED}")
        if given.dtype != np.uint8 and not np.issubdtype(given.dtype, np.floating):
            raise ValueError(f"an array of {given.dtype}: {EXPECTED}")
        # A copy where need be: torch takes no array that is reversed or must not be written to.
        images = torch.from_numpy(np.require(given, requirements=["C", "W"])).permute(2, 0, 1)[None]
    elif isinstance(given, Tensor):
        if given.ndim not in (3, 4) or given.shape[-3] != 3:
            raise ValueError(f"a tensor {list(given.shape)}: {EXPECTED}")
        if given.dtype != torch.uint8 and not given.is_floating_point():
            raise ValueError(f"a tensor of {given.dtype}: {EXPECTED}")
        images = given if given.ndim == 4 else given[None]
    else:
        raise ValueError(f"{type(given).__name__}: {EXPECTED}")
    if images.numel() == 0:
        raise ValueError(f"an image without pixels, {list(given.shape)}: {EXPECTED}")
    images = images.detach().to(device)
    if images.dtype == torch.uint8:
        return images.to(dtype) / 255
    # Values cannot be looked at while a compiler or exporter traces the call, and there are none without memory.
    if not torch.compiler.is_compiling() and not images.is_meta:
        lowest, highest = map(float, images.aminmax())
        if not (lowest >= -ROUNDING and highest <= 1 + ROUNDING):
            raise ValueError(f"floats from {lowest:g} to {highest:g}: {EXPECTED}")
    return images.to(dtype)


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images `[N, 3, H, W]` at `size` (height, width), by the antialiased triangle that training resizes with."""
    if tuple(images.shape[-2:]) == size:
        return images
    return functional.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)


def as_given(maps: Tensor, given: Tensor | np.ndarray | Image.Image) -> Tensor | np.ndarray:
    """Maps `[N, 1, H, W]` in the form of the images they belong to: see `FeatDepth.predict_depth`."""
    if isinstance(given, Tensor):
        return maps if given.ndim == 4 else maps[0]
    return maps[0, 0].cpu().numpy()


@contextmanager
def in_evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; afterwards each part of `model` is in the mode that it was in."""
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
