"""The files that predictions are saved as: their names, what is there already, and those of a single frame."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from featdepth.errors import InputError
from featdepth.geometry import resize_intrinsics
from featdepth.models import FeatDepth
from featdepth.prediction.cameras import Cameras
from featdepth.prediction.depth import depth_at
from featdepth.prediction.depth_files import METRES, RELATIVE, write_depth_npz, write_depth_png, write_depth_tiff
from featdepth.prediction.frames import Frame, frame_name
from featdepth.prediction.inputs import Source
from featdepth.prediction.pictures import draw_depth
from featdepth.tracking import save_picture

# What can be saved of each frame, and the ending of its file.
FRAME_KINDS = {
    "depth_png": "_depth.png",
    "npz": "_depth.npz",
    "tiff": "_depth.tiff",
    "picture": "_picture.png",
}
# What can be saved of a clip as a whole, and its files.
CLIP_KINDS = {
    "video": ("side_by_side.mp4",),
}
NEEDS_INTRINSICS: set[str] = set()
SHOWS_FRAMES = {"video"}  # needs what the frames look like


class Settings(NamedTuple):
    """How predictions are saved."""

    out: Path
    save: Collection[str]  # of FRAME_KINDS and CLIP_KINDS
    nearest: float | None = None  # depth of the brightest colour; None: by the picture
    frame_rate: float = 10.0  # frames a second of folders, which know no times


class Saved(NamedTuple):
    """What became of a frame."""

    frame: Frame
    depth: np.ndarray | None = None  # [h', w'], at the size of its view; None where that was not asked for
    intrinsics: np.ndarray | None = None  # 3x3 at that size
    clipped: int = 0  # pixels beyond what 16 bits can say
    error: str | None = None


def unit_of(model: FeatDepth) -> str:
    return RELATIVE if model.settings.metres_per_unit is None else METRES


def folder_of(source: Source, out: Path) -> Path:
    return out / source.name


def frame_paths(folder: Path, name: str, kinds: Iterable[str]) -> dict[str, Path]:
    """The files of a frame, by kind."""
    return {kind: folder / f"{name}{FRAME_KINDS[kind]}" for kind in kinds if kind in FRAME_KINDS}


def clip_paths(folder: Path, kinds: Iterable[str]) -> list[Path]:
    """The files of a clip as a whole."""
    return [folder / name for kind in kinds for name in CLIP_KINDS.get(kind, ())]


def done_frames(source: Source, settings: Settings) -> set[str]:
    """The frames of a source all of whose files are there, and not older than the image or video they come from.

    Of a video those before the first that is not. None where something is made of the clip as a whole, and missing.
    """
    folder = folder_of(source, settings.out)
    if source.is_clip and not all(map(Path.exists, clip_paths(folder, settings.save))):
        return set()

    def is_done(name: str, path: Path) -> bool:
        made = modified(path)
        return all(modified(file) >= made > 0 for file in frame_paths(folder, name, settings.save).values())

    if not source.is_video:
        done = {name for name, path in source.files.items() if is_done(name, path)}
        return set() if clip_paths(folder, settings.save) and source.is_clip and len(done) < len(source.files) else done
    done = set()
    while frame_paths(folder, "", settings.save) and is_done(name := frame_name(len(done)), source.path):
        done.add(name)
    return done


def modified(path: Path) -> float:
    """When a file was written; 0.0 where there is none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def save_frame(
    frame: Frame, disparity: Tensor, model: FeatDepth, source: Source, settings: Settings, cameras: Cameras
) -> Saved:
    """Write all files of one frame from its disparity `[1, h, w]`.

    Raises OSError where the place cannot be written to; what is wrong with the frame itself is told in the result.
    """
    folder, unit = folder_of(source, settings.out), unit_of(model)
    paths = frame_paths(folder, frame.name, settings.save)
    try:
        intrinsics = frame_intrinsics(frame, source, settings, cameras)
    except InputError as error:
        return Saved(frame, error=str(error))
    depth, clipped = depth_at(model, disparity, frame.size), 0
    if "npz" in paths:
        write_depth_npz(paths["npz"], depth, unit, intrinsics)
    if "tiff" in paths:
        write_depth_tiff(paths["tiff"], depth)
    if "picture" in paths:
        save_picture(draw_depth(depth, unit, settings.nearest), paths["picture"])
    if "depth_png" in paths:
        clipped = write_depth_png(paths["depth_png"], depth, unit)
    if frame.view is None:
        return Saved(frame, clipped=clipped)
    shown = tuple(frame.view.shape[:2])
    if intrinsics is not None:
        intrinsics = resize_intrinsics(torch.from_numpy(intrinsics), frame.size, shown).numpy()
    return Saved(frame, depth_at(model, disparity, shown), intrinsics, clipped)


def frame_intrinsics(frame: Frame, source: Source, settings: Settings, cameras: Cameras) -> np.ndarray | None:
    """Intrinsics 3x3 of a frame where an output has a use for them. Raises InputError where one cannot do without."""
    path = source.path or Path(frame.path)
    if NEEDS_INTRINSICS.intersection(settings.save):
        return cameras.need(path, frame.size)
    return cameras.find(path, frame.size) if "npz" in settings.save else None
