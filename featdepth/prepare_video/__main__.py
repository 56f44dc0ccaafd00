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
import hashlib
import json
import math
import os
import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from PIL import Image

from featdepth.cameras.intrinsics_files import split_name
from featdepth.config import Parser
from featdepth.config.values import override
from featdepth.console import command, count, watched
from featdepth.data.films import Picture, read_pictures, video_reader
from featdepth.data.listing import list_images
from featdepth.data.notes import fitting_size
from featdepth.errors import InputError, run_program
from featdepth.files import read_bytes
from featdepth.parallel.host import one_thread
from featdepth.predict.sources import cut
from featdepth.prepare_video import record
from featdepth.prepare_video.frame_choice import KEPT, NEW_CLIP, THRESHOLDS, State, Verdict, analysed, judge
from featdepth.prepare_video.record import JOURNAL, SourceProgress
from featdepth.prepare_video.speed import read_speeds
from featdepth.prepare_video.views import View, measuring_intrinsics, show, view_of
from featdepth.two_view.matching import find_features
from featdepth.two_view.opencv import opencv

VERSION = 2  # of what is written: raise it when that changes
JPEG_QUALITY = 95
HEIGHTS = (32, 4096)  # pixels, of frames that are written
TRAINED_PIXELS = 288 * 512  # about as many as configs/video.yaml trains with
LARGEST_CALIBRATION = 16 << 20  # bytes


def main() -> None:
    arguments = parse_arguments()
    opencv()  # said before any work
    sources = name_sources(arguments.inputs)
    speeds = None if arguments.speed is None else read_speeds(arguments.speed)
    settings = describe_settings(arguments, sources)
    if record.claim(arguments.out, settings):
        (arguments.out / JOURNAL).unlink(missing_ok=True)
        print(f"{arguments.out}: already prepared")
        return
    record.mend_journal(arguments.out)
    progress = record.read_progress(arguments.out)
    with one_thread(), open(arguments.out / JOURNAL, "a", encoding="utf-8") as journal:
        for name, source in sources.items():
            if not progress[name].ended:
                prepare_source(name, source, progress[name], journal, arguments)
    report(arguments.out, record.finish(arguments.out, settings, speeds))


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


def clip_name(name: str) -> str:
    """A name as lists and all file systems take it: letters and digits of any script stay, the rest becomes `_`."""
    characters = (each if is_word(each) else " " for each in unicodedata.normalize("NFC", name))
    return cut(re.sub(" +", "_", "".join(characters)))


def is_word(character: str) -> bool:
    """Whether it is a letter, with its marks, a digit, `_` or `-`."""
    return character in "_-" or unicodedata.category(character)[0] in "LMN"


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


def extent(path: Path) -> dict[str, int]:
    """How much there is of a source."""
    if not path.is_dir():
        return {"bytes": path.stat().st_size}
    images = list_images(path)
    return {"images": len(images), "bytes": sum(Path(image).stat().st_size for image in images)}


def fingerprint(path: str | Path | None) -> list[str] | None:
    """A small file's name, and what tells its content from another."""
    if path is None:
        return None
    return [str(path), hashlib.sha256(read_bytes(path, LARGEST_CALIBRATION, "the file")).hexdigest()]


def prepare_source(
    name: str, source: Path, progress: SourceProgress, journal: TextIO, arguments: argparse.Namespace
) -> None:
    """Judge the frames of a source that the journal does not have yet, and write those that stay.

    Frames are written in place, not aside: one counts only once the journal has its line, and is written again else.
    """
    first = progress.kept or 0  # later frames are compared with it
    state, view = State(sharpness=progress.sharpness), None
    pictures = watched(read_pictures(source, first), name, "frames", done=first)
    for index, picture in enumerate(pictures, first):
        if view is None:
            size = picture.pixels.shape[:2]
            view = view_of(source, size, arguments.height, arguments.intrinsics, arguments.field_of_view)
            append(journal, {"source": name, "begins": describe_view(view, picture.turned, arguments.camera)})
        pixels = show(picture.pixels, view)
        frame = analysed(pixels)
        if index < progress.judged:  # before an interruption
            if index == progress.kept:
                state = state._replace(kept=find_features(frame))
            if index == progress.distinct:
                state = state._replace(distinct=frame)
            continue
        verdict, state = judge(state, frame, measuring_intrinsics(view, frame.shape))
        line = describe_frame(name, index, picture, verdict)
        if verdict.name in KEPT:
            line |= progress.next_place(name, verdict.name in NEW_CLIP)
            write_frame(arguments.out / line["clip"] / f"{line['frame']:06}.{arguments.format}", pixels)
        append(journal, line)
        progress.note(line)
    append(journal, {"source": name, "ended": True})


