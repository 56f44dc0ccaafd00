"""Camera files in YAML and JSON, as lenses: OpenCV, ROS, Kalibr, EuRoC, ORB-SLAM, and NeRF's transforms.json.

Each program has other names for the same few things. They are looked up in the tables below in lower case and without
what is no letter or digit, so that `camera_matrix`, `cameraMatrix` and `Camera_Matrix` are one.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from featdepth.cameras.lenses import Lens
from featdepth.cameras.parts import checked_size, make_lens, parse_numbers
from featdepth.cameras.pinhole import matrix
from featdepth.config.values import parse_yaml, shown
from featdepth.console import count
from featdepth.errors import InputError

# What OpenCV's files have in place of YAML's own version line, tags that say what the keys below them say anyway, and
# the end of a message that ROS prints.
ODDITIES = re.compile(r"^%YAML.*$|!!opencv-(nd-)?matrix\b|^---\s*\Z", re.MULTILINE)
KEY_LINE = re.compile(r"^[ \t]*[\"']?[A-Za-z_][\w./-]*[\"']?:(?:[ \t]|$)", re.MULTILINE)
MATRICES = ("cameramatrix", "k", "m", "intrinsicmatrix")
FOCALS = ("fx", "camerafx", "camera1fx", "flx")  # those of one number each, by the first of their names
COEFFICIENT_KEYS = ("distortioncoefficients", "distortioncoeffs", "distcoeffs", "d")
HEIGHTS, SIZES = ("imageheight", "height", "cameraheight", "h"), ("resolution", "imagesize", "size")
NUMBERED = re.compile(r"(cameramatrix|m|k|p)([0-9])")  # of a stereo rig: M1 and M2; P1 and P2, once rectified
SINGLE = ("k1", "k2", "p1", "p2", "k3")
PLAIN = {"", "pinhole", "perspective", "opencv", "simplepinhole", "simpleradial", "radial", "rectified", "monocular"}
MODELS = {
    **dict.fromkeys(("plumbbob", "radtan", "radialtangential", "rationalpolynomial"), "radtan"),
    **dict.fromkeys(("equidistant", "equi", "fisheye", "kannalabrandt", "opencvfisheye"), "fisheye"),
    "none": "pinhole",
}
KNOWN_MODELS = "plumb_bob, radtan, radial-tangential, rational_polynomial, equidistant, fisheye, none"

Values = dict[str, Any]


def is_yaml(text: str) -> bool:
    """Whether a text has a line `name: ...`."""
    return KEY_LINE.search(text) is not None


def read_yaml_cameras(path: Path, text: str, size: tuple[int, int] | None) -> dict[str, Lens]:
    """The cameras of a YAML file by name: `cam0` of Kalibr, `M1` of a stereo rig, `camera` where there is only one."""
    documents = [part for part in re.split(r"^---[ \t]*$", ODDITIES.sub("", text), flags=re.MULTILINE) if is_yaml(part)]
    if len(documents) > 1:  # several messages of ROS
        each = (read_yaml_cameras(path, document, size) for document in documents)
        return {f"{number}-{name}": lens for number, cameras in enumerate(each, 1) for name, lens in cameras.items()}
    content = parse_yaml(ODDITIES.sub("", text), str(path))
    if not isinstance(content, dict):
        if "camera_matrix" in text:
            raise InputError(f"{path}: camera_matrix should be a list of numbers, or have one as its `data`")
        raise InputError(f"{path}: the intrinsics are not recognised; nearest is a yaml of OpenCV, with camera_matrix")
    return cameras_of(path, content, size)


def cameras_of(path: Path, content: Values, size: tuple[int, int] | None) -> dict[str, Lens]:
    """The cameras in a YAML or JSON file's content, by name."""
    entries = {str(name): plain(value) for name, value in content.items() if isinstance(value, dict)}
    found = {name: values for name, values in entries.items() if "intrinsics" in values or has_matrix(values)}
    if found:
        return {name: yaml_lens(f"{path}: {name}", values, size) for name, values in found.items()}
    values = plain(content)
    matches = {name: match for name in content if (match := NUMBERED.fullmatch(plain_name(name)))}
    # The rectified cameras, where a file has nothing else, as stereoRectify's has.
    rig = {name: match for name, match in matches.items() if match[1] != "p"} or matches
    if rig:
        return {
            str(name): yaml_lens(f"{path}: {name}", of_rig(values, *match.groups()), size)
            for name, match in rig.items()
        }
    return {"camera": yaml_lens(str(path), values, size)}


