"""The doctor names what is wrong with broken data, and finds nothing wrong with healthy data."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import call_program
from PIL import Image

from featdepth.config import load_config
from featdepth.doctor import __main__ as doctor
from featdepth.doctor.findings import OK, PROBLEM, SKIPPED, WARNING, Finding
from featdepth.doctor.initial_motion import check_initial_motion
from featdepth.doctor.plausibility import judge
from featdepth.doctor.reprojection import fit_motion
from featdepth.doctor.survey import Survey
from featdepth.two_view.epipolar import rotation_of
from featdepth.two_view.matching import Matches

SHARED = Path(os.environ.get("FEATDEPTH_SHARED", Path(__file__).parents[2] / "shared"))
FRAMES = 11  # of each drive of the wide street
SAMPLES = 5


def write_config(folder: Path, root: Path, **data: object) -> Path:
    """A configuration of tiny networks for the data in `root`."""
    values = {"kind": "kitti_raw", "root": str(root), "split": str(root / "splits"), "frames": [0, -1, "s"]}
    values |= {"height": 64, "width": 96, "workers": 0, "ground_truth_cache": str(folder / "ground_truth"), **data}
    model = {"objective": "photometric", "depth_layers": 18, "pose_layers": 18, "decoder_width": 16}
    model |= {"pretrained": False, "pose_size": None, "metres_per_unit": 36.0 if "s" in values["frames"] else None}
    protocol = "eigen" if values["kind"] == "kitti_raw" else "own"
    content = {"run": {"directory": str(folder / "run")}, "data": values, "model": model}
    content["evaluate"] = {"protocol": protocol, "crop": "none"}
    path = folder / "doctor.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def diagnose(folder: Path, root: Path, **data: object) -> list[Finding]:
    """The findings about the data in `root`."""
    config = load_config(write_config(folder, root, **data), training=False)
    return list(doctor.examine(Survey(config, SAMPLES)))


def faults(findings: list[Finding], *levels: str) -> set[str]:
    return {finding.fault for finding in findings if finding.level in (levels or (PROBLEM, WARNING))}


def drive_folders(root: Path) -> list[Path]:
    return sorted(root.glob("*/*_sync"))


def change_intrinsics(root: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Replace the intrinsics K of all cameras by `change(K)`; the baseline in metres stays."""

    def changed(match: re.Match[str]) -> str:
        projection = np.array(match[2].split(), dtype=float).reshape(3, 4)
        position = np.linalg.solve(projection[:, :3], projection[:, 3])
        intrinsics = change(projection[:, :3])
        numbers = np.column_stack([intrinsics, intrinsics @ position]).ravel()
        return match[1] + " ".join(f"{number:.6e}" for number in numbers)

    for path in root.glob("*/calib_cam_to_cam.txt"):
        path.write_text(re.sub(r"(?m)^(P_rect_0[0-3]: )(.*)$", changed, path.read_text()))


def reorder(folder: Path, order: np.ndarray) -> None:
    """Give the files of a folder, in order, the contents of others."""
    files = sorted(folder.iterdir())
    contents = [path.read_bytes() for path in files]
    for path, source in zip(files, order, strict=True):
        path.write_bytes(contents[source])


def swap_axes(root: Path) -> None:
    change_intrinsics(root, lambda k: np.array([[k[1, 1], 0, k[1, 2]], [0, k[0, 0], k[0, 2]], [0, 0, 1]]))


def swap_normalised_focals(root: Path) -> None:
    """As where a K in shares of the image's size was exchanged."""
    height, width = 96, 320
    focals = (width / height, height / width)
    change_intrinsics(
        root, lambda k: np.array([[k[1, 1] * focals[0], 0, k[0, 2]], [0, k[0, 0] * focals[1], k[1, 2]], [0, 0, 1]])
    )


def double_resolution(root: Path) -> None:
    change_intrinsics(root, lambda k: np.diag([2.0, 2.0, 1.0]) @ k)


def swap_stereo(root: Path) -> None:
    for drive in drive_folders(root):
        (drive / "image_02").rename(drive / "left")
        (drive / "image_03").rename(drive / "image_02")
        (drive / "left").rename(drive / "image_03")


def stop_camera(root: Path) -> None:
    for folder in root.glob("*/*_sync/image_0*/data"):
        reorder(folder, np.zeros(FRAMES, dtype=int))


def shuffle_frames(root: Path) -> None:
    order = np.random.default_rng(0).permutation(FRAMES)
    for folder in root.glob("*/*_sync/image_0*/data"):
        reorder(folder, order)


