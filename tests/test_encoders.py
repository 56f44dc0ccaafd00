"""Depth encoders of other families: their maps, weights, training and its continuation, export."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from conftest import call_program, run_program_process, succeeded
from run_records import differences, interrupted_copy, read_metrics
from safetensors.torch import save_file
from same_training import assert_same_step, kept_bytes, one_graph, training_step
from tiny_models import tiny_batch, tiny_config, tiny_model
from torch import Tensor
from torchvision.models import get_model, get_model_weights
from torchvision.models.feature_extraction import create_feature_extractor

import train
from featdepth.config import Model, load_config
from featdepth.config.encoder_names import check_encoder
from featdepth.errors import InputError
from featdepth.export import __main__ as export
from featdepth.models import FeatDepth, build_model
from featdepth.models.backbones import make_backbone

# Of each family a small member, and where its four maps are by torchvision's own names.
FAMILIES = {
    "mobilenet_v3_small": ["features.1", "features.3", "features.8", "features.11"],
    "convnext_tiny": ["features.1", "features.3", "features.5", "features.7"],
    "densenet121": ["features.denseblock1", "features.denseblock2", "features.denseblock3", "features.norm5"],
    "efficientnet_b0": ["features.2", "features.3", "features.5", "features.7"],
    "efficientnet_v2_s": ["features.2", "features.3", "features.5", "features.6"],
    "mnasnet0_5": ["layers.8", "layers.9", "layers.11", "layers.16"],
    "mobilenet_v2": ["features.3", "features.6", "features.13", "features.17"],
    "mobilenet_v3_large": ["features.3", "features.6", "features.12", "features.15"],
    "regnet_x_400mf": ["trunk_output.block1", "trunk_output.block2", "trunk_output.block3", "trunk_output.block4"],
    "regnet_y_400mf": ["trunk_output.block1", "trunk_output.block2", "trunk_output.block3", "trunk_output.block4"],
    "resnext50_32x4d": ["layer1", "layer2", "layer3", "layer4"],
    "shufflenet_v2_x0_5": ["maxpool", "stage2", "stage3", "stage4"],
    "swin_t": ["features.1", "features.3", "features.5", "permute"],
    "swin_v2_t": ["features.1", "features.3", "features.5", "permute"],
    "vgg11_bn": ["features.13", "features.20", "features.27", "features.28"],
    "wide_resnet50_2": ["layer1", "layer2", "layer3", "layer4"],
}
SMALLEST = "mobilenet_v3_small"
TIMM = ["timm:efficientnet_lite0", "timm:convnext_atto"]
LONG = pytest.mark.long
NEEDS_TIMM = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="the extra timm is not installed")
EVERY_FAMILY = [SMALLEST, *(pytest.param(name, marks=LONG) for name in FAMILIES if name != SMALLEST)]
WITH_TIMM = [*EVERY_FAMILY, *(pytest.param(name, marks=[LONG, NEEDS_TIMM]) for name in TIMM)]


def as_published(name: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a network under the names that torchvision's own file has for them."""
    if not name.startswith("densenet"):
        return state
    renamed = {}
    for key, tensor in state.items():
        for layer in ("norm", "relu", "conv"):
            for number in "12":
                key = key.replace(f".{layer}{number}.", f".{layer}.{number}.") if "denselayer" in key else key
        renamed[key] = tensor
    return renamed


