"""Exported files: loaded where this package is not, they predict what the model does; refusals; eight-bit integers."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from conftest import REPOSITORY, call_program, program_environment, succeeded
from PIL import Image
from tiny_models import HEIGHT, WIDTH, tiny_config, tiny_model
from torch import nn
from torch.nn import functional
from torchvision.models.resnet import BasicBlock, ResNet

from featdepth.export import __main__ as export
from featdepth.export.__main__ import DepthNetwork, DepthProgram, compare, natural_images
from featdepth.models import FeatDepth

# Programs that know of nothing of ours: images.npy -> depth.npy, and the file's metadata on standard output.
WITH_TORCH = """
import json, sys, numpy, torch
extra = {"metadata.json": ""}
program = torch.export.load(sys.argv[1], extra_files=extra).module()
numpy.save(sys.argv[3], program(torch.from_numpy(numpy.load(sys.argv[2]))).detach().numpy())
assert "featdepth" not in sys.modules
print(extra["metadata.json"])
"""
WITH_ONNXRUNTIME = """
import json, sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
numpy.save(sys.argv[3], session.run(["depth"], {"image": numpy.load(sys.argv[2])})[0])
assert "featdepth" not in sys.modules and "torch" not in sys.modules
print(json.dumps(session.get_modelmeta().custom_metadata_map))
"""
READERS = {"depth.onnx": WITH_ONNXRUNTIME, "depth.pt2": WITH_TORCH, "int8.onnx": WITH_ONNXRUNTIME}


@pytest.fixture(scope="module", autouse=True)
def wide_networks() -> Iterator[None]:
    """ResNet-18's channels, one block a level: integers are as near, and as small, as many channels let them be."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchvision.models, "resnet18", lambda weights=None: ResNet(BasicBlock, [1, 1, 1, 1]))
        yield


@pytest.fixture(scope="module")
def model() -> FeatDepth:
    """A network whose depth differs from place to place by far more than any tolerance."""
    model = tiny_model(tiny_config("photometric")).eval()
    with torch.no_grad():
        for level in model.depth_decoder.levels:
            level.disparity.weight *= 50.0
    return model


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> Path:
    """A folder with the model directory `model` and images in `images`."""
    folder = tmp_path_factory.mktemp("export")
    model.save_pretrained(folder / "model")
    (folder / "images").mkdir()
    pictures = natural_images(4, HEIGHT, WIDTH, torch.Generator().manual_seed(1))
    for number, picture in enumerate(pictures):
        pixels = (255 * picture).byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def written(folder) -> dict[str, str]:
    """What the program said of each exported file in `folder`."""
    calibration = ["--int8", "--calibration", folder / "images"]
    options = {"depth.onnx": ["--dynamic-size"], "depth.pt2": ["--dynamic-size"], "int8.onnx": calibration}
    results = {
        name: call_program(export.main, "--checkpoint", folder / "model", "--out", folder / name, *words)
        for name, words in options.items()
    }
    return {name: succeeded(result).out for name, result in results.items()}


def in_fresh_process(script: str, path: Path, images: torch.Tensor, place: Path) -> tuple[torch.Tensor, dict]:
    """Depth of `images` by `script` in a process that cannot import this package, and the file's metadata."""
    np.save(place / "images.npy", images.numpy())
    environment = program_environment()
    del environment["PYTHONPATH"]
    command = [sys.executable, "-c", script, path, place / "images.npy", place / "depth.npy"]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return torch.from_numpy(np.load(place / "depth.npy")), json.loads(done.stdout)


@pytest.mark.parametrize("name", ["depth.onnx", "depth.pt2"])
def test_a_fresh_process_without_this_package_gives_the_same_depth(name, model, folder, written, tmp_path):
    pytest.importorskip("onnxruntime")
    images = natural_images(3, 75, 170, torch.Generator().manual_seed(2))
    depth, metadata = in_fresh_process(READERS[name], folder / name, images, tmp_path)
    expected = model.predict_depth(images)
    assert expected.max() / expected.min() > 1.05  # far more than what is allowed below
    assert ((depth - expected) / expected).abs().max() < 1e-3
    assert metadata["unit"] == "metres" and metadata["precision"] == "float32"
    assert float(metadata["min_depth"]) == pytest.approx(model.settings.min_depth * model.settings.metres_per_unit)
    assert metadata["network_size"] == f"{HEIGHT}x{WIDTH}" and "torch" in metadata["versions"]
    assert "max " in written[name] and "mean " in written[name]


@pytest.mark.parametrize("name", ["depth.onnx", "depth.pt2"])
def test_any_batch_and_any_size_where_the_size_is_dynamic(name, model, folder, written):
    predictor = export.load_predictor(folder / name)
    for shape in [(1, 3, HEIGHT, WIDTH), (2, 3, 33, 41), (1, 3, 1, 1), (5, 3, 200, 96)]:
        images = torch.rand(shape, generator=torch.Generator().manual_seed(3))
        depth, expected = predictor(images), model.predict_depth(images)
        assert depth.shape == expected.shape, shape
        assert ((depth - expected) / expected).abs().max() < 1e-3, shape


def test_int8_runs_in_a_fresh_process_and_stays_near_the_model(model, folder, written, tmp_path):
    images = natural_images(2, HEIGHT, WIDTH, torch.Generator().manual_seed(1))
    depth, metadata = in_fresh_process(READERS["int8.onnx"], folder / "int8.onnx", images, tmp_path)
    expected = model.predict_depth(images)
    error = ((depth - expected) / expected).abs().mean()
    assert metadata["precision"] == "int8, float heads" and 0 < error < 0.1
    # An integer takes a quarter of a float's bytes.
    assert (folder / "int8.onnx").stat().st_size < 0.35 * (folder / "depth.onnx").stat().st_size


