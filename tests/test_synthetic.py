"""The synthetic street: what it writes is KITTI's layout and true, and it is the same every time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import call_program, run_program_process
from PIL import Image

from featdepth.data import synthetic
from featdepth.data.kitti.calibration import Calibration
from featdepth.data.kitti.ground_truth import lidar_depth, read_scan
from featdepth.data.street.render import Painter, pulses
from featdepth.data.synthetic import Drive, Street, drive_parts, render_frame, write_street
from featdepth.errors import InputError

SMALL = {"drives": 4, "frames": 5, "height": 48, "width": 160, "seed": 3}
PICTURE = Street(drives=14, frames=8, height=96, width=320, seed=5)


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "street"
    assert write_street(out, **SMALL, workers=1)
    return out


@pytest.fixture(scope="module", params=[0, 1, 2, 6])
def drive(request: pytest.FixtureRequest) -> Drive:
    return Drive(PICTURE, request.param)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_split(folder: Path, part: str) -> list[tuple[str, int, str]]:
    lines = (folder / "splits" / f"{part}_files.txt").read_text().splitlines()
    return [(name, int(frame), side) for name, frame, side in map(str.split, lines)]


def sample(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bilinear values [H, W, C] of `image` at pixel positions x, y [H, W]."""
    height, width = image.shape[:2]
    grid = torch.tensor(np.stack([x / (width - 1), y / (height - 1)], -1) * 2 - 1)[None].float()
    source = torch.tensor(image).permute(2, 0, 1)[None].float()
    return torch.nn.functional.grid_sample(source, grid, align_corners=True)[0].permute(1, 2, 0).numpy()


def reprojection_error(drive: Drive, target: tuple[int, int], source: tuple[int, int]) -> tuple[float, float]:
    """Median error (grey levels) over co-visible static pixels of the source warped into the target, and unwarped.

    target, source: (frame, camera).
    """
    one, other = render_frame(drive, *target), render_frame(drive, *source)
    height, width = one.depth.shape
    y, x = np.mgrid[:height, :width].astype(float)
    known = np.isfinite(one.depth) & ~one.moving
    depth = np.where(known, one.depth, 1.0)
    rays = np.linalg.inv(drive.rig.intrinsics) @ np.stack([x, y, np.ones_like(x)]).reshape(3, -1)
    motion = np.linalg.inv(drive.camera_pose(*source)) @ drive.camera_pose(*target)
    points = motion[:3, :3] @ (rays * depth.ravel()) + motion[:3, 3:]
    u, v, z = (drive.rig.intrinsics @ points).reshape(3, height, width)
    u, v = u / z, v / z
    inside = known & (z > 0.1) & (u > 0) & (u < width - 1) & (v > 0) & (v < height - 1)
    there = sample(np.where(np.isfinite(other.depth), other.depth, 1e4)[..., None], u, v)[..., 0]
    seen = inside & (np.abs(there / np.where(inside, z, 1) - 1) < 0.03)  # not hidden in the source
    assert seen.mean() > 0.3
    warped = np.abs(sample(other.image, u, v) - one.image).mean(-1)[seen]
    unwarped = np.abs(other.image.astype(float) - one.image).mean(-1)[seen]
    return float(warped.mean()), float(unwarped.mean())


def test_layout_is_kittis(street: Path) -> None:
    found = contents(street)
    for index, date in enumerate(["2031_09_26", "2031_09_28", "2031_09_30", "2031_09_26"]):
        drive = f"{date}/{date}_drive_{index + 1:04}_sync"
        for name in ("image_02/data/0000000004.png", "image_03/data/0000000000.png", "image_03/timestamps.txt"):
            assert f"{drive}/{name}" in found
        for name in ("velodyne_points/data/0000000002.bin", "oxts/data/0000000003.txt", "oxts/dataformat.txt"):
            assert f"{drive}/{name}" in found
        assert len(found[f"{drive}/velodyne_points/timestamps_start.txt"].splitlines()) == SMALL["frames"]
        assert len(found[f"{drive}/oxts/data/0000000000.txt"].split()) == 30
        assert f"{date}/calib_imu_to_velo.txt" in found
    with Image.open(street / drive / "image_02/data/0000000001.png") as image:
        assert (image.size, image.mode) == ((160, 48), "RGB")
    assert not [name for name in found if "partial" in name]


def test_calibration_files_are_true(street: Path) -> None:
    focal_lengths = set()
    for index in range(3):
        drive = Drive(Street(**SMALL), index)
        calibration = Calibration(street / drive.date)
        assert calibration.size("l") == (48, 160)
        np.testing.assert_allclose(calibration.intrinsics("l"), drive.rig.intrinsics, atol=1e-4)
        np.testing.assert_allclose(calibration.stereo_pose("l")[:3, 3], [-0.54, 0, 0], atol=1e-5)
        point = np.array([12.0, 2.0, -1.0, 1.0])  # in the scanner's frame
        scanner_pose = drive.rig.scanner_pose(drive.imu_pose(1))
        in_camera = np.linalg.inv(drive.camera_pose(1)) @ scanner_pose @ point
        pixel = drive.rig.intrinsics @ in_camera[:3]
        counted_from_one = calibration.projection_of_scan("l") @ point
        np.testing.assert_allclose(counted_from_one[:2] / counted_from_one[2] - 1, pixel[:2] / pixel[2], atol=1e-3)
        assert in_camera[2] == pytest.approx(point[0], rel=0.01)  # forward distance of the scanner is the depth
        focal_lengths.add(drive.rig.intrinsics[0, 0])
    assert len(focal_lengths) == 3


