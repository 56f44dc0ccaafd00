"""Weights and models that somebody could make on purpose: refused in one line, without running code."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile_pickle import Touch
from kitti_tree import DAY, drive_name
from refusals import read_pth, refusal

from featdepth import import_weights
from featdepth.data.kitti.calibration import Calibration
from featdepth.data.kitti.ground_truth import cached_lidar_depth
from featdepth.models import FeatDepth
from featdepth.models.encoders import ResNetEncoder
from featdepth.models.imagenet import load_imagenet
from featdepth.models.saved.storage import read_model_directory
from featdepth.models.saved.torch_files import check_torch_archive

DRIVE = drive_name(1)


class Calls:
    """Unpickling it calls `function`."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


def archive_of(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def members_of(content: object) -> dict[str, bytes]:
    """What torch.save writes for `content`, by name."""
    packed = io.BytesIO()
    torch.save(content, packed)
    with zipfile.ZipFile(packed) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize("in_zip", [True, False])
@pytest.mark.parametrize(
    "payload",
    [
        Calls(bytearray, 1 << 40),
        Calls(torch.FloatTensor, 1 << 33),
        Calls(torch.Tensor, 1 << 33),
        Calls(os.system, "true"),
        Calls(eval, "1"),
    ],
)
def test_what_a_pickle_may_call_is_little(tmp_path, payload, in_zip):
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(3), "b": payload}, path, _use_new_zipfile_serialization=in_zip)
    assert "could run code" in refusal(read_pth, path)
    if in_zip:
        assert "could run code" in refusal(check_torch_archive, path)


@pytest.mark.parametrize("in_zip", [True, False])
def test_weight_files_never_run_code(tmp_path, in_zip):
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(3), "b": Touch(tmp_path / "ran")}, path, _use_new_zipfile_serialization=in_zip)
    assert str(path) in refusal(read_pth, path)
    path.write_bytes(pickle.dumps(Touch(tmp_path / "ran"), protocol=2))
    assert str(path) in refusal(read_pth, path)
    assert not (tmp_path / "ran").exists()


