"""How the frames of a source are shown to the networks: without lens distortion, at one size, with what intrinsics."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from featdepth.cameras.exif import exif_intrinsics
from featdepth.cameras.intrinsics_files import read_intrinsics
from featdepth.cameras.lenses import Lens, remap, undistorted_intrinsics, undistortion_map
from featdepth.cameras.pinhole import field_of_view_intrinsics
from featdepth.data.listing import list_images
from featdepth.geometry import resize_intrinsics

ASSUMED_FIELD_OF_VIEW = 60.0  # degrees: to measure parallax with, where nothing is known; it hardly depends on it


class View(NamedTuple):
    """The way from a source's upright frames to those that are written."""

    source_size: tuple[int, int]  # height, width of the upright frames, pixels
    size: tuple[int, int]  # of those that are written
    intrinsics: np.ndarray | None  # 3x3 of those that are written; None: unknown
    known_from: str | None  # where the intrinsics come from
    undistortion: np.ndarray | None  # float32 [h, w, 2]: pixels (x, y) of the source frame; None: nothing to undo


def view_of(
    source: Path, size: tuple[int, int], height: int | None, calibration: str | None, field_of_view: float | None
) -> View:
    """The view of a source whose upright frames have `size` (height, width).

    height: of the frames that are written (None: the source's own); calibration: a file for `read_intrinsics`;
    field_of_view: degrees. Without either, a folder's first image may know its own. Raises InputError for a calibration
    that does not fit.
    """
    lens, known_from = camera_of(source, size, calibration, field_of_view)
    written = size if height is None else (height, round(size[1] * height / size[0]))
    if lens is None:
        return View(size, written, None, None, None)
    intrinsics = undistorted_intrinsics(lens)
    undistortion = None if lens.model == "pinhole" else undistortion_map(lens, intrinsics, size)
    resized = resize_intrinsics(torch.from_numpy(intrinsics), size, written).numpy()
    return View(size, written, resized, known_from, undistortion)


def camera_of(
    source: Path, size: tuple[int, int], calibration: str | None, field_of_view: float | None
) -> tuple[Lens | None, str | None]:
    """What is known of the camera that took a source, and where from."""
    if calibration is not None:
        return read_intrinsics(calibration, size), calibration
    if field_of_view is not None:
        return Lens("pinhole", field_of_view_intrinsics(field_of_view, size), (), size), f"{field_of_view:g} degrees"
    if source.is_dir():
        first = list_images(source)[0]
        lens = exif_intrinsics(first)
        if lens is not None and lens.size == size:
            return lens, f"EXIF of {Path(first).name}"
    return None, None


def show(pixels: np.ndarray, view: View) -> np.ndarray:
    """A source's frame uint8 RGB `[h, w, 3]` as it is written, uint8 `[H, W, 3]`."""
    if view.undistortion is not None:
        pixels = remap(pixels, view.undistortion)
    height, width = view.size
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))


def measuring_intrinsics(view: View, size: tuple[int, int]) -> np.ndarray:
    """Intrinsics 3x3 of written frames resized to `size` (height, width), guessed where they are unknown."""
    if view.intrinsics is None:
        return field_of_view_intrinsics(ASSUMED_FIELD_OF_VIEW, size)
    return resize_intrinsics(torch.from_numpy(view.intrinsics), view.size, size).numpy()