def test_scans_agree_with_dense_depth(street: Path, tmp_path: Path) -> None:
    for index, frame in ((0, 1), (1, 3), (2, 2), (3, 0)):
        drive = Drive(Street(**SMALL), index)
        scan = street / drive.date / drive.name / f"velodyne_points/data/{frame:010}.bin"
        for side, camera in (("l", 2), ("r", 3)):
            sparse = lidar_depth(scan, Calibration(street / drive.date), side)
            dense = render_frame(drive, frame, camera).depth
            some = sparse > 0
            assert some.mean() > 0.3
            errors = np.abs(sparse[some] / dense[some] - 1)
            assert np.median(errors) < 0.01
            assert np.mean(errors < 0.08) > 0.88  # the others are at edges and far away on the ground


def test_scans_reach_behind_and_not_too_far(street: Path) -> None:
    points = read_scan(next(street.glob("*/*/velodyne_points/data/0000000000.bin")))
    assert 0.01 < np.mean(points[:, 0] < 0) < 0.3
    assert np.linalg.norm(points[:, :3], axis=1).max() < 121
    assert points[:, 3].min() >= 0 and points[:, 3].max() <= 1
    assert np.isfinite(points).all()


@pytest.mark.parametrize("source", [(4, 3), (5, 2), (3, 2)], ids=["stereo", "next", "previous"])
def test_true_depth_and_pose_explain_the_pictures(drive: Drive, source: tuple[int, int]) -> None:
    warped, unwarped = reprojection_error(drive, (4, 2), source)
    assert warped < 5
    assert warped < 0.35 * unwarped


def test_pictures_have_texture_to_match(drive: Drive) -> None:
    picture = render_frame(drive, 2)
    grey = picture.image.astype(float).mean(-1)
    change = np.abs(np.diff(grey, axis=1))[:, :-1][np.isfinite(picture.depth)[:, 1:-1]]
    assert np.mean(change > 1) > 0.5


def test_pictures_are_band_limited(drive: Drive) -> None:
    rig, pose = drive.rig, drive.camera_pose(2)
    finer = rig.intrinsics * [[2], [2], [1]] + [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]
    picture = Painter(drive.scene).picture(rig.intrinsics, rig.height, rig.width, pose, 0.2).astype(float)
    twice = Painter(drive.scene).picture(finer, 2 * rig.height, 2 * rig.width, pose, 0.2).astype(float)
    averaged = twice.reshape(rig.height, 2, rig.width, 2, 3).mean((1, 3))
    assert np.abs(picture - averaged).mean() < 4
    assert picture.std() > 25


def test_stripes_are_averaged_over_the_footprint() -> None:
    x, width = np.linspace(-3, 3, 41), np.full(41, 0.3)
    fine = x[:, None] + np.linspace(-0.15, 0.15, 2001)
    expected = (np.abs(fine / 1.5 - np.floor(fine / 1.5) - 0.5) < 0.2).mean(1)
    np.testing.assert_allclose(pulses(x, width, 1.5, 0.4), expected, atol=2e-3)


def test_cars_move_and_the_camera_turns_and_changes_speed() -> None:
    street = Street(drives=14, frames=14, height=48, width=160)
    turned, speeds, moving = [], [], 0
    for index in range(14):
        drive = Drive(street, index)
        poses = np.array([drive.imu_pose(frame) for frame in range(14)])
        turned.append(np.ptp(np.unwrap(np.arctan2(poses[:, 1, 0], poses[:, 0, 0]))))
        steps = np.linalg.norm(np.diff(poses[:, :2, 3], axis=0), axis=1) / 0.1
        speeds.append((steps[0], steps[-1]))
        moving += render_frame(drive, 7).moving.mean() > 0.001
    speeds = np.array(speeds)
    assert max(turned) > 0.4 and min(turned) < 0.1
    assert speeds.min() > 3 and speeds.max() < 15 and np.ptp(speeds[:, 0]) > 4
    assert np.abs(speeds[:, 1] - speeds[:, 0]).max() > 0.8
    assert moving >= 5


