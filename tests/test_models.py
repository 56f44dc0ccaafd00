"""Networks, their frozen part, ImageNet and stage-1 weights, inference."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from tiny_models import HEIGHT, OBJECTIVES, WIDTH, tiny_batch, tiny_config, tiny_model
from torch import Tensor

from featdepth.config import Config
from featdepth.errors import InputError
from featdepth.models import FeatDepth, build_model
from featdepth.models.decoders import convolve_upsampled
from featdepth.models.encoders import ResNetEncoder
from featdepth.models.imagenet import load_imagenet

CHANNELS = {18: [64, 64, 128, 256, 512], 50: [64, 256, 512, 1024, 2048]}
CHANNELS |= {34: CHANNELS[18], 101: CHANNELS[50]}


class Touch:
    """Unpickling it makes a file: what a hostile checkpoint could do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def same_weights(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return set(first) == set(second) and all(torch.equal(first[key], second[key]) for key in first)


def message_of(function, *arguments) -> str:
    """The message of the InputError, which is one line."""
    with pytest.raises(InputError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory) -> Path:
    """A file like torchvision's `resnet18-<hash>.pth`, of random weights."""
    torch.manual_seed(5)
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    path = tmp_path_factory.mktemp("imagenet") / Path(weights.url).name
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), path)
    return path


@pytest.fixture
def offline(monkeypatch, tmp_path) -> Path:
    """No network and an empty cache of torch; returns the folder where the cached weights belong."""

    def fail(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "urlopen", fail)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("layers", sorted(CHANNELS))
def test_encoders_say_their_channels_and_halve_the_size_five_times(layers, whole_resnet18):
    with torch.device("meta"):
        encoder = ResNetEncoder(layers)
        features = encoder(torch.empty(1, 3, HEIGHT, WIDTH))
    assert encoder.channels == CHANNELS[layers] == [each.shape[1] for each in features]
    assert [tuple(each.shape[2:]) for each in features] == [(HEIGHT >> n, WIDTH >> n) for n in range(1, 6)]


def test_an_encoder_is_torchvisions_resnet_without_its_classifier(imagenet):
    encoder = ResNetEncoder(18).eval()
    load_imagenet(encoder, str(imagenet))
    resnet = torchvision.models.resnet18(weights=None).eval()
    resnet.load_state_dict(torch.load(imagenet, weights_only=True))
    image = torch.rand(1, 3, HEIGHT, WIDTH)
    with torch.no_grad():
        pooled = encoder(image)[4].mean((2, 3))
        torch.testing.assert_close(resnet.fc(pooled), resnet(image))


def test_the_stem_is_the_first_feature_of_the_whole_encoder():
    encoder = ResNetEncoder(18).eval()
    image = torch.rand(2, 3, HEIGHT, WIDTH)
    assert torch.equal(encoder.stem(image), encoder(image)[0])


