"""Whether programs say where intrinsics come from, and use what is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import call_program
from PIL import Image

from featdepth import prepare_video
from featdepth.config import load_config
from featdepth.data import build_dataset
from featdepth.data.intrinsics_source import describe_intrinsics

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
    assert ("model.intrinsics=given" in command) == given


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
