"""Intrinsics from the EXIF data that a photo carries."""

from __future__ import annotations

import math
import numbers
from pathlib import Path

from featdepth.cameras.intrinsics_files import check_plausible
from featdepth.cameras.lenses import Lens
from featdepth.cameras.plain_formats import matrix
from featdepth.data.images import SIDEWAYS, decoded, formats_of, orientation_of, upright_size

FILM_DIAGONAL = math.hypot(36.0, 24.0)  # mm; focal lengths "in 35 mm film" are for the same diagonal angle of view
INCH = 2
MILLIMETRES = {INCH: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}  # EXIF's units of focal plane resolutions
EXIF_FOLDER = 0x8769
FOCAL_LENGTH, FOCAL_LENGTH_35MM = 0x920A, 0xA405
RESOLUTION_X, RESOLUTION_Y, RESOLUTION_UNIT = 0xA20E, 0xA20F, 0xA210
RECORDED_WIDTH, RECORDED_HEIGHT = 0xA002, 0xA003


def exif_intrinsics(image_path: str | Path) -> Lens | None:
    """The camera that a photo's EXIF data describe, of the picture turned upright; None where they do not.

    From the focal length for 35 mm film, else from the focal length and the resolution on the sensor. The principal
    point is taken to be the centre. Raises InputError for an unreadable image and an impossible focal length.
    """
    with decoded(image_path, formats_of(image_path), None) as image:
        height, width = upright_size(image)
        sideways = orientation_of(image) in SIDEWAYS
        folder = image.getexif().get_ifd(EXIF_FOLDER)
        values = {tag: float(value) for tag, value in folder.items() if is_positive(value)}
    focal = exif_focal_lengths(values, (width, height) if sideways else (height, width))
    if focal is None:
        return None
    fx, fy = focal[::-1] if sideways else focal
    lens = Lens("pinhole", matrix(fx, fy, (width - 1) / 2, (height - 1) / 2), (), (height, width))
    check_plausible(image_path, lens)
    return lens


def exif_focal_lengths(values: dict[int, float], size: tuple[int, int]) -> tuple[float, float] | None:
    """fx and fy in pixels of the stored image of `size` (height, width) from its EXIF `values`; None if unknown."""
    if FOCAL_LENGTH_35MM in values:
        focal = values[FOCAL_LENGTH_35MM] * math.hypot(*size) / FILM_DIAGONAL
        return focal, focal
    unit = MILLIMETRES.get(values.get(RESOLUTION_UNIT, INCH))
    if unit is None or FOCAL_LENGTH not in values or RESOLUTION_X not in values:
        return None
    # A picture that was made smaller afterwards keeps the resolution of the one that the camera recorded.
    recorded = max(values.get(RECORDED_WIDTH, size[1]), values.get(RECORDED_HEIGHT, size[0]))
    focal = values[FOCAL_LENGTH] / unit * max(size) / recorded
    return focal * values[RESOLUTION_X], focal * values.get(RESOLUTION_Y, values[RESOLUTION_X])


def is_positive(value: object) -> bool:
    """Whether an EXIF value is a finite number above 0; cameras write 0 and 0/0 for what they do not know."""
    return isinstance(value, numbers.Real) and math.isfinite(value) and value > 0