def test_oxts_give_the_true_motion(street: Path) -> None:
    drive = Drive(Street(**SMALL), 2)
    folder = street / drive.date / drive.name / "oxts" / "data"
    rows = np.array([np.loadtxt(path) for path in sorted(folder.iterdir())])
    poses = np.array([drive.imu_pose(frame) for frame in range(len(rows))])
    scale = np.cos(np.radians(rows[0, 0])) * 6378137.0
    east = scale * np.radians(rows[:, 1])
    north = scale * np.log(np.tan(np.radians(90 + rows[:, 0]) / 2))
    positions = np.stack([east - east[0], north - north[0], rows[:, 2] - rows[0, 2]], 1)
    np.testing.assert_allclose(positions, poses[:, :3, 3] - poses[0, :3, 3], atol=1e-4)
    heading = np.stack([np.cos(rows[:, 5]), np.sin(rows[:, 5])], 1)
    np.testing.assert_allclose(
        heading, poses[:, :2, 0] / np.linalg.norm(poses[:, :2, 0], axis=1, keepdims=True), atol=1e-6
    )
    np.testing.assert_allclose(-np.sin(rows[:, 4]), poses[:, 2, 0], atol=1e-6)
    # Velocity and yaw rate integrate to the same (trapezoids over 0.1 s).
    left = np.stack([-heading[:, 1], heading[:, 0]], 1)
    velocity = rows[:, 8, None] * heading + rows[:, 9, None] * left
    np.testing.assert_allclose(velocity, rows[:, [7, 6]], atol=1e-6)
    travelled = np.cumsum((velocity[1:] + velocity[:-1]) * 0.05, 0)
    np.testing.assert_allclose(travelled, positions[1:, :2], atol=0.02)
    turned = np.cumsum((rows[1:, 22] + rows[:-1, 22]) * 0.05)
    np.testing.assert_allclose(turned, np.unwrap(rows[:, 5])[1:] - rows[0, 5], atol=0.01)


def test_same_seed_same_bytes_on_any_number_of_workers(tmp_path: Path) -> None:
    few = {"drives": 3, "frames": 3, "height": 32, "width": 96, "seed": 3}
    for workers in (1, 2):
        write_street(tmp_path / str(workers), **few, workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    other = Drive(Street(**{**SMALL, "seed": 4}), 0).image(1, 2)
    assert np.abs(Drive(Street(**SMALL), 0).image(1, 2).astype(float) - other).mean() > 5


def test_splits_are_disjoint_and_have_their_neighbours(street: Path) -> None:
    drives = {}
    for part in ("train", "val", "test"):
        samples = read_split(street, part)
        drives[part] = {name for name, _, _ in samples}
        assert {side for _, _, side in samples} == ({"l", "r"} if part == "train" else {"l"})
        for name, frame, _ in samples:
            for neighbour in (frame - 1, frame, frame + 1):
                assert (street / name / f"image_02/data/{neighbour:010}.png").is_file()
    assert not drives["train"] & drives["val"] | drives["train"] & drives["test"] | drives["val"] & drives["test"]
    assert all(drives.values())


@pytest.mark.parametrize("drives", [3, 4, 6, 12, 32, 36, 40, 100])
def test_every_part_gets_drives(drives: int) -> None:
    parts = drive_parts(drives)
    together = [index for indices in parts.values() for index in indices]
    assert sorted(together) == list(range(drives))
    assert len(parts["train"]) >= max(1, drives // 2 - 1) and len(parts["val"]) >= 1
    assert len(parts["test"]) >= (8 if drives >= 32 else 1)
    assert len(parts["val"]) >= 2 or drives < 15


def test_interrupted_street_is_finished(street: Path, tmp_path: Path) -> None:
    shutil.copytree(street, tmp_path / "street")
    record = tmp_path / "street" / "street.json"
    facts = json.loads(record.read_text())
    assert facts["complete"] is True
    record.write_text(json.dumps({**facts, "complete": False}))
    gone = next((tmp_path / "street").glob("*/*_drive_0002_sync"))
    gone.rename(gone.with_name(gone.name + ".partial"))
    assert write_street(tmp_path / "street", **SMALL, workers=1)
    assert contents(tmp_path / "street") == contents(street)
    assert not write_street(tmp_path / "street", **SMALL)


def test_other_things_are_left_alone(street: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="not empty"):
        write_street(tmp_path, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
    with pytest.raises(InputError, match="another street"):
        write_street(street, **{**SMALL, "seed": 9})
    with pytest.raises(InputError, match="is a file"):
        write_street(tmp_path / "letter.txt", **SMALL)


@pytest.mark.parametrize(
    "arguments", [["--drives", 0], ["--frames", 1], ["--height", 4], ["--seed", -1], ["--workers", 0], ["--width", "x"]]
)
def test_bad_arguments_end_in_one_line(tmp_path: Path, arguments: list[object]) -> None:
    assert str(arguments[0]) in call_program(synthetic.main, tmp_path / "out", *arguments).error_line()
    assert not (tmp_path / "out").exists()


def test_program_says_when_the_street_is_there(street: Path) -> None:
    arguments = [f"--{name}={value}" for name, value in SMALL.items()]
    result = run_program_process(["-m", "featdepth.data.synthetic", street, *arguments])
    assert (result.code, result.err) == (0, "")
    assert "already there" in result.out
