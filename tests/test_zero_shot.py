"""Make3D and NYU Depth V2: data to be scored on alone, read from trees in their true formats."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, call_program, succeeded
from PIL import Image
from tiny_models import tiny_config, tiny_model

import evaluate
from featdepth.config import Config, load_config
from featdepth.data import build_dataset
from featdepth.errors import InputError
from featdepth.metrics.depth import crop_of

h5py = pytest.importorskip("h5py")
scipy_io = pytest.importorskip("scipy.io")

PHOTOS = ("10.21op2-p-015t000", "10.21op2-p-046t000", "math2-p-077t0")
PHOTO_SIZE = (576, 432)  # a quarter of the true one
SCENES = ("kitchen_0004", "office_0003", "kitchen_0004", "bedroom_0014")  # of the frames 1 to 4
TEST_FRAMES = (1, 4)


def grid(number: int) -> np.ndarray:
    """The laser's depths of a photo `[55, 305]`, metres: farther upwards, some beyond 70."""
    return np.linspace(90, 3 + number, 55)[:, None] * np.linspace(1, 1.2, 305)


def write_make3d(root: Path) -> None:
    for folder in ("Test134", "Gridlaserdata"):
        (root / folder).mkdir(parents=True)
    for number, name in enumerate(PHOTOS):
        pixels = np.random.default_rng(number).integers(0, 255, (*PHOTO_SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "Test134" / f"img-{name}.jpg")
        position = np.stack([np.zeros((55, 305))] * 3 + [grid(number)], axis=2)
        file = root / "Gridlaserdata" / f"depth_sph_corr-{name}.mat"
        scipy_io.savemat(file, {"Position3DGrid": position}, do_compression=True)


def nyu_depth(number: int) -> np.ndarray:
    """Of a frame, metres `[480, 640]`."""
    return (number + np.linspace(0.5, 9.5, 480)[:, None] * np.ones(640)).astype(np.float32)


def nyu_image(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 255, (480, 640, 3), dtype=np.uint8)


def write_nyu_depth(root: Path, test: Sequence[int] = TEST_FRAMES) -> None:
    """MATLAB's arrays are stored by columns, which h5py sees as transposed; texts are cells of references."""
    root.mkdir(parents=True)
    numbers = range(1, len(SCENES) + 1)
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "w") as file:
        file["images"] = np.stack([nyu_image(number).transpose(2, 1, 0) for number in numbers])
        file["depths"] = np.stack([nyu_depth(number).T for number in numbers])
        cells = file.create_dataset("scenes", (1, len(SCENES)), h5py.ref_dtype)
        for place, scene in enumerate(SCENES):
            file[f"#refs#/{place}"] = np.frombuffer(scene.encode("utf-16-le"), "<u2")[:, None]
            cells[0, place] = file[f"#refs#/{place}"].ref
    splits = {"trainNdxs": np.array([[2]], np.uint16), "testNdxs": np.array(test, np.uint16)[:, None]}
    scipy_io.savemat(root / "splits.mat", splits)


def config_of(kind: str, root: Path, *overrides: str) -> Config:
    options = [f"data.root={root}", "data.height=64", "data.width=96", "data.workers=0", *overrides]
    return load_config(REPOSITORY / f"configs/zero_shot/{kind}.yaml", options, training=False)


