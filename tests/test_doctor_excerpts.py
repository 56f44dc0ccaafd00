"""Real data, broken on purpose: the doctor names the fault. See test_doctor.py for the street and for healthy data.

What is long here is tested there on the street.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_doctor import SHARED, diagnose, faults, reorder

ODOMETRY, INDOOR, RAW = (SHARED / name for name in ("kitti_odometry_mini", "indoor_mini", "kitti_mini/kitti_raw"))
FRAMES, INDOOR_FRAMES = 30, 120  # of the excerpts, that are looked at

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no excerpts in {SHARED}")


@pytest.fixture
def odometry(tmp_path: Path) -> Path:
    """The first frames of KITTI odometry's sequence 06, grey stereo."""
    root, source = tmp_path / "odometry", ODOMETRY / "sequences/06"
    for camera in ("image_0", "image_1"):
        (root / "sequences/06" / camera).mkdir(parents=True)
        for path in sorted((source / camera).iterdir())[:FRAMES]:
            copy_file(path, root / "sequences/06" / camera / path.name)
    copy_file(source / "calib.txt", root / "sequences/06/calib.txt")
    return root


def copy_file(source: Path, target: Path) -> None:
    """The content alone: the excerpts may be protected against writing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def change_calibration(root: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Replace P of both cameras by `change(P)`."""
    path = root / "sequences/06/calib.txt"
    lines = [line.partition(":") for line in path.read_text().splitlines()]
    changed = [(name, change(np.array(row.split(), dtype=float).reshape(3, 4)).ravel()) for name, _, row in lines]
    path.write_text("".join(f"{name}: {' '.join(f'{number:.12e}' for number in row)}\n" for name, row in changed))


def swap_axes(root: Path) -> None:
    exchange = np.eye(3)[[1, 0, 2]]
    change_calibration(root, lambda p: np.column_stack([exchange @ p[:, :3] @ exchange, p[:, 3]]))


def double_resolution(root: Path) -> None:
    change_calibration(root, lambda p: np.diag([2.0, 2.0, 1.0]) @ p)


def swap_stereo(root: Path) -> None:
    images = root / "sequences/06"
    (images / "image_0").rename(images / "left")
    (images / "image_1").rename(images / "image_0")
    (images / "left").rename(images / "image_1")


def stop_camera(root: Path) -> None:
    for camera in ("image_0", "image_1"):
        reorder(root / "sequences/06" / camera, np.zeros(FRAMES, dtype=int))


def shuffle_frames(root: Path) -> None:
    order = np.random.default_rng(0).permutation(FRAMES)
    for camera in ("image_0", "image_1"):
        reorder(root / "sequences/06" / camera, order)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (swap_axes, "swapped_axes"),
        pytest.param(double_resolution, "wrong_resolution", marks=pytest.mark.long),
        (swap_stereo, "swapped_stereo"),
        pytest.param(stop_camera, "static", marks=pytest.mark.long),
        (shuffle_frames, "shuffled_frames"),
    ],
)
def test_damage_of_odometry_is_named(
    odometry: Path, tmp_path: Path, damage: Callable[[Path], None], expected: str
) -> None:
    damage(odometry)
    assert faults(diagnose(tmp_path, odometry, kind="kitti_odometry", split="time")) == {expected}


@pytest.mark.long
def test_frame_step_of_ten(odometry: Path, tmp_path: Path) -> None:
    split = write_lists(tmp_path, train=[f"06 {frame} l" for frame in range(10, FRAMES)])
    findings = diagnose(tmp_path, odometry, kind="kitti_odometry", frames=[0, -10], split=split)
    assert faults(findings) - {"leakage"} == {"step_too_large"}  # one drive is all parts


@pytest.mark.long
def test_ground_truth_of_another_drive(tmp_path: Path) -> None:
    """The indoor sequence as two drives that have each other's depth."""
    root, frames = tmp_path / "indoor", sorted(INDOOR.glob("*.color.*"))[:INDOOR_FRAMES]
    half = len(frames) // 2
    for name, own, others in (("seq-01", frames[:half], frames[half:]), ("seq-02", frames[half:], frames[:half])):
        for path, other in zip(own, others, strict=True):
            stem, other_stem = (each.name.split(".")[0] for each in (path, other))
            copy_file(path, root / name / path.name)
            copy_file(INDOOR / f"{stem}.pose.txt", root / name / f"{stem}.pose.txt")
            copy_file(INDOOR / f"{other_stem}.depth.png", root / name / f"{stem}.depth.png")
    copy_file(INDOOR / "camera-intrinsics.txt", root / "camera-intrinsics.txt")
    findings = diagnose(tmp_path, root, kind="seven_scenes", split="time", frames=[0, -8, 8])
    assert faults(findings) == {"foreign_ground_truth"}


def test_a_test_drive_in_the_training_list(tmp_path: Path) -> None:
    """Of KITTI raw: once under its own name, once as a copy under another."""
    root = tmp_path / "raw"
    for path in RAW.glob("*/*.txt"):
        copy_file(path, root / path.relative_to(RAW))
    tested, copied = "2011_09_26/2011_09_26_drive_0013_sync", "2011_09_26/2011_09_26_drive_0099_sync"
    for path in sorted((RAW / tested / "image_02/data").iterdir())[:8]:
        for drive in (tested, copied):
            copy_file(path, root / drive / "image_02/data" / path.name)
    for drive in (tested, copied):
        split = write_lists(tmp_path, train=[f"{drive} {frame} l" for frame in (97, 99)], test=[f"{tested} 98 l"])
        assert faults(diagnose(tmp_path, root, frames=[0, -1, 1], split=split)) == {"leakage"}


def write_lists(folder: Path, **samples: list[str]) -> str:
    """A folder of lists; a part that is not given has the samples of the first."""
    for part in ("train", "val", "test"):
        lines = samples.get(part, samples["train"])
        (folder / f"{part}_files.txt").write_text("".join(f"{line}\n" for line in lines))
    return str(folder)
