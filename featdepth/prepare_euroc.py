"""Undistort and rectify EuRoC's stereo sequences for `data.kind: euroc`.

python -m featdepth.prepare_euroc /data/euroc --out /data/euroc_rectified

INPUT is a sequence as downloaded (MH_01_easy, with mav0 in it) or a folder of such. Each becomes a folder of OUT:

cam0/000000.png, cam1/000000.png   left and right, grey; numbers count the camera's periods: a gap is a lost image
intrinsics.txt                     3x3 of both cameras, pixel centres at integers
right_from_left.txt                4x4, metres
times.txt                          frame, seconds
poses.txt                          frame, first three rows of world_from_left (metres)
manifest.json                      what it was made of, and the images without a partner

A folder appears when all of it is written, and one that is there is left as it is: after an interruption the same
command goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from featdepth.cameras.lenses import remap, undistortion_map
from featdepth.cameras.rectify import RectifiedPair, rectify
from featdepth.config import Parser
from featdepth.console import count, watched
from featdepth.data.baselines import beside
from featdepth.data.images import read_photo
from featdepth.data.sets.euroc_files import Sensor, read_camera, read_truth
from featdepth.errors import InputError, run_program
from featdepth.files import read_json, write_text
from featdepth.odometry.interpolate import interpolate_poses
from featdepth.two_view.opencv import opencv

VERSION = 2  # of what is written: raise it when that changes
POSE_REACH = 0.05  # seconds from an image to the nearest measured pose; there are 200 a second
LARGEST_MANIFEST = 16 << 20  # bytes


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help="a sequence, or a folder of sequences")
    parser.add_argument("--out", required=True, type=Path, metavar="OUT", help="where the rectified sequences go")
    arguments = parser.parse_args()
    opencv()  # said before any work
    for sequence in find_sequences(arguments.inputs):
        print(prepare(sequence, arguments.out / sequence.name))


def find_sequences(inputs: Iterable[Path]) -> list[Path]:
    """The sequences among the inputs and at most two levels below. Raises InputError for an input without any."""
    marker = Path("mav0", "cam0", "data.csv")
    sequences: dict[str, Path] = {}
    for path in (Path(os.path.abspath(path)) for path in inputs):
        levels = ("", "*/", "*/*/")
        found = sorted(each.parents[2] for level in levels for each in path.glob(f"{level}{marker}"))
        if not found:
            raise InputError(f"{path}: no sequence of EuRoC here; expected {marker} in it, or in folders of it")
        for sequence in found:
            if sequences.setdefault(sequence.name, sequence) != sequence:
                raise InputError(f"{sequence}: {sequences[sequence.name]} has the same name; rename one of them")
    return list(sequences.values())


def prepare(sequence: Path, out: Path) -> str:
    """Write the rectified sequence to the folder `out`, unless it is there; says in a line what was done.

    Raises InputError for a damaged sequence, and where `out` holds anything else.
    """
    left, right = (read_camera(sequence / "mav0" / camera) for camera in ("cam0", "cam1"))
    try:
        pair = rectify(left.lens, right.lens, np.linalg.inv(right.body_from_camera) @ left.body_from_camera)
    except InputError as error:
        raise InputError(f"{sequence}: {error}") from None
    times = sorted(left.images.keys() & right.images.keys())
    if not times:
        raise InputError(f"{sequence}: cam0 and cam1 have no images of the same time; download the sequence again")
    manifest = {
        "version": VERSION,
        "sequence": sequence.name,
        "pairs": len(times),
        "size": list(pair.size),
        "intrinsics": pair.intrinsics.tolist(),
        "baseline": pair.baseline,
        "only_in_cam0": sorted(left.images.keys() - right.images.keys()),  # nanoseconds
        "only_in_cam1": sorted(right.images.keys() - left.images.keys()),
    }
    lost = len(manifest["only_in_cam0"]) + len(manifest["only_in_cam1"])
    summary = (
        f"{out}: {count(len(times), 'pair')} of {pair.size[1]}x{pair.size[0]}, {count(lost, 'image')} without a partner"
    )
    if out.exists():
        check_same(out, manifest)
        return f"{summary}; already there"

    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    frames = dict(zip(number_frames(times, left.rate), times, strict=True))
    write_poses(partial / "poses.txt", sequence / "mav0" / "state_groundtruth_estimate0", left, pair, frames)
    write_images(partial / "cam0", left, pair, pair.left_from_rectified, frames)
    write_images(partial / "cam1", right, pair, pair.right_from_rectified, frames)
    write_text(partial / "intrinsics.txt", "".join(map(line_of, pair.intrinsics)))
    write_text(partial / "right_from_left.txt", "".join(map(line_of, beside(pair.baseline))))
    seconds = [f"{frame} {time // 10**9}.{time % 10**9:09}\n" for frame, time in frames.items()]
    write_text(partial / "times.txt", "".join(seconds))
    write_text(partial / "manifest.json", json.dumps(manifest, indent=1) + "\n")
    os.replace(partial, out)
    return summary


def check_same(out: Path, manifest: dict[str, Any]) -> None:
    """Raise InputError unless the folder `out` is the prepared sequence that `manifest` describes."""
    try:
        found = read_json(out / "manifest.json", LARGEST_MANIFEST, "the manifest")
    except (ValueError, RecursionError, InputError):
        found = None
    if found != manifest:
        raise InputError(f"{out}: is there and was not made of this sequence; remove it or choose another --out")


def number_frames(times: list[int], rate: float) -> list[int]:
    """Frame numbers from 0 of images at `times` (nanoseconds): one more each period of the `rate` (a second)."""
    periods = np.rint(np.diff(times) * rate / 1e9).astype(int)
    # From image to image, so that a clock that is a little off does not add up.
    return [0, *np.cumsum(periods.clip(min=1)).tolist()]


def write_images(
    folder: Path, camera: Sensor, pair: RectifiedPair, camera_from_rectified: np.ndarray, frames: dict[int, int]
) -> None:
    """Write a camera's rectified images of the frames {number: nanoseconds}. Raises InputError for unreadable ones."""
    pixels = undistortion_map(camera.lens, pair.intrinsics, pair.size, camera_from_rectified)
    folder.mkdir(parents=True)
    for frame, time in watched(frames.items(), folder.name, "images", len(frames)):
        photo = read_photo(camera.images[time], camera.lens.size)
        grey = np.array(Image.fromarray(photo.pixels).convert("L"))
        Image.fromarray(remap(grey, pixels)).save(folder / f"{frame:06}.png", compress_level=4)


def write_poses(path: Path, folder: Path, left: Sensor, pair: RectifiedPair, frames: dict[int, int]) -> None:
    """Write world_from_left of those frames {number: nanoseconds} for which the ground truth in `folder` has one."""
    if not folder.is_dir():
        return
    origin = min(frames.values())
    truth = read_truth(folder, origin)
    wanted = np.array([time - origin for time in frames.values()]) / 1e9
    poses = interpolate_poses(truth.times, truth.positions, truth.quaternions, wanted, POSE_REACH)
    camera_from_rectified = np.eye(4)
    camera_from_rectified[:3, :3] = pair.left_from_rectified
    measured_from_left = np.linalg.inv(truth.body_from_measured) @ left.body_from_camera @ camera_from_rectified
    numbers = list(frames)
    rows = [f"{numbers[index]} {line_of((pose @ measured_from_left)[:3])}" for index, pose in poses.items()]
    write_text(path, "".join(rows))


def line_of(values: np.ndarray) -> str:
    """Numbers as a line of text."""
    return " ".join(f"{value:.10g}" for value in np.ravel(values)) + "\n"


if __name__ == "__main__":
    run_program(main)