def exchange_ground_truth(root: Path) -> None:
    drives = drive_folders(root)
    for drive in drives:
        (drive / "velodyne_points").rename(drive / "scans")
    for drive, other in zip(drives, drives[1:] + drives[:1], strict=True):
        shutil.copytree(other / "scans", drive / "velodyne_points")


def train_on_test_drive(root: Path) -> None:
    lists = root / "splits"
    with open(lists / "train_files.txt", "a", encoding="utf-8") as file:
        file.write((lists / "test_files.txt").read_text())


def train_on_copy_of_test_drive(root: Path) -> None:
    """Under another name: only the files' content tells."""
    tested = (root / "splits/test_files.txt").read_text().split()[0]
    copy = f"{tested.rsplit('_', 2)[0]}_0099_sync"
    shutil.copytree(root / tested, root / copy)
    with open(root / "splits/train_files.txt", "a", encoding="utf-8") as file:
        file.writelines(f"{copy} {frame} l\n" for frame in range(1, FRAMES - 1))


def turn_right_camera(root: Path) -> None:
    """Shift the right pictures down: the pair is rectified no more."""
    for path in root.glob("*/*_sync/image_03/data/*.png"):
        with Image.open(path) as image:
            pixels = np.roll(np.array(image), 3, axis=0)
        Image.fromarray(pixels).save(path)


def jump_in_time(root: Path) -> None:
    for path in root.glob("*/*_sync/image_02/timestamps.txt"):
        lines = path.read_text().splitlines()
        path.write_text("\n".join([*lines[:6], *(line.replace(":00.", ":07.") for line in lines[6:])]) + "\n")


def cut_pictures(root: Path) -> None:
    for path in root.glob("*/*_sync/image_02/data/*5.png"):
        path.write_bytes(path.read_bytes()[:500])


def test_without_opencv_the_rest_is_looked_at(
    wide_street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    result = call_program(doctor.main, "--config", write_config(tmp_path, wide_street), "--samples", SAMPLES)
    assert result.code == 0, result.out + result.err
    (line,) = [line for line in result.out.splitlines() if "OpenCV" in line]
    assert line.startswith("SKIPPED") and "stereo" in line and "pip install 'opencv-python-headless" in line
    report = json.loads((tmp_path / "run_doctor/report.json").read_text())
    assert {"parts", "leakage", "intrinsics", "matching"} <= {finding["check"] for finding in report["findings"]}
    assert report["pictures"] == ["contact_sheet.png", "ground_truth.png"]


def test_healthy_street(wide_street: Path, tmp_path: Path) -> None:
    """The program as users call it: nothing wrong, pictures and a report beside the run."""
    config = write_config(tmp_path, wide_street)
    result = call_program(doctor.main, "--config", config, "--samples", SAMPLES)
    assert result.code == 0, result.out + result.err
    report = json.loads((tmp_path / "run_doctor/report.json").read_text())
    assert (report["problems"], report["warnings"]) == (0, 0)
    assert {"parts", "leakage", "order", "motion", "step", "intrinsics", "stereo", "ground_truth", "cost"} <= {
        finding["check"] for finding in report["findings"] if finding["level"] == "OK"
    }
    assert report["pictures"] == ["contact_sheet.png", "warp_preview.png", "parallax.png", "ground_truth.png"]
    assert all((tmp_path / "run_doctor" / name).stat().st_size > 1000 for name in report["pictures"])
    assert not (tmp_path / "run").exists()


def test_learned_intrinsics_have_a_report(wide_street: Path, tmp_path: Path) -> None:
    """Of a whole program: the step that is measured has a camera for each sample."""
    config = write_config(tmp_path, wide_street, frames=[0, -1], field_of_view=60.0)
    result = call_program(doctor.main, "--config", config, "--samples", 2, "model.intrinsics=learned")
    assert result.code == 0, result.out + result.err
    report = json.loads((tmp_path / "run_doctor/report.json").read_text())
    assert report["findings"][-1]["check"] == "cost" and report["findings"][-1]["level"] == "OK"


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (swap_axes, "swapped_axes"),
        (swap_normalised_focals, "swapped_axes"),
        (double_resolution, "wrong_resolution"),
        (swap_stereo, "swapped_stereo"),
        (turn_right_camera, "unrectified_stereo"),
        (stop_camera, "static"),
        (shuffle_frames, "shuffled_frames"),
        (exchange_ground_truth, "foreign_ground_truth"),
        (train_on_test_drive, "leakage"),
        (train_on_copy_of_test_drive, "leakage"),
        (jump_in_time, "time_jumps"),
        (cut_pictures, "unreadable_files"),
    ],
)
def test_damage_is_named(wide_street_copy: Path, tmp_path: Path, damage: Callable[[Path], None], expected: str) -> None:
    """The fault, and no other."""
    damage(wide_street_copy)
    if damage is not exchange_ground_truth:  # to save time
        for scans in wide_street_copy.glob("*/*_sync/velodyne_points"):
            shutil.rmtree(scans)
    assert faults(diagnose(tmp_path, wide_street_copy)) == {expected}


