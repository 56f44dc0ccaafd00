"""The camera files that other programs write, as lenses: plain matrices, COLMAP, OpenCV and ROS, KITTI.

Everything that leaves this module has its pixel centres at integers from 0, whatever the file counts from.
"""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from featdepth.config_values import parse_yaml, shown
from featdepth.errors import InputError
from featdepth.files import read_text
from featdepth.lenses import COEFFICIENTS, Lens, check_pinhole
from featdepth.wording import count

LARGEST_FILE = 1 << 20  # bytes
LARGEST_SIDE = 100_000  # pixels
FORMATS = (
    "a 3x3 matrix, one line `fx fy cx cy`, COLMAP's cameras.txt, an OpenCV or ROS camera yaml, or a KITTI calibration"
)
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
NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]{1,3})?")
COLMAP_MODEL = re.compile(r"[A-Z]{3}[A-Z_]*")
KITTI_ROW = re.compile(r"P_rect_([0-9]{2})|(P[0-9])")
# What OpenCV's files have in place of YAML's own version line, and a tag that says what the keys below it say anyway.
OPENCV_ODDITIES = re.compile(r"^%YAML.*$|!!opencv-matrix\b", re.MULTILINE)
YAML_MODELS = {"plumb_bob": "radtan", "rational_polynomial": "radtan", "equidistant": "fisheye", "fisheye": "fisheye"}


def read_cameras(path: Path, size: tuple[int, int] | None) -> dict[str, Lens]:
    """All cameras in a file by name; `size` is that of files which do not say it."""
    text = read_text(path, LARGEST_FILE, "the intrinsics")
    if "\0" in text:
        raise InputError(f"{path}: the intrinsics are no text; expected {FORMATS}")
    lines = numbered_lines(text)
    if "camera_matrix" in text.lower():
        return {"camera": read_yaml_camera(path, text, size)}
    rows = {words[0].removesuffix(":"): (f"{path}:{number}", words[1:]) for number, words in lines}
    if any(map(KITTI_ROW.fullmatch, rows)):
        return read_kitti_cameras(rows, size)
    if lines and all(len(words) > 1 and COLMAP_MODEL.fullmatch(words[1]) for _, words in lines):
        return {str(number): lens for number, lens in read_colmap_cameras(path).items()}
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


def read_yaml_camera(path: Path, text: str, size: tuple[int, int] | None) -> Lens:
    """The camera of a YAML file from OpenCV (FileStorage) or ROS (camera_info); keys in upper or lower case."""
    content = parse_yaml(OPENCV_ODDITIES.sub("", text), str(path))
    if not isinstance(content, dict):
        raise InputError(f"{path}: the intrinsics are not recognised; expected {FORMATS}")
    values = {str(key).lower(): value for key, value in content.items()}
    intrinsics = np.array(yaml_numbers(path, values, "camera_matrix"))
    if intrinsics.size != 9:
        raise InputError(f"{path}: camera_matrix has {count(intrinsics.size, 'number')} instead of 9")
    if "image_width" in values or "image_height" in values:
        size = checked_size(path, values.get("image_height"), values.get("image_width"))
    return make_lens(
        str(path),
        yaml_model(path, values),
        intrinsics.reshape(3, 3),
        yaml_numbers(path, values, "distortion_coefficients") if "distortion_coefficients" in values else [],
        size,
    )


def yaml_model(path: Path, values: dict) -> str:
    """The lens model that ROS's `distortion_model` or OpenCV's `fisheye_model` tells of; radtan without either."""
    default = "fisheye" if values.get("fisheye_model") else "plumb_bob"
    name = str(values.get("distortion_model") or default)
    if name not in YAML_MODELS:
        raise InputError(f"{path}: distortion_model {shown(name)} is not known; expected {', '.join(YAML_MODELS)}")
    return YAML_MODELS[name]


def yaml_numbers(path: Path, values: dict, key: str) -> list[float]:
    """The `data` of the matrix `key`, or a plain list in its place."""
    value = values.get(key)
    data = value.get("data") if isinstance(value, dict) else value
    if not isinstance(data, list):
        raise InputError(f"{path}: {key} should be a list of numbers, or have one as its `data`")
    return parse_numbers(f"{path}: {key}", [str(number) for number in data], len(data))


def read_matrix(path: Path, lines: list[tuple[int, list[str]]], size: tuple[int, int] | None) -> Lens:
    """A pinhole from three lines of three numbers, or one line `fx fy cx cy`."""
    counts = [len(words) for _, words in lines]
    if counts not in ([3, 3, 3], [4]):
        raise InputError(f"{path}: the intrinsics are not recognised; expected {FORMATS}")
    rows = [parse_numbers(f"{path}:{number}", words, len(words)) for number, words in lines]
    intrinsics = matrix(*rows[0]) if counts == [4] else np.array(rows)
    return make_lens(str(path), "pinhole", intrinsics, [], size)


def make_lens(
    where: str, model: str, intrinsics: np.ndarray, coefficients: Sequence[float], size: tuple[int, int] | None
) -> Lens:
    """The lens with these coefficients; without any, or with a radtan's all 0, a pinhole.

    Raises InputError, naming `where`, for intrinsics that cannot be inverted, an unknown size, and a number of
    coefficients that the model does not have. OpenCV's longer radtans serve where what is beyond the fifth is 0.
    """
    check_pinhole(where, "the camera matrix", intrinsics)
    if size is None:
        raise InputError(f"{where}: nothing says how large the images are; give their size too")
    if model == "radtan" and not any(coefficients[5:]):
        coefficients = coefficients[:5]
    if not coefficients or (model == "radtan" and not any(coefficients)):
        return Lens("pinhole", intrinsics, (), size)
    if len(coefficients) not in COEFFICIENTS[model]:
        counts = " or ".join(map(str, COEFFICIENTS[model]))
        found = count(len(coefficients), "distortion coefficient")
        raise InputError(f"{where}: {found}, but {model} lenses have {counts}; calibrate again")
    return Lens(model, intrinsics, tuple(coefficients), size)


def checked_size(where: str | Path, height: object, width: object) -> tuple[int, int]:
    """Height and width as whole numbers; InputError where they are no size of an image."""
    for side in (height, width):
        if not isinstance(side, numbers.Real) or not 1 <= side <= LARGEST_SIDE or side % 1:
            raise InputError(f"{where}: {shown(width)} x {shown(height)} is no image size")
    return int(height), int(width)


def matrix(fx: float, fy: float, cx: float, cy: float) -> np.ndarray:
    """Intrinsics float64 3x3."""
    return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])


def numbered_lines(text: str) -> list[tuple[int, list[str]]]:
    """The words of each line with its number; without blank ones and comments (#)."""
    lines = ((number, line.replace(",", " ").split()) for number, line in enumerate(text.splitlines(), 1))
    return [(number, words) for number, words in lines if words and not words[0].startswith("#")]


def parse_numbers(where: str, words: Sequence[str], count: int) -> list[float]:
    """`words` as `count` finite numbers; InputError, naming `where` they stand, for anything else."""
    if len(words) != count or not all(map(NUMBER.fullmatch, words)):
        raise InputError(f"{where}: {shown(' '.join(words))} should be {count} numbers")
    values = [float(word) for word in words]
    if not all(map(math.isfinite, values)):
        raise InputError(f"{where}: {shown(' '.join(words))} has a number that is not finite")
    return values
