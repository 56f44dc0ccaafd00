"""EuRoC: from the download to rectified pairs with poses, again after an interruption, and the kind that reads them."""

from __future__ import annotations

import json
import shutil
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import call_program, succeeded
from drive_writer import quaternion_of, render_drive
from euroc_tree import LENSES, MOUNTS, RATE, START, grey, write_camera, write_pinhole_sequence, write_truth
from kitti_tree import make_config
from PIL import Image, ImageFilter

from featdepth import prepare_euroc
from featdepth.cameras.lenses import Lens, remap, undistort_points
from featdepth.cameras.rectify import rectify
from featdepth.config import Config, load_config
from featdepth.data import build_dataset
from featdepth.data.samples import Sample
from featdepth.data.synthetic import Drive, Street
from featdepth.errors import InputError
from featdepth.geometry import pose_from_vector, warp
from featdepth.odometry.interpolate import interpolate_poses

REPOSITORY = Path(__file__).parents[1]
SHRINK = 4  # of the images, to be fast
PERIOD = 10**9 // RATE  # nanoseconds
FRAMES = 5


def small(lens: Lens) -> Lens:
    """The camera with images of a quarter of the height and width."""
    intrinsics = lens.intrinsics / [[SHRINK], [SHRINK], [1]]
    intrinsics[:2, 2] += 0.5 / SHRINK - 0.5
    return lens._replace(intrinsics=intrinsics, size=(lens.size[0] // SHRINK, lens.size[1] // SHRINK))


SMALL = tuple(map(small, LENSES))
PAIR = rectify(*SMALL, np.linalg.inv(MOUNTS[1]) @ MOUNTS[0])
BODY_FROM_RECTIFIED = MOUNTS[0] @ np.block([[PAIR.left_from_rectified, np.zeros((3, 1))], [0, 0, 0, 1]])
STREET = Drive(Street(frames=8, height=64, width=96), 0)


def body_pose(seconds: float) -> np.ndarray:
    """world_from_body 4x4 on a flight along the street."""
    start = STREET.camera_pose(0) @ np.linalg.inv(MOUNTS[0])
    turn = pose_from_vector(torch.tensor([0.1, 0.3, -0.2]).double() * seconds, torch.zeros(3).double()).numpy()
    shift = np.eye(4)
    shift[:3, 3] = np.multiply([0.1, 0.2, 1.5], seconds)
    return start @ shift @ turn


def picture(intrinsics: np.ndarray, size: tuple[int, int], world_from_camera: np.ndarray) -> np.ndarray:
    """What an ideal camera sees of the street, grey."""
    return grey(STREET.painter.picture(intrinsics, *size, world_from_camera, 0.0))


@cache
def distorted_view(camera: int) -> np.ndarray:
    """What one of the cameras sees at the start of the flight: the mean of 3x3 rays a pixel through a finer picture."""
    lens = SMALL[camera]
    y, x = ((np.arange(3 * side) - 1) / 3 for side in lens.size)
    points = undistort_points(np.stack(np.meshgrid(x, y), axis=-1), lens)
    (left, top), (right, bottom) = points.min((0, 1)) - 0.01, points.max((0, 1)) + 0.01
    focal = 2 * lens.intrinsics[0, 0]
    intrinsics = np.array([[focal, 0, -focal * left], [0, focal, -focal * top], [0, 0, 1]])
    size = (int(focal * (bottom - top)), int(focal * (right - left)))
    finer = picture(intrinsics, size, body_pose(0) @ MOUNTS[camera])
    rays = remap(finer, (points * focal + intrinsics[:2, 2]).astype(np.float32))
    return np.rint(rays.reshape(lens.size[0], 3, lens.size[1], 3).mean((1, 3))).astype(np.uint8)


def write_flight(sequence: Path) -> list[int]:
    """A sequence of five true first pairs with ground truth at 200 Hz; the nanoseconds of its images."""
    times = [START + frame * PERIOD for frame in range(FRAMES)]
    for camera in (0, 1):
        images = dict.fromkeys(times, distorted_view(camera))
        write_camera(sequence, f"cam{camera}", SMALL[camera], MOUNTS[camera], images)
    # The ground truth begins between the first two images and is of a marker beside the body's origin.
    measured = (START + PERIOD // 2 + step * 5_000_000 for step in range(60))
    poses = {time: body_pose((time - START) / 1e9) @ MARKER for time in measured}
    write_truth(sequence, MARKER, poses)
    return times


MARKER = pose_from_vector(torch.tensor([0.2, 0.0, 0.1]).double(), torch.tensor([0.0, 0.1, 0.05]).double()).numpy()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The flight, prepared by the program; the download is beside it."""
    folder = tmp_path_factory.mktemp("euroc")
    write_flight(folder / "raw" / "MH_01_easy")
    result = succeeded(call_program(prepare_euroc.main, folder / "raw", "--out", folder / "out"))
    assert f"MH_01_easy: {FRAMES} pairs of {PAIR.size[1]}x{PAIR.size[0]}, 0 images without a partner" in result.out
    return folder / "out"


def shift_between(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """x, y in pixels by which `other` is displaced against `one`, both `[H, W]`: least squares on gradients."""
    blur = ImageFilter.GaussianBlur(1.5)  # looking up a picture makes it softer; here both are
    one, other = (np.array(Image.fromarray(each).filter(blur), dtype=np.float64) for each in (one, other))
    slope_y, slope_x = np.gradient((one + other) / 2)
    equations = np.stack([slope_x.ravel(), slope_y.ravel()], axis=1)
    x, y = np.linalg.lstsq(equations, (one - other).ravel(), rcond=None)[0]
    return x, y


@pytest.mark.parametrize("camera", [0, 1])
def test_rectified_pictures_are_those_of_ideal_cameras(prepared, camera):
    """Each part of a rectified image lies where an ideal camera at the rectified pose has it, within 0.05 pixels."""
    world_from_rectified = body_pose(0) @ BODY_FROM_RECTIFIED
    world_from_rectified[:3, 3] += camera * PAIR.baseline * world_from_rectified[:3, 0]
    ideal = picture(PAIR.intrinsics, PAIR.size, world_from_rectified)
    found = np.array(Image.open(prepared / "MH_01_easy" / f"cam{camera}" / "000000.png"))
    assert found.shape == PAIR.size and found.dtype == np.uint8 and (found > 0).mean() > 0.99
    height, width = PAIR.size
    for rows in (slice(0, height // 2), slice(height // 2, None)):
        for columns in (slice(0, width // 2), slice(width // 2, None)):
            x, y = shift_between(found[rows, columns], ideal[rows, columns])
            assert abs(x) < 0.05 and abs(y) < 0.05


def test_poses_of_the_rectified_left_camera(prepared):
    """At the images' times, between measured poses; none for the image that was taken before them all."""
    dataset = build_dataset(config_of(prepared), "train", frames=[0])
    poses = dataset.poses("MH_01_easy")
    assert list(poses) == [1, 2, 3, 4]
    for frame, pose in poses.items():
        np.testing.assert_allclose(pose, body_pose(frame / RATE) @ BODY_FROM_RECTIFIED, atol=2e-5)
    sample = Sample("MH_01_easy", 2, "l")
    steps = [(body_pose(frame / RATE) @ BODY_FROM_RECTIFIED)[:3, 3] for frame in (2, 3)]
    assert dataset.distance(sample, 1) == pytest.approx(np.linalg.norm(steps[1] - steps[0]), rel=1e-3)
    assert dataset.distance(sample, -2) is None


def test_times_are_kept_to_the_nanosecond(prepared):
    lines = (prepared / "MH_01_easy" / "times.txt").read_text().splitlines()
    assert lines[0] == "0 1403636579.763555584" and lines[2] == "2 1403636579.863555584" and len(lines) == FRAMES
    times = build_dataset(config_of(prepared), "train", frames=[0]).times("MH_01_easy")
    assert times[3] - times[2] == pytest.approx(1 / RATE, abs=1e-6)


def config_of(root: Path, **data: object) -> Config:
    values = {"kind": "euroc", "root": str(root), "split": "official", "frames": [0, -1, 1]}
    return make_config(root, **values | {"height": PAIR.size[0], "width": PAIR.size[1]} | data)


def test_a_sample_of_the_prepared_pair(prepared):
    dataset = build_dataset(config_of(prepared, frames=[0, -1, 1, "s"]), "train")
    assert len(dataset) == 2 * (FRAMES - 2) and dataset.left_out == 4
    left, right = dataset[0], dataset[FRAMES - 2]
    torch.testing.assert_close(left["intrinsics"], torch.from_numpy(PAIR.intrinsics).float())
    assert left["stereo_pose"][0, 3].item() == pytest.approx(-PAIR.baseline, rel=1e-6)
    torch.testing.assert_close(right["stereo_pose"], torch.linalg.inv(left["stereo_pose"]))
    assert torch.equal(left["images"][0], right["images"][3]) and "depth" not in left


def test_rectified_views_match_through_depth_and_baseline(tmp_path):
    drive = render_drive(3, 64, 96, 1)
    write_pinhole_sequence(tmp_path / "raw" / "V2_01_easy", drive)
    prepare_euroc.prepare(tmp_path / "raw" / "V2_01_easy", tmp_path / "out" / "V2_01_easy")
    config = config_of(tmp_path / "out", height=64, width=96)
    item = build_dataset(config, "test", frames=[0, "s"])[0]
    depth = torch.from_numpy(drive.depths[0])[None, None]
    target, source = item["images"].float()
    warped = warp(source[None], depth.clamp(max=1e4), item["intrinsics"][None], item["stereo_pose"][None])[0]
    assert (warped - target).abs().median() < 2 < (source - target).abs().median()


def test_official_split_goes_by_place(tmp_path):
    for name in ("MH_01_easy", "V1_01_easy", "V2_01_easy"):
        write_pinhole_sequence(tmp_path / "raw" / name, render_drive(3, 64, 96, 0))
        prepare_euroc.prepare(tmp_path / "raw" / name, tmp_path / "out" / name)
    config = config_of(tmp_path / "out")
    drives = [build_dataset(config, part).drives for part in ("train", "validation", "test")]
    assert drives == [["MH_01_easy"], ["V1_01_easy"], ["V2_01_easy"]]


def test_a_lost_image_leaves_a_gap_in_the_numbers(tmp_path):
    """Both cameras lack frame 2, as in a download without it; cam1 lacks 5, which data.csv lists."""
    sequence, image = tmp_path / "raw" / "V1_03_difficult", np.zeros((64, 96), np.uint8)
    lens = Lens("radtan", render_drive(3, 64, 96, 0).intrinsics, (0.0, 0.0, 0.0, 0.0), (64, 96))
    body_from_right = np.eye(4)
    body_from_right[0, 3] = 0.11
    # The clock is 0.3 % off, which adds up to half a period in 170 frames.
    times = {frame: START + round(frame * PERIOD * 1.003) for frame in (0, 1, *range(3, 240))}
    for camera, mount in (("cam0", np.eye(4)), ("cam1", body_from_right)):
        write_camera(sequence, camera, lens, mount, dict.fromkeys(times.values(), image))
    (sequence / "mav0/cam1/data" / f"{times[5]}.png").unlink()
    prepare_euroc.prepare(sequence, tmp_path / "out" / sequence.name)
    out = tmp_path / "out" / sequence.name
    expected = [frame for frame in times if frame != 5]
    assert sorted(int(path.stem) for path in (out / "cam1").iterdir()) == expected
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["only_in_cam0"] == [times[5]] and manifest["only_in_cam1"] == []
    assert manifest["pairs"] == len(expected) and not (out / "poses.txt").exists()


def test_after_an_interruption_the_same_command_goes_on(tmp_path, monkeypatch):
    raw, out = tmp_path / "raw", tmp_path / "out"
    for name in ("V1_01_easy", "V1_02_medium"):
        write_pinhole_sequence(raw / name, render_drive(3, 64, 96, 0))
    write_images, calls = prepare_euroc.write_images, []

    def killed_at_the_fourth(*arguments: object) -> None:
        calls.append(arguments)
        write_images(*arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(prepare_euroc, "write_images", killed_at_the_fourth)
    assert call_program(prepare_euroc.main, raw, "--out", out).code == 130
    assert [path.name for path in sorted(out.iterdir())] == [".V1_02_medium.partial", "V1_01_easy"]
    first = {path: path.stat().st_mtime_ns for path in (out / "V1_01_easy").rglob("*")}
    result = succeeded(call_program(prepare_euroc.main, raw, "--out", out))
    assert result.out.splitlines()[0].endswith("already there") and len(calls) == 6
    assert {path: path.stat().st_mtime_ns for path in (out / "V1_01_easy").rglob("*")} == first
    assert [path.name for path in sorted(out.iterdir())] == ["V1_01_easy", "V1_02_medium"]
    for path in first:
        twin = out / "V1_02_medium" / path.relative_to(out / "V1_01_easy")
        assert path.is_dir() or path.name == "manifest.json" or path.read_bytes() == twin.read_bytes()


def test_what_is_there_already_is_not_taken_for_another(tmp_path):
    sequence, out = tmp_path / "V1_01_easy", tmp_path / "out" / "V1_01_easy"
    write_pinhole_sequence(sequence, render_drive(3, 64, 96, 0))
    prepare_euroc.prepare(sequence, out)
    shutil.rmtree(sequence)
    write_pinhole_sequence(sequence, render_drive(3, 64, 96, 1))
    for damage in (lambda path: None, lambda path: path.write_text("{"), lambda path: path.unlink()):
        damage(out / "manifest.json")
        with pytest.raises(InputError, match=r"V1_01_easy: is there and was not made of this sequence; remove it"):
            prepare_euroc.prepare(sequence, out)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("cam0/sensor.yaml", "rate_hz: 20", "%YAML:1.0\nrate_hz: [", "not valid YAML"),
        ("cam0/sensor.yaml", "radial-tangential", "equidistant", "distortion_model is 'equidistant'; only"),
        ("cam1/sensor.yaml", "rows: 4\n  data: [", "rows: 4\n  data: [1.0, ", "T_BS should be 16 numbers"),
        ("cam1/sensor.yaml", "rows: 4\n  data: [0", "rows: 4\n  data: [7", "T_BS is no rigid transform"),
        ("cam0/sensor.yaml", "rate_hz: 20", "rate_hz: .nan", "rate_hz should be 1 number;"),
        ("cam0/sensor.yaml", "resolution: [96, 64]", "resolution: [96.5, 64]", "resolution, focal lengths"),
        ("cam0/sensor.yaml", "resolution: [96, 64]", "resolution: [64, 96]", "96 x 64 pixels, but its camera's"),
        ("cam1/data.csv", "png", "png,1", "should be nanoseconds and the name of an image"),
        ("state_groundtruth_estimate0/data.csv", ",0.000000000\r", "\r", "17 numbers of the ground truth"),
        ("state_groundtruth_estimate0/sensor.yaml", "T_BS", "T_SB", "T_BS should be 16 numbers"),
    ],
)
def test_damaged_sequence_is_refused_in_a_line(tmp_path, file, old, new, message):
    sequence = tmp_path / "raw" / "V1_01_easy"
    write_pinhole_sequence(sequence, render_drive(3, 64, 96, 0))
    path = sequence / "mav0" / file
    content = path.read_bytes().decode()
    assert old in content
    path.write_bytes(content.replace(old, new, 1).encode())
    line = call_program(prepare_euroc.main, sequence, "--out", tmp_path / "out").error_line()
    assert message in line and str(sequence) in line
    assert not (tmp_path / "out" / "V1_01_easy").exists()


def test_opencv_first_line_is_left_out(tmp_path):
    sequence = tmp_path / "V1_01_easy"
    write_pinhole_sequence(sequence, render_drive(3, 64, 96, 0))
    path = sequence / "mav0/cam0/sensor.yaml"
    path.write_text("%YAML:1.0\n" + path.read_text())
    assert "3 pairs of 96x64" in prepare_euroc.prepare(sequence, tmp_path / "out" / "V1_01_easy")


def test_swapped_cameras_and_damaged_images_are_refused(tmp_path):
    sequence = tmp_path / "raw" / "V1_01_easy"
    write_pinhole_sequence(sequence, render_drive(3, 64, 96, 0))
    (damaged,) = sorted((sequence / "mav0/cam1/data").iterdir())[1:2]
    damaged.write_bytes(damaged.read_bytes()[:100])
    line = call_program(prepare_euroc.main, sequence, "--out", tmp_path / "out").error_line()
    assert f"{damaged}: the image cannot be read" in line
    (sequence / "mav0/cam0").rename(sequence / "mav0/cam2")
    (sequence / "mav0/cam1").rename(sequence / "mav0/cam0")
    (sequence / "mav0/cam2").rename(sequence / "mav0/cam1")
    line = call_program(prepare_euroc.main, sequence, "--out", tmp_path / "out").error_line()
    assert f"{sequence}: the right camera's centre is at" in line


def test_without_opencv_it_says_so_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    result = call_program(prepare_euroc.main, tmp_path, "--out", tmp_path / "out")
    assert "pip install 'opencv-python-headless" in result.error_line()


def test_folders_without_a_sequence_are_refused(tmp_path):
    (tmp_path / "raw").mkdir()
    line = call_program(prepare_euroc.main, tmp_path / "raw", "--out", tmp_path / "out").error_line()
    assert f"{tmp_path / 'raw'}: no sequence of EuRoC here; expected mav0/cam0/data.csv" in line
    with pytest.raises(InputError, match=r"no prepared EuRoC here; run python -m featdepth.prepare_euroc"):
        build_dataset(config_of(tmp_path / "raw"), "train")


@pytest.mark.parametrize("name", ["intrinsics", "right_from_left", "times", "poses"])
def test_damaged_preparation_is_named(prepared, tmp_path, name):
    root = tmp_path / "out"
    shutil.copytree(prepared, root)
    path = root / "MH_01_easy" / f"{name}.txt"
    path.write_text(path.read_text().rsplit(" ", 1)[0])
    with pytest.raises(InputError, match=rf"{name}.txt"):
        dataset = build_dataset(config_of(root, frames=[0, "s"]), "train")
        dataset.poses("MH_01_easy"), dataset.times("MH_01_easy")


def test_interpolated_poses_of_a_steady_turn():
    """A body that turns and moves at constant rates is where the closed form has it."""
    axis = torch.tensor([0.3, -0.5, 0.8]).double()
    times = np.arange(0.0, 10.0, 0.5)
    poses = [pose_from_vector(axis * time, torch.tensor([time, 2 * time, 0.0]).double()).numpy() for time in times]
    quaternions = np.array([quaternion_of(pose[:3, :3]) for pose in poses])
    quaternions[::2] *= -2  # the same rotations
    wanted = np.array([-0.1, 0.0, 0.2, 4.75, 9.5, 9.6])
    found = interpolate_poses(times, np.array(poses)[:, :3, 3], quaternions, wanted, reach=0.3)
    assert list(found) == [1, 2, 3, 4]
    for index, pose in found.items():
        time = wanted[index]
        expected = pose_from_vector(axis * time, torch.tensor([time, 2 * time, 0.0]).double())
        np.testing.assert_allclose(pose, expected.numpy(), atol=1e-9)
    near = interpolate_poses(times, np.array(poses)[:, :3, 3], quaternions, wanted, reach=0.1)
    assert list(near) == [1, 4]
    assert interpolate_poses(times[:1], np.zeros((1, 3)), quaternions[:1], wanted, reach=1.0) == {}


def test_configuration_is_sound(prepared):
    config = load_config(
        REPOSITORY / "configs" / "euroc.yaml", [f"data.root={prepared}", f"model.feature_encoder={prepared}"]
    )
    assert config.data.kind == "euroc" and len(build_dataset(config, "train")) == 2 * (FRAMES - 2)
