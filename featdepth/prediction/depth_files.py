"""Depth in files for other programs: 16-bit png as KITTI's, npz, tiff of floats. All written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from featdepth.data.images import KITTI_DEPTH_UNITS

LARGEST_VALUE = 65535
PNG_LEVEL = 3  # of compression: half of the time of the usual 6, some percent more bytes


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path to write to, with the same ending, which takes the place of `path` once all is written.

    The folder is made. Raises OSError where that is impossible; what stood there before is then untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".writing.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def encode_depth(depth: np.ndarray) -> tuple[np.ndarray, int]:
    """Depth `[h, w]` as KITTI's uint16, 256 a unit, and how many pixels lie beyond its 255.996 units and are cut there.

    0 means "none" there, so that the smallest value is 1.
    """
    values = np.rint(depth * KITTI_DEPTH_UNITS)
    return values.clip(1, LARGEST_VALUE).astype(np.uint16), int((values > LARGEST_VALUE).sum())


def write_depth_png(path: Path, depth: np.ndarray, unit: str) -> int:
    """Write depth `[h, w]` as 16-bit png; the number of pixels that were cut (see `encode_depth`).

    unit: METRES or RELATIVE (of `point_cloud`), kept in the file's text.
    """
    values, clipped = encode_depth(depth)
    text = PngImagePlugin.PngInfo()
    text.add_text("depth unit", unit)
    text.add_text("values per unit", f"{KITTI_DEPTH_UNITS:g}")
    with written_whole(path) as temporary:
        Image.fromarray(values).save(temporary, format="PNG", compress_level=PNG_LEVEL, pnginfo=text)
    return clipped


def write_depth_npz(path: Path, depth: np.ndarray, unit: str, intrinsics: np.ndarray | None) -> None:
    """Write `depth` float32 `[h, w]`, its `unit` and, where they are known, `intrinsics` 3x3 (pixels of that size)."""
    arrays = {"depth": depth.astype(np.float32), "unit": np.array(unit)}
    if intrinsics is not None:
        arrays["intrinsics"] = intrinsics.astype(np.float64)
    with written_whole(path) as temporary:
        np.savez(temporary, **arrays)


def write_depth_tiff(path: Path, depth: np.ndarray) -> None:
    """Write depth `[h, w]` as a tiff of one float32 channel, without compression."""
    with written_whole(path) as temporary:
        Image.fromarray(depth.astype(np.float32)).save(temporary, format="TIFF")
