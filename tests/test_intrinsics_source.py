"""Whether programs say where intrinsics come from, and use what is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import call_program
from PIL import Image

import evaluate
import train
from featdepth.config import load_config
from featdepth.data import build_dataset
from featdepth.data.notes import describe_intrinsics, unused_settings
from featdepth.prepare_video import __main__ as prepare_video

IMAGES, WIDTH, HEIGHT = 8, 160, 96


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A textured picture that moves sideways."""
    folder = tmp_path_factory.mktemp("photos") / "way"
    folder.mkdir()
    wall = np.random.default_rng(0).integers(0, 256, (HEIGHT // 4, WIDTH // 2, 3), np.uint8)
    wide = np.array(Image.fromarray(wall).resize((2 * WIDTH, HEIGHT)))
    for index in range(IMAGES):
        Image.fromarray(wide[:, 6 * index : 6 * index + WIDTH]).save(folder / f"{index}.png")
    return folder


@pytest.mark.parametrize(
    ("option", "given"),
    [(["--field-of-view", "70"], True), (["--intrinsics", "calibration.txt"], True), ([], False)],
)
def test_printed_command_uses_what_is_known(photos: Path, tmp_path: Path, option: list[str], given: bool) -> None:
    (tmp_path / "calibration.txt").write_text("150 150 79.5 47.5\n")
    option = [str(tmp_path / word) if word.endswith(".txt") else word for word in option]
    result = call_program(prepare_video.main, photos, "--out", tmp_path / "out", *option)
    assert result.code == 0, result.err
    (command,) = [line for line in result.out.splitlines() if line.startswith("accelerate launch train.py")]
    assert ("model.intrinsics=given data.field_of_view=null" in command) == given


def described(root: Path, *overrides: str, learned: bool = False) -> str:
    how = f"model.intrinsics={'learned' if learned else 'given'}"
    values = [f"data.root={root}", "data.split=time", "data.height=64", "data.width=96", "data.frames=[0,1]", how]
    config = load_config("configs/video.yaml", [*values, *overrides], training=False)
    return describe_intrinsics(build_dataset(config, "train").members, learned)


def test_header_names_source_and_values(photos: Path) -> None:
    """75 pixels at a width of 96 are 125 at 160."""
    try:
        (photos.parent / "intrinsics.txt").write_text("125 120 79.5 47.5\n")
        assert described(photos.parent) == (
            "given, intrinsics.txt of 1 drive: fx 75.0 fy 80.0 cx 47.5 cy 31.5 at 96x64"
        )
    finally:
        (photos.parent / "intrinsics.txt").unlink()
    assert described(photos.parent, "data.field_of_view=90").startswith(
        "given, data.field_of_view (90 degrees) of 1 drive: fx 48.0 fy 53.3 "
    )
    assert described(photos.parent, "data.field_of_view=90", learned=True).startswith(
        "learned, from a start of data.field_of_view of 90 degrees: fx 48.0 "
    )
    fixed = described(photos.parent, "data.intrinsics=fixed")
    assert fixed.startswith("fixed, of the published code (data.intrinsics): fx 55.7 fy 122.9 ")


def unused(config: Path | str, *overrides: str) -> list[str]:
    return unused_settings(build_dataset(load_config(config, overrides, training=False), "train").members)


def test_an_angle_that_nothing_starts_from_is_said(config_file: Path, photos: Path) -> None:
    assert unused(config_file) == []
    (note,) = unused(config_file, "data.field_of_view=60")
    assert note.startswith("data.field_of_view 60 is not used: calib_cam_to_cam.txt gives the intrinsics; ")
    (note,) = unused(config_file, "data.field_of_view=60", "data.intrinsics=fixed")
    assert "data.intrinsics fixed gives" in note
    assert unused(config_file, "data.field_of_view=60", "model.intrinsics=learned") == []
    video = [f"data.root={photos.parent}", "data.split=time", "data.height=64", "data.width=96", "data.frames=[0,1]"]
    assert unused("configs/video.yaml", *video) == []
    assert unused("configs/video.yaml", *video, "model.intrinsics=given") == []
    (note,) = unused("configs/video.yaml", *video, "data.ground_truth_cache=/tmp/maps")
    assert note == "data.ground_truth_cache is not used: data.kind video makes no depth maps from scans"


def test_a_run_says_what_it_does_not_use(config_file: Path, tmp_path: Path) -> None:
    options = ["--config", config_file, f"run.directory={tmp_path / 'run'}", "train.max_steps=0"]
    result = call_program(train.main, *options, "data.field_of_view=60")
    assert result.code == 0 and "note       data.field_of_view 60 is not used" in result.out
    options = ["--config", config_file, "--checkpoint", tmp_path / "run" / "model", "--out", tmp_path / "out"]
    result = call_program(evaluate.main, *options, "--odometry", "evaluate.flip=true")
    assert result.code == 0 and "note       evaluate.flip does not apply to trajectories" in result.out