def of_rig(values: Values, matrix_key: str, number: str) -> Values:
    """The values of one camera of a rig: those with its number, and the size that they share."""
    own = {"cameramatrix": values[matrix_key + number]}
    for key in COEFFICIENT_KEYS:
        if matrix_key != "p" and key + number in values:
            own["distortioncoefficients"] = values[key + number]
    shared = {"imageheight", "imagewidth", "height", "width", *SIZES, "distortionmodel", "fisheyemodel"}
    return own | {key: value for key, value in values.items() if key in shared}


def yaml_lens(where: str, values: Values, size: tuple[int, int] | None) -> Lens:
    """The lens that the values of one camera tell, by names as in `plain`."""
    kind = plain_name(values.get("cameramodel") or values.get("cameratype") or "")
    if kind not in PLAIN and kind not in MODELS:
        raise InputError(
            f"{where}: camera_model {shown(kind)} is not read; nearest are pinhole cameras; calibrate as one"
        )
    intrinsics = intrinsics_of(where, values)
    return make_lens(
        where, model_of(where, values, kind), intrinsics, coefficients_of(where, values), size_of(where, values, size)
    )


def intrinsics_of(where: str, values: Values) -> np.ndarray:
    """Intrinsics 3x3 of a camera's values."""
    if "intrinsics" in values:
        return matrix(*numbers_in(where, values, "intrinsics", 4))
    key = next((key for key in MATRICES if key in values), None)
    if key is not None:
        name = "camera_matrix" if key == "cameramatrix" else key
        found = numbers_in(f"{where}: {name}" if key == "cameramatrix" else where, values, key)
        if len(found) not in (9, 12):
            raise InputError(f"{where}: {name} has {count(len(found), 'number')} instead of 9")
        return np.array(found).reshape(3, -1)[:, :3]
    for name in FOCALS:
        if name in values:
            prefix = name.removesuffix("fx")
            return matrix(*(number_in(where, values, prefix + key) for key in ("fx", "fy", "cx", "cy")))
    raise InputError(
        f"{where}: the intrinsics are not recognised among {', '.join(list(values)[:6])}; nearest is OpenCV's yaml, "
        "whose camera_matrix should be a list of numbers"
    )


def coefficients_of(where: str, values: Values) -> list[float]:
    """The distortion coefficients of a camera's values; none where there are none."""
    key = next((key for key in COEFFICIENT_KEYS if key in values), None)
    if key is not None:
        return [] if values[key] is None else numbers_in(where, values, key)
    prefix = next((prefix for prefix in ("camera", "camera1", "") if f"{prefix}k1" in values), None)
    if prefix is None:
        return []
    names = SINGLE if f"{prefix}p1" in values else ("k1", "k2", "k3", "k4")
    return [number_in(where, values, prefix + name) for name in names if prefix + name in values]


def size_of(where: str, values: Values, size: tuple[int, int] | None) -> tuple[int, int] | None:
    """Height and width in a camera's values, else `size`."""
    for key in HEIGHTS:
        width_key = key.replace("height", "width") if key != "h" else "w"
        if key in values or width_key in values:
            return checked_size(where, values.get(key), values.get(width_key))
    key = next((key for key in SIZES if key in values), None)
    if key is None:
        return size
    width, height = numbers_in(where, values, key, 2)
    return checked_size(where, height, width)


def model_of(where: str, values: Values, kind: str) -> str:
    """The lens model by `distortion_model`, OpenCV's `fisheye_model` or the kind of camera; radtan without either."""
    default = "fisheye" if values.get("fisheyemodel") else MODELS.get(kind, "radtan")
    name = values.get("distortionmodel")
    if not name:
        return default
    model = MODELS.get(plain_name(name))
    if model is None:
        raise InputError(f"{where}: distortion_model {shown(name)} is not known; expected {KNOWN_MODELS}")
    if model == "pinhole" and any(coefficients_of(where, values)):
        raise InputError(f"{where}: distortion_model none has coefficients that are not 0; name their model")
    return "radtan" if model == "pinhole" else model


