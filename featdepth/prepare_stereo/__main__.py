"""Make own stereo footage ready for training in metres: `data.kind: video` with s among `data.frames`.

python -m featdepth.prepare_stereo LEFT RIGHT --intrinsics FILE --baseline METRES --out DIR

LEFT and RIGHT are two films, or two folders of png or jpg images, of two cameras side by side. Their pictures are
paired, rectified where they are not, and checked: rows agree, sides are not swapped, the baseline is in metres. Frames
are then chosen as `python -m featdepth.prepare_video` does it, by the left camera's:

DIR/<clip>/000000.jpg, ..., clip.json   left frames, and their camera, times and the baseline
DIR/<clip>/right/000000.jpg, ...        right frames
DIR/manifest.jsonl                      every left frame: where it went, or why it was dropped
DIR/summary.json                        settings, thresholds, what was done to the cameras, and what came of it

Interrupted, the same command goes on, and ends with the same bytes. docs/own_stereo.md explains it.
"""

from __future__ import annotations

import argparse
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from featdepth.cameras.intrinsics_files import split_name
from featdepth.cameras.rig_files import CameraPair, read_pair
from featdepth.config import Parser
from featdepth.data.films import video_reader
from featdepth.errors import InputError, run_program
from featdepth.prepare_stereo.pairing import SURVEYED, Pairing, Sides, pair
from featdepth.prepare_stereo.rectification import Pictures, choose_baseline, find_rectification
from featdepth.prepare_video.frame_choice import THRESHOLDS
from featdepth.prepare_video.outcome import report
from featdepth.prepare_video.preparation import HEIGHTS, SourceFrames, clip_name, extent, fingerprint, prepare
from featdepth.prepare_video.views import camera_of
from featdepth.two_view.opencv import opencv

VERSION = 1  # of what is written: raise it when that changes
MATCHED_PAIRS = 12  # pairs whose pictures are matched


def main() -> None:
    arguments = parse_arguments()
    opencv()  # said before any work
    sides = Sides(arguments.left, arguments.right)
    name = clip_name(sides.left.name if sides.left.is_dir() else sides.left.stem)
    sources = {name: partial(open_pair, sides, arguments)}
    settings = describe_settings(sides, arguments)
    summary = prepare(arguments.out, settings, sources, arguments.camera, arguments.format)
    if summary is not None:
        report(arguments.out, summary)


def parse_arguments() -> argparse.Namespace:
    parser = Parser(
        prog="python -m featdepth.prepare_stereo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("left", type=Path, metavar="LEFT", help="film or folder of images of the left camera")
    add("right", type=Path, metavar="RIGHT", help="the same of the right camera")
    add("--out", required=True, type=Path, metavar="DIR", help="new or empty folder, or an unfinished one")
    known = parser.add_mutually_exclusive_group()
    known.add_argument(
        "--intrinsics",
        nargs="+",
        metavar="FILE",
        help="calibration of both cameras, or of each (docs/own_stereo.md)",
    )
    known.add_argument("--field-of-view", type=float, metavar="DEGREES", help="horizontal, of both cameras")
    add("--extrinsics", metavar="FILE", help="where the right camera is, if the calibration is in two files")
    add("--baseline", type=float, metavar="METRES", help="between the two cameras, if the calibration does not tell")
    add("--offset", type=int, metavar="N", help="frame of RIGHT that belongs to the first of LEFT; found if not given")
    add("--camera", default="camera", metavar="NAME", help="tells it from other cameras in one training")
    add("--height", type=int, metavar="PIXELS", help="of the frames that are written; as they are if not given")
    add("--format", choices=("jpg", "png"), default="jpg", help="of the frames; jpg has quality 95")
    arguments = parser.parse_args()
    if arguments.height is not None and not HEIGHTS[0] <= arguments.height <= HEIGHTS[1]:
        raise InputError(f"--height {arguments.height}: has to be from {HEIGHTS[0]} to {HEIGHTS[1]} pixels")
    if len(arguments.intrinsics or ()) > 2:
        raise InputError("--intrinsics: takes one file for both cameras, or two, the left camera's first")
    if arguments.baseline is not None:
        choose_baseline(arguments.baseline, None)  # said before any work
    for path in (arguments.left, arguments.right):
        if not path.exists():
            raise InputError(f"{path}: no such video file or folder of images")
    return arguments


def describe_settings(sides: Sides, arguments: argparse.Namespace) -> dict[str, Any]:
    """All that the result depends on, ready for JSON."""
    return {
        "version": VERSION,
        "reader": None if sides.left.is_dir() else video_reader(),
        "inputs": {side: {"path": str(path), **extent(path)} for side, path in sides._asdict().items()},
        "options": {
            "height": arguments.height,
            "format": arguments.format,
            "camera": arguments.camera,
            "field_of_view": arguments.field_of_view,
            "intrinsics": [[each, fingerprint(split_name(each)[0])] for each in arguments.intrinsics or ()],
            "extrinsics": fingerprint(arguments.extrinsics),
            "baseline": arguments.baseline,
            "offset": arguments.offset,
        },
        "thresholds": THRESHOLDS,
    }


def open_pair(sides: Sides, arguments: argparse.Namespace) -> SourceFrames:
    """Two films or folders as their frames are paired and shown. Raises InputError where they are no stereo pair."""
    pairing = pair(sides, arguments.offset)
    pairs = some_pairs(pairing)
    size = pairs[0][0].pixels.shape[:2]
    cameras, known_from = find_cameras(sides, size, arguments)
    baseline = choose_baseline(arguments.baseline, cameras.right_from_left)
    try:
        views, about = find_rectification(pairs, cameras, baseline, arguments.height, known_from)
    except InputError as error:
        raise InputError(f"{sides.left} and {sides.right}: {error}") from None
    return SourceFrames(
        lambda first: islice(pairing.pictures(), first, None), lambda _: views, {"paired": pairing.describe(), **about}
    )


def some_pairs(pairing: Pairing) -> list[Pictures]:
    """Pairs out of the first frames, all of one size. Raises InputError where there are none."""
    whole = [index for index, (_, right) in enumerate(islice(pairing.pictures(), SURVEYED)) if right is not None]
    chosen = set(whole[:: -(-len(whole) // MATCHED_PAIRS)] if whole else ())
    pairs = [each for index, each in enumerate(islice(pairing.pictures(), SURVEYED)) if index in chosen]
    left, right = pairing.sides
    if not pairs:
        raise InputError(
            f"{left}: none of its first frames has a partner in {right}, paired by {pairing.by}; give --offset"
        )
    sizes = [picture.pixels.shape[:2] for picture in pairs[0]]
    if sizes[0] != sizes[1]:
        (height, width), (other_height, other_width) = sizes
        raise InputError(
            f"{left} and {right}: have pictures of {width} x {height} and {other_width} x {other_height} pixels; "
            "resize one camera's, with its calibration"
        )
    return pairs


def find_cameras(sides: Sides, size: tuple[int, int], arguments: argparse.Namespace) -> tuple[CameraPair, str]:
    """Both cameras of pictures of `size` (height, width), and where they are known from."""
    if arguments.intrinsics is not None:
        return read_pair(arguments.intrinsics, arguments.extrinsics, size), " ".join(arguments.intrinsics)
    lenses = [camera_of(path, size, None, arguments.field_of_view) for path in sides]
    if lenses[0][0] is None or lenses[1][0] is None:
        raise InputError("--intrinsics: metres need the cameras' focal length; calibrate, or give --field-of-view")
    return CameraPair((lenses[0][0], lenses[1][0]), None), lenses[0][1]


if __name__ == "__main__":
    run_program(main)
