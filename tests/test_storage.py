"""Model directories: exact round trips, damaged ones refused in one line, never half-written."""

from __future__ import annotations

import errno
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from tiny_models import OBJECTIVES, tiny_batch, tiny_config, tiny_model

from featdepth.errors import InputError
from featdepth.models import FeatDepth
from featdepth.models.saved import storage

FILES = ["README.md", "config.json", "model.safetensors"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("saved") / "model"
    tiny_model(tiny_config("photometric")).save_pretrained(directory)
    return directory


@pytest.fixture
def copy(saved, tmp_path) -> Path:
    """A model directory to damage."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def refusal(directory: Path | str) -> str:
    """The message of the InputError, which is one line."""
    with pytest.raises(InputError) as caught:
        FeatDepth.from_pretrained(directory)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit_config(directory: Path, change: Callable[[dict], None]) -> None:
    path = directory / "config.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_round_trip_is_exact(objective, tmp_path):
    config = tiny_config(objective, max_depth=77.0)
    model, batch = tiny_model(config), tiny_batch(config)
    model(batch)  # batch statistics away from their start
    model.provenance.add_data(["drive"], [])
    model.save_pretrained(tmp_path / "model")
    again = FeatDepth.from_pretrained(tmp_path / "model")
    state, loaded = model.state_dict(), again.state_dict()
    assert list(state) == list(loaded)
    assert all(torch.equal(state[key], loaded[key]) and state[key].dtype == loaded[key].dtype for key in state)
    assert again.settings == model.settings and again.frames == model.frames and again.settings.max_depth == 77.0
    assert (again.height, again.width) == (model.height, model.width)
    assert again.provenance == model.provenance and not again.training
    assert [each.requires_grad for each in again.parameters()] == [each.requires_grad for each in model.parameters()]
    with torch.no_grad():
        for first, second in zip(model.eval()(batch), again(batch), strict=True):
            torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_a_saved_model_needs_no_other_file(tmp_path):
    model = tiny_model(tiny_config("photometric", pretrained="gone.pth", init="gone"))
    model.save_pretrained(tmp_path / "model")
    settings = FeatDepth.from_pretrained(tmp_path / "model").settings
    assert settings.pretrained is False and settings.init is None
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == FILES


def test_a_channels_last_model_is_saved_too(tmp_path):
    model = tiny_model(tiny_config("photometric", [0, "s"])).to(memory_format=torch.channels_last)
    model.save_pretrained(tmp_path / "model")
    weight = FeatDepth.from_pretrained(tmp_path / "model").depth_encoder.conv1.weight
    assert torch.equal(weight, model.depth_encoder.conv1.weight)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    assert name in refusal(copy)


def test_a_missing_directory_is_named(tmp_path):
    assert "nowhere" in refusal(tmp_path / "nowhere")
    assert "nowhere" in refusal("nowhere")


@pytest.mark.parametrize("text", ["{", "[1, 2]", "\xff\xfe", "[" * 100_000])
def test_a_configuration_that_is_no_json_object_is_refused(copy, text):
    (copy / "config.json").write_text(text, encoding="latin-1")
    assert "config.json" in refusal(copy)


@pytest.mark.parametrize(
    "section, key, value, said",
    [
        ("model", "unknown_key", 1, "unknown_key"),
        ("model", "decoder_width", "wide", "decoder_width"),
        ("model", "decoder_width", -1, "decoder_width"),
        ("model", "decoder_width", 100_000, "decoder_width"),
        ("model", "decoder_width", 4000, "another architecture"),
        ("model", "depth_layers", 19, "depth_layers"),
        ("model", "objective", "segmentation", "objective"),
        ("model", "min_depth", 0, "min_depth"),
        ("model", "min_depth", 200, "min_depth"),
        ("model", "metres_per_unit", 0, "metres_per_unit"),
        ("model", "pose_size", [0, 1], "pose_size"),
        ("data", "height", 65, "height"),
        ("data", "frames", [], "frames"),
    ],
)
def test_settings_that_cannot_be_are_refused(copy, section, key, value, said):
    edit_config(copy, lambda content: content[section].__setitem__(key, value))
    assert said in refusal(copy)


@pytest.mark.parametrize("key, value", [("format", 2), ("format", None), ("model", None), ("data", [1])])
def test_a_configuration_of_another_form_is_refused(copy, key, value):
    edit_config(copy, lambda content: content.__setitem__(key, value))
    assert "config.json" in refusal(copy) and key in refusal(copy)


@pytest.mark.parametrize("kept", [0, 4, 1000, -1000])
def test_truncated_weights_are_refused(copy, kept):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    assert "model.safetensors" in refusal(copy)


def test_a_header_that_asks_for_too_much_is_refused(copy):
    (copy / "model.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    assert "model.safetensors" in refusal(copy)


def test_weights_of_another_architecture_are_refused(copy, tmp_path):
    tiny_model(tiny_config("photometric", decoder_width=24)).save_pretrained(tmp_path / "wider")
    shutil.copy(tmp_path / "wider" / "model.safetensors", copy)
    message = refusal(copy)
    assert "another architecture" in message and "24" in message and "16" in message
    tiny_model(tiny_config("autoencoder", [0])).save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", copy)
    assert "missing" in refusal(copy)


def test_replacing_a_directory_replaces_all_of_it_and_leaves_nothing_else(copy):
    (copy / "leftover.txt").write_text("old")
    model = tiny_model(tiny_config("autoencoder", [0]))
    model.save_pretrained(copy)
    assert sorted(path.name for path in copy.iterdir()) == FILES
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]
    assert FeatDepth.from_pretrained(copy).settings.objective == "autoencoder"


@pytest.mark.parametrize("error", [SafetensorError("No space left"), OSError(errno.ENOSPC, "No space left on device")])
def test_a_write_that_fails_leaves_the_old_model_as_it_was(copy, monkeypatch, error):
    before = {path.name: path.read_bytes() for path in copy.iterdir()}

    def half_written(tensors, path, metadata=None):
        Path(path).write_bytes(b"half")
        raise error

    monkeypatch.setattr(storage, "save_file", half_written)
    with pytest.raises((InputError, OSError)) as caught:
        tiny_model(tiny_config("autoencoder", [0])).save_pretrained(copy)
    assert "No space left" in str(caught.value)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


def test_a_failing_rename_leaves_the_old_model_as_it_was(copy, monkeypatch):
    before = {path.name: path.read_bytes() for path in copy.iterdir()}

    def refuse(*_):
        raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr(storage, "replace_directory", refuse)
    with pytest.raises(OSError, match="read-only"):
        tiny_model(tiny_config("autoencoder", [0])).save_pretrained(copy)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


DAMAGED_RECORDS = [None, [], "drives", {"drives": "2011"}, {"contaminated": [1]}, {"drives": [[]]}]
DAMAGED_RECORDS += [
    {"configuration": {"train": {"seed": "0"}}},
    {"configuration_digest": 7},
    {"kinds": 1},
    {"versions": [1]},
    {"imported_from": []},
    {"configuration": []},
]
DAMAGED_RECORDS += [{"configuration": {"data": 1}}, {"validation": {"loss": "low"}}, {"validation": {"loss": math.nan}}]


@pytest.mark.parametrize("record", [*DAMAGED_RECORDS, {"validation": {"a1": True}}, {"transductive": "no"}])
def test_a_damaged_training_record_is_refused(copy, record):
    edit_config(copy, lambda content: content.update(training=record))
    assert "training" in refusal(copy)
