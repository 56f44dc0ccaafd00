"""Text that other programs have written: byte order marks, line ends of Windows, and encodings that are not read."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from featdepth.cameras.intrinsics_files import read_intrinsics
from featdepth.config import load_config
from featdepth.data.kitti.calibration import read_rows
from featdepth.data.kitti.drives import KITTI_DRIVES
from featdepth.data.kitti.oxts import read_speed, read_times
from featdepth.data.listing import read_matrix, read_numbers
from featdepth.data.samples import read_list
from featdepth.data.sets.cityscapes import read_timestamp
from featdepth.data.sets.cityscapes import read_values as read_cityscapes
from featdepth.data.sets.clips import read_record
from featdepth.data.sets.eth3d import read_thin_prism_cameras
from featdepth.data.sets.euroc_files import read_images, read_sensor
from featdepth.data.sets.seven_scenes import split_drives
from featdepth.data.sets.tum_rgbd import read_file_list
from featdepth.errors import InputError
from featdepth.odometry.trajectory_files import read_trajectory
from featdepth.prepare_video.speed import read_speeds

POSE = "1 0 0 0 0 1 0 0 0 0 1 0\n"
RIG = "P0: 700 0 600 0 0 700 180 0 0 0 1 0\nP1: 800 0 600 -400 0 800 180 0 0 0 1 0\n"
YAML = "image_width: 640\nimage_height: 480\ncamera_matrix:\n  data: [500, 0, 320, 0, 500, 240, 0, 0, 1]\n"
SIZE = (480, 640)

# By kind of file: its text, and what a reader makes of it, from the first line on.
FILES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "list": ("2011_09_26/2011_09_26_drive_0013_sync 95 l\n" * 2, partial(read_list, naming=KITTI_DRIVES)),
    "calibration": (RIG, read_rows),
    "table": ("1 2\n3 4\n", lambda path: read_numbers(path, 2, "numbers").tolist()),
    "pose": ("1 0\n0 1\n", lambda path: read_matrix(path, 2, "a matrix").tolist()),
    "times": ("2011-09-26 13:10:51.175862102\n\n", lambda path: str(read_times(path))),
    "oxts": (" ".join(["1.5"] * 30) + "\n", read_speed),
    "speeds": ("0,1\n1,2\n", lambda path: read_speeds(str(path)).travelled.tolist()),
    "tum_rgbd": ("1.5 rgb/1.5.png\n2.5 rgb/2.5.png\n", lambda path: read_file_list(path)[0].tolist()),
    "cityscapes": (json.dumps({"extrinsic": {"baseline": 0.2}}), lambda path: read_cityscapes(str(path), "the camera")),
    "timestamp": ("1400000000\n", lambda path: read_timestamp(str(path))),
    "seven_scenes": ("sequence1\nsequence2\n", lambda path: list(split_drives(path.parent, path))),
    "eth3d": ("1 THIN_PRISM_FISHEYE 64 32" + 12 * " 0.5" + "\n# done\n", read_thin_prism_cameras),
    "euroc_sensor": ("rate_hz: 20\nresolution: [752, 480]\n", read_sensor),
    "kitti_trajectory": (POSE * 2, lambda path: read_trajectory(path).poses.tolist()),
    "tum_trajectory": ("1 0 0 0 0 0 0 1\n2 0 0 0 0 0 0 1\n", lambda path: read_trajectory(path).times.tolist()),
    "four_numbers": ("585 586 320 240\n", lambda path: repr(read_intrinsics(path, SIZE))),
    "matrix": ("585 0 320\n0 586 240\n0 0 1\n", lambda path: repr(read_intrinsics(path, SIZE))),
    "kitti_camera": (RIG, lambda path: repr(read_intrinsics(f"{path}#P0", (376, 1241)))),
    "colmap": ("1 PINHOLE 640 480 500 500 320 240\n", lambda path: repr(read_intrinsics(path))),
    "opencv": (f"%YAML:1.0\n---\n{YAML}", lambda path: repr(read_intrinsics(path))),
    "ros": (YAML, lambda path: repr(read_intrinsics(path))),
    "configuration": (
        "data:\n  root: .\n  height: 64\n  width: 96\n",
        lambda path: load_config(path, check_files=False, training=False).data.height,
    ),
    "clip": (json.dumps({"camera": "one", "seconds": [0.5]}, indent=1), read_record),
}


@pytest.mark.parametrize("kind", FILES)
def test_mark_and_line_ends_of_windows_change_nothing(kind: str, tmp_path: Path) -> None:
    text, read = FILES[kind]
    path = tmp_path / "file.txt"
    path.write_bytes(text.encode())
    expected = read(path)
    for mark, end in ((b"\xef\xbb\xbf", "\n"), (b"", "\r\n"), (b"\xef\xbb\xbf", "\r\n")):
        path.write_bytes(mark + text.replace("\n", end).encode())
        assert read(path) == expected, (mark, end)


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_other_encodings_are_named(kind: str, encoding: str, tmp_path: Path) -> None:
    text, read = FILES[kind]
    (tmp_path / "file.txt").write_bytes(text.encode(encoding))
    name = encoding.upper()[:6] if encoding != "utf-32" else "UTF-32"
    with pytest.raises(InputError, match=f"file.txt: text in {name}, which is not read; save .* as UTF-8"):
        read(tmp_path / "file.txt")


def test_list_of_images_with_a_mark(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/7.png").touch()
    (tmp_path / "data.csv").write_bytes(b"\xef\xbb\xbf#timestamp [ns],filename\r\n7,7.png\r\n")
    assert list(read_images(tmp_path)) == [7]


def test_the_first_camera_is_not_lost_behind_a_mark(tmp_path: Path) -> None:
    """The mark would make `P0:` another word, and leave P1 as the only camera of the file."""
    (tmp_path / "calib.txt").write_bytes(b"\xef\xbb\xbf" + RIG.encode())
    with pytest.raises(InputError, match=r"several cameras \(P0, P1\)"):
        read_intrinsics(tmp_path / "calib.txt", (376, 1241))
    assert np.isclose(read_intrinsics(f"{tmp_path}/calib.txt#P0", (376, 1241)).intrinsics[0, 0], 700)
