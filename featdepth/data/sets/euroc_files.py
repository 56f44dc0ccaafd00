"""EuRoC's sequences as downloaded: cameras, images and ground truth in the ASL layout of `<sequence>/mav0`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from featdepth.cameras.lenses import Lens
from featdepth.cameras.pinhole import matrix
from featdepth.config.values import convert, parse_yaml
from featdepth.console import count
from featdepth.data.listing import file_names, read_numbers
from featdepth.errors import InputError
from featdepth.files import numbered_lines, read_text

TRUTH_COLUMNS = 17  # nanoseconds, position, quaternion (w first), velocity, two biases
IMAGE_LINE = re.compile(r"\s*([0-9]{1,19})\s*,\s*([^\s,/\\]+)\s*")
LARGEST_SENSOR, LARGEST_LIST = 1 << 16, 64 << 20  # bytes


class Sensor(NamedTuple):
    """A camera."""

    lens: Lens
    body_from_camera: np.ndarray  # 4x4, metres
    rate: float  # images a second
    images: dict[int, Path]  # those on the disk, by nanoseconds, in order


class Truth(NamedTuple):
    """Poses that were measured."""

    times: np.ndarray  # [N] seconds
    positions: np.ndarray  # [N, 3] of the measured frame in the world, metres
    quaternions: np.ndarray  # [N, 4] x, y, z, w of its rotation into the world
    body_from_measured: np.ndarray  # 4x4, metres


def read_camera(folder: Path) -> Sensor:
    """A camera of its sensor.yaml and data.csv. Raises InputError, naming the file, for anything unlike EuRoC's."""
    path = folder / "sensor.yaml"
    values = read_sensor(path)
    for key, known in (("camera_model", "pinhole"), ("distortion_model", "radial-tangential")):
        if values.get(key) != known:
            raise InputError(f"{path}: {key} is {values.get(key)!r}; only {known} can be rectified")
    width, height = numbers(values.get("resolution"), 2, path, "resolution")
    fx, fy, cx, cy = numbers(values.get("intrinsics"), 4, path, "intrinsics")
    (rate,) = numbers([values.get("rate_hz")], 1, path, "rate_hz")
    if min(width, height, fx, fy) < 1 or width % 1 or height % 1 or rate <= 0:
        raise InputError(f"{path}: resolution, focal lengths and rate_hz must be above 0; download the file again")
    coefficients = numbers(values.get("distortion_coefficients"), 4, path, "distortion_coefficients")
    intrinsics = matrix(fx, fy, cx, cy)
    lens = Lens("radtan", intrinsics, tuple(coefficients), (int(height), int(width)))
    return Sensor(lens, read_mount(values, path), rate, read_images(folder))


def read_images(folder: Path) -> dict[int, Path]:
    """The images that a camera's data.csv lists and that are there, by nanoseconds, in order. Raises InputError."""
    path = folder / "data.csv"
    there, images = set(file_names(folder / "data")), {}
    for number, line in numbered_lines(path, LARGEST_LIST, "the list of images"):
        match = IMAGE_LINE.fullmatch(line)
        if not match:
            raise InputError(f"{path}:{number}: {line.strip()[:60]!r} should be nanoseconds and the name of an image")
        if match[2] in there:
            images[int(match[1])] = folder / "data" / match[2]
    return dict(sorted(images.items()))


def read_truth(folder: Path, origin: int) -> Truth:
    """The ground truth of its sensor.yaml and data.csv; its times count from `origin` (nanoseconds), since seconds
    from 1970 on would lose digits. Raises InputError."""
    path, sensor = folder / "data.csv", folder / "sensor.yaml"
    table = read_numbers(path, TRUTH_COLUMNS, "the ground truth")
    quaternions = table[:, [5, 6, 7, 4]]
    if (abs(np.linalg.norm(quaternions, axis=1) - 1) > 0.01).any():
        raise InputError(f"{path}: has quaternions that are not of length 1; download the file again")
    return Truth((table[:, 0] - origin) / 1e9, table[:, 1:4], quaternions, read_mount(read_sensor(sensor), sensor))


def read_sensor(path: Path) -> dict[str, Any]:
    """What a sensor.yaml says. Raises InputError."""
    text = read_text(path, LARGEST_SENSOR, "the calibration")
    values = parse_yaml(re.sub(r"\A%YAML:1\.0.*", "", text), str(path))  # OpenCV's first line is no YAML
    if not isinstance(values, dict):
        raise InputError(f"{path}: is no calibration of EuRoC; download the file again")
    return values


def read_mount(values: dict[str, Any], path: Path) -> np.ndarray:
    """T_BS of a sensor.yaml: body_from_sensor 4x4, metres. Raises InputError where it is no rigid transform."""
    matrix = values.get("T_BS")
    data = matrix.get("data") if isinstance(matrix, dict) else None
    pose = np.array(numbers(data, 16, path, "T_BS")).reshape(4, 4)
    rotation = pose[:3, :3]
    is_rotation = np.allclose(rotation @ rotation.T, np.eye(3), rtol=0, atol=1e-3) and np.linalg.det(rotation) > 0
    if not is_rotation or (pose[3] != (0, 0, 0, 1)).any():
        raise InputError(f"{path}: T_BS is no rigid transform; download the file again")
    return pose


def numbers(values: Any, expected: int, path: Path, name: str) -> list[float]:
    """`values` as `expected` finite numbers; InputError, naming the file and what it calls them, for anything else."""
    try:
        found = convert(values, list[float])
    except ValueError:
        found = []
    if len(found) != expected:
        raise InputError(f"{path}: {name} should be {count(expected, 'number')}; download the file again")
    return found
