"""Image files as tensors."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional

from featdepth.errors import InputError
from featdepth.files import read_bytes

FILTER = "triangle"  # of `load_image`
KITTI_DEPTH_UNITS = 256.0  # in a metre, of its depth images
REMEMBERED = 16  # frames
LARGEST_FILE = 256 << 20  # bytes
LARGEST_IMAGE = 100_000_000  # pixels; a header that claims more is refused before anything is allocated
# What Pillow raises for files that are damaged in one way or another.
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


Window = tuple[int, int, int, int]  # first and last row, first and last column, each last one not included


def crop_window(size: tuple[int, int], crop: Sequence[float]) -> Window | None:
    """What is left of an image of `size` (height, width) without the parts `crop` of its top, bottom, left and right.

    None where all of it is.
    """
    if not any(crop):
        return None
    height, width = size
    top, bottom, left, right = crop
    return round(top * height), height - round(bottom * height), round(left * width), width - round(right * width)


def load_image(
    path: str | Path,
    size: tuple[int, int],
    expected_size: tuple[int, int] | None = None,
    window: Window | None = None,
) -> Tensor:
    """The image at `path` as uint8 RGB `[3, H, W]`, resized to `size` (H, W) with antialiasing.

    expected_size: height and width that the file must have; window: the part of it that is shown. Raises InputError,
    naming the file, for one that cannot be read, claims more than 100 million pixels or has another size.
    """
    with decoded(path, ("PNG", "JPEG"), expected_size) as image:
        pixels = np.array(image if image.mode == "RGB" else image.convert("RGB"))
    if window is not None:
        top, bottom, left, right = window
        pixels = np.ascontiguousarray(pixels[top:bottom, left:right])
    # A triangle as wide as the reduction: free of aliasing, no overshoot. With the channels innermost, as they come,
    # torch takes a quarter of Pillow's time for it, and a tenth of what Lanczos takes there.
    channels_last = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    return functional.interpolate(channels_last, size, mode="bilinear", antialias=True)[0].contiguous()


@lru_cache(maxsize=REMEMBERED)
def load_recent_image(
    path: str, size: tuple[int, int], expected_size: tuple[int, int], window: Window | None = None
) -> Tensor:
    """`load_image`, which remembers the last few: consecutive samples share most of their frames. Not to be changed."""
    return load_image(path, size, expected_size, window)


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width of the image at `path`, from its header; InputError as for `load_image`."""
    with decoded(path, ("PNG", "JPEG"), None) as image:
        return image.height, image.width


def load_depth_image(
    path: str | Path, expected_size: tuple[int, int], units_per_metre: float = KITTI_DEPTH_UNITS
) -> np.ndarray:
    """A 16-bit depth image (0 = none) as float32 metres `[h, w]`; InputError as for `load_image`."""
    with decoded(path, ("PNG",), expected_size) as image:
        if not image.mode.startswith("I"):
            raise InputError(f"{path}: not a 16-bit depth image (mode {image.mode}); download it again")
        return np.array(image, dtype=np.float32) / units_per_metre


def load_mask(path: str | Path, expected_size: tuple[int, int]) -> np.ndarray:
    """Where an 8-bit grey image is not black, bool `[h, w]`; InputError as for `load_image`."""
    with decoded(path, ("PNG",), expected_size) as image:
        if image.mode != "L":
            raise InputError(f"{path}: not an 8-bit mask (mode {image.mode}); write the street again")
        return np.array(image) > 0


@contextmanager
def decoded(path: str | Path, formats: tuple[str, ...], expected_size: tuple[int, int] | None) -> Iterator[Image.Image]:
    """The image at `path`, checked for its size and about to be decoded; InputError as for `load_image`.

    formats: of Pillow's, the only ones that are tried, whatever the file is called.
    """
    content = io.BytesIO(read_bytes(path, LARGEST_FILE, "the image"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is odd in a file is refused below, or harmless
            with Image.open(content, formats=formats) as image:
                check_size(path, (image.height, image.width), expected_size)
                yield image
    except DAMAGED as error:
        raise unreadable(path, error) from error


def check_size(path: str | Path, found: tuple[int, int], expected: tuple[int, int] | None) -> None:
    """Raise InputError for an image whose size (height, width) is absurd or not the expected one."""
    height, width = found
    if height * width > LARGEST_IMAGE:
        raise InputError(f"{path}: {width} x {height} pixels are too many to be a frame; replace the file")
    if expected is not None and found != expected:
        raise InputError(
            f"{path}: {width} x {height} pixels, but its camera's calibration is for {expected[1]} x {expected[0]}; "
            "use the images as they are distributed"
        )


def unreadable(path: str | Path, error: BaseException) -> InputError:
    """The error that tells of a damaged image file in one line."""
    reason = "no PNG or JPEG image" if isinstance(error, UnidentifiedImageError) else " ".join(str(error).split())
    return InputError(f"{path}: the image cannot be read: {reason}; replace it, or set data.skip_bad_frames=true")
