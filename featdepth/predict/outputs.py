"""The files that predictions are saved as: their names, what is there already, and those of a single frame."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from featdepth.drawing import colour_depth, draw_depth, nearest_depth
from featdepth.geometry import resize_intrinsics
from featdepth.models import FeatDepth
from featdepth.predict.depth_files import write_depth_npz, write_depth_png, write_depth_tiff, write_picture
from featdepth.predict.frames import InputFrame, frame_name
from featdepth.predict.metres import NO_GROUND, scale_of_image
from featdepth.predict.network import Predicted, depth_at
from featdepth.predict.page import PageFrame, write_page
from featdepth.predict.point_cloud import depth_to_points, write_ply
from featdepth.predict.settings import ALL_KINDS, CLIP_KINDS, FRAME_KINDS, IMAGE_KINDS, Settings
from featdepth.predict.sources import FrameSource
from featdepth.scale import Scale, unit_of


class Saved(NamedTuple):
    """What became of a frame."""

    frame: InputFrame
    depth: np.ndarray | None = None  # [h', w'], at the size of its view; None where that was not asked for
    intrinsics: np.ndarray | None = None  # 3x3 at that size, where they are known
    pose: np.ndarray | None = None  # world_from_camera 4x4, in the unit of the depth; the world is the first camera
    motion: str | None = None  # how the motion to it was found, see `Predicted`
    clipped: int = 0  # pixels beyond what 16 bits can say
    error: str | None = None


def frame_paths(source: FrameSource, name: str, settings: Settings) -> dict[str, Path]:
    """The files of a frame, by kind."""
    endings = FRAME_KINDS if source.is_clip else IMAGE_KINDS
    kinds = (kind for kind in settings.save if kind in endings)
    return {kind: settings.out / source.name / f"{name}{endings[kind]}" for kind in kinds}


def clip_files(source: FrameSource, settings: Settings, kind: str) -> list[Path]:
    """The files of one kind of a clip as a whole."""
    return [settings.out / source.name / name for name in CLIP_KINDS[kind]]


def clip_paths(source: FrameSource, settings: Settings) -> list[Path]:
    """All files of a clip as a whole; none for single images."""
    kinds = (kind for kind in settings.save if kind in CLIP_KINDS and source.is_clip)
    return [path for kind in kinds for path in clip_files(source, settings, kind)]


def is_whole(source: FrameSource, settings: Settings) -> bool:
    """Whether the source has to be predicted in one go, from its beginning."""
    is_one = bool(clip_paths(source, settings)) or settings.refine > 0 or settings.camera_height is not None
    return source.is_clip and is_one


def made_files(source: FrameSource, out: Path, kinds: Collection[str] = ALL_KINDS) -> list[Path]:
    """All files of these `kinds` that there are of a source."""
    if source.is_clip:
        whole = {name for kind, names in CLIP_KINDS.items() if kind in kinds for name in names}
        endings = tuple(ending for kind, ending in FRAME_KINDS.items() if kind in kinds)
        made = (out / source.name).glob("*")
        return [path for path in made if path.name in whole or path.name.endswith(endings)]
    endings = [ending for kind, ending in IMAGE_KINDS.items() if kind in kinds]
    paths = (out / f"{name}{ending}" for name in source.files for ending in endings)
    return [path for path in paths if path.exists()]


def remove_outputs(sources: Iterable[FrameSource], out: Path, kinds: Collection[str] = ALL_KINDS) -> None:
    """Remove all that there is of the `sources`, of these `kinds`. Raises OSError where that is impossible."""
    for source in sources:
        for path in made_files(source, out, kinds):
            path.unlink(missing_ok=True)


def done_frames(source: FrameSource, settings: Settings) -> set[str]:
    """The frames of a source that need no prediction: their files are there, and not older than what they come from.

    Of a video those before the first that is not, as far as it has been predicted. Where the source has to be predicted
    in one go, all or none; none of a video that is refined, as nothing tells where it ended.
    """

    def is_done(name: str, path: Path) -> bool:
        made = modified(path)
        return all(modified(file) >= made > 0 for file in frame_paths(source, name, settings).values())

    files = [source.path] if source.is_video else source.files.values()
    newest = max(map(modified, files))
    if not all(modified(file) >= newest > 0 for file in clip_paths(source, settings)):
        return set()
    if not source.is_video:
        done = {name for name, path in source.files.items() if is_done(name, path)}
        return set() if is_whole(source, settings) and len(done) < len(source.files) else done
    done = set()
    while frame_paths(source, "", settings) and not settings.refine and is_done(frame_name(len(done)), source.path):
        done.add(frame_name(len(done)))
    return done


def modified(path: Path) -> float:
    """When a file was written; 0.0 where there is none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def save_frame(
    frame: InputFrame,
    predicted: Predicted,
    model: FeatDepth,
    scale: Scale | None,
    source: FrameSource,
    settings: Settings,
) -> Saved:
    """Write all files of one frame from what the networks of `model` say of it.

    scale: of the source; None: the image's own, from `settings.camera_height`. Raises OSError where the place cannot be
    written to; what is wrong with the frame itself is in the result.
    """
    if frame.camera.is_hopeless:
        return Saved(frame, error=frame.camera.reason)
    intrinsics = frame.camera.intrinsics
    scale = scale or scale_of_image(predicted.disparity, frame.size, settings.camera_height, model, intrinsics)
    if scale is None:
        return Saved(frame, error=f"{frame.path}: does not show {NO_GROUND}")
    unit, pose = unit_of(scale.source), predicted.pose
    if pose is not None:
        pose = pose.copy()
        pose[:3, 3] *= scale.factor / model.scale.factor
    paths = frame_paths(source, frame.name, settings)
    paths = {kind: path for kind, path in paths.items() if kind not in frame.camera.lacking}
    depth = depth_at(model, predicted.disparity, frame.size, scale)
    if not np.isfinite(depth).all():
        advice = "try --mixed_precision no, with --overwrite or into another --out"
        return Saved(frame, error=f"{frame.path}: the network's depth is not finite; {advice}")
    if "npz" in paths:
        write_depth_npz(paths["npz"], depth, unit, intrinsics)
    if "tiff" in paths:
        write_depth_tiff(paths["tiff"], depth)
    if "picture" in paths:
        write_picture(paths["picture"], draw_depth(depth, unit, settings.nearest))
    clipped = write_depth_png(paths["depth_png"], depth, unit) if "depth_png" in paths else 0
    saved = Saved(frame, pose=pose, motion=predicted.motion, clipped=clipped)
    if frame.view is None:
        return saved
    view, shown = frame.view.numpy(), tuple(frame.view.shape[:2])
    depth = depth if shown == frame.size else depth_at(model, predicted.disparity, shown, scale)
    if intrinsics is not None:
        intrinsics = resize_intrinsics(torch.from_numpy(intrinsics), frame.size, shown).numpy()
    saved = saved._replace(depth=depth, intrinsics=intrinsics)
    if "points" in paths:
        write_ply(paths["points"], *depth_to_points(depth, view, intrinsics, settings.farthest), unit)
    if "page" in paths:
        nearest = settings.nearest or nearest_depth(depth)
        shown_frame, notes = page_frame(saved, nearest, settings), page_notes(saved, nearest, scale.source)
        write_page(
            paths["page"], Path(frame.path).name, [shown_frame], scale.source, notes=notes, warning=settings.warning
        )
    return saved


def page_frame(saved: Saved, nearest: float, settings: Settings, index: int | None = None) -> PageFrame:
    """A frame for the page; `nearest`: depth of the brightest colour; `index`: of its pose among the clip's."""
    view, cloud = saved.frame.view.numpy(), None
    if saved.intrinsics is not None:
        cloud = depth_to_points(saved.depth, view, saved.intrinsics, settings.farthest)
    return PageFrame(saved.frame.name, view, colour_depth(saved.depth, nearest), cloud, index)


def page_notes(saved: Saved, nearest: float, scale_source: str | None) -> list[str]:
    """What the page's pictures mean, and why it has no point clouds where it has none."""
    unit = " m" if scale_source is not None else " units"
    colours = f"the brightest is {nearest:.3g}{unit} and nearer, at twice that distance they are halfway to black"
    notes = [f"Depth in colours: {colours}."]
    if saved.intrinsics is None:
        notes.append("No point cloud: the camera's intrinsics are unknown (--intrinsics, --field-of-view).")
    return notes
