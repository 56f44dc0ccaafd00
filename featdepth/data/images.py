"""Image files as tensors."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from featdepth.errors import InputError

LARGEST_IMAGE = 100_000_000  # pixels; a header that claims more is refused before anything is allocated
# What Pillow raises for files that are damaged in one way or another.
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


def load_image(path: str | Path, size: tuple[int, int], expected_size: tuple[int, int] | None = None) -> Tensor:
    """The image at `path` as uint8 RGB `[3, H, W]`, resized to `size` (H, W) with antialiasing.

    expected_size: height and width that the file must have. Raises InputError, naming the file, for one that cannot be
    read, claims more than 100 million pixels or has another size.
    """
    try:
        with Image.open(path) as image:
            check_size(path, (image.height, image.width), expected_size)
            pixels = image.convert("RGB")
    except DAMAGED as error:
        raise unreadable(path, error) from error
    # A triangle filter as wide as the reduction: free of aliasing, no overshoot, half the time of Lanczos.
    pixels = pixels.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).contiguous()


def load_depth_image(path: str | Path, expected_size: tuple[int, int]) -> np.ndarray:
    """KITTI's 16-bit depth image (1/256 m, 0 = none) as float32 metres `[h, w]`; InputError as for `load_image`."""
    try:
        with Image.open(path) as image:
            check_size(path, (image.height, image.width), expected_size)
            if not image.mode.startswith("I"):
                raise InputError(f"{path}: not a 16-bit depth image (mode {image.mode}); download it again")
            return np.array(image, dtype=np.float32) / 256
    except DAMAGED as error:
        raise unreadable(path, error) from error


def check_size(path: str | Path, found: tuple[int, int], expected: tuple[int, int] | None) -> None:
    """Raise InputError for an image whose size (height, width) is absurd or not the expected one."""
    height, width = found
    if height * width > LARGEST_IMAGE:
        raise InputError(f"{path}: {width} x {height} pixels are too many to be a frame; replace the file")
    if expected is not None and found != expected:
        raise InputError(
            f"{path}: {width} x {height} pixels, but its day's calibration is for {expected[1]} x {expected[0]}; "
            "use the images as KITTI distributes them"
        )


def unreadable(path: str | Path, error: BaseException) -> InputError:
    """The error that tells of a damaged image file in one line."""
    reason = getattr(error, "strerror", None) or " ".join(str(error).split()).replace(str(path), "the file")
    return InputError(f"{path}: the image cannot be read: {reason}; replace it, or set data.skip_bad_frames=true")
