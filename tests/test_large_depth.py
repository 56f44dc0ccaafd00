"""Large depth models of transformers as depth network: training, what of them learns, saving, export, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import call_program, run_program_process, succeeded
from run_records import differences, interrupted_copy, read_metrics
from tiny_depth_models import REFUSED, USABLE, write_depth_model
from tiny_models import tiny_batch, tiny_config

import train
from featdepth.config import load_config
from featdepth.errors import InputError
from featdepth.export import __main__ as export
from featdepth.models import FeatDepth, build_model
from featdepth.models.large_depth import LowRankLinear
from featdepth.objective import compute_losses

pytest.importorskip("transformers")
SMALLEST = "depth_anything"
EVERY_CLASS = [name if name == SMALLEST else pytest.param(name, marks=pytest.mark.long) for name in USABLE]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_depth_model(tmp_path_factory.mktemp("base"))


def small_model(depth: str, tune: str = "all", **settings: object) -> tuple[FeatDepth, dict[str, torch.Tensor], object]:
    """A model of one stereo pair, a batch for it and its configuration."""
    config = tiny_config("photometric", [0, "s"], depth=depth, tune=tune, **settings)
    torch.manual_seed(0)
    return build_model(config), tiny_batch(config), config


def learn(
    model: FeatDepth, batch: dict[str, torch.Tensor], config: object, steps: int = 3, rate: float = 1e-4
) -> list[float]:
    """The loss before each step of Adam, and after the last."""
    learning = [each for each in model.parameters() if each.requires_grad]
    optimizer, values = torch.optim.Adam(learning, rate), []
    for _ in range(steps + 1):
        loss = sum(each.mean() for each in compute_losses(model(batch), batch, config).values())
        values.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        assert all(each.grad is not None for each in learning)  # processes would wait for it for ever
        optimizer.step()
    return values


@pytest.mark.parametrize("name", EVERY_CLASS)
def test_the_loss_falls_and_the_model_is_as_it_was_saved(name: str, tmp_path: Path) -> None:
    model, batch, config = small_model(write_depth_model(tmp_path / "base", name))
    disparity = model.depth(batch["images"][:, 0])[0]
    assert disparity.shape == (2, 1, 64, 96) and float(disparity.detach().std()) > 1e-3
    values = learn(model, batch, config)
    assert values[-1] < values[0]
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "base").rename(tmp_path / "gone")
    loaded, image = FeatDepth.from_pretrained(tmp_path / "model"), torch.rand(3, 70, 90)
    assert torch.equal(loaded.predict_depth(image), model.predict_depth(image))


def train_shortly(config_file: Path, directory: Path, depth: str, *options: object) -> Path:
    words = [f"run.directory={directory}", f"model.depth={depth}", "train.max_steps=3", "train.checkpoint_every=2"]
    words += ["data.frames=[0, s]", "train.batch_size=2", "train.panel_samples=1", "train.log_every=1", *options]
    succeeded(call_program(train.main, "--cpu", "--config", config_file, *words))
    return directory


@pytest.mark.parametrize("name", EVERY_CLASS)
def test_a_run_continues_bit_for_bit(name: str, config_file: Path, tmp_path: Path) -> None:
    depth, leash = write_depth_model(tmp_path / "base", name), "loss.prior=0.1"
    run = train_shortly(config_file, tmp_path / "run", depth, leash)
    continued = interrupted_copy(run, tmp_path / "continued", step=2)
    train_shortly(config_file, continued, depth, leash, "--resume")
    assert differences(run, continued) == []
    card = (run / "model" / "README.md").read_text()
    assert "license: cc-by-nc-4.0" in card and "whose licence is: `cc-by-nc-4.0`" in card
    assert json.loads((run / "model" / "config.json").read_text())["base"]["licence"] == "cc-by-nc-4.0"


@pytest.mark.long
@pytest.mark.parametrize("name", USABLE)
def test_two_processes_do_what_one_does(name: str, config_file: Path, tmp_path: Path) -> None:
    depth = write_depth_model(tmp_path / "base", name)
    # No leash: at the start its two predictions differ by rounding alone, and the sign of that is its gradient.
    options = ["data.frames=[0, s]", f"model.depth={depth}", "train.max_steps=2", "train.log_every=1"]
    for processes, batch_size in ((1, 2), (2, 1)):
        words = ["train.py", "--cpu", "--config", config_file, f"run.directory={tmp_path / str(processes)}"]
        succeeded(run_program_process([*words, *options, f"train.batch_size={batch_size}"], processes))
    one, two = ([line["loss"] for line in read_metrics(tmp_path / each)] for each in "12")
    assert len(one) == 3
    if name != "glpn":  # whose stochastic depth draws differently in each process
        assert two == pytest.approx(one, rel=1e-3)


@pytest.mark.long
@pytest.mark.parametrize("name", USABLE)
def test_it_exports(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model, _, _ = small_model(write_depth_model(tmp_path / "base", name))
    model.save_pretrained(tmp_path / "model")
    result = call_program(export.main, "--checkpoint", tmp_path / "model", "--out", tmp_path / "depth.onnx")
    if name in ("depth_pro", "zoedepth"):
        assert f"is a {name} model, whose code cannot be exported" in result.error_line()
    else:
        assert "parity" in succeeded(result).out and (tmp_path / "depth.onnx").is_file()


@pytest.mark.parametrize("tune", ["head", "last:1", "lora:2"])
def test_nothing_learns_but_what_is_to(tune: str, base: str) -> None:
    model, batch, config = small_model(base, tune, prior=0.1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    image = batch["images"][:, 0]
    assert torch.equal(model.depth(image)[0], small_model(base)[0].depth(image)[0])  # no rank changes it at the start
    learn(model, batch, config)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    network = {each for each in changed if each.startswith("depth_encoder.network.")}
    where = {".".join(each.split(".")[2:5]) for each in network if "backbone" in each}
    if tune == "lora:2":
        assert network and {each.split(".")[-1] for each in network} == {"down", "up"}
        layers = [name for name, each in model.named_modules() if isinstance(each, LowRankLinear)]
        assert len(layers) == 16 and all(".attention." in name for name in layers)
    else:
        assert any("head" in each for each in network)
        assert where == (set() if tune == "head" else {"backbone.encoder.layer"})
        assert not any(f"layer.{number}." in each for each in network for number in range(3))
    assert any(each.startswith("depth_decoder.") for each in changed)


def test_the_leash_holds_what_the_model_saw_at_first(base: str) -> None:
    """The frozen copy shares what does not learn; training on moves the model away from it, a strong leash less."""
    distances = []
    for weight in (1e-6, 10.0):
        model, batch, config = small_model(base, "last:1", prior=weight)
        first = model(batch).prior
        learn(model, batch, config, steps=8, rate=1e-3)
        now = model(batch)
        assert torch.equal(now.prior, first)
        distances.append(compute_losses(now, batch, config)["prior"].mean().item() / weight)
    assert 0 < distances[1] < 0.7 * distances[0]


def test_depth_in_metres_starts_at_the_networks_own(tmp_path: Path) -> None:
    model, batch, _ = small_model(
        write_depth_model(tmp_path / "base", "depth_anything_metric"), min_depth=0.01, max_depth=100.0
    )
    image = batch["images"][:1, 0]
    said = model.depth_encoder.eval()((image - 0.45) / 0.225)[0]
    torch.testing.assert_close(model.predict_depth(image), said, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match=r"initial_depth: the depth of .* has metres"):
        small_model(f"hf:{tmp_path / 'base'}", initial_depth=1.0)


@pytest.mark.parametrize("name", REFUSED)
def test_classes_with_other_input_or_output_are_refused_by_name(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": name}))
    with pytest.raises(InputError, match=rf"is a {name} model, which .*; usable are depth_anything, "):
        small_model(f"hf:{tmp_path}")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"model_type": "bert"}, "model_type is bert, no network for depth"),
        ({"backbone": "someone/model"}, "backbone is someone/model, a network of another library"),
        ({"fusion_hidden_size": 10**9}, "fusion_hidden_size is 1000000000, which no network"),
        ({"fusion_hidden_size": "wide"}, "is damaged"),
        ({"fusion_hidden_size": -8}, "cannot be built"),
    ],
)
def test_damaged_and_hostile_configurations_are_refused(change: dict, expected: str, base: str, tmp_path: Path) -> None:
    content = json.loads((Path(base.removeprefix("hf:")) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(content | change))
    with pytest.raises(InputError, match=expected):
        small_model(f"hf:{tmp_path}")


def test_weights_are_safetensors_and_whole(base: str, tmp_path: Path) -> None:
    content = (Path(base.removeprefix("hf:")) / "config.json").read_text()
    (tmp_path / "config.json").write_text(content)
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"has no \.safetensors; weights of other formats are never read"):
        small_model(f"hf:{tmp_path}")
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(InputError, match="cannot be read"):
        small_model(f"hf:{tmp_path}")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["model.depth=depth-anything/small"], "expected hf:ORG/NAME or hf:DIRECTORY"),
        (["model.depth=hf:../etc/passwd"], "no such folder, and no name on the hub"),
        (["model.depth=hf:a/b", "model.tune=lora"], "model.tune is lora, expected all, head, last:N"),
        (["model.depth=hf:a/b", "loss.pyramid=true"], "loss.pyramid is true, but a large model"),
        (["loss.prior=1"], "loss.prior is 1.0, but there is no prior"),
    ],
)
def test_keys_that_cannot_be_meant(words: list[str], expected: str, config_file: Path) -> None:
    with pytest.raises(InputError, match=expected):
        load_config(config_file, words)


def test_what_is_missing_is_named(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"is hf:a/b, which needs transformers \(pip install transformers\)"):
        load_config(config_file, ["model.depth=hf:a/b"])