def test_what_a_checkpoint_holds_passes(tmp_path):
    network = torch.nn.Conv2d(3, 4, 3)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.zeros(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    numbers = {"numpy": np.random.get_state(), "torch": torch.get_rng_state(), "python": random.getstate()}  # noqa: NPY002
    for content in (optimizer.state_dict(), numbers, {"step": 3, "best": 0.5}):
        torch.save(content, tmp_path / "optimizer.bin")
        assert check_torch_archive(tmp_path / "optimizer.bin") is None


def test_a_compressed_archive_is_refused_before_it_grows(tmp_path):
    members = members_of({"a": torch.zeros(1 << 26)})
    path = archive_of(tmp_path / "weights.pth", members, zipfile.ZIP_DEFLATED)
    del members
    assert path.stat().st_size < 1 << 20
    assert "compressed" in refusal(check_torch_archive, path)
    assert "compressed" in refusal(read_pth, path)


def test_an_archive_whose_parts_overlap_is_refused(tmp_path):
    """A thousand entries of the directory that name the same bytes."""
    path = archive_of(tmp_path / "weights.pth", members_of({"a": torch.zeros(10_000)}))
    with zipfile.ZipFile(path, "a") as archive:
        (largest,) = (each for each in archive.infolist() if each.filename.endswith("data/0"))
        archive.filelist.extend([largest] * 1000)
        archive.comment, archive.comment = b"x", b""  # makes it write the directory
    assert "larger than the whole" in refusal(check_torch_archive, path)


def test_an_archive_with_two_directories_is_refused(tmp_path):
    """zipfile reads the one at the end, torch the one that the last bytes name."""
    inner = archive_of(tmp_path / "inner", members_of({"a": torch.zeros(3)})).read_bytes()
    path = tmp_path / "weights.pth"
    path.write_bytes(inner + inner)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    assert "does not end with its directory" in refusal(check_torch_archive, path)


def test_a_script_is_no_weight_file(tmp_path):
    members = members_of({"a": torch.zeros(3)})
    pickled = next(data for name, data in members.items() if name.endswith("data.pkl"))
    path = archive_of(tmp_path / "weights.pth", {**members, "archive/constants.pkl": pickled})
    assert str(path) in refusal(read_pth, path)


@pytest.mark.parametrize(
    "numel", [b"J\0\0\0\x70", b"\x8a\x06\0\0\0\0\0\x10", b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f"]
)
def test_forged_sizes_in_a_legacy_file_demand_no_memory(tmp_path, numel):
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(3, 4)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert content.count(b"K\x0c") == 1
    path.write_bytes(content.replace(b"K\x0c", numel))
    assert str(path) in refusal(read_pth, path)
    path.write_bytes(content.replace(b"K\x03K\x04\x86", b"K\x03" + numel + b"\x86"))
    assert str(path) in refusal(read_pth, path)
    path.write_bytes(content[:15] + b"\x80\x02\x8e" + struct.pack("<Q", 1 << 40))  # a text of a terabyte
    assert str(path) in refusal(read_pth, path)


def test_a_dictionary_whose_methods_are_replaced_is_read_as_one(tmp_path):
    inner = OrderedDict(a=torch.zeros(3))
    content = OrderedDict(state_dict=inner)
    for each in (inner, content):
        each.item_, each.get, each.keys, each.__iter__ = 5, 5, 5, 5
    members = members_of(content)
    # Saving calls items(), so it gets its name afterwards.
    members = {name: data.replace(b"item_", b"items") for name, data in members.items()}
    archive_of(tmp_path / "published.pth", members)
    assert "named a" in refusal(run_import, tmp_path / "published.pth", tmp_path / "out")


def run_import(*arguments: object) -> None:
    sys.argv = ["import_weights", *map(str, arguments)]
    import_weights.main()


@pytest.mark.parametrize(
    "content", [{0: torch.zeros(3)}, {"a": 1}, {"conv1.weight": torch.zeros(1).expand(1 << 20, 3, 1 << 10, 1 << 10)}]
)
def test_imagenet_weights_that_are_none_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "resnet18.pth")
    assert "resnet18.pth" in refusal(load_imagenet, ResNetEncoder(18, input_channels=6), str(tmp_path / "resnet18.pth"))


@pytest.mark.parametrize("width", [5000, 10**9, 10**15])
def test_a_checkpoint_of_absurd_width_is_refused_before_it_is_built(tmp_path, width):
    wide = torch.zeros(1).expand(width, 1, 1, 1)
    torch.save({"DepthDecoder.merge1.conv.weight": wide}, tmp_path / "published.pth")
    assert "decoder_width" in refusal(run_import, tmp_path / "published.pth", tmp_path / "out")


def test_names_of_hostile_tensors_stay_in_one_short_line(tmp_path):
    torch.save({"a\nb" + "x" * 10_000: torch.zeros(3)}, tmp_path / "published.pth")
    assert "no network" in refusal(run_import, tmp_path / "published.pth", tmp_path / "out")


# Model directories


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("model", "decoder_width", 10**9),
        ("model", "decoder_width", 10**30),
        ("model", "decoder_width", 1.5),
        ("model", "decoder_width", [[[[[[1]]]]]]),
        ("model", "dropout", float("nan")),
        ("model", "max_depth", float("inf")),
        ("model", "depth_layers", "../../etc"),
        ("model", "pose_size", [10**9, 10**9]),
        ("model", "pose_size", [96] * 10**5),
        ("data", "width", 32 * 10**9),
        ("data", "frames", list(range(10**5))),
        ("data", "frames", [0, 10**4000]),
        ("data", "height", 10**4000),
        ("data", "frames", [0, "a\nb"]),
        ("data", "frames", 0),
        ("training", "drives", ["a"] * 10 + [1]),
    ],
)
def test_hostile_model_configurations_are_refused(model_copy, section, key, value):
    content = json.loads((model_copy / "config.json").read_text())
    content[section][key] = value
    (model_copy / "config.json").write_text(json.dumps(content))
    assert str(model_copy) in refusal(FeatDepth.from_pretrained, model_copy)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 10**6,
        '{"model": ' + "[" * 900 + "]" * 900 + "}",
        '{"format": 1, "data": {"frames": ' + "[" * 900 + "]" * 900 + '}, "model": {}}',
        '{"format": "a\\nb"}',
        "9" * 10**6,
        "{} {}",
        "\0",
    ],
)
def test_a_model_configuration_that_is_none_is_refused(model_copy, text):
    (model_copy / "config.json").write_text(text)
    assert "config.json" in refusal(FeatDepth.from_pretrained, model_copy)


