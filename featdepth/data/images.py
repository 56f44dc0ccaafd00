"""Image files as tensors: one reading for all programs.

Pictures come upright, as EXIF's orientation says, in 8-bit RGB, and transparent ones on white. Of files with several
pictures it is the first.

Grey levels that are stored in 16 or 32 bits, or as floats, are scaled so that what is white for the camera becomes 255.
Files rarely say how many bits the camera has, so that the folder tells it: white is the smallest of 255 (8 bits), 1023
(10 bits), 4095, 16383 and 65535, with floats also of 1, that no level exceeds in up to 16 deep images of the same
ending spread over the folder. All frames of a folder are thus scaled alike, dark ones too.
"""

from __future__ import annotations

import io
import os
import re
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional

from featdepth.data.listing import CONVERT, DRAWING, IMAGE, IMAGE_FORMATS, OTHER_PHOTO, VIDEO_SUFFIXES, list_images
from featdepth.errors import InputError
from featdepth.files import read_bytes

FILTER = "triangle"  # of `load_image`
KITTI_DEPTH_UNITS = 256.0  # in a metre, of its depth images
REMEMBERED = 16  # frames
LARGEST_IMAGE_FILE = 256 << 20  # bytes
LARGEST_IMAGE = 100_000_000  # pixels; a header that claims more is refused before anything is allocated
# What Pillow raises for files that are damaged in one way or another.
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
ORIENTATION = 0x0112  # EXIF tag
SIDEWAYS = (5, 6, 7, 8)  # orientations that swap height and width
WHITES = (255, 1023, 4095, 16383, 65535)  # the brightest levels of 8, 10, 12, 14 and 16 bits
LOOKED_AT = 16  # deep images of a folder, for the bits that they use
HEAD = 64  # bytes that tell a photo of a phone, whatever it is called
HEIF = re.compile(rb".{4}ftyp(?!.*avif)(?:heic|heix|heim|heis|hevc|hevx|mif1|msf1)", re.DOTALL)
NEARLY_BLACK = 15  # of 255: all that 12 bits come to in 16-bit colour, of which Pillow keeps the upper 8
STEP = 32  # pixels from one that is looked at for texture to the next


Window = tuple[int, int, int, int]  # first and last row, first and last column, each last one not included


class NothingSeen(InputError):
    """A frame is of one colour all over."""


class Photo(NamedTuple):
    """An image file as people see it."""

    pixels: np.ndarray  # uint8 RGB [h, w, 3], upright
    orientation: int  # EXIF's, 1 to 8, of the picture as it is stored; 1: upright


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
    needs_texture: bool = False,
) -> Tensor:
    """The image at `path` as uint8 RGB `[3, H, W]`, resized to `size` (H, W) with antialiasing.

    expected_size: height and width that the upright picture must have; window: the part of it that is shown;
    needs_texture: raise NothingSeen for one colour all over, from which nothing can be learned. Raises InputError,
    naming the file, for one that cannot be read, claims more than 100 million pixels or has another size.
    """
    pixels = shown_pixels(read_photo(path, expected_size).pixels, window)
    if needs_texture and not has_texture(pixels):
        colour = ", ".join(map(str, pixels[0, 0]))
        reason = f"nothing is seen in the frame, it is of one colour ({colour}) all over"
        raise NothingSeen(f"{path}: {reason}; leave it out")
    return resize_pixels(pixels, size)


def shown_pixels(pixels: np.ndarray, window: Window | None) -> np.ndarray:
    """The part `window` of an image `[h, w, 3]`; None: all of it."""
    if window is None:
        return pixels
    top, bottom, left, right = window
    return np.ascontiguousarray(pixels[top:bottom, left:right])


def resize_pixels(pixels: np.ndarray, size: tuple[int, int]) -> Tensor:
    """An image uint8 `[h, w, 3]` as `[3, H, W]`, resized to `size` (H, W) with antialiasing."""
    # A triangle as wide as the reduction: free of aliasing, no overshoot. With the channels innermost, as they come,
    # torch takes a quarter of Pillow's time for it, and a tenth of what Lanczos takes there.
    channels_last = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    return functional.interpolate(channels_last, size, mode="bilinear", antialias=True)[0].contiguous()


@lru_cache(maxsize=REMEMBERED)
def load_recent_image(
    path: str,
    size: tuple[int, int],
    expected_size: tuple[int, int],
    window: Window | None = None,
    needs_texture: bool = False,
) -> Tensor:
    """`load_image`, which remembers the last few: consecutive samples share most of their frames. Not to be changed."""
    return load_image(path, size, expected_size, window, needs_texture)


