"""KITTI's calibration files: pinhole cameras, the stereo rig and the laser scanner of one recording day.

The files count pixels from 1; everything that leaves this module counts from 0, pixel centres at integers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path

import numpy as np

from featdepth.cameras.lenses import check_pinhole
from featdepth.cameras.parts import NUMBER
from featdepth.errors import InputError
from featdepth.files import read_text

CAMERAS = {"l": "02", "r": "03"}  # the colour cameras
LARGEST_CALIBRATION = 1 << 20  # bytes; a calibration file has 4 KB
LARGEST_NUMBER = 1e6  # pixels, metres and their products are far below


class RectifiedCameras(ABC):
    """Cameras whose 3x4 projections P = [K | p], pixels from 1, take the points of a common one (metres)."""

    @abstractmethod
    def projection(self, side: str) -> np.ndarray:
        """The 3x4 projection P of the camera on a side ("l" or "r"), as the file has it.

        Raises InputError where its K is not that of a pinhole camera: it could not be inverted.
        """

    def intrinsics(self, side: str) -> np.ndarray:
        """The camera's 3x3 intrinsics at its native size, pixel centres at integers from 0."""
        intrinsics = self.projection(side)[:, :3].copy()
        intrinsics[:2, 2] -= 1
        return intrinsics

    def position(self, side: str) -> np.ndarray:
        """Translation [3] (metres) of the common camera's points into this camera: K^-1 p of P = [K | p]."""
        projection = self.projection(side)
        return np.linalg.solve(projection[:, :3], projection[:, 3])

    def offset(self, side: str, other: str) -> np.ndarray:
        """other_from_side 4x4 (metres): a translation."""
        pose = np.eye(4)
        pose[:3, 3] = self.position(other) - self.position(side)
        return pose


class Calibration(RectifiedCameras):
    """One recording day's calibration. Rows are read when asked for, so that only the needed ones must exist."""

    def __init__(self, folder: str | Path) -> None:
        """`folder` is the day's, as in `<root>/2011_09_26`; InputError where it has no `calib_cam_to_cam.txt`."""
        self.camera_path = Path(folder) / "calib_cam_to_cam.txt"
        self.scanner_path = Path(folder) / "calib_velo_to_cam.txt"
        self.camera_rows = read_rows(self.camera_path)

    def size(self, side: str) -> tuple[int, int]:
        """Height and width (pixels) of the camera's rectified images."""
        name = f"S_rect_{CAMERAS[side]}"
        width, height = parse_row(self.camera_path, self.camera_rows, name, 2)
        if width < 1 or height < 1 or width * height > 1e8 or width % 1 or height % 1:
            raise InputError(f"{self.camera_path}: {name} is no image size: {width:g} x {height:g}")
        return int(height), int(width)

    def projection(self, side: str) -> np.ndarray:
        name = f"P_rect_{CAMERAS[side]}"
        projection = parse_row(self.camera_path, self.camera_rows, name, 12).reshape(3, 4)
        check_pinhole(self.camera_path, name, projection)
        return projection

    def stereo_pose(self, side: str) -> np.ndarray:
        """source_from_target 4x4 (metres) of a target on `side` and the other camera as its source.

        Raises InputError where the two cameras' intrinsics differ: a sample has one K for all its frames.
        """
        other = "r" if side == "l" else "l"
        if not np.allclose(self.intrinsics(side), self.intrinsics(other), rtol=0, atol=1e-3):
            raise InputError(f"{self.camera_path}: P_rect_02 and P_rect_03 differ in K; a rectified pair shares it")
        return self.offset(side, other)

    def projection_of_scan(self, side: str) -> np.ndarray:
        """3x4 matrix P_rect · R_rect_00 · velo_to_cam: scanner coordinates (metres) to homogeneous pixels from 1."""
        rectification, camera_from_scanner = np.eye(4), np.eye(4)
        rectification[:3, :3] = parse_rotation(self.camera_path, self.camera_rows, "R_rect_00")
        camera_from_scanner[:3, :3] = parse_rotation(self.scanner_path, self.scanner_rows, "R")
        camera_from_scanner[:3, 3] = parse_row(self.scanner_path, self.scanner_rows, "T", 3)
        return self.projection(side) @ rectification @ camera_from_scanner

    @cached_property
    def scanner_rows(self) -> dict[str, str]:
        return read_rows(self.scanner_path)


def read_rows(path: Path) -> dict[str, str]:
    """The rows `name: values` of a calibration file; InputError where it is missing or unreasonably large."""
    try:
        text = read_text(path, LARGEST_CALIBRATION, "the calibration")
    except InputError as error:
        raise InputError(
            f"{error}; download the calibration and put its files there, or for own data write it (docs/data)"
        ) from error
    pairs = (line.partition(":") for line in text.splitlines())
    return {name.strip(): values for name, colon, values in pairs if colon}


def parse_row(path: Path, rows: dict[str, str], name: str, count: int) -> np.ndarray:
    """Row `name` as `count` numbers of a possible size; InputError that names file and row for anything else."""
    if name not in rows:
        raise InputError(f"{path}: row {name} is missing; download the calibration again, or write the row")
    words = rows[name].split()
    # `float` alone would take nan, 1_0 and digits of other scripts.
    if len(words) != count or not all(map(NUMBER.fullmatch, words)):
        raise InputError(
            f"{path}: row {name} should have {count} numbers; download the calibration again, or correct the row"
        )
    values = np.array([float(word) for word in words])
    if (abs(values) > LARGEST_NUMBER).any():
        raise InputError(f"{path}: row {name} has a number beyond {LARGEST_NUMBER:g}; download the calibration again")
    return values


def parse_rotation(path: Path, rows: dict[str, str], name: str) -> np.ndarray:
    """Row `name` as a rotation 3x3; InputError where it is not one."""
    rotation = parse_row(path, rows, name, 9).reshape(3, 3)
    if not np.allclose(rotation @ rotation.T, np.eye(3), rtol=0, atol=0.01) or np.linalg.det(rotation) < 0:
        raise InputError(f"{path}: row {name} is no rotation; download the calibration again, or correct the row")
    return rotation