def describe_frame(name: str, index: int, picture: Picture, verdict: Verdict) -> dict[str, Any]:
    """A frame's line in the manifest, as far as its verdict goes."""
    line: dict[str, Any] = {"source": name, "index": index, "seconds": picture.seconds}
    if picture.turned:
        line["turned"] = picture.turned
    line |= {"verdict": verdict.name, **{key: round(value, 6) for key, value in verdict.measured.items()}}
    return line if verdict.limit is None else line | {"limit": round(verdict.limit, 6)}


def describe_view(view: View, turned: int, camera: str) -> dict[str, Any]:
    """What a source's clips share, ready for JSON."""
    height, width = view.source_size
    return {
        "camera": f"{camera} {width}x{height}",
        "turned": turned,
        "source_size": view.source_size,
        "size": view.size,
        "intrinsics": None if view.intrinsics is None else view.intrinsics.tolist(),
        "intrinsics_from": view.known_from,
        "undistorted": view.undistortion is not None,
    }


def append(journal: TextIO, line: dict[str, Any]) -> None:
    journal.write(json.dumps(line) + "\n")
    journal.flush()


def write_frame(path: Path, pixels: np.ndarray) -> None:
    """Write uint8 RGB `[h, w, 3]` as png or, in quality 95 and with full colour resolution, as jpg."""
    path.parent.mkdir(exist_ok=True)
    options = {"quality": JPEG_QUALITY, "subsampling": 0} if path.suffix == ".jpg" else {"compress_level": 4}
    Image.fromarray(pixels).save(path, **options)


def report(out: Path, summary: dict[str, Any]) -> None:
    """Print what came of it, and how to train with it. Raises InputError where nothing is left."""
    verdicts = sum((Counter(source["verdicts"]) for source in summary["prepared"]), Counter())
    clips, kept = summary["clips"], sum(summary["clips"].values())
    dropped = ", ".join(f"{number} {name}" for name, number in verdicts.most_common() if name not in KEPT)
    frames = count(verdicts.total(), "frame")
    told = f"{kept} of {frames} in {count(len(clips), 'clip')}; dropped: {dropped or 'none'}"
    if not clips:
        raise InputError(f"{out}: {told}; {out / record.MANIFEST} says why for each frame")
    print(f"{out}: {told}")
    for source in summary["prepared"]:
        known_from = source["intrinsics_from"] or "unknown: learn them, or set data.field_of_view"
        turned = f", turned by {source['turned']} degrees" if source["turned"] else ""
        print(f"{source['source']}: {source['size'][1]}x{source['size'][0]}{turned}; intrinsics {known_from}")
    used = used_sources(summary)
    unknown = [source["source"] for source in used if source["intrinsics"] is None]
    if unknown and (degrees := known_field_of_view(used)) is not None:
        print(
            f"the intrinsics of {', '.join(unknown)} are unknown, so that all are learned, from the known field of "
            f"view of {degrees:.1f} degrees; with those of all (--intrinsics, --field-of-view) none need be"
        )
    print(command(training_command(out, summary)))


def training_command(out: Path, summary: dict[str, Any]) -> list[str]:
    """The words of the command that trains on what was prepared, at a size of the frames' own shape."""
    split = out / "splits" if len(summary["clips"]) >= record.FEWEST_CLIPS else "time"
    used = used_sources(summary)
    height, width = fitting_size(max(used, key=kept_frames)["size"], TRAINED_PIXELS)
    words = ["accelerate", "launch", "train.py", "--config", "configs/video.yaml"]
    words += [override("data.root", out), override("data.split", split)]
    words += [f"data.height={height}", f"data.width={width}"]
    if all(source["intrinsics"] is not None for source in used):
        return [*words, "model.intrinsics=given", "data.field_of_view=null"]
    # The configuration learns them, from one field of view for all cameras.
    return words if (degrees := known_field_of_view(used)) is None else [*words, f"data.field_of_view={degrees:.1f}"]


def known_field_of_view(sources: list[dict[str, Any]]) -> float | None:
    """Degrees, horizontal, of the source with known intrinsics that has most frames; None where none has them."""
    known = [source for source in sources if source["intrinsics"] is not None]
    if not known:
        return None
    most = max(known, key=kept_frames)
    return math.degrees(2 * math.atan(most["size"][1] / 2 / most["intrinsics"][0][0]))


def used_sources(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The sources of which there are clips."""
    return [source for source in summary["prepared"] if kept_frames(source)]


def kept_frames(source: dict[str, Any]) -> int:
    """How many frames of a source are in clips."""
    return sum(source["verdicts"].get(name, 0) for name in KEPT)


if __name__ == "__main__":
    run_program(main)