def has_texture(pixels: np.ndarray) -> bool:
    """Whether an image uint8 `[h, w, ...]` shows anything: some channel has levels that differ by more than one.

    Noise alone takes night and fog beyond that. Pictures that are white or black all over stay below, and those of a
    covered lens, whose noise the compression of jpg and video removes.
    """
    # Most images show it at once.
    return any(int(np.ptp(part, axis=(0, 1)).max()) > 1 for part in (pixels[::STEP, ::STEP], pixels))


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width of the upright picture in the image at `path`; InputError as for `load_image`."""
    with decoded(path, formats_of(path), None) as image:
        return upright_size(image)


def load_depth_image(
    path: str | Path, expected_size: tuple[int, int], units_per_metre: float = KITTI_DEPTH_UNITS
) -> np.ndarray:
    """A 16-bit depth image (0 = none) as float32 metres `[h, w]`; InputError as for `load_image`."""
    with decoded(path, ("PNG",), expected_size) as image:
        if not image.mode.startswith("I"):
            raise InputError(f"{path}: not a 16-bit depth image (mode {image.mode}); download it, or write it, again")
        return np.array(image, dtype=np.float32) / units_per_metre


def load_mask(path: str | Path, expected_size: tuple[int, int]) -> np.ndarray:
    """Where an 8-bit grey image is not black, bool `[h, w]`; InputError as for `load_image`."""
    with decoded(path, ("PNG",), expected_size) as image:
        if image.mode != "L":
            raise InputError(
                f"{path}: not an 8-bit grey mask (mode {image.mode}); write it as one, black where nothing moves"
            )
        return np.array(image) > 0


def read_photo(path: str | Path, expected_size: tuple[int, int] | None = None) -> Photo:
    """The image at `path`, upright and in 8-bit RGB (see the top of the module).

    expected_size: height and width that it must have. Raises InputError, naming the file, for an image that cannot be
    read, is too large or has another size.
    """
    with decoded(path, formats_of(path), None) as image:
        stored = image.height, image.width
        if expected_size is not None and sorted(stored) != sorted(expected_size):  # nothing need be decoded
            check_size(path, stored, expected_size)
        coloured_deep = image.mode in ("RGB", "RGBA") and has_16_bits(image)
        orientation = orientation_of(image)
        upright = image if orientation == 1 else ImageOps.exif_transpose(image)
        pixels = np.array(as_rgb(upright, path))
    if expected_size is not None:
        check_size(path, pixels.shape[:2], expected_size)
    if coloured_deep and pixels.max() <= NEARLY_BLACK:
        raise InputError(
            f"{path}: is almost black, as colours of 12 bits in a 16-bit file are; convert its frames to 8 bits"
        )
    return Photo(pixels, orientation)


def orientation_of(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8, of an image that is not decoded yet; 1 where it says nothing that is known."""
    orientation = image.getexif().get(ORIENTATION, 1)
    return orientation if orientation in range(1, 9) else 1


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Height and width, once upright, of an image that is not decoded yet."""
    # Pillow turns TIFF by itself, and says the size after that.
    if orientation_of(image) in SIDEWAYS and image.format != "TIFF":
        return image.width, image.height
    return image.height, image.width


def has_16_bits(image: Image.Image) -> bool:
    """Whether the file of an image that is not decoded yet has 16 bits a channel."""
    return any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def is_deep(image: Image.Image) -> bool:
    """Whether an image has grey levels of more than 8 bits, or floats."""
    return image.mode.startswith("I") or image.mode == "F"


def as_rgb(image: Image.Image, path: str | Path) -> Image.Image:
    """An image of any mode, from the file at `path`, in 8-bit RGB. InputError for levels that are no brightness."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if not is_deep(image):
        return on_white(image)
    levels = np.array(image, dtype=np.float64)
    lowest, highest = float(levels.min()), float(levels.max())
    if not 0 <= lowest <= highest <= WHITES[-1]:
        raise InputError(
            f"{path}: levels from {lowest:g} to {highest:g} are no picture of 8 to 16 bits; is it a depth map? "
            "convert it, or leave it out"
        )
    scaled = np.rint(levels * (255 / white_level(path))).clip(0, 255).astype(np.uint8)
    return Image.fromarray(scaled).convert("RGB")


