"""Depth in files for other programs: 16-bit png as KITTI's, npz, tiff of floats. All written whole or not at all.

Writing makes the folder, and raises OSError where that or the file is impossible.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from featdepth.data.images import KITTI_DEPTH_UNITS
from featdepth.files import write_bytes

LARGEST_VALUE = 65535
PNG_LEVEL = 3  # of compression: half of the time of the usual 6, some percent more bytes


def image_bytes(image: Image.Image, file_format: str, **options: object) -> bytes:
    """An image as a file has it. (On a disk that gets full Pillow itself may leave half a file and say nothing.)"""
    content = io.BytesIO()
    image.save(content, format=file_format, **options)
    return content.getvalue()


def encode_depth(depth: np.ndarray) -> tuple[np.ndarray, int]:
    """Depth `[h, w]` as KITTI's uint16, 256 a unit, and how many pixels lie beyond its 255.996 units and are cut there.

    0 means "none" there, so that the smallest value is 1.
    """
    values = np.rint(depth * KITTI_DEPTH_UNITS)
    return values.clip(1, LARGEST_VALUE).astype(np.uint16), int((values > LARGEST_VALUE).sum())


def write_depth_png(path: Path, depth: np.ndarray, unit: str) -> int:
    """Write depth `[h, w]` as 16-bit png; the number of pixels that were cut (see `encode_depth`).

    unit: METRES or RELATIVE of `featdepth.scale`, kept in the file's text.
    """
    values, clipped = encode_depth(depth)
    text = PngImagePlugin.PngInfo()
    text.add_text("depth unit", unit)
    text.add_text("values per unit", f"{KITTI_DEPTH_UNITS:g}")
    write_bytes(path, image_bytes(Image.fromarray(values), "PNG", compress_level=PNG_LEVEL, pnginfo=text))
    return clipped


def write_depth_npz(path: Path, depth: np.ndarray, unit: str, intrinsics: np.ndarray | None) -> None:
    """Write `depth` float32 `[h, w]`, its `unit` and, where they are known, `intrinsics` 3x3 (pixels of that size)."""
    arrays = {"depth": depth.astype(np.float32), "unit": np.array(unit)}
    if intrinsics is not None:
        arrays["intrinsics"] = intrinsics.astype(np.float64)
    content = io.BytesIO()
    np.savez(content, **arrays)
    write_bytes(path, content.getvalue())


def write_depth_tiff(path: Path, depth: np.ndarray) -> None:
    """Write depth `[h, w]` as a tiff of one float32 channel, without compression."""
    write_bytes(path, image_bytes(Image.fromarray(depth.astype(np.float32)), "TIFF"))


def write_picture(path: Path, picture: Image.Image) -> None:
    """Write a png, whole or not at all. Raises OSError where it cannot be written."""
    write_bytes(path, image_bytes(picture, "PNG", compress_level=PNG_LEVEL))
