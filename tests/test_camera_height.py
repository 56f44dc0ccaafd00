"""The camera's height above the ground that a depth map shows, and the scale that an evaluation takes from it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from conftest import Result, call_program, succeeded
from drive_writer import render_drive

import evaluate
from featdepth.config import load_config
from featdepth.data import build_dataset
from featdepth.geometry import invert_intrinsics, pixel_grid
from featdepth.metrics.camera_height import ground_height
from featdepth.models import FeatDepth

INTRINSICS = torch.tensor([[90.0, 0, 60], [0, 85, 30], [0, 0, 1]])
SIZE = (64, 128)
HEIGHT, FARTHEST = 1.3, 30.0


def plane(height: float, intrinsics: torch.Tensor, size: tuple[int, int], pitch: float, roll: float) -> torch.Tensor:
    """Depth `[1, h, w]` of a ground at `height` below a camera tilted by `pitch` and `roll` (radians), to FARTHEST."""
    normal = torch.tensor([math.sin(roll), math.cos(roll) * math.cos(pitch), math.cos(roll) * math.sin(pitch)])
    slope = normal @ invert_intrinsics(intrinsics) @ pixel_grid(*size, like=intrinsics)
    return (height / slope.clamp(min=height / FARTHEST)).view(1, *size)


@pytest.mark.parametrize(("pitch", "roll"), [(0, 0), (0.2, 0), (0.1, 0.1)])
def test_plane_is_exact_in_any_unit(pitch: float, roll: float):
    depth = plane(HEIGHT, INTRINSICS, SIZE, pitch, roll)
    assert ground_height(depth, INTRINSICS) == pytest.approx(HEIGHT, rel=1e-3)
    assert ground_height(depth / 5.4, INTRINSICS) == pytest.approx(HEIGHT / 5.4, rel=1e-3)


def test_things_on_the_ground_do_not_matter():
    """A car's rear fills a third of the part that is looked at."""
    depth = plane(HEIGHT, INTRINSICS, SIZE, 0.0, 0.0)
    depth[:, 30:, 25:58] = depth[:, 30:, 25:58].clamp(max=3.0)
    assert ground_height(depth, INTRINSICS) == pytest.approx(HEIGHT, rel=1e-4)


@pytest.mark.parametrize("index", range(7))  # each kind of course
def test_synthetic_street(index: int):
    """With 3 % of noise too the height is right within 1 %."""
    drive = render_drive(frames=4, height=80, width=160, index=index)
    intrinsics = torch.from_numpy(drive.intrinsics)
    for depth, pose in zip(drive.depths, drive.poses, strict=True):
        depth = torch.from_numpy(depth).clamp(max=100.0)[None]
        height = pose[2, 3]  # the ground is z = 0
        assert ground_height(depth, intrinsics) == pytest.approx(height, rel=0.005)
        noise = torch.randn(depth.shape, generator=torch.Generator().manual_seed(index))
        assert ground_height(depth * torch.exp(0.03 * noise), intrinsics) == pytest.approx(height, rel=0.01)


@pytest.mark.parametrize("scene", ["wall", "steep", "rubble"])
def test_image_without_ground_has_no_height(scene: str):
    if scene == "wall":
        depth = torch.full((1, *SIZE), 4.0)
    elif scene == "steep":
        depth = plane(HEIGHT, INTRINSICS, SIZE, 0.0, math.radians(40))
    else:
        depth = 2 + 8 * torch.rand((1, *SIZE), generator=torch.Generator().manual_seed(0))
    assert math.isnan(ground_height(depth, INTRINSICS))


@pytest.fixture
def model(config_file: Path, tmp_path: Path) -> FeatDepth:
    """An untrained model without scale, saved in `tmp_path/model`."""
    config = load_config(config_file, ["data.frames=[0, -1, 1]", "model.metres_per_unit=null"])
    model = FeatDepth(config.model, config.data.frames, 64, 96)
    model.save_pretrained(tmp_path / "model")
    return model


