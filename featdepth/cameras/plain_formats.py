"""The camera files that other programs write, as lenses: plain matrices, COLMAP, OpenCV and ROS, KITTI.

Everything that leaves this module has its pixel centres at integers from 0, whatever the file counts from.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from featdepth.cameras.lenses import Lens
from featdepth.cameras.parts import checked_size, make_lens, parse_numbers
from featdepth.cameras.pinhole import matrix
from featdepth.cameras.yaml_formats import is_yaml, read_json_cameras, read_yaml_cameras
from featdepth.config.values import shown
from featdepth.errors import InputError
from featdepth.files import read_text

LARGEST_FILE = 1 << 20  # bytes
FORMATS = (
    "a 3x3 matrix (3x4 and 4x4 too), one line `fx fy cx cy`, COLMAP's cameras.txt, a yaml of OpenCV, ROS, Kalibr or "
    "EuRoC, NeRF's transforms.json, or a KITTI calibration"
)
SHAPES = [[3, 3, 3], [4, 4, 4], [4, 4, 4, 4]]  # numbers in each line
ONE_LINE = (4, 8, 9, 12, 16)  # fx fy cx cy, with k1 k2 p1 p2 [k3], and matrices row by row
# Model of COLMAP: how many focal lengths it has, the lens model, how many coefficients; the missing ones of four are 0.
COLMAP_MODELS = {
    "SIMPLE_PINHOLE": (1, "pinhole", 0),
    "PINHOLE": (2, "pinhole", 0),
    "SIMPLE_RADIAL": (1, "radtan", 1),
    "RADIAL": (1, "radtan", 2),
    "OPENCV": (2, "radtan", 4),
    "SIMPLE_RADIAL_FISHEYE": (1, "fisheye", 1),
    "RADIAL_FISHEYE": (1, "fisheye", 2),
    "OPENCV_FISHEYE": (2, "fisheye", 4),
}
BRACKETS = re.compile(r"[][(),;]")  # as in printed matrices
COLMAP_MODEL = re.compile(r"[A-Z]{3}[A-Z_]*")
KITTI_ROW = re.compile(r"P_rect_([0-9]{2})|(P[0-9])")


def read_cameras(path: Path, size: tuple[int, int] | None) -> dict[str, Lens]:
    """All cameras in a file by name; `size` is that of files which do not say it."""
    text = read_text(path, LARGEST_FILE, "the intrinsics")
    if "\0" in text:
        raise InputError(f"{path}: the intrinsics are no text; expected {FORMATS}")
    lines = numbered_lines(text)
    if text.lstrip().startswith("{"):
        return read_json_cameras(path, text, size)
    if "camera_matrix" in text.lower() or "%YAML" in text:
        return read_yaml_cameras(path, text, size)
    rows = {words[0].removesuffix(":"): (f"{path}:{number}", words[1:]) for number, words in lines}
    if any(map(KITTI_ROW.fullmatch, rows)):
        return read_kitti_cameras(rows, size)
    if lines and all(len(words) > 1 and COLMAP_MODEL.fullmatch(words[1]) for _, words in lines):
        return {str(number): lens for number, lens in read_colmap_cameras(path).items()}
    if is_yaml(text):
        return read_yaml_cameras(path, text, size)
    return {"camera": read_matrix(path, lines, size)}


def read_colmap_cameras(path: str | Path) -> dict[int, Lens]:
    """The cameras of a COLMAP `cameras.txt` by number. Raises InputError, naming file and line.

    COLMAP counts pixels from the image's corner, so that the first centre is at 0.5; the principal points lose that.
    """
    cameras = {}
    for number, words in numbered_lines(read_text(path, LARGEST_FILE, "the intrinsics")):
        where = f"{path}:{number}"
        if len(words) < 4 or words[1] not in COLMAP_MODELS:
            raise InputError(
                f"{where}: {shown(' '.join(words[:2]))} is no camera `id MODEL width height ...` with a model among "
                f"{', '.join(COLMAP_MODELS)}"
            )
        focals, model, count = COLMAP_MODELS[words[1]]
        identity, width, height, *values = parse_numbers(where, [words[0], *words[2:]], 3 + focals + 2 + count)
        fx, fy = values[0], values[focals - 1]
        cx, cy = values[focals : focals + 2]
        coefficients = values[focals + 2 :]
        if coefficients:
            coefficients += [0.0] * (4 - count)
        size = checked_size(where, height, width)
        cameras[int(identity)] = make_lens(where, model, matrix(fx, fy, cx - 0.5, cy - 0.5), coefficients, size)
    if not cameras:
        raise InputError(f"{path}: no camera in the file; export the model as text with COLMAP's model_converter")
    return cameras


def read_kitti_cameras(rows: dict[str, tuple[str, list[str]]], size: tuple[int, int] | None) -> dict[str, Lens]:
    """The rectified cameras of KITTI's `calib_cam_to_cam.txt` ("00" ...) or `calib.txt` ("P0" ...); pixels from 1.

    rows: by name, where each stands and the words after its name.
    """
    cameras = {}
    for match in filter(None, map(KITTI_ROW.fullmatch, rows)):
        where, words = rows[match[0]]
        intrinsics = np.array(parse_numbers(where, words, 12)).reshape(3, 4)[:, :3]
        intrinsics[:2, 2] -= 1
        own_size = size
        if f"S_rect_{match[1]}" in rows:
            size_where, size_words = rows[f"S_rect_{match[1]}"]
            width, height = parse_numbers(size_where, size_words, 2)
            own_size = checked_size(size_where, height, width)
        cameras[match[1] or match[2]] = make_lens(where, "pinhole", intrinsics, [], own_size)
    return cameras


def read_matrix(path: Path, lines: list[tuple[int, list[str]]], size: tuple[int, int] | None) -> Lens:
    """The camera of a file of nothing but numbers: one of SHAPES in lines of its rows, or all in one line."""
    counts = [len(words) for _, words in lines]
    if counts not in SHAPES and not (len(counts) == 1 and counts[0] in ONE_LINE):
        found = f"; this has lines of {', '.join(map(str, counts[:6]))} words" if counts else ""
        raise InputError(f"{path}: the intrinsics are not recognised; expected {FORMATS}{found}")
    rows = [parse_numbers(f"{path}:{number}", words, len(words)) for number, words in lines]
    values = [value for row in rows for value in row]
    # Nine numbers are a matrix, or fx fy cx cy k1 k2 p1 p2 k3 as programs for SLAM write them.
    if len(values) in (4, 8) or (len(values) == 9 and len(rows) == 1 and values[6:] != [0, 0, 1]):
        return make_lens(str(path), "radtan", matrix(*values[:4]), values[4:], size)
    intrinsics = np.array(values).reshape({9: (3, 3), 12: (3, 4), 16: (4, 4)}[len(values)])[:3, :3]
    return make_lens(str(path), "pinhole", intrinsics, [], size)


def numbered_lines(text: str) -> list[tuple[int, list[str]]]:
    """The words of each line with its number; without blank ones and comments (#)."""
    lines = ((number, BRACKETS.sub(" ", line).split()) for number, line in enumerate(text.splitlines(), 1))
    return [(number, words) for number, words in lines if words and not words[0].startswith("#")]
