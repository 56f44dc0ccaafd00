"""Intrinsics from the files that other programs write.

Everything that leaves this module has its pixel centres at integers from 0, whatever the file counts from. In a file
with several cameras `FILE#NAME` chooses one: `cameras.txt#2`, `calib_cam_to_cam.txt#02`, `calib.txt#P2`.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import numpy as np
import torch

from featdepth.cameras.lenses import Lens
from featdepth.cameras.plain_formats import read_cameras, read_colmap_cameras
from featdepth.config.values import shown
from featdepth.errors import InputError
from featdepth.geometry import resize_intrinsics

__all__ = ["read_colmap_cameras", "read_intrinsics", "read_pinhole"]

NEAR_CENTRE = 0.05  # of the longer side: a principal point at most so far from a centre belongs to it
SHORTEST, LONGEST = 0.1, 20.0  # focal lengths that exist, in widths or heights of the image, whichever is longer


def read_intrinsics(path: str | Path, size: tuple[int, int] | None = None) -> Lens:
    """The camera in a file of any known format, recognised by content; `FILE#NAME` chooses among several.

    size: height and width of the images, needed where the file does not say it. Where the file is for another size of
    the same shape, the intrinsics are those of images resized to `size`. Raises InputError, naming the file, for
    another shape, where several cameras differ and none is chosen, and for values that no camera has.
    """
    file, name = split_name(path)
    lens = choose(file, read_cameras(file, size), name)
    lens = lens if size is None else resized(file, lens, size)
    check_plausible(path, lens)
    if size is not None and belongs_to_stored_picture(lens):
        warn_of_turn(str(path), *lens.intrinsics[:2, 2].tolist(), size)
    return lens


def read_pinhole(path: str | Path, size: tuple[int, int]) -> np.ndarray:
    """Intrinsics 3x3 from a file, as `read_intrinsics` reads it, for images of `size` that show no lens distortion.

    Raises InputError where the file says that they do.
    """
    lens = read_intrinsics(path, size)
    if lens.model != "pinhole":
        raise InputError(f"{path}: has lens distortion; undo it by python -m featdepth.prepare_video")
    return lens.intrinsics


def split_name(path: str | Path) -> tuple[Path, str | None]:
    """The file and the camera's name in `FILE#NAME`; a file that has # in its own name is taken as it is."""
    file, mark, name = str(path).rpartition("#")
    return (Path(file), name) if mark and not Path(path).exists() else (Path(path), None)


def choose(path: Path, cameras: dict[str, Lens], name: str | None) -> Lens:
    """The camera called `name`, or for None the only one; cameras that agree in everything count as one."""
    if name is not None:
        if name not in cameras:
            raise InputError(f"{path}: no camera {shown(name)}; there are {', '.join(cameras)}")
        return cameras[name]
    different = {(lens.model, lens.intrinsics.tobytes(), lens.coefficients, lens.size) for lens in cameras.values()}
    if len(different) > 1:
        raise InputError(
            f"{path}: several cameras ({', '.join(cameras)}); choose one, for instance {path}#{next(iter(cameras))}"
        )
    return next(iter(cameras.values()))


def resized(path: Path, lens: Lens, size: tuple[int, int]) -> Lens:
    """The lens for its images resized to `size` (height, width); InputError where that would change their shape."""
    height, width = lens.size
    # Sides of resized images are whole numbers, so that one of them may be a pixel off.
    if abs(width * size[0] - height * size[1]) > width + height:
        raise InputError(
            f"{path}: the intrinsics are for images of {width} x {height} pixels, these have {size[1]} x {size[0]}, "
            "another shape; calibrate at this one"
        )
    intrinsics = resize_intrinsics(torch.from_numpy(lens.intrinsics), lens.size, size)
    return lens._replace(intrinsics=intrinsics.numpy(), size=size)


def belongs_to_stored_picture(lens: Lens) -> bool:
    """Whether the principal point lies at the centre of the transposed picture, and not at that of the picture."""
    middle = (np.array(lens.size[::-1]) - 1) / 2
    point, near = lens.intrinsics[:2, 2], max(lens.size) * NEAR_CENTRE
    return np.linalg.norm(point - middle[::-1]) < near < np.linalg.norm(point - middle)


@cache
def warn_of_turn(path: str, x: float, y: float, size: tuple[int, int]) -> None:
    """Say once that a calibration seems to be of the pictures as they are stored."""
    print(
        f"warning: {path}: the principal point ({x:g}, {y:g}) is at the centre of pictures of {size[0]} x {size[1]} "
        f"pixels, these have {size[1]} x {size[0]} once turned upright; give the intrinsics of the upright picture",
        file=sys.stderr,
    )


def check_plausible(path: str | Path, lens: Lens) -> None:
    """Raise InputError for a focal length or a principal point that no camera has."""
    height, width = lens.size
    fx, fy = lens.intrinsics[0, 0], lens.intrinsics[1, 1]
    cx, cy = lens.intrinsics[:2, 2]
    image = f"images of {width} x {height} pixels"
    if not SHORTEST <= min(fx, fy) / max(lens.size) <= max(fx, fy) / max(lens.size) <= LONGEST:
        raise InputError(f"{path}: focal lengths {fx:g} and {fy:g} are impossible for {image}; is it the right camera?")
    if not (0 <= cx <= width - 1 and 0 <= cy <= height - 1):
        raise InputError(
            f"{path}: the principal point ({cx:g}, {cy:g}) is outside of {image}; was it calibrated at another size?"
        )