@pytest.mark.parametrize("name", EVERY_FAMILY)
def test_maps_are_those_of_torchvision_with_weights_from_its_file(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = get_model(name, weights=None)
    for key, tensor in network.state_dict().items():
        if key.endswith("running_mean"):
            tensor.normal_(std=0.1)
    torch.save(as_published(name, network.state_dict()), tmp_path / f"{name}-12345678.pth")
    encoder = make_backbone(name)
    encoder.load_weights(str(tmp_path))
    image = torch.rand(2, 3, 96, 160)
    seen = get_model_weights(name).DEFAULT.transforms()
    mean, deviation = (torch.tensor(each)[:, None, None] for each in (seen.mean, seen.std))
    extractor = create_feature_extractor(network, FAMILIES[name]).eval()
    with torch.no_grad():
        found = encoder.eval()((image - 0.45) / 0.225)
        expected = list(extractor((image - mean) / deviation).values())
    assert encoder.channels == [each.shape[1] for each in found]
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        other = other if one.shape == other.shape else other.permute(0, 3, 1, 2)
        assert one.shape[2:] == (96 >> number + 2, 160 >> number + 2)
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


def train_shortly(config_file: Path, directory: Path, name: str, *options: object) -> Path:
    words = [f"run.directory={directory}", f"model.encoder={name}", "model.depth_layers=null", "train.max_steps=2"]
    words += ["data.frames=[0, s]", "train.batch_size=2", "train.checkpoint_every=1", "train.panel_samples=1"]
    words += ["train.log_every=1", *options]
    succeeded(call_program(train.main, "--cpu", "--config", config_file, *words))
    return directory


@pytest.mark.parametrize("name", WITH_TIMM)
def test_a_run_continues_bit_for_bit_and_its_model_loads(name: str, config_file: Path, tmp_path: Path) -> None:
    """Stochastic depth included, whose draws a continued run has to repeat."""
    run = train_shortly(config_file, tmp_path / "run", name)
    continued = interrupted_copy(run, tmp_path / "continued", step=1)
    train_shortly(config_file, continued, name, "--resume")
    assert differences(run, continued) == []
    model = FeatDepth.from_pretrained(run / "model")
    assert (model.settings.encoder, model.settings.depth_layers) == (name, None)
    image = torch.rand(3, 70, 90)
    assert torch.equal(model.predict_depth(image), FeatDepth.from_pretrained(run / "model").predict_depth(image))
    assert f"`{name}`" in (run / "model" / "README.md").read_text()


@pytest.mark.parametrize("name", [pytest.param(name.values[0] if name != SMALLEST else name) for name in WITH_TIMM])
@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="the extra onnx is not installed")
def test_it_exports(name: str, tmp_path: Path) -> None:
    if name in TIMM:
        pytest.importorskip("timm")
    tiny_model(tiny_config("photometric", [0, "s"], encoder=name, depth_layers=None)).save_pretrained(
        tmp_path / "model"
    )
    result = call_program(export.main, "--checkpoint", tmp_path / "model", "--out", tmp_path / "depth.onnx")
    assert "parity" in succeeded(result).out and (tmp_path / "depth.onnx").is_file()


