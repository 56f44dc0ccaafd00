"""Outputs that cannot be made cost no others, and the advised command makes them; metres from the camera's height."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Result, call_program, succeeded
from PIL import Image
from tiny_models import HEIGHT, WIDTH, tiny_config, tiny_model

from featdepth.cameras.pinhole import field_of_view_intrinsics
from featdepth.geometry import invert_intrinsics, pixel_grid
from featdepth.models import FeatDepth
from featdepth.odometry.trajectory_files import read_trajectory
from featdepth.predict import __main__ as predict

FIELD = ("--field-of-view", 80)


@pytest.fixture
def predict_here(tmp_path: Path) -> Callable[..., Result]:
    """Predicts a clip of two frames with a model that knows no metres."""
    save_model(tmp_path, [0, -1, 1])
    picture = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    (tmp_path / "clip").mkdir()
    for number in range(2):
        Image.fromarray(picture).save(tmp_path / "clip" / f"{number}.png")

    def run(*arguments: object) -> Result:
        options = ["--checkpoint", tmp_path / "model", "--out", tmp_path / "out", "--cpu", "--workers", 0]
        return call_program(predict.main, tmp_path / "clip", *options, *arguments)

    return run


def save_model(folder: Path, frames: list[int | str]) -> None:
    tiny_model(tiny_config("photometric", frames, metres_per_unit=None)).save_pretrained(folder / "model")


def made(folder: Path) -> set[str]:
    return {path.name for path in (folder / "out" / "clip").iterdir()}


@pytest.mark.parametrize("kind", ["points", "fused_points"])
def test_without_intrinsics_the_others_are_made_and_the_advice_works(
    predict_here: Callable[..., Result], tmp_path: Path, kind: str
) -> None:
    save = ("--save", f"depth_png,npz,trajectory,page,{kind}")
    result = predict_here(*save)
    assert result.code == 2 and result.err.count("\n") == 1 and "2 written, 1 failed" in result.out
    assert f"clip: no {kind}: its camera's intrinsics are unknown; give --intrinsics FILE or --field" in result.err
    there = {"0_depth.png", "0_depth.npz", "trajectory_kitti.txt", "page.html"}
    assert there <= made(tmp_path) and not [name for name in made(tmp_path) if name.endswith(".ply")]
    # What had to do without is made anew.
    succeeded(predict_here(*save, *FIELD))
    assert [name for name in made(tmp_path) if name.endswith(".ply")]
    assert "intrinsics" in np.load(tmp_path / "out" / "clip" / "0_depth.npz")
    assert "No point cloud" not in (tmp_path / "out" / "clip" / "page.html").read_text()
    assert "0 written, 2 skipped" in succeeded(predict_here(*save, *FIELD)).out
    assert "another field of view (80.0, now 60.0)" in predict_here(*save, "--field-of-view", 60).error_line()


def test_intrinsics_that_nothing_was_made_with_may_change(predict_here: Callable[..., Result], tmp_path: Path) -> None:
    """Depth depends on none; point clouds do, and what they were made with stays until they are replaced."""
    depth, points = ("--save", "depth_png"), ("--save", "points")
    for options in ((), FIELD, ("--field-of-view", 60), ("--intrinsics", write_intrinsics(tmp_path)), ()):
        succeeded(predict_here(*depth, *options))
    assert "0 written, 2 skipped" in succeeded(predict_here(*depth, *FIELD)).out
    succeeded(predict_here(*points, *FIELD))
    assert "another field of view (80.0, now none)" in predict_here(*depth).error_line()
    assert "another field of view (80.0, now 60.0)" in predict_here(*depth, "--field-of-view", 60).error_line()
    succeeded(predict_here(*points, "--field-of-view", 60, "--overwrite"))


def write_intrinsics(folder: Path) -> Path:
    path = folder / "intrinsics.txt"
    path.write_text("60 0 48\n0 60 32\n0 0 1\n")
    return path


def test_a_calibration_that_cannot_be_read_costs_what_needs_it(
    predict_here: Callable[..., Result], tmp_path: Path
) -> None:
    (tmp_path / "clip" / "intrinsics.txt").write_text("no matrix")
    result = predict_here("--save", "depth_png,npz,page,trajectory")
    assert result.code == 2 and "clip: no npz, page, trajectory: " in result.err and "intrinsics.txt" in result.err
    assert made(tmp_path) == {"0_depth.png", "1_depth.png"}
    succeeded(predict_here("--save", "npz", *FIELD))


def test_the_way_needs_intrinsics_or_a_pose_network(predict_here: Callable[..., Result], tmp_path: Path) -> None:
    result = succeeded(predict_here("--save", "trajectory"))
    assert "clip: by the pose network; to align the frames give --intrinsics FILE or --field" in result.out
    without = tmp_path / "without"
    tiny_model(tiny_config("photometric", [0, "s"])).save_pretrained(without)
    options = ("--save", "depth_png,trajectory", "--checkpoint", without, "--overwrite")
    result = predict_here(*options)
    assert result.code == 2 and "clip: no trajectory: its camera's intrinsics are unknown; give" in result.err
    assert made(tmp_path) == {"0_depth.png", "1_depth.png"}
    # The two pictures are the same.
    assert "clip: 1 of 1 pair of frames aligned" in succeeded(predict_here(*options, *FIELD)).out
    file = tmp_path / "out" / "clip" / "trajectory_tum.txt"
    assert read_trajectory(file).poses[1] == pytest.approx(np.eye(4), abs=1e-3)
    assert "motion: 1 of 1 pair" in file.read_text()


class TestCameraHeight:
    def test_one_scale_for_all_that_is_made_of_a_clip(
        self, predict_here: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The camera is 0.3 and 0.5 units above the ground: 2 m are 0.4 units in the median."""
        intrinsics = torch.from_numpy(field_of_view_intrinsics(80.0, (HEIGHT, WIDTH))).float()
        model = FeatDepth.from_pretrained(tmp_path / "model")
        depths = [ground(height, intrinsics) for height in (0.3, 0.5)]
        disparities = torch.stack([(1 / depth - 0.01) / (10 - 0.01) for depth in depths])
        monkeypatch.setattr(FeatDepth, "depth", lambda self, images: (disparities[: len(images)],))
        save = ("--save", "npz,trajectory,page", "--camera-height", 2)
        refused = predict_here(*save)
        assert refused.code == 2 and "which --camera-height needs; give --intrinsics" in refused.err
        result = succeeded(predict_here(*save, *FIELD))
        assert "metres (the camera's height)" in result.out and "2 m of camera height, 5 m in a unit" in result.out
        for number, depth in enumerate(depths):
            saved = np.load(tmp_path / "out" / "clip" / f"{number}_depth.npz")
            assert saved["unit"] == "metres" and saved["depth"] == pytest.approx(5 * depth[0].numpy(), rel=1e-3)
        page, file = (tmp_path / "out" / "clip" / name for name in ("page.html", "trajectory_tum.txt"))
        assert "scale: the camera's height" in page.read_text()
        steady = "2 show the ground, whose height differs by 17% between them; that is not steady, and metres are rough"
        assert all(steady in text for text in (result.out, page.read_text(), file.read_text()))
        record = json.loads((tmp_path / "out" / "prediction.json").read_text())
        assert record["settings"]["camera height"] == 2.0
        metric = read_trajectory(tmp_path / "out" / "clip" / "trajectory_kitti.txt").poses
        succeeded(predict_here("--save", "npz,trajectory", "--overwrite", *FIELD))
        relative = read_trajectory(tmp_path / "out" / "clip" / "trajectory_kitti.txt").poses
        assert metric[:, :3, 3] == pytest.approx(5 * relative[:, :3, 3], rel=1e-3)
        assert model.scale_source is None

    def test_no_ground_and_no_sense(self, predict_here: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
        flat = torch.full((1, 1, HEIGHT, WIDTH), 0.03)
        monkeypatch.setattr(FeatDepth, "depth", lambda self, images: (flat.expand(len(images), -1, -1, -1),))
        result = predict_here("--camera-height", 1.6, *FIELD)
        assert result.code == 2
        assert "clip: none of 2 frames that were looked at shows a ground plane" in result.err
        assert "has to be above 0" in predict_here("--camera-height", 0).error_line()
        assert "--refine changes" in predict_here("--camera-height", 1, "--refine", 1).error_line()


def ground(height: float, intrinsics: torch.Tensor) -> torch.Tensor:
    """Depth `[1, h, w]` of a ground `height` below the camera, to a hundred units."""
    rays = invert_intrinsics(intrinsics) @ pixel_grid(HEIGHT, WIDTH, like=intrinsics)
    return (height / rays[1].clamp(min=height / 99)).view(1, HEIGHT, WIDTH)