def test_a_model_configuration_names_no_file_that_is_touched(model_copy, tmp_path, monkeypatch):
    """Where its weights come from is for those who train; whoever reads a model follows none of it."""
    content = json.loads((model_copy / "config.json").read_text())
    for name in ("pretrained", "init"):
        os.mkfifo(tmp_path / name)
        content["model"][name] = str(tmp_path / name)
    for name in ("root", "train_files", "cache"):
        content["data"][name] = None if name == "cache" else str(tmp_path / "init")
    content["data"]["ground_truth_cache"] = str(tmp_path / "cache")
    (model_copy / "config.json").write_text(json.dumps(content))
    model = FeatDepth.from_pretrained(model_copy)
    model.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "cache").exists()
    saved = json.loads((tmp_path / "again" / "config.json").read_text())["model"]
    assert saved["pretrained"] is False and saved["init"] is saved["feature_encoder"] is None


def test_links_to_a_models_files_are_read(model_copy):
    assert FeatDepth.from_pretrained(model_copy).has_depth


def safetensors_of(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


SAFETENSORS = {
    "longer than the file": safetensors_of({}, length=100),
    "2**63": safetensors_of({}, length=2**63),
    "a terabyte": safetensors_of({}, length=1 << 40),
    "overlapping": safetensors_of({"a": entry(0, 16, [4]), "b": entry(8, 24, [4])}, bytes(24)),
    "beyond": safetensors_of({"a": entry(0, 1 << 40, [1 << 38])}, bytes(16)),
    "overflow": safetensors_of({"a": entry(0, 16, [2**63, 4])}, bytes(16)),
    "negative": safetensors_of({"a": entry(0, 16, [-4])}, bytes(16)),
    "a million entries": safetensors_of({str(number): entry(0, 0, [0]) for number in range(10**6)}),
    "no object": safetensors_of([1, 2]),
    "deep": (5000).to_bytes(8, "little") + b"[" * 5000,
    "empty": b"",
    "four bits": safetensors_of({"a": entry(0, 2, [4], "F4")}, bytes(2)),
    "unknown": safetensors_of({"a": entry(0, 16, [4], "F99")}, bytes(16)),
}


@pytest.mark.parametrize("kind", SAFETENSORS)
def test_forged_safetensors_are_refused_as_a_model_and_replaced_in_the_cache(kind, model_copy, raw_tree):
    (model_copy / "model.safetensors").unlink()
    (model_copy / "model.safetensors").write_bytes(SAFETENSORS[kind])
    assert str(model_copy) in refusal(read_then_fit, model_copy)
    scan = raw_tree / "raw" / DRIVE / "velodyne_points" / "data" / "0000000001.bin"
    arguments = (scan, Calibration(raw_tree / "raw" / DAY), "l", raw_tree / "cache")
    first = cached_lidar_depth(*arguments)
    (path,) = (raw_tree / "cache").rglob("*.safetensors")
    whole = path.read_bytes()
    path.write_bytes(SAFETENSORS[kind])
    assert np.array_equal(cached_lidar_depth(*arguments), first) and path.read_bytes() == whole


def read_then_fit(directory: Path) -> None:
    read_model_directory(directory)
    FeatDepth.from_pretrained(directory)


def test_a_pipe_in_the_cache_is_replaced(raw_tree):
    scan = raw_tree / "raw" / DRIVE / "velodyne_points" / "data" / "0000000001.bin"
    arguments = (scan, Calibration(raw_tree / "raw" / DAY), "l", raw_tree / "cache")
    first = cached_lidar_depth(*arguments)
    (path,) = (raw_tree / "cache").rglob("*.safetensors")
    precious = raw_tree / "precious"
    precious.write_text("mine")
    path.unlink()
    os.mkfifo(path)
    path.with_suffix(".writing").symlink_to(precious)
    assert np.array_equal(cached_lidar_depth(*arguments), first) and path.is_file()
    assert precious.read_text() == "mine"


def test_weights_of_another_kind_of_number_are_refused(model_copy, saved_model):
    from safetensors.torch import load_file, save_file

    state = load_file(saved_model / "model.safetensors")
    (model_copy / "model.safetensors").unlink()
    save_file(
        state | {"depth_encoder.bn1.weight": state["depth_encoder.bn1.weight"].to(torch.complex64)},
        model_copy / "model.safetensors",
    )
    assert "complex64" in refusal(FeatDepth.from_pretrained, model_copy)