@pytest.mark.parametrize("name", WITH_TIMM)
def test_recomputed_activations_change_memory_alone(name: str) -> None:
    config = tiny_config("photometric", [0, "s"], encoder=name, depth_layers=None)
    batch, results, sizes = tiny_batch(config), [], []
    for recompute in (False, True):
        model = tiny_model(config)
        if recompute:
            model.gradient_checkpointing_enable()

        def networks(batch: dict[str, Tensor], model: FeatDepth = model) -> object:
            torch.manual_seed(3)  # of stochastic depth
            return model(batch)

        losses, gradients = training_step(model, batch, config, networks)
        assert gradients.keys() == dict(model.named_parameters()).keys()  # none is without a part in the loss
        results.append((losses, gradients, dict(model.named_buffers()), {"random": torch.get_rng_state()}))
        sizes.append(kept_bytes(model, lambda networks=networks: networks(batch)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert sizes[1] < 0.5 * sizes[0]


@pytest.mark.long
@pytest.mark.parametrize("name", ["convnext_tiny", "swin_v2_t", SMALLEST])
def test_one_graph_is_compiled(name: str) -> None:
    config = tiny_config("photometric", [0, "s"], encoder=name, depth_layers=None)
    model, twin, batch = tiny_model(config), tiny_model(config), tiny_batch(config)
    for each in (model, twin):
        for part in each.modules():
            if type(part).__name__ == "StochasticDepth":
                part.p = 0.0
    torch.compiler.reset()
    found = training_step(model, batch, config, one_graph(model))
    torch.compiler.reset()
    # A bias that a batch norm takes out again has no gradient.
    assert_same_step(found, training_step(twin, batch, config), least=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("name", [SMALLEST, pytest.param(TIMM[0], marks=NEEDS_TIMM)])
def test_two_processes_do_what_one_does(name: str, config_file: Path, tmp_path: Path) -> None:
    """With the batches of both; batch statistics included, also of timm's own batch norms."""
    options = ["model.dropout=0", "data.frames=[0, s]", f"model.encoder={name}", "model.depth_layers=null"]
    options += ["train.max_steps=2", "train.log_every=1"]
    for processes, batch_size in ((1, 2), (2, 1)):
        words = ["train.py", "--cpu", "--config", config_file, f"run.directory={tmp_path / str(processes)}"]
        succeeded(run_program_process([*words, *options, f"train.batch_size={batch_size}"], processes))
    one, two = ([line["loss"] for line in read_metrics(tmp_path / each)] for each in "12")
    assert two == pytest.approx(one, rel=1e-3) and len(one) == 3


def test_a_file_is_the_depth_encoders_and_a_folder_has_one_for_each_network(tmp_path: Path) -> None:
    config = tiny_config("photometric", encoder=SMALLEST, depth_layers=None)
    own, pose = get_model(SMALLEST, weights=None), torchvision.models.resnet18(weights=None)
    torch.save(own.state_dict(), tmp_path / f"{SMALLEST}-1.pth")
    first = own.state_dict()["features.0.0.weight"]

    def built(source: Path) -> FeatDepth:
        config.model.pretrained = str(source)
        return build_model(config)

    model = built(tmp_path / f"{SMALLEST}-1.pth")
    assert torch.equal(model.depth_encoder.stages[0][0][0].weight, first)
    with pytest.raises(InputError, match=r"holds no file resnet18\*"):
        built(tmp_path)
    torch.save(pose.state_dict(), tmp_path / "resnet18-1.pth")
    model = built(tmp_path)
    assert torch.equal(model.depth_encoder.stages[0][0][0].weight, first)
    assert torch.equal(model.pose_encoder.layer4[0].conv1.weight, pose.layer4[0].conv1.weight)
    with pytest.raises(InputError, match=f"are not those of torchvision's {SMALLEST}"):
        built(tmp_path / "resnet18-1.pth")


@NEEDS_TIMM
def test_weights_of_timm_from_its_own_file(tmp_path: Path) -> None:
    import timm

    whole = timm.create_model("convnext_atto")
    save_file(whole.state_dict(), tmp_path / "convnext_atto.safetensors")
    encoder = make_backbone("timm:convnext_atto.d2_in1k")
    encoder.load_weights(str(tmp_path))
    image = torch.rand(1, 3, 64, 96)
    mean, deviation = (torch.tensor(whole.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    with torch.no_grad():
        found = encoder.eval()((image - 0.45) / 0.225)[-1]
        expected = whole.eval().forward_intermediates((image - mean) / deviation, intermediates_only=True)[-1]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    save_file({"stem.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="are not those of timm:convnext_atto"):
        encoder.load_weights(str(tmp_path / "other.safetensors"))
    assert refusal("timm:vit_tiny_patch16_224") is None  # known, and refused by its size when it is built
    with pytest.raises(InputError, match="one size alone"):
        make_backbone("timm:vit_tiny_patch16_224")
    assert "did you mean timm:convnext_atto?" in refusal("timm:convnext_ato")
    assert "did you mean timm:convnext_atto.d2_in1k?" in refusal("timm:convnext_atto.d2_in1")


def refusal(encoder: str, **settings: object) -> str | None:
    """What is said of an encoder; None where there is nothing to say."""
    return next((problem for _, problem in check_encoder(Model(encoder=encoder, **settings))), None)


@pytest.mark.parametrize(
    ("encoder", "settings", "said"),
    [
        ("convnext_tinny", {}, "did you mean convnext_tiny?"),
        ("vit_b_16", {}, "no maps at 1/4"),
        ("squeezenet1_0", {}, "no maps at 1/4"),
        ("convnext_tiny", {"depth_layers": 18}, "but model.depth_layers is 18; set one of them to null"),
        ("resnet34", {"depth_layers": 18}, "but model.depth_layers is 18"),
        ("convnext_tiny", {"objective": "autoencoder"}, "no use in model.objective autoencoder"),
    ],
)
def test_an_encoder_that_cannot_be_had_is_refused(encoder: str, settings: dict, said: str) -> None:
    assert said in refusal(encoder, **settings)


def test_a_refusal_is_one_line_of_the_program(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"command line: model.encoder is convnext_tiny, but model.depth_layers is 18"):
        load_config(config_file, ["model.encoder=convnext_tiny"])
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"needs timm \(pip install timm\)"):
        load_config(config_file, ["model.encoder=timm:resnet10t", "model.depth_layers=null"])


def test_a_resnet_has_two_names(config_file: Path) -> None:
    named = load_config(config_file, ["model.encoder=resnet18", "model.depth_layers=null"]).model
    assert named.depth_layers == 18 and refusal("resnet18", depth_layers=18) is None
    assert Model().depth_layers == 50 and Model(encoder="resnext50_32x4d").depth_layers is None
    with torch.device("meta"):
        model = FeatDepth(named, [0, "s"], 64, 96)
    assert type(model.depth_encoder).__name__ == "ResNetEncoder"