def predicting(monkeypatch: pytest.MonkeyPatch, model: FeatDepth, depth: torch.Tensor) -> None:
    """Let all models predict `depth` `[1, h, w]` (network units) for each image."""
    far, near = 1 / model.settings.max_depth, 1 / model.settings.min_depth
    disparity = (1 / depth - far) / (near - far)
    monkeypatch.setattr(FeatDepth, "depth", lambda self, images: (disparity.expand(len(images), 1, -1, -1),))


def evaluate_here(config_file: Path, folder: Path, *overrides: str) -> Result:
    options = ["--config", config_file, "--checkpoint", folder / "model", "--out", folder / "out", *overrides]
    return call_program(evaluate.main, *options)


def test_evaluation_takes_its_scale_from_the_height(
    config_file: Path, tmp_path: Path, model: FeatDepth, monkeypatch: pytest.MonkeyPatch
):
    """A prediction in which the camera is 0.3 units above the ground is in units of 1.65 m / 0.3 = 5.5 m."""
    dataset = build_dataset(load_config(config_file), "test", frames=[0])
    predicting(monkeypatch, model, plane(0.3, next(iter(dataset.intrinsics.values())), (64, 96), 0.0, 0.0))
    result = succeeded(evaluate_here(config_file, tmp_path, "evaluate.camera_height=1.65"))
    scores = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert scores["camera_height"].pop("metres_per_unit") == pytest.approx(5.5, rel=1e-4)
    assert scores["camera_height"] == {"metres": 1.65, "images": 3, "images_without_ground": 0}
    assert scores["scale_source"] == "the camera's height"
    assert "scale      1.65 m of camera height, 5.5 m in a unit; 3 of 3 images show the ground" in result.out
    assert "model, scale from the camera's height" in result.out and "has no known scale" not in result.out

    own = succeeded(evaluate_here(config_file, tmp_path))
    unscaled = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert "has no known scale" in own.out and unscaled["fixed_scale"] is None and unscaled["scale_source"] is None
    model.settings.metres_per_unit = 5.5
    model.save_pretrained(tmp_path / "model")
    succeeded(evaluate_here(config_file, tmp_path))
    known = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert scores["fixed_scale"] == pytest.approx(known["fixed_scale"], rel=1e-3)
    assert scores["median_scaled"] == pytest.approx(unscaled["median_scaled"], rel=1e-5)


def test_own_video_without_ground_truth_has_a_scale_by_the_height_too(
    config_file: Path, street: Path, tmp_path: Path, model: FeatDepth, monkeypatch: pytest.MonkeyPatch
):
    """The loss of all there is to say of it knows no metres; how long the model's unit is, is told all the same."""
    frames = sorted(street.glob("*/*_sync/image_02/data/*"))
    (tmp_path / "video" / "clip").mkdir(parents=True)
    for number, frame in enumerate(frames):
        shutil.copy(frame, tmp_path / "video" / "clip" / f"{number}{frame.suffix}")
    options = [f"data.root={tmp_path / 'video'}", "data.kind=video", "data.split=time", "data.field_of_view=80"]
    options += ["data.frames=[0,-1]", "evaluate.protocol=own", "data.ground_truth_cache=null"]
    dataset = build_dataset(load_config(config_file, options, training=False), "test")
    predicting(monkeypatch, model, plane(0.3, next(iter(dataset.intrinsics.values())), (64, 96), 0.0, 0.0))
    result = succeeded(evaluate_here(config_file, tmp_path, *options, "evaluate.camera_height=1.65"))
    assert "scale      1.65 m of camera height, 5.5 m in a unit; " in result.out
    scores = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert scores["camera_height"]["metres_per_unit"] == pytest.approx(5.5, rel=1e-4)


def test_evaluation_without_any_ground_is_refused(
    config_file: Path, tmp_path: Path, model: FeatDepth, monkeypatch: pytest.MonkeyPatch
):
    predicting(monkeypatch, model, torch.full((1, 64, 96), 4.0))
    refused = evaluate_here(config_file, tmp_path, "evaluate.camera_height=1.65").error_line()
    assert "evaluate.camera_height: none of 3 predictions has a ground plane" in refused
    assert "evaluate.camera_height" in evaluate_here(config_file, tmp_path, "evaluate.camera_height=-1").error_line()
