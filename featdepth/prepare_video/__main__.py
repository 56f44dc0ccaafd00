"""Make own video ready for training: `data.kind: video`.

python -m featdepth.prepare_video INPUT... --out DIR

INPUT is a video file, or a folder of png or jpg images in natural order. Frames come out upright, without lens
distortion where the calibration has some, and far enough apart to teach depth; black, blurred, repeated and motionless
ones are left out, and a new clip begins at each cut:

DIR/<clip>/000000.jpg, ..., clip.json   frames, and their camera, times and distances
DIR/manifest.jsonl                      every frame of the inputs: where it went, or why it was dropped
DIR/summary.json                        settings, thresholds, and what came of them
DIR/splits/                             lists for training, validation and test, with ten clips or more

Interrupted, the same command goes on, and ends with the same bytes. docs/own_video.md explains the choices.
"""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path
from typing import Any

from featdepth.cameras.intrinsics_files import split_name
from featdepth.config import Parser
from featdepth.data.films import read_pictures, video_reader
from featdepth.errors import InputError, run_program
from featdepth.prepare_video.frame_choice import THRESHOLDS
from featdepth.prepare_video.outcome import report
from featdepth.prepare_video.preparation import HEIGHTS, SourceFrames, clip_name, extent, fingerprint, prepare
from featdepth.prepare_video.speed import read_speeds
from featdepth.prepare_video.views import view_of
from featdepth.two_view.opencv import opencv

VERSION = 2  # of what is written: raise it when that changes


def main() -> None:
    arguments = parse_arguments()
    opencv()  # said before any work
    inputs = name_sources(arguments.inputs)
    speeds = None if arguments.speed is None else read_speeds(arguments.speed)
    sources = {name: partial(open_input, path, arguments) for name, path in inputs.items()}
    settings = describe_settings(arguments, inputs)
    summary = prepare(arguments.out, settings, sources, arguments.camera, arguments.format, speeds)
    if summary is not None:
        report(arguments.out, summary)


def parse_arguments() -> argparse.Namespace:
    parser = Parser(
        prog="python -m featdepth.prepare_video",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("inputs", nargs="+", type=Path, metavar="INPUT", help="video file or folder of images, all of one camera")
    add("--out", required=True, type=Path, metavar="DIR", help="new or empty folder, or an unfinished one")
    known = parser.add_mutually_exclusive_group()
    known.add_argument("--intrinsics", metavar="FILE", help="calibration of upright frames (docs/intrinsics.md)")
    known.add_argument("--field-of-view", type=float, metavar="DEGREES", help="horizontal, of upright frames")
    add("--camera", default="camera", metavar="NAME", help="tells it from other cameras in one training")
    add("--speed", metavar="CSV", help="lines `seconds, metres a second` from the first frame of the one input on")
    add("--height", type=int, metavar="PIXELS", help="of the frames that are written; as they are if not given")
    add("--format", choices=("jpg", "png"), default="jpg", help="of the frames; jpg has quality 95")
    arguments = parser.parse_args()
    if arguments.height is not None and not HEIGHTS[0] <= arguments.height <= HEIGHTS[1]:
        raise InputError(f"--height {arguments.height}: has to be from {HEIGHTS[0]} to {HEIGHTS[1]} pixels")
    if arguments.speed is not None and (len(arguments.inputs) > 1 or arguments.inputs[0].is_dir()):
        raise InputError("--speed: goes with one video file, whose first frame is at 0 seconds")
    return arguments


def name_sources(inputs: list[Path]) -> dict[str, Path]:
    """The inputs by names that folders of clips can begin with, all different. Raises InputError for missing ones."""
    sources: dict[str, Path] = {}
    for path in inputs:
        if not path.exists():
            raise InputError(f"{path}: no such video file or folder of images")
        stem = clip_name(os.path.basename(os.path.abspath(path)) if path.is_dir() else path.stem)
        name, number = stem, 1
        taken = {each.casefold() for each in sources}  # some file systems tell no small letters from capital ones
        while name.casefold() in taken:
            number += 1
            name = f"{stem}-{number}"
        sources[name] = path
    return sources


def open_input(path: Path, arguments: argparse.Namespace) -> SourceFrames:
    """A video file or folder of images as its frames are read and shown."""
    known = arguments.height, arguments.intrinsics, arguments.field_of_view
    return SourceFrames(
        lambda first: ((picture,) for picture in read_pictures(path, first)),
        lambda size: (view_of(path, size, *known),),
        {},
    )


def describe_settings(arguments: argparse.Namespace, sources: dict[str, Path]) -> dict[str, Any]:
    """All that the result depends on, ready for JSON."""
    has_video = any(not path.is_dir() for path in sources.values())
    return {
        "version": VERSION,
        "reader": video_reader() if has_video else None,
        "inputs": {name: {"path": str(path), **extent(path)} for name, path in sources.items()},
        "options": {
            "height": arguments.height,
            "format": arguments.format,
            "camera": arguments.camera,
            "field_of_view": arguments.field_of_view,
            "intrinsics": fingerprint(arguments.intrinsics and split_name(arguments.intrinsics)[0]),
            "speed": fingerprint(arguments.speed),
        },
        "thresholds": THRESHOLDS,
    }


if __name__ == "__main__":
    run_program(main)
