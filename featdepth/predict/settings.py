"""What a prediction is asked for: the kinds of files that can be saved, and the options of the command line."""

from __future__ import annotations

import argparse
import math
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from featdepth.cameras.pinhole import field_of_view_intrinsics
from featdepth.config import Parser
from featdepth.data.synthetic import available_cores
from featdepth.errors import InputError
from featdepth.predict.sources import FrameSource

# What can be saved of each frame, and the ending of its file.
FRAME_KINDS = {
    "depth_png": "_depth.png",
    "npz": "_depth.npz",
    "tiff": "_depth.tiff",
    "picture": "_picture.png",
    "points": "_points.ply",
}
# What can be saved of a clip as a whole, and its files.
CLIP_KINDS = {
    "video": ("side_by_side.mp4",),
    "trajectory": ("trajectory_kitti.txt", "trajectory_tum.txt"),
    "fused_points": ("fused_points.ply",),
    "page": ("page.html",),
}
IMAGE_KINDS = FRAME_KINDS | {"page": "_page.html"}  # of an image that belongs to no clip
ALL_KINDS = (*FRAME_KINDS, *CLIP_KINDS)
NEEDS_INTRINSICS = {"points", "fused_points"}
USES_INTRINSICS = NEEDS_INTRINSICS | {"npz", "page", "trajectory"}  # where they are known
NEEDS_VIEWS = {"points", "video", "fused_points", "page"}  # what the frames look like
USES_POSES = {"trajectory", "fused_points", "page"}


class Settings(NamedTuple):
    """How predictions are saved."""

    out: Path
    save: Collection[str]  # of ALL_KINDS
    nearest: float | None = None  # depth of the brightest colour; None: by the picture
    farthest: float | None = None  # depth of the farthest points of clouds; None: all
    frame_rate: float = 10.0  # frames a second of folders, whose images have no times
    refine: int = 0  # steps by which the networks adapt to each frame of a clip
    camera_height: float | None = None  # metres above the ground that depth is scaled by; None: the model's own scale
    warning: str = ""  # of the model, for pages

    @property
    def dependent_kinds(self) -> Collection[str]:
        """The kinds whose content depends on intrinsics."""
        return ALL_KINDS if self.refine or self.camera_height is not None else USES_INTRINSICS

    @property
    def with_views(self) -> bool:
        """Whether anything that is saved shows what the frames look like."""
        return not NEEDS_VIEWS.isdisjoint(self.save)

    def kinds_of(self, source: FrameSource) -> list[str]:
        """The kinds that are saved of such a source."""
        return [kind for kind in self.save if kind in (ALL_KINDS if source.is_clip else IMAGE_KINDS)]


def parse_arguments(description: str) -> argparse.Namespace:
    """The options of the command line, `save` as a list. Raises InputError for values that cannot be."""
    parser = Parser(
        prog="python -m featdepth.predict",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    kinds = f"of {', '.join(ALL_KINDS)} (default: %(default)s)"
    height = "of the camera above the ground, in metres: gives models without a scale one for each clip"
    nearest = "depth of the brightest colour (default: chosen from the frames)"
    steps = "learn from each frame of a clip, in N steps, before the next"
    add("inputs", nargs="+", metavar="INPUT", help="image, folder, video or pattern")
    add("--checkpoint", required=True, metavar="DIR", help="model directory, or hub id")
    add("--out", required=True, metavar="DIR", help="new or empty folder, or one of an earlier run of the same model")
    add("--save", default="depth_png,picture", metavar="KINDS", help=kinds)
    known = parser.add_mutually_exclusive_group()
    known.add_argument("--intrinsics", metavar="FILE", help="calibration of upright frames (docs/intrinsics.md)")
    known.add_argument("--field-of-view", type=float, metavar="DEGREES", help="horizontal, of upright frames")
    add("--camera-height", type=float, metavar="METRES", help=height)
    add("--nearest", type=float, metavar="DEPTH", help=nearest)
    add("--farthest", type=float, metavar="DEPTH", help="of the points in point clouds (default: all)")
    add("--frame-rate", type=float, default=10.0, metavar="N", help="frames a second of folders (default: %(default)g)")
    add("--refine", type=int, default=0, metavar="N", help=steps)
    add("--overwrite", action="store_true", help="replace what was made of the inputs, even by another model")
    add("--batch-size", type=int, default=8, metavar="N", help="frames in a batch, per process (default: %(default)s)")
    workers = min(4, available_cores())
    add("--workers", type=int, default=workers, metavar="N", help="processes that decode images (default: %(default)s)")
    add("--cpu", action="store_true", help="use no GPU")
    arguments = parser.parse_args()
    arguments.save = [kind for kind in arguments.save.split(",") if kind]
    check_arguments(arguments)
    return arguments


def check_arguments(arguments: argparse.Namespace) -> None:
    """Raise InputError for a value that an option cannot have, and for options that do not go together."""
    unknown = [kind for kind in arguments.save if kind not in ALL_KINDS]
    if unknown or not arguments.save:
        raise InputError(f"--save {','.join(unknown) or 'nothing'}: can be {', '.join(ALL_KINDS)}, separated by commas")
    for name, lowest in (("batch_size", 1), ("workers", 0), ("refine", 0)):
        if getattr(arguments, name) < lowest:
            raise InputError(f"--{name.replace('_', '-')} {getattr(arguments, name)}: has to be at least {lowest}")
    for name in ("nearest", "farthest", "frame_rate", "camera_height"):
        value = getattr(arguments, name)
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"--{name.replace('_', '-')} {value:g}: has to be above 0")
    if arguments.field_of_view is not None:
        field_of_view_intrinsics(arguments.field_of_view, (1, 1))
    if arguments.refine and arguments.camera_height is not None:
        raise InputError("--camera-height: goes with one scale for a clip, which --refine changes from frame to frame")
