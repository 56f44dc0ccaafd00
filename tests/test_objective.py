"""The four objectives on tiny models: terms, sums, gradients, devices, precision."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from accelerate.utils import convert_outputs_to_fp32
from tiny_models import HEIGHT, OBJECTIVES, STEREO_METRES, WIDTH, tiny_batch, tiny_config, tiny_intrinsics, tiny_model
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

from featdepth import geometry
from featdepth.config import Config
from featdepth.data import augment
from featdepth.models import FeatDepth, Prediction
from featdepth.objective import compute_losses, compute_terms, explain_photometric
from featdepth.training.bad_steps import BadSteps, spoil_gradient
from featdepth.training.steps import IntervalLog

TERMS = {
    "photometric": {"photometric", "smoothness"},
    "autoencoder": {"reconstruction", "feature_regularisation"},
    "feature_metric": {"photometric", "smoothness", "feature_metric"},
    "joint": {"photometric", "smoothness", "feature_metric", "reconstruction", "feature_regularisation"},
}
FRAMES = {"mono": [0, -1, 1], "stereo": [0, "s"], "both": [0, -1, 1, "s"]}


def total(terms: dict[str, Tensor]) -> Tensor:
    """The loss as the training program forms it."""
    return torch.stack(list(terms.values())).sum(0).mean()


def plane_prediction(config: Config, depth: float, poses: Tensor) -> Prediction:
    """Four scales that all say "everything is `depth` units away"."""
    near, far = 1 / config.model.min_depth, 1 / config.model.max_depth
    disparity = (1 / depth - far) / (near - far)
    sizes = [(HEIGHT >> level, WIDTH >> level) for level in range(1, 5)]
    return Prediction(tuple(torch.full((len(poses), 1, *size), disparity) for size in sizes), poses)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_each_objective_gives_its_terms_one_value_per_sample(objective):
    config = tiny_config(objective)
    model, batch = tiny_model(config), tiny_batch(config, size=3)
    prediction = model(batch)
    terms, losses = compute_terms(prediction, batch, config), compute_losses(prediction, batch, config)
    assert set(terms) == set(losses) == TERMS[objective]
    for name, values in losses.items():
        assert values.shape == (3,) and values.dtype == torch.float32 and values.isfinite().all()
        torch.testing.assert_close(values, terms[name].sum(0))
    scales = {"photometric": 4, "smoothness": 4, "feature_metric": 1, "reconstruction": 4, "feature_regularisation": 5}
    assert {name: len(values) for name, values in terms.items()} == {name: scales[name] for name in TERMS[objective]}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_sample_in_evaluation_mode_does_not_depend_on_the_rest_of_its_batch(objective):
    config = tiny_config(objective, automask=True, normalise_disparity=True)
    model, batch = tiny_model(config).eval(), tiny_batch(config, size=2)
    with torch.no_grad():
        together = compute_losses(model(batch), batch, config)
        for index in range(2):
            one = {key: value[index : index + 1] for key, value in batch.items()}
            for name, value in compute_losses(model(one), one, config).items():
                torch.testing.assert_close(value[0], together[name][index], rtol=1e-4, atol=1e-7)


CASES = [(objective, frames) for objective in OBJECTIVES if objective != "autoencoder" for frames in FRAMES.values()]


@pytest.mark.parametrize("objective, frames", [*CASES, ("autoencoder", [0]), ("autoencoder", [0, -1, 1, "s"])])
def test_every_trainable_parameter_gets_a_gradient(objective, frames):
    config = tiny_config(objective, frames)
    model, batch = tiny_model(config), tiny_batch(config)
    total(compute_losses(model(batch), batch, config)).backward()
    without = [name for name, each in model.named_parameters() if each.requires_grad and each.grad is None]
    assert without == []  # processes that wait for each other's gradients would wait forever
    for name, network in model.named_children():
        gradients = [each.grad for each in network.parameters() if each.requires_grad]
        assert all(gradient.isfinite().all() for gradient in gradients), name
        assert not gradients or any(gradient.abs().max() > 0 for gradient in gradients), name


def test_the_feature_metric_term_reaches_depth_and_pose_but_not_the_frozen_features():
    config = tiny_config("feature_metric", FRAMES["mono"])
    model, batch = tiny_model(config), tiny_batch(config)
    compute_losses(model(batch), batch, config)["feature_metric"].sum().backward()
    assert all(each.grad is None and not each.requires_grad for each in model.feature_encoder.parameters())
    for network in (model.depth_decoder, model.pose_decoder, model.depth_encoder, model.pose_encoder):
        assert max(each.grad.abs().max() for each in network.parameters() if each.grad is not None) > 0


def test_the_feature_metric_term_takes_each_pixel_from_the_source_that_shows_it():
    config = tiny_config("feature_metric", [0, 1, 2], feature_metric=1.0)
    features = torch.rand(1, 64, HEIGHT // 2, WIDTH // 2, generator=torch.Generator().manual_seed(4))
    left, right = features.clone(), features.clone()
    left[..., :20], right[..., 28:] = 0, 0
    still = torch.eye(4).repeat(1, 2, 1, 1)
    batch = tiny_batch(config, size=1)
    seen = plane_prediction(config, 2.0, still)._replace(target_features=(features,))
    both = seen._replace(source_features=torch.stack([left, right], dim=1))
    neither = seen._replace(source_features=torch.stack([left, left], dim=1))
    error, occluded = (compute_losses(each, batch, config)["feature_metric"].item() for each in (both, neither))
    assert error == pytest.approx(1e-3, rel=1e-2) and occluded > 0.1


def test_the_weights_of_the_configuration_scale_their_terms():
    config = tiny_config("joint")
    model, batch = tiny_model(config), tiny_batch(config)
    prediction = model(batch)
    plain = compute_losses(prediction, batch, config)
    doubled = dataclasses.replace(config, loss=dataclasses.replace(config.loss, smoothness=2e-3, feature_metric=3e-3))
    for name, value in compute_losses(prediction, batch, doubled).items():
        torch.testing.assert_close(value, plain[name] * {"smoothness": 2, "feature_metric": 3}.get(name, 1))
    without = dataclasses.replace(config, loss=dataclasses.replace(config.loss, discriminative=0.0, convergent=0.0))
    assert compute_losses(prediction, batch, without)["feature_regularisation"].tolist() == [0, 0]
    rewarded = dataclasses.replace(config, loss=dataclasses.replace(config.loss, convergent=0.0))
    assert (compute_losses(prediction, batch, rewarded)["feature_regularisation"] < 0).all()


def moved_plane(step: int = 3) -> tuple[dict[str, Tensor], Tensor]:
    """A frontal plane seen by a camera and by one to its right: the batch, and the true pose for a depth of 2."""
    config = tiny_config("photometric", [0, 1])
    wide = torch.rand(1, 3, HEIGHT, WIDTH + step, generator=torch.Generator().manual_seed(1))
    wide = torch.nn.functional.avg_pool2d(wide, 3, stride=1, padding=1)
    batch = tiny_batch(config, size=1)
    batch["images"] = torch.stack([wide[..., :WIDTH], wide[..., step:]], dim=1)
    pose = torch.eye(4).repeat(1, 1, 1, 1)
    pose[..., 0, 3] = -step * 2 / batch["intrinsics"][0, 0, 0]
    return batch, pose


def test_the_photometric_term_is_least_for_the_true_depth_and_motion():
    config = tiny_config("photometric", [0, 1])
    batch, pose = moved_plane()
    found = {
        depth: compute_losses(plane_prediction(config, depth, pose), batch, config)["photometric"].item()
        for depth in (1.0, 2.0, 4.0)
    }
    assert found[2.0] < 0.2 * min(found[1.0], found[4.0])


def test_the_automask_bounds_the_error_by_that_of_the_unwarped_sources():
    masked, plain = tiny_config("photometric", [0, 1], automask=True), tiny_config("photometric", [0, 1])
    batch, pose = moved_plane()
    wrong = plane_prediction(plain, 0.7, pose)
    open_, bounded = (compute_losses(wrong, batch, config)["photometric"].item() for config in (plain, masked))
    still = compute_losses(plane_prediction(plain, 2.0, torch.eye(4).repeat(1, 1, 1, 1)), batch, plain)["photometric"]
    assert bounded < open_ and bounded <= still.item() + 1e-6
    batch["images"] = batch["images"][:, :1].expand(-1, 2, -1, -1, -1)  # a camera that stands still
    assert compute_losses(wrong, batch, masked)["photometric"].item() == pytest.approx(0.15e-3, rel=1e-3)
    assert compute_losses(wrong, batch, plain)["photometric"].item() > 0.01


def test_noise_breaks_ties_in_training_only():
    config = tiny_config("photometric", [0, 1], automask=True, identity_noise=1e-2)
    batch, pose = moved_plane()
    prediction = plane_prediction(config, 0.7, pose)
    training = [compute_losses(prediction, batch, config)["photometric"].item() for _ in range(2)]
    with torch.no_grad():
        validation = [compute_losses(prediction, batch, config)["photometric"].item() for _ in range(2)]
    assert training[0] != training[1] and validation[0] == validation[1]


def test_normalised_disparity_makes_smoothness_independent_of_scale():
    config = tiny_config("photometric", [0, 1], normalise_disparity=True)
    batch, pose = moved_plane()
    disparities = tuple(0.1 + 0.4 * torch.rand_like(each) for each in plane_prediction(config, 2.0, pose).disparities)
    smooth = [
        compute_losses(Prediction(tuple(factor * each for each in disparities), pose), batch, config)["smoothness"]
        for factor in (1.0, 0.25)
    ]
    torch.testing.assert_close(smooth[0], smooth[1], rtol=1e-4, atol=0)


def test_stereo_poses_enter_in_metres_and_serve_in_network_units():
    config = tiny_config("photometric", FRAMES["both"])
    model, batch = tiny_model(config), tiny_batch(config)
    poses = model(batch).poses
    assert poses.shape == (2, 3, 4, 4)
    assert poses[:, 2, 0, 3].tolist() == pytest.approx([-STEREO_METRES / 5.4] * 2)


def test_the_pose_of_an_earlier_frame_is_the_inverse_of_the_motion_since():
    config = tiny_config("photometric", [0, -1, 1])
    model, batch = tiny_model(config).eval(), tiny_batch(config, size=1)
    images = batch["augmented"]
    with torch.no_grad():
        poses = model(batch).poses
        # With past and present exchanged, the motion since the past frame is the motion to a later one.
        swapped = model({**batch, "augmented": torch.stack([images[:, 1], images[:, 2], images[:, 0]], dim=1)}).poses
    assert (poses[:, 0] - torch.eye(4)).abs().max() > 1e-5
    torch.testing.assert_close(poses[:, 0] @ swapped[:, 1], torch.eye(4)[None], rtol=0, atol=1e-6)


def test_the_networks_see_the_jittered_images_and_the_losses_the_plain_ones():
    config = tiny_config("photometric")
    model, batch = tiny_model(config).eval(), tiny_batch(config)
    dark = {**batch, "augmented": 0.3 * batch["images"]}
    with torch.no_grad():
        plain, jittered = model(batch), model(dark)
        assert (plain.disparities[0] - jittered.disparities[0]).abs().max() > 1e-4
        for name, value in compute_losses(plain, dark, config).items():
            torch.testing.assert_close(value, compute_losses(plain, batch, config)[name])


@pytest.mark.parametrize("objective", [each for each in OBJECTIVES if each != "autoencoder"])
def test_a_motion_that_is_none_shows_in_the_loss(objective):
    """One source's is enough, whatever the others explain; and a backward pass goes through it."""
    config = tiny_config(objective, automask=True)
    model, batch = tiny_model(config), tiny_batch(config)
    with torch.no_grad():
        model.pose_decoder.conv3.bias[0] = torch.nan
    losses = compute_losses(model(batch), batch, config)
    assert losses["photometric"].isnan().all()
    assert "feature_metric" not in losses or losses["feature_metric"].isnan().all()
    spoil_gradient(total(losses)).backward()
    assert all(each.grad.isnan().any() for each in model.parameters() if each.requires_grad)