@pytest.mark.long
def test_int8_of_another_size_with_the_decoder_in_float(model, folder, written, tmp_path):
    size, out = (48, 200), tmp_path / "decoder.onnx"
    words = ["--checkpoint", folder / "model", "--out", out, "--size", *map(str, size)]
    words += ["--int8", "--calibration", folder / "images", "--keep-float", "decoder"]
    printed = succeeded(call_program(export.main, *words))
    assert "int8, float decoder" in printed.out and printed.err == ""
    pictures = natural_images(3, *size, torch.Generator().manual_seed(5))
    largest, mean = compare(model, export.load_predictor(out), size, pictures)
    assert 0 < mean < 0.02 and mean < largest < 0.1
    assert out.stat().st_size > (folder / "int8.onnx").stat().st_size


def test_half_precision_is_near_and_not_equal(model):
    network = DepthNetwork(model, torch.float16)
    assert {weight.dtype for weight in network.parameters()} == {torch.float16}
    assert next(model.parameters()).dtype == torch.float32  # the model itself stays as it was
    program = DepthProgram(model, network, (HEIGHT, WIDTH)).eval()
    largest, mean = compare(model, torch.no_grad()(program), (HEIGHT, WIDTH))
    assert 0 < mean < largest < export.TOLERANCES["float16"]


def test_a_file_that_predicts_otherwise_is_not_left(folder, tmp_path, monkeypatch):
    class Wrong(DepthNetwork):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return 0.99 * super().forward(image)

    monkeypatch.setattr(export, "DepthNetwork", Wrong)
    result = call_program(export.main, "--checkpoint", folder / "model", "--out", tmp_path / "depth.pt2")
    assert result.code == 1 and "not written" in result.err and result.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_nan_is_no_parity(model):
    largest, _ = compare(model, lambda images: torch.full_like(images[:, :1], torch.nan), (HEIGHT, WIDTH))
    assert not largest <= 1.0


REFUSALS = {
    "other name": (["--out", "depth.onnx", "--format", "torch"], "depth.pt2"),
    "no name": (["--out", "depth"], ".pt2 files"),
    "int8 of torch": (["--out", "depth.pt2", "--int8", "--calibration", "{images}"], "--format onnx"),
    "taken": (["--out", "{taken}"], "--overwrite"),
    "int8 alone": (["--out", "depth.onnx", "--int8"], "--calibration"),
    "calibration alone": (["--out", "depth.pt2", "--calibration", "{images}"], "--int8"),
    "float without int8": (["--out", "a.pt2", "--keep-float", "decoder"], "--int8"),
    "two precisions": (
        ["--out", "a.onnx", "--int8", "--calibration", "{images}", "--precision", "float16"],
        "--precision",
    ),
    "no folder": (["--out", "a.onnx", "--int8", "--calibration", "{images}/none"], "no such folder"),
    "no images": (["--out", "a.onnx", "--int8", "--calibration", "{model}"], "no png or jpg"),
    "size 0": (["--out", "a.pt2", "--size", "0", "64"], "--size 0 64"),
    "two sizes": (["--out", "a.pt2", "--size", "64", "64", "--dynamic-size"], "not allowed with"),
    "no model": (["--out", "a.pt2", "--checkpoint", "{images}"], "config.json"),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_bad_input_ends_in_one_line(kind, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.pt2").write_text("mine")
    places = {"images": folder / "images", "model": folder / "model", "taken": tmp_path / "taken.pt2"}
    words, said = REFUSALS[kind]
    words = [word.format(**places) for word in words]
    result = call_program(export.main, "--checkpoint", folder / "model", *words)
    assert said in result.error_line()
    assert [path.name for path in tmp_path.iterdir()] == ["taken.pt2"]
    assert (tmp_path / "taken.pt2").read_text() == "mine"


def test_missing_packages_are_named(folder, tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find_spec(name))
    result = call_program(export.main, "--checkpoint", folder / "model", "--out", tmp_path / "depth.onnx")
    assert "pip install onnxscript" in result.error_line()


def test_an_autoencoder_is_refused(tmp_path):
    tiny_model(tiny_config("autoencoder", frames=[0])).save_pretrained(tmp_path / "model")
    result = call_program(export.main, "--checkpoint", tmp_path / "model", "--out", tmp_path / "depth.pt2")
    assert "autoencoder predicts no depth" in result.error_line()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_example_writes_a_picture_of_the_image_s_size(folder, written, tmp_path):
    pytest.importorskip("onnxruntime")
    script, picture = REPOSITORY / "examples" / "onnx_depth.py", tmp_path / "depth.png"
    command = [sys.executable, script, folder / "depth.onnx", folder / "images" / "0.png", "--out", picture]
    done = subprocess.run(command, cwd=tmp_path, env=program_environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert f"{WIDTH} x {HEIGHT} pixels, depth in metres" in done.stdout
    with Image.open(picture) as image:
        assert image.size == (WIDTH, HEIGHT) and len(np.unique(np.asarray(image))) > 10


def test_natural_images_have_all_scales():
    images = natural_images(2, 64, 128, torch.Generator().manual_seed(0))
    assert images.min() >= 0 and images.max() <= 1
    blurred = functional.interpolate(nn.functional.avg_pool2d(images, 16), images.shape[-2:], mode="bilinear")
    assert 0.2 < blurred.var() / images.var() < 0.98
