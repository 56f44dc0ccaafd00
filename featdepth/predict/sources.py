"""What to predict: images, globs, folders and videos, and the names that their outputs get."""

from __future__ import annotations

import glob
import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from featdepth.data.frame_folders import depth_among_pictures, frames_in_two_formats
from featdepth.data.images import HEAD, is_image, is_other_picture
from featdepth.data.listing import (
    CONVERT,
    IMAGE,
    NO_IMAGE,
    OTHER_PHOTO,
    VIDEO_SUFFIXES,
    file_names,
    list_images,
    natural_key,
    other_photos,
)
from featdepth.errors import InputError

PREDICTION_RECORD = "prediction.json"  # in the output folder: no name of an input
LONGEST_NAME = 180  # bytes; file systems allow 255, and endings come behind


class FrameSource(NamedTuple):
    """A clip (a folder of images or a video), or all single images together."""

    name: str  # of the folder below the output folder that its outputs go to; "" for single images: that folder itself
    path: Path | None  # of the folder or the video; None for single images
    files: dict[str, Path]  # images by the names that their outputs begin with; empty for a video

    @property
    def is_clip(self) -> bool:
        return self.path is not None

    @property
    def is_video(self) -> bool:
        return self.is_clip and not self.files


class Inputs(NamedTuple):
    """What the words of a command line mean."""

    paths: list[Path]  # of images, folders with images, and videos, each once
    failures: list[str]  # a line for each word that means nothing
    left_out: dict[str, int]  # how many files were passed over, by the reason


def find_inputs(words: Sequence[str | Path], out: Path) -> Inputs:
    """The inputs that `words` name: files, folders, and globs that the shell left alone.

    What lies in the folder `out` is output, not input. Raises InputError where nothing at all is left.
    """
    found: dict[Path, Path] = {}  # by what they are once links are followed
    failures, left_out = [], {}
    own = out.resolve()

    def leave_out(count: int, reason: str) -> None:
        if count:
            left_out[reason] = left_out.get(reason, 0) + count

    for path, is_matched in expand(words):
        real = path.resolve()
        if real == own or own in real.parents:
            leave_out(1, f"in {out}, which is for outputs")
        elif path.is_dir():
            try:
                images = list_frames(path)
            except InputError as error:
                failures.append(str(error))
                continue
            found[real] = path
            leave_out(len(other_photos(path)), "in folders, photos in formats to convert to png or jpg")
            leave_out(len(list_images(path)) - len(images), "in folders, depth or other levels of 16 bits")
            leave_out(count_others(path), "in folders, no images")
        elif is_other(path):
            failures.append(f"{path}: {CONVERT}")
        elif is_matched and not is_image(path) and path.suffix.lower() not in VIDEO_SUFFIXES:
            leave_out(1, "matched, neither image nor video")
        elif path.is_file():
            found[real] = path
        else:
            failures.append(f"{path}: no such image, folder or video" + (" matches" if is_pattern(path) else ""))
    if not found:
        reasons = [*failures, *(f"{count} {reason}" for reason, count in left_out.items())]
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        raise InputError(f"nothing to predict: {reasons[0]}{more}")
    return Inputs(list(found.values()), failures, left_out)


def expand(words: Iterable[str | Path]) -> Iterable[tuple[Path, bool]]:
    """Each word as a path, or what it matches, in natural order; and whether it was matched."""
    for word in map(str, words):
        matches = sorted(glob.glob(word, recursive=True), key=natural_key) if is_pattern(word) else []
        if matches and not os.path.lexists(word):
            yield from ((Path(match), True) for match in matches)
        else:
            yield Path(word), False


def is_pattern(word: str | Path) -> bool:
    return glob.has_magic(str(word))


def is_other(path: Path) -> bool:
    """Whether a file is a photo or picture in a format that is not read."""
    try:
        with open(path, "rb") as file:
            return is_other_picture(path, file.read(HEAD))
    except OSError:
        return False  # is said where it is read


def list_frames(folder: Path) -> list[str]:
    """The images of a folder, without depth among pictures; InputError where it has none, or frames twice."""
    images = list_images(folder)
    if not images and (others := other_photos(folder)):
        raise InputError(f"{folder / others[0]}: {CONVERT}")
    if not images:
        raise InputError(f"{folder}: {NO_IMAGE}; name the folder that holds the frames")
    if len(twice := frames_in_two_formats(images)) > 1:
        names = " and ".join(Path(file).name for file in twice[0])
        raise InputError(
            f"{folder}: {names} are one frame twice, as {len(twice)} are; name those of one format by a "
            "pattern, as in '*.png', or keep one format in the folder"
        )
    depth = set(depth_among_pictures(images))
    return [file for file in images if file not in depth]


def count_others(folder: Path) -> int:
    """The visible files in a folder that are neither images nor photos."""
    known = (IMAGE, OTHER_PHOTO)
    names = (name for name in file_names(folder) if not any(each.fullmatch(name) for each in known) and name[0] != ".")
    return sum((folder / name).is_file() for name in names)


def name_inputs(paths: Sequence[Path], known: dict[str, str]) -> dict[str, Path]:
    """Each input by a name of its own; `known` {name: absolute path} are names given before, which stay as they are.

    A name is the file's without its ending; where that is taken, folders are put before it, as in `b_x` for b/x.png.
    """
    names = {path: name for name, path in known.items()}
    taken = {PREDICTION_RECORD, *map(on_any_disk, known)}
    named = {}
    for path in paths:
        absolute = os.path.abspath(path)
        name = names.get(absolute)
        if name is None:
            name = next(candidate for candidate in candidates(path) if on_any_disk(candidate) not in taken)
            taken.add(on_any_disk(name))
        named[name] = path
    return named


def on_any_disk(name: str) -> str:
    """The same for names that some file systems take for one: in small and capital letters, accents apart or not."""
    return unicodedata.normalize("NFC", name).lower()


def candidates(path: Path) -> Iterable[str]:
    """Names for an input, in the order of preference."""
    absolute = Path(os.path.abspath(path))
    name = absolute.name if path.is_dir() else absolute.stem
    yield (name := cut(name.lstrip(".") or "input"))
    for parent in absolute.parents:
        if parent.name:
            yield (name := cut(f"{parent.name}_{name}"))
    number = 2
    while True:
        yield f"{name}-{number}"
        number += 1


def cut(name: str) -> str:
    """A name that a file system takes: of a longer one its beginning, and a hash that tells it from others."""
    code = os.fsencode(name)
    if len(code) <= LONGEST_NAME:
        return name
    return f"{code[: LONGEST_NAME - 9].decode(errors='ignore')}-{hashlib.sha256(code).hexdigest()[:8]}"


def list_sources(named: dict[str, Path]) -> list[FrameSource]:
    """The named inputs as sources: single images together, then each folder and video."""
    images = {name: path for name, path in named.items() if not path.is_dir() and is_image(path)}
    sources = [FrameSource("", None, images)] if images else []
    for name, path in named.items():
        if name not in images:
            sources.append(FrameSource(name, path, name_frames(path) if path.is_dir() else {}))
    return sources


def name_frames(folder: Path) -> dict[str, Path]:
    """The images of a folder in natural order by their names, with their endings where they differ in nothing else."""
    files = [Path(file) for file in list_frames(folder)]
    count = Counter(on_any_disk(file.stem) for file in files)
    return {cut(file.stem if count[on_any_disk(file.stem)] == 1 else file.name): file for file in files}
