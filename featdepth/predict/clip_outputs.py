"""What is made of a clip as a whole, each by a thread that takes the frames as they come."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from queue import Full, Queue
from threading import Thread

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from featdepth.console import count
from featdepth.drawing import nearest_depth
from featdepth.errors import InputError
from featdepth.geometry import resize_intrinsics
from featdepth.odometry.trajectory_files import write_kitti, write_tum
from featdepth.predict.fusion import DepthView, FusedCloud, fuse
from featdepth.predict.intrinsics import ADVICE
from featdepth.predict.network import BY_ALIGNMENT, BY_POSE_NETWORK
from featdepth.predict.outputs import Saved, clip_files, page_frame, page_notes
from featdepth.predict.page import MOST_SHOWN, WIDEST, write_page
from featdepth.predict.point_cloud import PointCloud, write_ply
from featdepth.predict.settings import USES_POSES, Settings
from featdepth.predict.side_by_side import write_side_by_side
from featdepth.predict.sources import FrameSource
from featdepth.scale import Scale, unit_of

MOST_QUEUED = 8  # frames that wait for each
PATIENCE = 0.5  # seconds between two looks at whether a thread still takes frames
MOST_NAMED = 5  # frames whose motion is another's


class Abandoned(Exception):
    """The clip was left by an error; what was begun is not to be finished."""


class Consumer:
    """Runs `consume` on the items that are added, in a thread of its own. `finish` raises what it raised."""

    def __init__(self, consume: Callable[[Iterator[Saved]], None]) -> None:
        self.queue: Queue[Saved | type[Abandoned] | None] = Queue(MOST_QUEUED)
        self.error: BaseException | None = None
        self.thread = Thread(target=self.run, args=(consume,), daemon=True)
        self.thread.start()

    def run(self, consume: Callable[[Iterator[Saved]], None]) -> None:
        try:
            consume(self.items())
        except Abandoned:
            pass
        except BaseException as error:  # for the thread that waits in `finish`
            self.error = error

    def items(self) -> Iterator[Saved]:
        while (item := self.queue.get()) is not None:
            if item is Abandoned:
                raise Abandoned
            yield item

    def add(self, item: Saved | type[Abandoned] | None) -> None:
        """Hand an item over, waiting while many wait already; nothing where the thread has ended."""
        while self.thread.is_alive():
            try:
                return self.queue.put(item, timeout=PATIENCE)
            except Full:
                continue

    def finish(self, with_error: bool) -> None:
        """There are no more items: wait for the end."""
        self.add(Abandoned if with_error else None)
        self.thread.join()
        if self.error is not None:
            raise self.error


class ClipOutputs:
    """Everything that `settings.save` wants of the clip `source`, as a context: written when it is left without error.

    scale: what its depth is measured in; single images, which have no clip, have none.
    """

    def __init__(self, source: FrameSource, settings: Settings, scale: Scale | None) -> None:
        wanted = {kind for kind in settings.save if source.is_clip}
        makers = [make_sequence] if wanted & USES_POSES else []
        makers += [make_video] if "video" in wanted else []
        about = {"source": source, "settings": settings, "scale": scale}
        self.makers = [Consumer(partial(make, **about)) for make in makers]

    def __enter__(self) -> ClipOutputs:
        return self

    def add(self, saved: Saved) -> None:
        """The next frame of the clip."""
        for maker in self.makers:
            maker.add(saved)

    def __exit__(self, kind: type | None, *_: object) -> None:
        errors = []
        for maker in self.makers:
            try:
                maker.finish(with_error=kind is not None)
            except Exception as error:
                errors.append(error)
        if errors and kind is None:
            # The place that cannot be written to ends everything; what is wrong with the clip is said in one line.
            raise next(
                (error for error in errors if not isinstance(error, InputError)),
                InputError("; ".join(map(str, errors))),
            )


def make_video(frames: Iterator[Saved], source: FrameSource, settings: Settings, scale: Scale) -> None:
    """The frames beside their depth."""
    shown = ((saved.frame.view.numpy(), saved.depth, saved.frame.seconds) for saved in frames)
    (path,) = clip_files(source, settings, "video")
    write_side_by_side(path, shown, unit_of(scale.source), settings.nearest, settings.frame_rate)


def make_sequence(frames: Iterator[Saved], source: FrameSource, settings: Settings, scale: Scale) -> None:
    """The camera's path, one point cloud of all frames, and the page that shows both."""
    unit, page, way = unit_of(scale.source), PageFrames(), Way()
    times: list[float] = []
    lacking = set(settings.save)  # that can be made of no frame, which is said with the frames

    def views() -> Iterator[DepthView]:
        for saved in frames:
            frame = saved.frame
            lacking.intersection_update(frame.camera.lacking)
            times.append(frame.index / settings.frame_rate if frame.seconds is None else frame.seconds)
            way.add(saved)
            if "page" in settings.save:
                page.add(saved)
            if saved.pose is not None and saved.intrinsics is not None:
                yield DepthView(saved.depth, frame.view.numpy(), saved.intrinsics, saved.pose)

    fused, trouble = None, None
    if {"fused_points", "page"}.intersection(settings.save):
        try:
            # A depth that is relative may be so frame by frame.
            fused = fuse(views(), align=scale.source is None, farthest=settings.farthest)
        except InputError as error:
            trouble = error
    deque(views(), maxlen=0)
    wanted = USES_POSES.intersection(settings.save) - lacking
    if not times or not wanted:
        return
    note = way.describe()
    tqdm.write(f"motion     {source.path}: {note}")
    if not way.is_known:
        fused, trouble = None, InputError(f"no {', '.join(sorted(wanted - {'page'}) or ['way'])}: {note}")
    elif "trajectory" in wanted:
        kitti, tum = clip_files(source, settings, "trajectory")
        found = f"; scale: {scale.found}" if scale.found else ""
        write_kitti(kitti, np.stack(way.poses))
        write_tum(tum, np.stack(way.poses), times, f"unit: {unit}{found}; motion: {note}")
    if "page" in wanted:
        (path,) = clip_files(source, settings, "page")
        notes = [f"Scale: {scale.found}."] if scale.found else []
        notes += [f"Motion: {note}."]
        notes += [str(trouble)] if page.has_clouds and trouble is not None and way.is_known else []
        page.write(path, source, scale.source, settings, fused, np.stack(way.poses) if way.is_known else None, notes)
    if trouble is not None and wanted & ({"fused_points"} if way.is_known else {"fused_points", "trajectory"}):
        raise InputError(f"{source.path}: {trouble}")
    if "fused_points" in wanted:
        (path,) = clip_files(source, settings, "fused_points")
        write_ply(path, fused.points, fused.colours, unit)


