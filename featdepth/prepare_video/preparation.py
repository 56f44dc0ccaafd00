"""The work of a preparation: frames of its sources to clips, and again from where it was interrupted."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from PIL import Image

from featdepth.console import watched
from featdepth.data.films import Picture
from featdepth.data.listing import list_images
from featdepth.data.sets.clips import RIGHT
from featdepth.files import read_bytes
from featdepth.parallel.host import one_thread
from featdepth.predict.sources import cut
from featdepth.prepare_video import record
from featdepth.prepare_video.frame_choice import KEPT, NEW_CLIP, State, Verdict, analysed, judge
from featdepth.prepare_video.record import JOURNAL, Line, SourceProgress
from featdepth.prepare_video.speed import SpeedRecord
from featdepth.prepare_video.views import View, measuring_intrinsics, show
from featdepth.two_view.matching import find_features

HEIGHTS = (32, 4096)  # pixels, of frames that are written
JPEG_QUALITY = 95
LARGEST_CALIBRATION = 16 << 20  # bytes
CAMERA_FOLDERS = (".", RIGHT)  # of the cameras' frames, in a clip's


class SourceFrames(NamedTuple):
    """An input as its frames are read and shown: of one camera, or of two side by side, the left one first."""

    pictures: Callable[[int], Iterator[tuple[Picture | None, ...]]]  # of each camera, from frame number (from 0) on
    views: Callable[[tuple[int, int]], tuple[View, ...]]  # of each camera whose upright frames have this size
    about: Line  # what its clips share besides


def prepare(
    out: Path,
    settings: Line,
    sources: dict[str, Callable[[], SourceFrames]],
    camera: str,
    image_format: str,
    speeds: SpeedRecord | None = None,
) -> Line | None:
    """Prepare the named sources, each opened when its turn comes, in the folder `out`; returns the summary.

    settings: all that the result depends on, ready for JSON. None where it is prepared already, which is said. Raises
    InputError for what cannot be read, and where `out` holds anything else.
    """
    if record.claim(out, settings):
        (out / JOURNAL).unlink(missing_ok=True)
        print(f"{out}: already prepared")
        return None
    record.mend_journal(out)
    progress = record.read_progress(out)
    with one_thread(), open(out / JOURNAL, "a", encoding="utf-8") as journal:
        for name, opened in sources.items():
            if not progress[name].ended:
                prepare_source(name, opened(), progress[name], journal, out, camera, image_format)
    return record.finish(out, settings, speeds)


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


def clip_name(name: str) -> str:
    """A name as lists and all file systems take it: letters and digits of any script stay, the rest becomes `_`."""
    characters = (each if is_word(each) else " " for each in unicodedata.normalize("NFC", name))
    return cut(re.sub(" +", "_", "".join(characters)))


def is_word(character: str) -> bool:
    """Whether it is a letter, with its marks, a digit, `_` or `-`."""
    return character in "_-" or unicodedata.category(character)[0] in "LMN"


def prepare_source(
    name: str,
    source: SourceFrames,
    progress: SourceProgress,
    journal: TextIO,
    out: Path,
    camera: str,
    image_format: str,
) -> None:
    """Judge the frames of a source that the journal does not have yet, and write those that stay.

    The first camera's frames are judged. Frames are written in place, not aside: one counts only once the journal has
    its line, and is written again else.
    """
    first = progress.kept or 0  # later frames are compared with it
    state, views = State(sharpness=progress.sharpness), None
    frames = watched(source.pictures(first), name, "frames", done=first)
    for index, pictures in enumerate(frames, first):
        if views is None:
            views = source.views(pictures[0].pixels.shape[:2])
            begins = describe_view(views[0], pictures[0].turned, camera)
            append(journal, {"source": name, "begins": begins | source.about})
        pixels = show(pictures[0].pixels, views[0])
        frame = analysed(pixels)
        if index < progress.judged:  # before an interruption
            if index == progress.kept:
                state = state._replace(kept=find_features(frame))
            if index == progress.distinct:
                state = state._replace(distinct=frame)
            continue
        if None in pictures:
            verdict, state = Verdict("unpaired", {}), state._replace(distinct=frame)
        else:
            verdict, state = judge(state, frame, measuring_intrinsics(views[0], frame.shape))
        line = describe_frame(name, index, pictures[0], verdict)
        if verdict.name in KEPT:
            line |= progress.next_place(name, verdict.name in NEW_CLIP)
            others = (show(picture.pixels, view) for picture, view in zip(pictures[1:], views[1:], strict=True))
            for folder, shown in zip(CAMERA_FOLDERS, (pixels, *others), strict=False):
                write_frame(out / line["clip"] / folder / f"{line['frame']:06}.{image_format}", shown)
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
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"quality": JPEG_QUALITY, "subsampling": 0} if path.suffix == ".jpg" else {"compress_level": 4}
    Image.fromarray(pixels).save(path, **options)