@pytest.mark.parametrize("size", [(3, 5), (2, 2), (1, 4)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_an_upsampled_map_is_convolved_without_making_it(size, with_bias):
    features = torch.randn(2, 5, *size, dtype=torch.float64, requires_grad=True)
    convolution = torch.nn.Conv2d(5, 4, 3, padding=1, padding_mode="reflect", bias=with_bias, dtype=torch.float64)
    plain = convolution(torch.nn.functional.interpolate(features, scale_factor=2, mode="nearest"))
    fast = convolve_upsampled(features, convolution.weight, convolution.bias)
    torch.testing.assert_close(fast, plain)
    slope = torch.randn_like(plain)
    inputs = [features, *convolution.parameters()]
    for one, other in zip(
        torch.autograd.grad(plain, inputs, slope), torch.autograd.grad(fast, inputs, slope), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_the_frozen_features_stay_frozen_through_training():
    config = tiny_config("feature_metric")
    model, batch = tiny_model(config), tiny_batch(config)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.eval()
    model.train()
    assert model.training and model.depth_encoder.training and not model.feature_encoder.bn1.training
    model(batch)
    after = model.state_dict()
    frozen = {key for key in after if key.startswith("feature_encoder.")}
    assert frozen and all(torch.equal(after[key], before[key]) for key in frozen)
    assert not torch.equal(after["depth_encoder.bn1.running_mean"], before["depth_encoder.bn1.running_mean"])
    assert not any(each.requires_grad for each in model.feature_encoder.parameters())


@pytest.mark.parametrize("objective", ["autoencoder", "joint"])
def test_learned_features_do_train(objective):
    model = tiny_model(tiny_config(objective)).eval().train()
    assert model.feature_encoder.bn1.training
    assert all(each.requires_grad for each in model.parameters())


def test_networks_are_built_only_where_the_objective_and_the_frames_need_them():
    assert not hasattr(tiny_model(tiny_config("photometric", [0, "s"])), "pose_encoder")
    assert not hasattr(tiny_model(tiny_config("autoencoder", [0])), "depth_encoder")
    frozen = tiny_model(tiny_config("feature_metric")).feature_encoder
    assert {key.split(".")[0] for key in frozen.state_dict()} == {"conv1", "bn1"}  # a whole ResNet would be wasted


def test_outputs_have_the_promised_shapes_and_ranges():
    config = tiny_config("joint")
    model = tiny_model(config)
    prediction = model(tiny_batch(config))
    assert [tuple(each.shape) for each in prediction.disparities] == [
        (2, 1, HEIGHT >> n, WIDTH >> n) for n in (1, 2, 3, 4)
    ]
    assert [tuple(each.shape) for each in prediction.reconstructions] == [
        (2, 3, HEIGHT >> n, WIDTH >> n) for n in range(4)
    ]
    assert prediction.poses.shape == (2, 3, 4, 4) and len(prediction.target_features) == 5
    assert prediction.source_features.shape == (2, 3, 64, HEIGHT // 2, WIDTH // 2)
    for each in (*prediction.disparities, *prediction.reconstructions):
        assert each.min() > 0 and each.max() < 1


def test_the_pose_network_sees_one_size_whatever_the_resolution():
    config = tiny_config("photometric", [0, 1], pose_size=[64, 128])
    model = tiny_model(config).eval()
    seen = []
    model.pose_encoder.register_forward_pre_hook(lambda _, arguments: seen.append(tuple(arguments[0].shape)))
    with torch.no_grad():
        model.motion(torch.rand(1, 3, HEIGHT, WIDTH), torch.rand(1, 3, HEIGHT, WIDTH))
        model.motion(torch.rand(1, 3, 96, 160), torch.rand(1, 3, 96, 160))
    assert seen == [(1, 6, 64, 128)] * 2


def test_a_pose_decoder_may_start_by_telling_pairs_apart(whole_resnet18):
    features = [torch.randn(16, 512, 2, 6, generator=torch.Generator().manual_seed(0)).relu()]

    def spread(start: str) -> float:
        """How much the motions of the pairs differ."""
        model = tiny_model(tiny_config("photometric", pose_start=start))
        with torch.no_grad():
            return torch.cat(model.pose_decoder(features), dim=1).std(0).mean().item()

    assert spread("he") > 5 * spread("published")


def test_imagenet_weights_from_a_file_or_a_folder(imagenet):
    expected = {key: value for key, value in torch.load(imagenet, weights_only=True).items() if "fc." not in key}
    for source in (imagenet, imagenet.parent):
        encoder = ResNetEncoder(18)
        load_imagenet(encoder, str(source))
        assert same_weights(encoder.state_dict(), expected)


def test_imagenet_weights_of_a_pair_are_shared_between_its_images(imagenet):
    encoder, single = ResNetEncoder(18, input_channels=6), ResNetEncoder(18)
    load_imagenet(encoder, str(imagenet))
    load_imagenet(single, str(imagenet))
    torch.testing.assert_close(encoder.conv1.weight, torch.cat([single.conv1.weight / 2] * 2, dim=1))
    image = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(encoder.conv1(torch.cat([image, image], dim=1)), single.conv1(image))


def test_imagenet_weights_in_torchs_cache_need_no_network(imagenet, offline):
    (offline / imagenet.name).write_bytes(imagenet.read_bytes())
    model = build_model(tiny_config("photometric", pretrained=True))
    state = torch.load(imagenet, weights_only=True)
    assert torch.equal(model.depth_encoder.layer4[0].conv1.weight, state["layer4.0.conv1.weight"])
    assert torch.equal(model.pose_encoder.layer1[0].bn2.weight, state["layer1.0.bn2.weight"])


def test_imagenet_weights_that_cannot_be_had_are_explained(offline):
    message = message_of(build_model, tiny_config("photometric", pretrained=True))
    assert "resnet18-" in message and str(offline) in message and "model.pretrained" in message


@pytest.mark.parametrize("content", [b"", b"no weights at all"])
def test_a_damaged_file_in_torchs_cache_is_explained(offline, imagenet, content):
    # torchvision checks the hash of a download, but not of a file that it finds.
    (offline / imagenet.name).write_bytes(content)
    message = message_of(build_model, tiny_config("photometric", pretrained=True))
    assert imagenet.name in message and str(offline) in message


def test_imagenet_weights_of_another_network_are_refused(imagenet, tmp_path):
    assert "ResNet-34" in message_of(load_imagenet, ResNetEncoder(34), str(imagenet))
    assert "resnet34" in message_of(load_imagenet, ResNetEncoder(34), str(imagenet.parent))
    state = torch.load(imagenet, weights_only=True)
    state["conv1.weight"] = state["conv1.weight"][:, :, :3, :3]
    torch.save(state, tmp_path / "small.pth")
    assert "small.pth" in message_of(load_imagenet, ResNetEncoder(18), str(tmp_path / "small.pth"))


def test_weight_files_that_are_none_are_refused(tmp_path, imagenet):
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "cut.pth").write_bytes(imagenet.read_bytes()[:100_000])
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("text.pth", "empty.pth", "cut.pth", "list.pth", "missing.pth"):
        assert name in message_of(load_imagenet, ResNetEncoder(18), str(tmp_path / name))


def test_weight_files_never_run_code(tmp_path):
    torch.save({"conv1.weight": Touch(tmp_path / "ran")}, tmp_path / "hostile.pth")
    assert "hostile.pth" in message_of(load_imagenet, ResNetEncoder(18), str(tmp_path / "hostile.pth"))
    assert not (tmp_path / "ran").exists()


def saturated_model(config: Config, logit: float) -> FeatDepth:
    """A model whose finest disparity is the sigmoid of `logit` everywhere."""
    model = tiny_model(config).eval()
    head = model.depth_decoder.levels[0].disparity
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.constant_(head.bias, logit)
    return model


@pytest.mark.parametrize("size", [(64, 96), (50, 71), (130, 200)])
def test_depth_is_predicted_at_any_size_of_image(size):
    model = tiny_model(tiny_config("photometric")).eval()
    depth = model.predict_depth(torch.rand(2, 3, *size))
    assert depth.shape == (2, 1, *size) and depth.dtype == torch.float32
    assert not depth.requires_grad and depth.isfinite().all() and depth.std() > 0


@pytest.mark.parametrize("metres_per_unit", [5.4, None])
def test_predicted_depth_spans_the_models_own_range(metres_per_unit):
    config = tiny_config("photometric", [0, 1], metres_per_unit=metres_per_unit, min_depth=0.5, max_depth=20.0)
    image, unit = torch.rand(1, 3, HEIGHT, WIDTH), metres_per_unit or 1.0
    for logit, depth in ((-40.0, 20.0), (0.0, 1 / (0.05 + 0.5 * (2 - 0.05))), (40.0, 0.5)):
        predicted = saturated_model(config, logit).predict_depth(image)
        torch.testing.assert_close(predicted, torch.full_like(predicted, depth * unit))


def test_predicted_depth_is_that_of_the_finest_disparity_of_the_forward_pass():
    config = tiny_config("photometric")
    model, batch = tiny_model(config).eval(), tiny_batch(config)
    with torch.no_grad():
        disparity = model(batch).disparities[0]
    disparity = torch.nn.functional.interpolate(disparity, (HEIGHT, WIDTH), mode="bilinear", align_corners=False)
    expected = 5.4 / (1 / 100 + (1 / 0.1 - 1 / 100) * disparity)
    torch.testing.assert_close(model.predict_depth(batch["images"][:, 0]), expected)


def test_prediction_has_no_side_effects(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, image = tiny_model(tiny_config("photometric")).eval(), torch.rand(1, 3, 70, 90)
    before, image_before = {key: value.clone() for key, value in model.state_dict().items()}, image.clone()
    first = model.predict_depth(image)
    assert torch.equal(model.predict_depth(image), first)
    assert torch.equal(image, image_before) and same_weights(model.state_dict(), before)
    assert not model.training and list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def stage_one(tmp_path_factory) -> Path:
    """A model directory of stage 1, whose weights are nobody else's."""
    model = tiny_model(tiny_config("autoencoder", [0]), seed=11)
    model.provenance.add_data(["drive_a", "drive_b"], ["drive_b"])
    directory = tmp_path_factory.mktemp("stage_one") / "model"
    model.save_pretrained(directory)
    return directory


def test_stage_two_starts_from_the_first_stage_of_the_autoencoders_encoder(stage_one):
    model = build_model(tiny_config("feature_metric", feature_encoder=str(stage_one)))
    source = FeatDepth.from_pretrained(stage_one).feature_encoder.state_dict()
    own = model.feature_encoder.state_dict()
    assert len(own) == 6 and all(torch.equal(own[key], source[key]) for key in own)
    assert model.training and not model.feature_encoder.training
    assert not any(each.requires_grad for each in model.feature_encoder.parameters())


def test_joint_training_starts_from_the_whole_autoencoder(stage_one):
    model = build_model(tiny_config("joint", feature_encoder=str(stage_one)))
    source = FeatDepth.from_pretrained(stage_one)
    assert same_weights(model.feature_encoder.state_dict(), source.feature_encoder.state_dict())
    assert same_weights(model.feature_decoder.state_dict(), source.feature_decoder.state_dict())
    assert all(each.requires_grad for each in model.feature_encoder.parameters())


def test_what_stage_one_has_seen_counts_as_seen_in_stage_two(stage_one):
    record = build_model(tiny_config("feature_metric", feature_encoder=str(stage_one))).provenance
    assert record.drives == ["drive_a", "drive_b"] and record.contaminated == ["drive_b"]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_fine_tuning_starts_from_every_network_of_the_same_objective(objective, tmp_path):
    config = tiny_config(objective)
    source = tiny_model(config, seed=3)
    source.save_pretrained(tmp_path / "model")
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, init=str(tmp_path / "model")))
    assert same_weights(build_model(config).state_dict(), source.state_dict())


def test_fine_tuning_takes_the_networks_that_both_models_have(tmp_path):
    source = tiny_model(tiny_config("photometric"), seed=3)
    source.save_pretrained(tmp_path / "model")
    model = build_model(tiny_config("joint", init=str(tmp_path / "model")))
    for name in ("depth_encoder", "depth_decoder", "pose_encoder", "pose_decoder"):
        assert same_weights(getattr(model, name).state_dict(), getattr(source, name).state_dict())


def test_model_directories_of_another_kind_are_refused(stage_one, tmp_path):
    tiny_model(tiny_config("photometric")).save_pretrained(tmp_path / "depth")
    wrong = tiny_config("feature_metric", feature_encoder=str(tmp_path / "depth"))
    assert "holds no feature encoder" in message_of(build_model, wrong)
    nothing_shared = tiny_config("photometric", init=str(stage_one))
    assert "shares no network" in message_of(build_model, nothing_shared)
    wider = tiny_config("photometric", decoder_width=32, init=str(tmp_path / "depth"))
    assert "depth_decoder" in message_of(build_model, wider)
    tiny_model(tiny_config("feature_metric")).save_pretrained(tmp_path / "frozen")
    only_a_stem = tiny_config("joint", feature_encoder=str(tmp_path / "frozen"))
    assert "feature_encoder" in message_of(build_model, only_a_stem)
    missing = tiny_config("joint", feature_encoder=str(tmp_path / "nowhere"))
    assert "nowhere" in message_of(build_model, missing)
