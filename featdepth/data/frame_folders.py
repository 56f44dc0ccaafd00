"""Folders of images as one sequence of frames, and files in them that are not frames."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from featdepth.console import count
from featdepth.data.images import LOOKED_AT, decoded, formats_of, is_deep
from featdepth.data.listing import CONVERT, NO_IMAGE, list_images, other_photos
from featdepth.errors import InputError

MOST_NAMINGS = 64  # ways of naming files in a folder that are looked at


def list_sequence(folder: Path) -> list[str]:
    """The images in `folder` in natural order, which are the frames of one camera.

    Raises InputError where there are none, and for files that would be mistaken for frames or silently left out: photos
    in formats that are not read, the same frame in two formats, and depth beside pictures.
    """
    images, others = list_images(folder), other_photos(folder)
    if others:
        more = "" if len(others) == 1 else f" (one of {len(others)})"
        raise InputError(f"{folder / others[0]}{more}: {CONVERT}, or leave it out")
    if not images:
        raise InputError(f"{folder}: {NO_IMAGE}; name the folder that holds the frames")
    if twice := frames_in_two_formats(images):
        names = " and ".join(Path(file).name for file in twice[0])
        raise InputError(
            f"{folder}: {names} are the same frame twice ({count(len(twice), 'such pair')} here); keep one format "
            "in the folder"
        )
    if depth := depth_among_pictures(images):
        found = f"{count(len(depth), 'image')} of {len(images)}"
        raise InputError(
            f"{folder}: {Path(depth[0]).name} has grey levels of 16 bits or more, as depth has, and other images are "
            f"8-bit pictures; put what is no frame of the camera elsewhere ({found})"
        )
    return images


def frames_in_two_formats(images: Sequence[str]) -> list[list[str]]:
    """The files of each frame that has several of them, which differ in nothing but their endings; in order."""
    by_stem: defaultdict[str, list[str]] = defaultdict(list)
    for file in images:
        by_stem[Path(file).stem].append(file)
    return [files for files in by_stem.values() if len(files) > 1]


def depth_among_pictures(images: Sequence[str]) -> list[str]:
    """Those of a folder's images that have grey levels of 16 bits or more, or floats, where others are 8-bit pictures.

    One file of each way of naming them is looked at, and some spread over the folder; all only where these differ.
    """
    by_naming = {re.sub("[0-9]+", "0", Path(file).name): file for file in reversed(images)}
    looked_at = [*list(by_naming.values())[:MOST_NAMINGS], *images[:: -(-len(images) // LOOKED_AT)]]
    if len({has_deep_levels(file) for file in looked_at}) == 1:
        return []
    return [file for file in images if has_deep_levels(file)]


def has_deep_levels(path: str) -> bool:
    """Whether the image at `path` has grey levels of more than 8 bits; damaged ones are named when they are read."""
    try:
        with decoded(path, formats_of(path), None) as image:
            return is_deep(image)
    except InputError:
        return False