class Way:
    """The camera's way through a clip, and how it was found."""

    def __init__(self) -> None:
        self.poses: list[np.ndarray] = []
        self.has_intrinsics = False
        self.found: Counter[str] = Counter()  # how many motions in which way
        self.others: list[str] = []  # frames to which another motion stands in, the first of them

    def add(self, saved: Saved) -> None:
        self.poses.append(saved.pose)
        self.has_intrinsics |= saved.frame.camera.intrinsics is not None
        if saved.motion is not None:
            self.found[saved.motion] += 1
            if saved.motion != BY_ALIGNMENT and len(self.others) < MOST_NAMED:
                self.others.append(saved.frame.name)

    @property
    def is_known(self) -> bool:
        """Whether any motion between two frames was found, or there are no two."""
        return len(self.poses) == 1 or not {BY_ALIGNMENT, BY_POSE_NETWORK}.isdisjoint(self.found)

    def describe(self) -> str:
        """How its motions were found, in words."""
        pairs, aligned = self.found.total(), self.found[BY_ALIGNMENT]
        if not self.has_intrinsics:
            found = "by the pose network" if BY_POSE_NETWORK in self.found else "unknown"
            return f"{found}; to align the frames {ADVICE}"
        words = f"{aligned} of {count(pairs, 'pair')} of frames aligned"
        if aligned == pairs:
            return words
        more = pairs - aligned - len(self.others)
        names = ", ".join(self.others) + (f" and {more} more" if more else "")
        stand_in = next(each for each in self.found if each != BY_ALIGNMENT)
        return f"{words}; to {names} stands in {stand_in}"


class PageFrames:
    """The frames for a clip's page: evenly spread ones of a clip whose length is not known before its end."""

    def __init__(self) -> None:
        self.kept: list[tuple[int, Saved]] = []  # the place in the clip, and the frame
        self.total, self.stride = 0, 1

    @property
    def has_clouds(self) -> bool:
        """Whether the clip has what a fused cloud is made of."""
        return any(saved.pose is not None and saved.intrinsics is not None for _, saved in self.kept)

    def add(self, saved: Saved) -> None:
        if self.total % self.stride == 0:
            self.kept.append((self.total, reduced(saved)))
        self.total += 1
        if len(self.kept) == 2 * MOST_SHOWN:
            self.kept, self.stride = self.kept[::2], 2 * self.stride

    def write(
        self,
        path: Path,
        source: FrameSource,
        scale_source: str | None,
        settings: Settings,
        fused: FusedCloud | None,
        poses: np.ndarray | None,
        notes: list[str],
    ) -> None:
        """Write the page; `poses`: world_from_camera `[N, 4, 4]` of all frames that were added."""
        nearest = settings.nearest or nearest_depth(*(saved.depth for _, saved in self.kept))
        frames = [page_frame(saved, nearest, settings, place) for place, saved in self.kept]
        notes = page_notes(self.kept[0][1], nearest, scale_source) + notes
        notes += [fused.note] if fused and fused.note else []
        cloud = None if fused is None else PointCloud(fused.points, fused.colours)
        write_page(path, source.name, frames, scale_source, cloud, poses, notes, self.total, settings.warning)


def reduced(saved: Saved) -> Saved:
    """A frame at a size that a page shows, so that a hundred of them fit into memory."""
    factor = -(-max(saved.depth.shape) // WIDEST)
    if factor == 1:
        return saved
    view, depth = (Image.fromarray(array).reduce(factor) for array in (saved.frame.view.numpy(), saved.depth))
    intrinsics = saved.intrinsics
    if intrinsics is not None:
        # Blocks of factor x factor pixels become one; the last row and column may stand for fewer.
        covered = (depth.height * factor, depth.width * factor)
        intrinsics = resize_intrinsics(torch.from_numpy(intrinsics), covered, (depth.height, depth.width)).numpy()
    frame = saved.frame._replace(view=torch.from_numpy(np.array(view)))
    return saved._replace(frame=frame, depth=np.array(depth), intrinsics=intrinsics)