@pytest.mark.parametrize("objective", ["autoencoder", "joint"])  # all networks and terms
def test_nothing_chooses_a_device_of_its_own(objective):
    config = tiny_config(objective, automask=True, normalise_disparity=True, identity_noise=1e-5)
    with torch.device("meta"):
        model = FeatDepth(config.model, config.data.frames, HEIGHT, WIDTH)
        batch = {
            "images": torch.empty(2, 4, 3, HEIGHT, WIDTH, dtype=torch.uint8),
            "intrinsics": torch.empty(2, 3, 3),
            "stereo_pose": torch.empty(2, 4, 4),
            "jitter": torch.empty(2, 5),
        }
    # Outside of the context: what is made without a device lands on the CPU, and meeting it fails.
    batch = augment(batch)
    prediction = model(batch)
    losses = compute_losses(prediction, batch, config)
    total(losses).backward()
    assert set(losses) == TERMS[objective]
    assert all(value.device.type == "meta" and value.shape == (2,) for value in losses.values())
    assert all(each.grad.device.type == "meta" for each in model.parameters() if each.requires_grad)
    if model.has_depth:
        assert explain_photometric(prediction, batch, config).error.device.type == "meta"
        assert model.predict_depth(batch["images"][:, 0]).shape == (2, 1, HEIGHT, WIDTH)