def test_frame_step_of_ten(wide_street: Path, tmp_path: Path) -> None:
    drives = sorted({line.split()[0] for line in (wide_street / "splits/train_files.txt").read_text().splitlines()})
    far = tmp_path / "far.txt"
    far.write_text("".join(f"{drive} {frame} {side}\n" for drive in drives for side in "lr" for frame in [10]))
    findings = diagnose(tmp_path, wide_street, train_files=str(far), val_files=str(far), frames=[0, -10])
    assert "step_too_large" in faults(findings) and "static" not in faults(findings)


def test_intrinsics_of_real_cameras_are_plausible() -> None:
    """fx, fy, cx, cy of KITTI, EuRoC, Cityscapes, TUM and 7-Scenes, with their image sizes."""
    for fx, fy, cx, cy, height, width in [
        (721.5, 721.5, 608.6, 171.9, 375, 1242),
        (458.7, 457.3, 367.2, 248.4, 480, 752),
        (2262.5, 2265.3, 1096.98, 513.1, 1024, 2048),
        (517.3, 516.5, 318.6, 255.3, 480, 640),
        (585.0, 585.0, 320.0, 240.0, 480, 640),
    ]:
        finding = judge(np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), (height, width), "a camera")
        assert finding.level == "OK", finding.line()
        assert ("half a pixel less" in finding.text) == (cx == 320.0)


def test_motion_is_fitted_to_depths() -> None:
    """Exact points: the motion is found in the unit of the depths, and no error is left."""
    random = np.random.default_rng(0)
    pixels, depths = random.uniform((0, 0), (320, 96), (60, 2)), random.uniform(4, 40, 60)
    intrinsics = np.array([[180.0, 0, 160], [0, 180, 48], [0, 0, 1]])
    rotation, translation = rotation_of(np.array([0.01, 0.03, -0.005])), np.array([0.3, -0.1, 0.8])
    points = np.concatenate([pixels, np.ones((60, 1))], axis=1) @ np.linalg.inv(intrinsics).T * depths[:, None]
    projected = (points @ rotation.T + translation) @ intrinsics.T
    fit = fit_motion(Matches(pixels, projected[:, :2] / projected[:, 2:]), depths, intrinsics)
    np.testing.assert_allclose(fit.translation, translation, atol=1e-3)
    np.testing.assert_allclose(fit.rotation, rotation, atol=1e-4)
    assert fit.misfit < 1e-2
    assert fit_motion(Matches(pixels, projected[:, :2] / projected[:, 2:]), depths[::-1], intrinsics).misfit > 1


def prepared_clip(root: Path, frames: list[np.ndarray], seconds: list[float], numbers: list[int]) -> None:
    """A clip as a preparation leaves it, of frames with these times and numbers in the film."""
    (root / "walk_00").mkdir(parents=True)
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(root / "walk_00" / f"{index:06}.png")
    record = {"camera": "camera", "size": list(frames[0].shape[:2]), "source": "walk", "index": numbers}
    record |= {"intrinsics": [[200.0, 0, 160], [0, 200.0, 48], [0, 0, 1]], "seconds": seconds}
    (root / "walk_00/clip.json").write_text(json.dumps(record))


def video_findings(folder: Path, root: Path) -> list[Finding]:
    config = write_config(folder, root, kind="video", split="time", frames=[0, -1, 1])
    survey = Survey(load_config(config, training=False), SAMPLES)
    return [
        *doctor.check_times(survey, set()),
        *doctor.check_texture(survey, set()),
        *doctor.check_motion(survey, set()),
    ]


