"""The intrinsics of what is predicted: given, beside the frames, in their EXIF data, or learned with the model."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from featdepth.cameras.exif import exif_intrinsics
from featdepth.cameras.intrinsics_files import read_pinhole
from featdepth.cameras.pinhole import field_of_view_intrinsics
from featdepth.data.sets.clips import CLIP, read_record
from featdepth.data.sets.video import INTRINSICS_NAME, read_matrix
from featdepth.errors import InputError
from featdepth.models import FeatDepth
from featdepth.predict.settings import NEEDS_INTRINSICS, USES_INTRINSICS, Settings
from featdepth.predict.sources import FrameSource, is_image

ADVICE = "give --intrinsics FILE or --field-of-view DEGREES"
KITTI_RAW_CAMERAS = ("image_00", "image_01", "image_02", "image_03")
KITTI_ODOMETRY_CAMERAS = ("image_0", "image_1", "image_2", "image_3")

Size = tuple[int, int]  # height, width in pixels


class FrameCamera(NamedTuple):
    """What is known of a frame's camera, and what that means for its outputs."""

    intrinsics: np.ndarray | None = None  # 3x3, where an output has a use for them
    lacking: tuple[str, ...] = ()  # the kinds that cannot be made for want of them
    reason: str | None = None  # the line that names these, and why
    is_hopeless: bool = False  # nothing at all can be made


class Cameras:
    """Finds intrinsics 3x3 in pixels of upright frames, pixel centres at integers.

    calibration: a file of `intrinsics_files`, for all inputs; field_of_view: degrees, likewise; learned: the model's
    cameras. Without either of the first two, each input may know its own.
    """

    def __init__(
        self, calibration: str | None = None, field_of_view: float | None = None, model: FeatDepth | None = None
    ) -> None:
        self.calibration, self.field_of_view = calibration, field_of_view
        self.learned = None if model is None else model.cameras
        # Without intrinsics frames cannot be aligned, and a pose network has to say how the camera moves.
        self.needed_by = NEEDS_INTRINSICS | ({"trajectory"} if model is None or not model.has_motion else set())
        self.known: dict[tuple[Path, Size], np.ndarray | None] = {}

    def find(self, path: Path, size: Size) -> np.ndarray | None:
        """Intrinsics of the frames of `size` of the image, folder or video at `path`; None where they are unknown.

        Those of a folder are its first image's. Raises InputError, naming the file, for a calibration that cannot be.
        """
        # Given ones are one for all inputs of a size.
        key = (Path() if self.calibration or self.field_of_view else path, size)
        if key not in self.known:
            self.known[key] = self.search(path, size)
        return self.known[key]

    def of_frame(self, path: Path, size: Size, source: FrameSource, settings: Settings) -> FrameCamera:
        """What is known of the camera of a frame of `source` for its outputs; its image or video is at `path`."""
        path, wanted = source.path or path, settings.kinds_of(source)
        needs_all = settings.camera_height is not None or (settings.refine > 0 and source.is_clip)
        users = [kind for kind in wanted if kind in USES_INTRINSICS]
        if not users and not needs_all:
            return FrameCamera()
        try:
            if needs_all:
                return FrameCamera(self.need(path, size, "--refine" if settings.refine else "--camera-height"))
            intrinsics = self.find(path, size)
            lacking = [kind for kind in users if kind in self.needed_by] if intrinsics is None else []
            reason = f"its camera's intrinsics are unknown; {ADVICE}"
        except InputError as error:
            if needs_all:
                return FrameCamera(reason=str(error), is_hopeless=True)
            intrinsics, lacking, reason = None, users, str(error)
        if not lacking:
            return FrameCamera(intrinsics)
        reason = f"{path}: no {', '.join(lacking)}: {reason}"
        return FrameCamera(intrinsics, tuple(lacking), reason, is_hopeless=len(lacking) == len(wanted))

    def need(self, path: Path, size: Size, option: str) -> np.ndarray:
        """As `find`; InputError where they are unknown. option: the one that needs them."""
        intrinsics = self.find(path, size)
        if intrinsics is None:
            raise InputError(f"{path}: its camera's intrinsics are unknown, which {option} needs; {ADVICE}")
        return intrinsics

    def search(self, path: Path, size: Size) -> np.ndarray | None:
        if self.calibration is not None:
            return read_pinhole(self.calibration, size)
        if self.field_of_view is not None:
            return field_of_view_intrinsics(self.field_of_view, size)
        intrinsics = intrinsics_beside(path, size)
        return learned_intrinsics(self.learned, size) if intrinsics is None else intrinsics


def intrinsics_beside(path: Path, size: Size) -> np.ndarray | None:
    """What a data set in whose layout an image or a folder of images lies says about it, or the EXIF data of the image.

    Known are clips of `prepare_video`, folders with `intrinsics.txt` in them or beside them, KITTI raw and odometry.
    """
    path = path.absolute()
    folder = path if path.is_dir() else path.parent
    if (folder / CLIP).is_file() and (rows := read_record(folder / CLIP).get("intrinsics")) is not None:
        return read_matrix(folder / CLIP, rows)
    for file in (folder / INTRINSICS_NAME, folder.parent / INTRINSICS_NAME):
        if file.is_file():
            return read_pinhole(file, size)
    for camera, file in calibrations_above(folder):
        if file.is_file():
            return read_pinhole(f"{file}#{camera}", size)
    if path.is_dir() or not is_image(path):
        return None
    lens = exif_intrinsics(path)
    return None if lens is None or lens.size != size else lens.intrinsics


def calibrations_above(folder: Path) -> list[tuple[str, Path]]:
    """Where KITTI would keep the calibration of the camera with this folder, and what it is called there."""
    found = []
    if folder.name == "data" and folder.parent.name in KITTI_RAW_CAMERAS:
        found.append((folder.parent.name[-2:], folder.parents[2] / "calib_cam_to_cam.txt"))
    if folder.name in KITTI_ODOMETRY_CAMERAS:
        found.append((f"P{folder.name[-1]}", folder.parent / "calib.txt"))
    return found


@torch.no_grad()
def learned_intrinsics(cameras: torch.nn.Module | None, size: Size) -> np.ndarray | None:
    """What a model has learned, for frames of `size`; None where it has learned none, or those of several cameras."""
    if cameras is None or len(cameras.names) != 1:
        return None
    first, no_flip = torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.bool)
    device = cameras.start.device
    given = torch.zeros(1, 3, 3, device=device)
    return cameras(first.to(device), given, no_flip.to(device), size)[0].double().cpu().numpy()
