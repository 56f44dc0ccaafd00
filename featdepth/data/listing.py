"""Files of a data set: numbered ones in a folder, and tables of numbers."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from featdepth.console import count
from featdepth.errors import InputError
from featdepth.files import numbered_lines

# Formats that are read, by Pillow's names, and the endings of their files. What Pillow reads beyond them draws pages,
# runs other programs, or shows no photos.
IMAGE_FORMATS = {
    "PNG": ("png", "apng"),
    "JPEG": ("jpg", "jpeg", "jpe", "jfif", "mpo"),
    "BMP": ("bmp",),
    "DIB": ("dib",),
    "WEBP": ("webp",),
    "TIFF": ("tif", "tiff"),
    "GIF": ("gif",),
    "PPM": ("ppm", "pgm", "pbm", "pnm", "pfm"),
    "JPEG2000": ("jp2", "j2k", "j2c", "jpc", "jpf", "jpx"),
    "AVIF": ("avif",),
    "PCX": ("pcx",),
    "QOI": ("qoi",),
    "SGI": ("sgi",),
    "SUN": ("ras",),
    "TGA": ("tga",),
}
IMAGE_SUFFIXES = "|".join(suffix for suffixes in IMAGE_FORMATS.values() for suffix in suffixes)
IMAGE = re.compile(rf"[^.].*\.(?:{IMAGE_SUFFIXES})", re.IGNORECASE)
# Photos that are not read, of phones and raw ones of cameras; and pictures of programs that draw.
OTHER_PHOTO = re.compile(
    r"[^.].*\.(?:heic|heif|hif|jxl|jxr|wdp|exr|hdr|"
    r"dng|cr2|cr3|crw|nef|nrw|arw|sr2|srf|srw|raf|orf|rw2|pef|raw|3fr|erf|kdc|mrw|x3f)",
    re.IGNORECASE,
)
DRAWING = re.compile(r"[^.].*\.(?:dds|psd|psb|xcf|svgz?|eps|ps|ai|pdf|ico|icns|wmf|emf)", re.IGNORECASE)
VIDEO_SUFFIXES = {".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".3gp"}
CONVERT = "a photo or picture in a format that is not read; convert it to png or jpg"
NO_IMAGE = "no png or jpg image, nor one in another format that is read, in this folder"
LARGEST_TABLE = 64 << 20  # bytes; an hour of poses at 30 a second has 20 MB


def file_names(folder: Path) -> list[str]:
    """What is in `folder`, sorted; empty where there is no such folder, InputError where it cannot be read."""
    try:
        return sorted(os.listdir(folder)) if folder.is_dir() else []
    except OSError as error:
        raise InputError(f"{folder}: the folder cannot be read: {error.strerror}") from error


def list_frames(folder: Path, pattern: re.Pattern[str], form: str = "") -> dict[int, str]:
    """The files in `folder` whose whole names match, by the frame number that is the pattern's first group, in order.

    Of a frame with several files it is the png. form: of the names of images, in words. Empty where there is no such
    folder; InputError where it cannot be read, and with a form where it has images and all are called otherwise.
    """
    names = sorted(file_names(folder), key=lambda name: name.lower().endswith(".png"))
    found = {int(match[1]): str(folder / match[0]) for match in map(pattern.fullmatch, names) if match}
    if form and not found:
        for name in sorted(names):
            if OTHER_PHOTO.fullmatch(name):
                raise InputError(f"{folder / name}: {CONVERT}")
            if IMAGE.fullmatch(name):
                raise InputError(f"{folder / name}: is not called as frames are here, {form}; rename all of them")
    return dict(sorted(found.items()))


def list_images(folder: Path) -> list[str]:
    """The image files in `folder`, in natural order: image2 before image10. Errors as `file_names`."""
    return [str(folder / name) for name in sorted(file_names(folder), key=natural_key) if IMAGE.fullmatch(name)]


def other_photos(folder: Path) -> list[str]:
    """The names of photos in `folder` in formats that are not read, sorted. Errors as `file_names`."""
    return [name for name in file_names(folder) if OTHER_PHOTO.fullmatch(name)]


def natural_key(name: str) -> list[tuple[int, str]]:
    """What to sort names by for their numbers to count as numbers."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), part) if part.isdecimal() else (0, part) for part in parts]


def read_numbers(path: str | Path, columns: int, what: str) -> np.ndarray:
    """The table float64 `[N, columns]` in a text file; blank lines and those that start with # are left out.

    `what` it should be is said in errors ("the poses"). Raises InputError, naming file and line, for anything that is
    no table of finite numbers.
    """
    rows = []
    for number, line in numbered_lines(path, LARGEST_TABLE, what):
        try:
            values = [float(word) for word in line.replace(",", " ").split()]
        except ValueError:
            values = []
        if len(values) != columns or not np.isfinite(values).all():
            raise InputError(f"{path}:{number}: {line.strip()[:60]!r} should be {count(columns, 'number')} of {what}")
        rows.append(values)
    return np.array(rows, dtype=np.float64).reshape(-1, columns)


def read_matrix(path: str | Path, size: int, what: str) -> np.ndarray:
    """The square matrix float64 `[size, size]` in a text file; InputError as for `read_numbers`."""
    matrix = read_numbers(path, size, what)
    if len(matrix) != size:
        raise InputError(f"{path}: {what} should have {size} rows, found {len(matrix)}; get the file again")
    return matrix