def read_json_cameras(path: Path, text: str, size: tuple[int, int] | None) -> dict[str, Lens]:
    """The cameras of a JSON file: NeRF's transforms.json, whose pixels begin at the corner, or as YAML has them.

    NeRF has one camera for all frames, or one for each.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: no valid JSON ({error}); export it again") from None
    shared = {str(key).lower(): value for key, value in content.items()}
    if any(key in shared for key in ("fl_x", "camera_angle_x")):
        return {"camera": nerf_lens(str(path), shared, size)}
    frames = [frame for frame in shared.get("frames") or [] if isinstance(frame, dict) and "fl_x" in frame]
    if frames:
        return {
            str(frame.get("file_path", number)): nerf_lens(f"{path}: frame {number}", shared | frame, size)
            for number, frame in enumerate(frames)
        }
    if any(key in (*MATRICES, *FOCALS, "intrinsics") for key in plain(content)):
        return cameras_of(path, content, size)
    raise InputError(
        f"{path}: the intrinsics are not recognised; nearest is NeRF's transforms.json, with fl_x or camera_angle_x"
    )


def nerf_lens(where: str, values: Values, size: tuple[int, int] | None) -> Lens:
    """The lens of one camera of a transforms.json."""
    if "w" in values or "h" in values:
        size = checked_size(where, values.get("h"), values.get("w"))
    if size is None:
        raise InputError(f"{where}: nothing says how large the images are; give their size too")
    height, width = size
    if "fl_x" in values:
        fx = number_in(where, values, "fl_x")
    else:
        fx = width / 2 / math.tan(number_in(where, values, "camera_angle_x") / 2)
    fy = number_in(where, values, "fl_y") if "fl_y" in values else fx
    cx = number_in(where, values, "cx") if "cx" in values else width / 2
    cy = number_in(where, values, "cy") if "cy" in values else height / 2
    kind = plain_name(values.get("camera_model") or "")
    is_fisheye = bool(values.get("is_fisheye")) or MODELS.get(kind) == "fisheye"
    if not is_fisheye and kind not in PLAIN:
        raise InputError(f"{where}: camera_model {shown(kind)} is not read; nearest are OPENCV and OPENCV_FISHEYE")
    names = ("k1", "k2", "k3", "k4") if is_fisheye else (*SINGLE, "k4")
    coefficients = [number_in(where, values, name) if name in values else 0.0 for name in names]
    return make_lens(
        where, "fisheye" if is_fisheye else "radtan", matrix(fx, fy, cx - 0.5, cy - 0.5), coefficients, size
    )


def plain_name(name: object) -> str:
    """A name in lower case, its letters and digits alone."""
    return re.sub(r"[^a-z0-9]", "", str(name).lower())


def plain(values: dict[Any, Any]) -> Values:
    """The same values by plain names."""
    return {plain_name(key): value for key, value in values.items()}


def has_matrix(values: Values) -> bool:
    """Whether the values are those of a camera in a file of several."""
    return any(key in values for key in MATRICES) and "data" not in values


def number_in(where: str, values: Values, key: str) -> float:
    """The number called `key`. Raises InputError."""
    if key not in values:
        raise InputError(f"{where}: {key} is missing among {', '.join(list(values)[:6])}; write it too")
    return parse_numbers(f"{where}: {key}", [str(values.get(key))], 1)[0]


def numbers_in(where: str, values: Values, key: str, count: int | None = None) -> list[float]:
    """The numbers of a list, of a list of rows, or of the `data` of a matrix. Raises InputError."""
    value = values.get(key)
    data = value.get("data") if isinstance(value, dict) else value
    if not isinstance(data, list):
        raise InputError(f"{where}: {key} should be a list of numbers, or have one as its `data`")
    flat = [number for row in data for number in (row if isinstance(row, list) else [row])]
    return parse_numbers(f"{where}: {key}", [str(number) for number in flat], len(flat) if count is None else count)