def test_what_the_preparation_does_by_design_is_no_fault(wide_street: Path, tmp_path: Path) -> None:
    """Frames at uneven times, seconds apart, of a film of variable frame rate; but not what the film lacks."""
    folder = next(wide_street.glob("*/*_sync/image_02/data"))
    frames = [np.array(Image.open(path)) for path in sorted(folder.iterdir())]
    numbers = [0, 3, 4, 30, 34, 36, 60, 61, 70, 90, 91]
    seconds = [round(number * 0.04 + (number % 7) * 0.005, 3) for number in numbers]
    prepared_clip(tmp_path / "good", frames, seconds, numbers)
    assert faults(video_findings(tmp_path, tmp_path / "good")) == set()
    prepared_clip(tmp_path / "gap", frames, [*seconds[:6], *(each + 5 for each in seconds[6:])], numbers)
    assert faults(video_findings(tmp_path, tmp_path / "gap"), WARNING) == set()  # 24 frames of the film in 6 seconds
    prepared_clip(tmp_path / "drop", frames, [*seconds[:7], *(each + 5 for each in seconds[7:])], numbers)
    assert faults(video_findings(tmp_path, tmp_path / "drop"), WARNING) == {"time_jumps"}


def test_frames_without_texture_are_the_cause_and_not_the_step(tmp_path: Path) -> None:
    plain = [np.full((96, 320, 3), 250 - index, np.uint8) for index in range(8)]
    prepared_clip(tmp_path / "white", plain, [0.1 * index for index in range(8)], list(range(8)))
    assert faults(video_findings(tmp_path, tmp_path / "white")) == {"no_texture"}


def test_squeezed_pictures_are_noted(wide_street: Path, tmp_path: Path) -> None:
    found = [finding for finding in diagnose(tmp_path, wide_street) if finding.check == "shape"]
    assert "320 x 96 pixels are squeezed by a factor of 2.22 to 96 x 64" in found[0].text


def test_bad_usage(wide_street: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, wide_street)
    occupied = tmp_path / "file"
    occupied.write_text("")
    for options, reason in [
        (["--samples", 0], "has to be at least 1"),
        (["--out", occupied], "is a file"),
        (["data.frames=[0,-50]"], "has all of its frames"),
    ]:
        assert reason in call_program(doctor.main, "--config", config, *options).error_line()


def test_allowed_leakage_is_no_problem(wide_street_copy: Path, tmp_path: Path) -> None:
    train_on_test_drive(wide_street_copy)
    findings = diagnose(tmp_path, wide_street_copy, allow_leakage=True, frames=[0, "s"])
    assert faults(findings, WARNING) == {"leakage"} and faults(findings, PROBLEM) == set()


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no excerpts in {SHARED}")
@pytest.mark.parametrize(
    ("folder", "options"),
    [
        ("kitti_mini/kitti_raw", {"frames": [0, -1, 1]}),
        pytest.param("kitti_odometry_mini", {"kind": "kitti_odometry", "split": "time"}, marks=pytest.mark.long),
        pytest.param(
            "indoor_mini", {"kind": "seven_scenes", "split": "time", "frames": [0, -8, 8]}, marks=pytest.mark.long
        ),
    ],
)
def test_real_excerpts_are_healthy(folder: str, options: dict[str, object], tmp_path: Path) -> None:
    """KITTI raw's lists are divided by drive: one trains, the other validates."""
    if folder.startswith("kitti_mini"):
        lines = (SHARED / "kitti_mini/splits/mono_files.txt").read_text().splitlines(keepends=True)
        for name, drive in (("train", "0013"), ("val", "0034")):
            chosen = "".join(line for line in lines if f"drive_{drive}" in line)
            (tmp_path / f"{name}_files.txt").write_text(chosen)
        options = options | {"split": str(tmp_path)}
    assert faults(diagnose(tmp_path, SHARED / folder, **options)) == set()


def test_the_motion_of_an_initial_model_is_compared_with_alignment(config_file: Path, finished_run: Path) -> None:
    """The flat depth of a model of six steps aligns them or does not; either is said, and no more is judged."""
    config = load_config(config_file, [f"model.init={finished_run}/model"], training=False)
    survey = Survey(config, SAMPLES)
    (finding,) = check_initial_motion(survey, set())
    assert re.search(r"^[0-8] of 8 pairs of frames can be aligned by the depth of model.init", finding.text)
    assert ("% off that" in finding.text) == (finding.level == OK)
    (finding,) = check_initial_motion(survey, {"static"})
    assert finding.level == SKIPPED
    config.model.init = None
    assert list(check_initial_motion(survey, set())) == []