def on_white(image: Image.Image) -> Image.Image:
    """An image of at most 8 bits in RGB, what is transparent on white; Pillow's conversion forgets transparency."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def white_level(path: str | Path) -> float:
    """The level that is white in the deep grey images of the folder of `path` that have its ending."""
    path = Path(path)
    files = spread_images(path.parent, path.suffix.lower(), path.parent.stat().st_mtime_ns)
    highest, whites = 0.0, WHITES
    for file in files or (str(path),):  # a name that no listing has
        state = os.stat(file)
        level, is_float = highest_level(file, state.st_size, state.st_mtime_ns)
        highest = max(highest, level)
        whites = (1, *WHITES) if is_float else whites
    return next(white for white in whites if highest <= white or white == WHITES[-1])


@lru_cache(maxsize=256)
def spread_images(folder: Path, suffix: str, changed: int) -> tuple[str, ...]:
    """Up to LOOKED_AT images with the ending, spread over `folder`; `changed`: when it was, for what is remembered."""
    files = [file for file in list_images(folder) if file.lower().endswith(suffix)]
    return tuple(files[:: max(1, -(-len(files) // LOOKED_AT))])


@lru_cache(maxsize=4096)
def highest_level(path: str, size: int, changed: int) -> tuple[float, bool]:
    """The highest level in a deep image, and whether it has floats; 0 for any other image and for damaged ones.

    size, changed: of the file, for what is remembered.
    """
    try:
        with decoded(path, formats_of(path), None) as image:
            return (float(np.array(image).max()), image.mode == "F") if is_deep(image) else (0.0, False)
    except InputError:
        return 0.0, False  # is said when it is read itself


def formats_of(path: str | Path) -> tuple[str, ...]:
    """Pillow's formats that are tried on a file: those that are read, whatever it is called.

    TGA has no mark of its own, so that anything might be taken for it; only its ending tells it.
    """
    return tuple(each for each in IMAGE_FORMATS if each != "TGA" or str(path).lower().endswith(".tga"))


@contextmanager
def decoded(path: str | Path, formats: tuple[str, ...], expected_size: tuple[int, int] | None) -> Iterator[Image.Image]:
    """The image at `path`, checked for its size and about to be decoded; InputError as for `load_image`.

    formats: of Pillow's, the only ones that are tried, whatever the file is called; expected_size: as it is stored.
    """
    content = io.BytesIO(read_bytes(path, LARGEST_IMAGE_FILE, "the image"))
    if is_other_picture(path, content.getvalue()[:HEAD]):
        raise InputError(f"{path}: {CONVERT}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is odd in a file is refused below, or harmless
            with Image.open(content, formats=formats) as image:
                check_size(path, (image.height, image.width), expected_size)
                yield image
    except DAMAGED as error:
        raise unreadable(path, formats, error) from error


def is_other_picture(path: str | Path, head: bytes) -> bool:
    """Whether a file that begins with `head` is a photo or picture in a format that is not read."""
    name = Path(path).name
    return bool(OTHER_PHOTO.fullmatch(name) or DRAWING.fullmatch(name) or HEIF.match(head))


def is_image(path: Path) -> bool:
    """By its name, or where that tells nothing by its content; any other file is taken for a video."""
    if IMAGE.fullmatch(path.name) is not None:
        return True
    return path.suffix.lower() not in VIDEO_SUFFIXES and is_picture(path)


def is_picture(path: str | Path) -> bool:
    """Whether the file at `path` holds an image that is read, whatever it is called."""
    try:
        with decoded(path, formats_of(path), None):
            return True
    except InputError:
        return False


def check_size(path: str | Path, found: tuple[int, int], expected: tuple[int, int] | None) -> None:
    """Raise InputError for an image whose size (height, width) is absurd or not the expected one."""
    height, width = found
    if height * width > LARGEST_IMAGE:
        raise InputError(
            f"{path}: {width} x {height} pixels are too many to be a frame (at most {LARGEST_IMAGE // 1_000_000} "
            "million); replace the file"
        )
    if expected is not None and tuple(found) != tuple(expected):
        raise InputError(
            f"{path}: {width} x {height} pixels, but its camera's images have {expected[1]} x {expected[0]}; use all "
            "of them in their original size, and those of another size as a drive of their own"
        )


def unreadable(path: str | Path, formats: tuple[str, ...], error: BaseException) -> InputError:
    """The error that tells of a damaged image file in one line."""
    reason = " ".join(str(error).split())
    if isinstance(error, UnidentifiedImageError):
        reason = f"it is damaged, or no {formats[0]} image" if len(formats) == 1 else "it is damaged, or no PNG, JPEG"
        reason += "" if len(formats) == 1 else " or other format that is read"
    return InputError(f"{path}: the image cannot be read: {reason}; replace it")