class Copies(TorchFunctionMode):
    """Notes the operations that make a host wait for its GPU: whose tensors are made of numbers, or change devices.

    On the device "meta", which stands for a GPU here, values cannot be read at all: that fails by itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        flat = tree_flatten((arguments, keywords, result))[0]
        # A single number goes along with an operation, but not the other way.
        moved = {each.device.type for each in flat if isinstance(each, Tensor) and (each.ndim or each is result)}
        if len(moved) > 1 or function in (torch.tensor, torch.as_tensor, torch.from_numpy, Tensor.new_tensor):
            self.found.append(getattr(function, "__name__", str(function)))
        return result


@pytest.mark.parametrize(
    "objective, settings",
    [
        ("autoencoder", {}),
        ("photometric", {"pyramid": True, "velocity": 0.1}),
        ("photometric", {"automask": True, "identity_noise": 1e-3, "normalise_disparity": True}),
        ("feature_metric", {"intrinsics": "learned", "pose_size": [32, 64]}),
        ("joint", {"intrinsics": "learned", "square_pixels": False, "pyramid": True}),
    ],
)
def test_a_step_copies_nothing_to_the_device_or_back(objective, settings):
    config = tiny_config(objective, **settings)
    names = ["front"] if config.model.intrinsics == "learned" else []
    with torch.device("meta"):
        model = FeatDepth(config.model, config.data.frames, HEIGHT, WIDTH, names)
        batch = {
            "images": torch.empty(2, 4, 3, HEIGHT, WIDTH, dtype=torch.uint8),
            "intrinsics": torch.empty(2, 3, 3),
            "stereo_pose": torch.empty(2, 4, 4),
            "jitter": torch.empty(2, 5),
            "distance": torch.empty(2, 3),
            "camera": torch.empty(2, dtype=torch.int64),
            "index": torch.empty(2, dtype=torch.int64),
            "replaced": torch.empty(2, dtype=torch.int64),
        }
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad])
    bad_steps, interval = BadSteps(model, optimizer, 20), IntervalLog(None)
    with Copies() as copies:
        batch = augment(batch)
        prediction = model(batch)
        losses = compute_losses(prediction, batch, config)
        spoil_gradient(total(losses)).backward()
        bad = bad_steps.judge(torch.nn.utils.clip_grad_norm_(model.parameters(), 35.0))
        model.follow_cameras(batch, prediction)
        interval.add(losses, batch["replaced"], 0.1)
        bad_steps.settle(1, bad)
        interval.settle(bad)
    assert copies.found == []


def test_copies_are_found():
    """So the test above can fail."""
    image, row = torch.empty(3, device="meta"), torch.ones(3)
    with Copies() as copies:
        _ = image + 1, 2 * image.sum(), torch.where(image > 0, image, 0.0), image * torch.ones(())
        image[0] = 0
        assert copies.found == []
        _ = image.new_tensor([1.0]), row.to("meta"), torch.tensor([1.0], device="meta"), image.copy_(row)
        for read in (image.sum().item, lambda: bool(image.sum()), image.nonzero, lambda: image[image > 0], image.cpu):
            with pytest.raises((RuntimeError, NotImplementedError)):
                read()
    assert copies.found == ["new_tensor", "to", "tensor", "copy_"]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_under_bfloat16_autocast_poses_and_losses_stay_float32(objective):
    config = tiny_config(objective)
    model, batch = tiny_model(config), tiny_batch(config)
    batch["intrinsics"] = tiny_intrinsics(2)
    with torch.autocast("cpu", torch.bfloat16):
        prediction = model(batch)
    maps = (*prediction.disparities, *prediction.reconstructions)
    assert all(each.dtype == torch.float32 for each in maps)
    if model.has_depth:
        assert prediction.poses.dtype == torch.float32 and prediction.poses.isfinite().all()
    # Features become float32 on the way out of the prepared model, as Accelerate does it.
    losses = compute_losses(convert_outputs_to_fp32(lambda: prediction)(), batch, config)
    total(losses).backward()
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in losses.values())


def test_poses_are_composed_in_full_precision_under_autocast():
    config = tiny_config("photometric", [0, -1, 1])
    model, images = tiny_model(config).eval(), tiny_batch(config)["augmented"]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        before, after = model.poses(images, [-1, 1], None).unbind(1)
        motion = model.motion(images[:, 1], images[:, 0])
    torch.testing.assert_close(before, torch.linalg.inv(motion), rtol=1e-4, atol=1e-7)
    identity = torch.eye(3).expand(2, -1, -1)
    torch.testing.assert_close(after[:, :3, :3] @ after[:, :3, :3].mT, identity, rtol=0, atol=1e-6)
    vector = torch.tensor([[0.3, -0.2, 0.7]])
    with torch.autocast("cpu", torch.bfloat16):
        pose = geometry.invert_pose(geometry.pose_from_vector(vector, vector))
    torch.testing.assert_close(pose, geometry.invert_pose(geometry.pose_from_vector(vector, vector)), rtol=0, atol=1e-6)


def test_the_explanation_is_that_of_the_finest_photometric_term():
    config = tiny_config("photometric")
    model, batch = tiny_model(config), tiny_batch(config)
    prediction = model(batch)
    explained = explain_photometric(prediction, batch, config)
    expected = compute_terms(prediction, batch, config)["photometric"][0] * 4
    torch.testing.assert_close(explained.error.mean((1, 2, 3)), expected)
    assert explained.reconstruction.shape == (2, 3, HEIGHT, WIDTH)
    assert set(explained.moving.unique().tolist()) <= {0.0, 1.0}
    batch, pose = moved_plane()
    explained = explain_photometric(plane_prediction(config, 2.0, pose), batch, config)
    inside = explained.reconstruction[..., 8:-8] - batch["images"][:, 0, ..., 8:-8]
    assert inside.abs().max() < 1e-4 and explained.moving[..., 8:-8].mean() > 0.99