def test_make3d_has_depth_in_the_middle_of_each_cell(tmp_path: Path) -> None:
    write_make3d(tmp_path)
    data = build_dataset(config_of("make3d", tmp_path, "data.crop=[0,0,0,0]"), "test", frames=[0], require_depth=True)
    assert [str(sample) for sample in data.samples] == ["10.21op2 0 l", "10.21op2 1 l", "math2 0 l"]
    depth = data[1]["depth"].numpy()
    row, column = depth.nonzero()
    assert depth.shape == PHOTO_SIZE and len(row) == 55 * 305
    sides = zip((row, column), (55, 305), PHOTO_SIZE, strict=True)
    cells = tuple((2 * place + 1) * number // (2 * length) for place, number, length in sides)
    assert depth[row, column] == pytest.approx(grid(1)[cells], rel=1e-6)
    assert row[0] == round(0.5 * PHOTO_SIZE[0] / 55) and data[1]["images"].shape == (1, 3, 64, 96)


def test_the_middle_of_make3d_is_that_of_the_field(tmp_path: Path) -> None:
    """21 of the grid's 55 rows, from the 17th on."""
    write_make3d(tmp_path)
    data = build_dataset(config_of("make3d", tmp_path), "test", frames=[0], require_depth=True)
    found = data[0]["depth"].numpy()
    kept = found[found.any(axis=1)]
    assert len(kept) == 21 and found.shape[1] == 2 * found.shape[0]
    assert kept[:, found.any(axis=0)] == pytest.approx(grid(0)[17:38], rel=1e-6)


def test_nyu_frames_are_those_of_its_split(tmp_path: Path) -> None:
    write_nyu_depth(tmp_path / "nyu")
    data = build_dataset(
        config_of("nyu_depth", tmp_path / "nyu", "data.height=480", "data.width=640"), "test", frames=[0]
    )
    assert [str(sample) for sample in data.samples] == ["bedroom_0014 4 l", "kitchen_0004 1 l"]
    assert data.drives == ["bedroom_0014", "kitchen_0004"]
    assert np.array_equal(data[0]["images"][0].permute(1, 2, 0), nyu_image(4))
    assert np.array_equal(data[0]["depth"], nyu_depth(4))
    assert data[0]["intrinsics"][0].tolist() == pytest.approx([518.8579, 0, 324.5824], abs=1e-3)
    assert crop_of(480, 640, "nyu") == (slice(45, 471), slice(41, 601))


@pytest.mark.parametrize(
    ("kind", "write", "title"),
    [
        ("make3d", write_make3d, "3 images, protocol own, crop none, cap 70 m"),
        pytest.param(
            *("nyu_depth", write_nyu_depth, "2 images, protocol own, crop nyu, cap 10 m"), marks=pytest.mark.long
        ),  # whose points are many
    ],
)
def test_a_model_is_scored(kind: str, write: Callable[[Path], None], title: str, tmp_path: Path) -> None:
    write(tmp_path / "data")
    tiny_model(tiny_config("photometric", [0, -1, 1])).save_pretrained(tmp_path / "model")
    config = ["--config", REPOSITORY / f"configs/zero_shot/{kind}.yaml", f"data.root={tmp_path / 'data'}"]
    options = ["data.workers=0", "--checkpoint", tmp_path / "model", "--out", tmp_path / "out", "--cpu"]
    out = succeeded(call_program(evaluate.main, *config, *options)).out
    assert title in out and "model, median-scaled" in out and "of 2 drives" in out
    assert "no per-pixel median: data.kind" in out and (tmp_path / "out/card.md").is_file()


def test_nothing_is_trained_on_them(tmp_path: Path) -> None:
    write_make3d(tmp_path)
    with pytest.raises(InputError, match=r"data.kind make3d has test images alone"):
        build_dataset(config_of("make3d", tmp_path), "train")
    with pytest.raises(InputError, match="none of 3 samples has all of its frames"):
        build_dataset(config_of("make3d", tmp_path), "test", frames=[0, 1])


@pytest.mark.parametrize("missing", ["scipy.io", "h5py"])
def test_what_is_not_installed_is_named(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_nyu_depth(tmp_path / "nyu")
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(InputError, match=rf"needs {missing.split('.')[0]}; pip install 'scipy"):
        build_dataset(config_of("nyu_depth", tmp_path / "nyu"), "test", frames=[0])


@pytest.mark.parametrize("damage", [b"", b"not MATLAB's", bytes(5000)])
def test_damaged_files_are_named(damage: bytes, tmp_path: Path) -> None:
    write_nyu_depth(tmp_path / "nyu")
    write_make3d(tmp_path / "make3d")
    nyu, make3d = config_of("nyu_depth", tmp_path / "nyu"), config_of("make3d", tmp_path / "make3d")
    photos = build_dataset(make3d, "test", frames=[0])
    for path in sorted((tmp_path / "make3d/Gridlaserdata").iterdir()):
        path.write_bytes(damage)
    with pytest.raises(InputError, match=r"depth_sph_corr-10.21op2-p-015t000.mat: no Position3DGrid can be read"):
        photos[0]
    for name, message in (("splits.mat", "no testNdxs can be read"), ("nyu_depth_v2_labeled.mat", "cannot be read")):
        whole = (tmp_path / "nyu" / name).read_bytes()
        (tmp_path / "nyu" / name).write_bytes(damage)
        with pytest.raises(InputError, match=rf"{name}: {message}"):
            build_dataset(nyu, "test", frames=[0])
        (tmp_path / "nyu" / name).write_bytes(whole)


def test_places_without_them_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected Test134/img-10"):
        build_dataset(config_of("make3d", tmp_path), "test", frames=[0])
    with pytest.raises(InputError, match=r"expected nyu_depth_v2_labeled.mat"):
        build_dataset(config_of("nyu_depth", tmp_path), "test", frames=[0])
    write_nyu_depth(tmp_path / "nyu", test=(1, 9))
    with pytest.raises(InputError, match=r"splits.mat: frame 9 of 4"):
        build_dataset(config_of("nyu_depth", tmp_path / "nyu"), "test", frames=[0])
