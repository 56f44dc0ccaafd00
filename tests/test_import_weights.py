"""Published checkpoints as model directories, by the program itself."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from check_reference import reference_state
from conftest import Result, call_program, run_program_process, succeeded
from torch import Tensor

from featdepth.errors import InputError
from featdepth.import_weights import main, rename
from featdepth.models import FeatDepth
from featdepth.models.saved.provenance import Provenance

TESTS = Path(__file__).parent
pytestmark = pytest.mark.usefixtures("whole_resnet18")
CLASSIFIER = ".fc."


class Touch:
    """Unpickling it makes a file: what a hostile checkpoint could do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def import_weights(*arguments: object) -> Result:
    return call_program(main, *arguments)


def refusal(*arguments: object) -> str:
    """The one line that the program ends in."""
    return import_weights(*arguments).error_line()


@cache
def published(name: str) -> dict[str, Tensor]:
    return reference_state(TESTS / "data" / f"{name}.npz")


def imported(tmp_path: Path, content: dict, *options: object) -> FeatDepth:
    """The model that the program makes of a checkpoint with `content`."""
    torch.save(content, tmp_path / "published.pth")
    result = succeeded(import_weights(tmp_path / "published.pth", tmp_path / "model", *options))
    assert str(tmp_path / "model") in result.out and "Traceback" not in result.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "published.pth"]
    return FeatDepth.from_pretrained(tmp_path / "model")


def test_a_published_model_arrives_exactly(tmp_path):
    state = published("featdepth_mono_r50")
    model = imported(tmp_path, {"state_dict": state, "meta": {"epoch": 40, "iter": 12345}})
    settings = model.settings
    assert settings.objective == "feature_metric" and settings.metres_per_unit == 36.0
    assert (settings.depth_layers, settings.pose_layers, settings.decoder_width) == (50, 18, 256)
    assert model.frames == [0, -1, 1, "s"] and (model.height, model.width) == (320, 1024)
    assert model.provenance == Provenance("published.pth")
    own = model.state_dict()
    used = [key for key in state if CLASSIFIER not in key and not key.startswith("extractor.encoder.layer")]
    renamed = [rename(key) for key in used]
    assert sorted(renamed) == sorted(own)
    assert all(torch.equal(own[new], state[key]) for key, new in zip(used, renamed, strict=True))
    # A few by hand, since the renaming is under test too.
    for key, new in {
        "DepthEncoder.encoder.layer3.5.bn3.running_var": "depth_encoder.layer3.5.bn3.running_var",
        "PoseEncoder.encoder.conv1.weight": "pose_encoder.conv1.weight",
        "DepthDecoder.crp4.0.2_pointwise.conv.weight": "depth_decoder.levels.3.pooling.pointwise.1.weight",
        "DepthDecoder.disp1.0.conv.bias": "depth_decoder.levels.0.disparity.bias",
        "PoseDecoder.conv3.weight": "pose_decoder.conv3.weight",
        "extractor.encoder.bn1.running_mean": "feature_encoder.bn1.running_mean",
    }.items():
        assert torch.equal(own[new], state[key])


def test_a_published_autoencoder_arrives_exactly_also_from_several_gpus(tmp_path):
    state = published("featdepth_joint_r50")
    state = {key: value for key, value in state.items() if key.startswith(("Encoder.", "Decoder."))}
    prefixed = {f"module.{key}": value for key, value in state.items()}
    model = imported(tmp_path, {"state_dict": prefixed}, "--height", 256, "--width", 800)
    assert model.settings.objective == "autoencoder" and model.frames == [0]
    assert (model.height, model.width) == (256, 800)
    own = model.state_dict()
    assert len(own) == sum(CLASSIFIER not in key for key in state)
    assert all(torch.equal(own[rename(key)], value) for key, value in state.items() if CLASSIFIER not in key)
    assert torch.equal(own["feature_decoder.enter.4.weight"], state["Decoder.upconv5.conv.conv.weight"])


def test_a_bare_state_dict_of_a_monocular_joint_model_arrives_exactly(tmp_path):
    state = published("featdepth_joint_r50")
    model = imported(tmp_path, state, "--metres-per-unit", 0, "--height", 192, "--width", 640)
    assert model.settings.objective == "joint" and model.settings.metres_per_unit is None
    assert model.frames == [0, -1, 1]
    own = model.state_dict()
    assert all(torch.equal(own[rename(key)], value) for key, value in state.items() if CLASSIFIER not in key)


def test_every_published_name_has_one_place():
    for path in sorted((TESTS / "data").glob("*.keys.json")):
        keys = [key for key in json.loads(path.read_text()) if CLASSIFIER not in key]
        assert len({rename(key) for key in keys}) == len(keys) > 300
    assert rename("module.DepthEncoder.encoder.fc.weight") is None
    for key in ("Depth.conv1.weight", "DepthDecoder.iconv1.weight", "encoder.conv1.weight"):
        with pytest.raises(InputError, match=key):
            rename(key)


def checkpoint(kind: str, folder: Path) -> Path:
    """A checkpoint that cannot be imported."""
    content = {
        "unknown key": {"state_dict": {"FlowNet.conv1.weight": torch.zeros(3)}},
        "no network": {"state_dict": {"DepthEncoder.encoder.conv1.weight": torch.zeros(64, 3, 7, 7)}},
        "incomplete": {"state_dict": {"DepthDecoder.merge1.conv.weight": torch.zeros(256, 256, 3, 3)}},
        "no tensors": {"state_dict": {"epoch": 3}},
        "numbered": {0: torch.zeros(3)},
        "code": {"state_dict": {"a": torch.zeros(3)}, "meta": Touch(folder / "ran")},
        "list": [1, 2],
    }[kind]
    torch.save(content, folder / "published.pth")
    return folder / "published.pth"


SAID = {
    "unknown key": "FlowNet.conv1.weight",
    "no network": "neither a depth decoder nor an autoencoder",
    "incomplete": "is missing",
    "no tensors": "no state_dict",
    "numbered": "no state_dict",
    "code": "could run code",
    "list": "list",
}


@pytest.mark.parametrize("kind", SAID)
def test_what_cannot_be_imported_ends_in_one_line(kind, tmp_path):
    assert SAID[kind] in refusal(checkpoint(kind, tmp_path), tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["published.pth"]  # no model, and nothing was run


@pytest.mark.parametrize("options", [["--height", 300], ["--width", 32], ["--metres-per-unit", "nan"]])
def test_sizes_that_no_model_can_have_are_refused(options, tmp_path):
    assert options[0] in refusal(checkpoint("list", tmp_path), tmp_path / "model", *options)


def test_an_existing_directory_is_never_replaced(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "precious.txt").write_text("mine")
    assert "exists" in refusal(checkpoint("list", tmp_path), tmp_path / "model")
    assert (tmp_path / "model" / "precious.txt").read_text() == "mine"


def test_a_missing_or_cut_checkpoint_ends_in_one_line(tmp_path):
    path = checkpoint("incomplete", tmp_path)
    path.write_bytes(path.read_bytes()[:1000])
    for name in ("published.pth", "missing.pth"):
        assert name in refusal(tmp_path / name, tmp_path / "model")


def test_the_program_itself_ends_without_a_traceback(tmp_path):
    command = ["-m", "featdepth.import_weights", checkpoint("code", tmp_path), tmp_path / "model"]
    assert SAID["code"] in run_program_process(command).error_line()
    assert [path.name for path in tmp_path.iterdir()] == ["published.pth"]
