"""Refinement at test time: what it may know, what it leaves alone, what it reports."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, call_program, succeeded
from tiny_models import HEIGHT, STEREO_METRES, WIDTH, tiny_config, tiny_intrinsics, tiny_model
from torch import Tensor

import train
from featdepth.config import Config, load_config
from featdepth.data import build_dataset
from featdepth.data.samples import Sample
from featdepth.data.splits import is_transductive
from featdepth.data.synthetic import Drive, Street
from featdepth.errors import InputError
from featdepth.evaluation.refinement import LOSS, Refiner, clips_of, evaluate_refinement, refine_stream
from featdepth.metrics.depth import METRICS
from featdepth.models import FeatDepth
from featdepth.models.featdepth import Prediction
from featdepth.objective import compute_losses


@pytest.fixture(scope="module")
def model() -> FeatDepth:
    return tiny_model(tiny_config("photometric")).eval()


@pytest.fixture(scope="module")
def frames() -> list[Tensor]:
    """A stream of five images, which a motion aligns: a smooth picture that moves to the left."""
    coarse = torch.rand(1, 3, 8, 16, generator=torch.Generator().manual_seed(3))
    wide = torch.nn.functional.interpolate(coarse, (HEIGHT, 2 * WIDTH), mode="bicubic").clamp(0, 1)[0]
    return [wide[:, :, number : number + WIDTH] for number in range(5)]


def stream(model: FeatDepth, frames: list[Tensor], steps: int = 1) -> list[Tensor]:
    return list(refine_stream(model, frames, tiny_intrinsics(1)[0], steps, learning_rate=1e-5))


def weights(model: FeatDepth) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    return [name for name in before if not torch.equal(before[name], after[name])]


def test_a_frame_is_predicted_from_the_frames_before_it_alone(model, frames):
    depths = stream(model, frames)
    # It takes three frames to learn from, so the first three are the given model's depth.
    for number in (0, 1, 2):
        assert torch.equal(depths[number], model.predict_depth(frames[number]))
    assert not torch.equal(depths[3], model.predict_depth(frames[3]))
    # Whatever comes later, and the frame's own depth comes before it is learned from.
    other_future = stream(model, [*frames[:4], 1 - frames[4]])
    assert all(torch.equal(*pair) for pair in zip(other_future[:4], depths[:4], strict=True))
    other_past = stream(model, [1 - frames[0], *frames[1:]])
    assert torch.equal(other_past[2], depths[2]) and not torch.equal(other_past[3], depths[3])
    assert depths[0].shape == (1, HEIGHT, WIDTH) and not depths[4].requires_grad


def test_nothing_is_computed_before_it_is_asked_for(model, frames):
    asked = []

    def live() -> Tensor:
        for number, frame in enumerate(frames):
            asked.append(number)
            yield frame

    depths = refine_stream(model, live(), tiny_intrinsics(1)[0])
    next(depths)
    assert asked == [0]
    next(depths)
    assert asked == [0, 1]


def test_a_stream_is_the_same_again_and_the_given_model_stays_as_it_is(model, frames):
    before, modes = weights(model), [each.training for each in model.modules()]
    needs = [each.requires_grad for each in model.parameters()]
    first = stream(model, frames, steps=2)
    assert all(torch.equal(*pair) for pair in zip(stream(model, frames, steps=2), first, strict=True))
    assert changed(before, weights(model)) == [] and [each.training for each in model.modules()] == modes
    assert [each.requires_grad for each in model.parameters()] == needs and model.frames == [0, -1, 1, "s"]
    plain = [model.predict_depth(frame) for frame in frames]
    plain = [model.predict_depth(frame) for frame in frames]
    assert all(torch.equal(*pair) for pair in zip(stream(model, frames, steps=0), plain, strict=True))


def test_a_learning_rate_that_is_far_too_large_ends_in_one_line(model, frames):
    with pytest.raises(InputError, match="no longer finite; lower the learning rate"):
        list(refine_stream(model, frames, tiny_intrinsics(1)[0], steps=8, learning_rate=1e18))


@pytest.mark.parametrize("cameras", ["one", "two"])
def test_steps_lower_the_objective_and_leave_batch_statistics_alone(model, frames, cameras):
    intrinsics, pose = tiny_intrinsics(1)[0], stereo_pose()
    refiner = Refiner(model, steps=8)
    if cameras == "one":
        for frame in frames[:2]:
            refiner.learn(frame, intrinsics)
        assert changed(weights(model), weights(refiner.model)) == []
        images, poses = [frames[1], frames[0], frames[2]], None
        refiner.learn(frames[2], intrinsics)
    else:
        images, poses = [frames[0], frames[1]], pose[None, None] / torch.tensor([[1.0, 1.0, 1.0, 5.4]])
        refiner.learn(frames[0], intrinsics, frames[1], pose)
    images = torch.stack(images)[None]
    assert objective(refiner, images, poses) < objective(Refiner(model), images, poses)
    names = changed(weights(model), weights(refiner.model))
    assert {name.split(".")[0] for name in names} == {"depth_encoder", "depth_decoder"}
    assert not any("running" in name or "batches" in name for name in names)
    assert not any(module.training for module in refiner.model.modules())
    refiner.reset()
    assert changed(weights(model), weights(refiner.model)) == [] and refiner.past == []


def stereo_pose() -> Tensor:
    pose = torch.eye(4)
    pose[0, 3] = -STEREO_METRES
    return pose


@torch.no_grad()
def objective(refiner: Refiner, images: Tensor, poses: Tensor | None) -> Tensor:
    intrinsics = tiny_intrinsics(1)
    if poses is None:
        poses, is_aligned = refiner.align(images, intrinsics)
        assert is_aligned.all()
    prediction = Prediction(refiner.model.depth(images[:, 0]), poses)
    batch = {"images": images, "intrinsics": intrinsics}
    return torch.stack(
        [*compute_losses(prediction, batch, Config(model=refiner.model.settings, loss=LOSS)).values()]
    ).sum()


def test_one_camera_keeps_the_scale_and_needs_no_pose_network(frames):
    model = tiny_model(tiny_config("photometric", [0, "s"])).eval()
    refiner, intrinsics = Refiner(model, steps=5, learning_rate=1e-3), tiny_intrinsics(1)[0]
    for frame in frames[:3]:
        refiner.learn(frame, intrinsics)
    assert changed(weights(model), weights(refiner.model)) != []
    scales = [network.predict_depth(frames[1]).log().mean() for network in (model, refiner.model)]
    assert abs(scales[0] - scales[1]) < 0.05


def test_nothing_is_learned_from_frames_that_cannot_be_aligned(model):
    refiner = Refiner(model)
    for noise in torch.rand(4, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0)):
        refiner.learn(noise, tiny_intrinsics(1)[0])
    assert changed(weights(model), weights(refiner.model)) == []


def test_images_of_another_size_are_learned_from_at_the_models(model, frames):
    large = [torch.nn.functional.interpolate(frame[None], scale_factor=2, mode="nearest")[0] for frame in frames[:4]]
    depths = list(refine_stream(model, large, tiny_intrinsics(1)[0]))
    assert [depth.shape for depth in depths] == [(1, 2 * HEIGHT, 2 * WIDTH)] * 4


@pytest.mark.parametrize("objective_name", ["feature_metric", "joint"])
def test_models_with_features_refine_without_them(objective_name, frames):
    model = tiny_model(tiny_config(objective_name)).eval()
    refiner = Refiner(model)
    for frame in frames[:3]:
        refiner.learn(frame, tiny_intrinsics(1)[0])
    names = changed(weights(model), weights(refiner.model))
    assert names and not any(name.startswith("feature") for name in names)
    assert model.settings.objective == objective_name


def test_what_cannot_be_refined_is_refused(frames):
    with pytest.raises(InputError, match="autoencoder predicts no depth"):
        Refiner(tiny_model(tiny_config("autoencoder", [0])))
    monocular = Refiner(tiny_model(tiny_config("photometric", [0, -1], metres_per_unit=None)))
    with pytest.raises(InputError, match="without metres cannot learn from a stereo baseline"):
        monocular.learn(frames[0], tiny_intrinsics(1)[0], frames[1], torch.eye(4))


@pytest.mark.parametrize("sources", [[0], [0, "s"]])
def test_an_evaluation_scores_the_samples_and_counts_gain_and_cost(config_file: Path, sources):
    config = load_config(config_file, ["data.frames=[0,-1,s]"], training=False)
    dataset = build_dataset(config, "test", frames=sources, require_depth=True)
    model = tiny_model(tiny_config("photometric", metres_per_unit=36.0)).eval()
    config.model = model.settings
    result = evaluate_refinement(model, dataset, config, learning_rate=1e-3)
    assert result["images"] == len(dataset) == 3 and result["frames"] == 5  # every second frame is a sample
    assert result["stereo"] == ("s" in sources) and len(result["clips"]) == 1
    for scale in ("median_scaled", "fixed_scale"):
        without, refined = result["without"][scale], result["with"][scale]
        assert set(without) == set(METRICS) and without != refined
        assert result["gain"][scale] == pytest.approx(without["abs_rel"] - refined["abs_rel"])
        assert result["clips"][0]["with"][scale] == refined
    assert 0 < result["with"]["frames_per_second"] < result["without"]["frames_per_second"]
    unchanged = evaluate_refinement(model, dataset, config, steps=0)
    assert unchanged["gain"] == {"median_scaled": 0.0, "fixed_scale": 0.0}
    assert unchanged["without"]["median_scaled"] == result["without"]["median_scaled"]


def test_a_missing_frame_and_another_drive_begin_a_clip(config_file: Path):
    config = load_config(config_file, training=False)
    dataset = build_dataset(config, "test", frames=[0])
    drive, found = dataset.samples[0].drive, dataset.image_path
    dataset.image_path = lambda sample, frame: None if sample.frame == 3 else found(sample, frame)
    first = dataset.samples[0].frame
    dataset.samples = [Sample(drive, 5, "l"), Sample(drive, first, "l"), Sample(drive, 4, "r"), Sample(drive, 6, "r")]
    assert [[(each.side, each.frame) for each in clip] for clip in clips_of(dataset)] == [
        [("l", 1), ("l", 2)],
        [("l", 4), ("l", 5)],
        [("r", 4), ("r", 5), ("r", 6)],
    ]


def test_a_training_on_the_test_drives_is_transductive_where_it_goes_on_from_a_model(street: Path, config_file: Path):
    test = street / "splits" / "test_files.txt"
    config = load_config(config_file, [f"data.train_files={test}", "data.allow_leakage=true"])
    recordings = build_dataset(config, "train", frames=[0]).recordings()
    assert not is_transductive(config, recordings)
    config.model.init = "runs/kitti/model"
    assert is_transductive(config, recordings)
    clean = load_config(config_file)
    clean.model.init = "runs/kitti/model"
    assert not is_transductive(clean, build_dataset(clean, "train", frames=[0]).recordings())


def test_the_other_look_changes_colours_and_camera_height_but_no_scene():
    default, other = (Drive(Street(drives=3, height=32, width=64, look=look), 0) for look in ("default", "other"))
    assert np.array_equal(default.scene.static.planes, other.scene.static.planes)
    assert np.array_equal(default.scene.roads[0].points, other.scene.roads[0].points)
    raised = other.camera_pose(1) - default.camera_pose(1)
    np.testing.assert_allclose(raised[:3, 3], (0, 0, 0.6), atol=1e-9)
    assert np.abs(default.image(0, 2).astype(int) - other.image(0, 2)).mean() > 20
    with pytest.raises(InputError, match="--look pretty: has to be one of default, other"):
        Street(look="pretty")


def test_a_transductive_run_says_so_in_its_model_and_on_its_card(
    street: Path, config_file: Path, finished_run: Path, tmp_path: Path
):
    lists = f"data.train_files={street}/splits/test_files.txt"
    options = [lists, f"model.init={finished_run}/model", f"run.directory={tmp_path / 'run'}", "train.max_steps=1"]
    line = call_program(train.main, "--config", config_file, *options).error_line()
    assert "share drives" in line and "allow_leakage" in line
    result = call_program(train.main, "--config", config_file, *options, "data.allow_leakage=true")
    assert "CONTAMINATED: trained on drives of another part" in succeeded(result).out
    record = FeatDepth.from_pretrained(tmp_path / "run" / "model").provenance
    assert record.transductive and len(record.contaminated) == 1
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert card.index("CONTAMINATED") < card.index("TRANSDUCTIVE") < card.index("## Use")


def test_the_benchmark_compares_one_camera_and_two(street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    module = import_module("refinement")
    monkeypatch.setattr(module, "write_street", lambda out, **options: Path(out).symlink_to(street))
    tiny_model(tiny_config("photometric", metres_per_unit=36.0)).save_pretrained(tmp_path / "model")
    options = ["--checkpoint", tmp_path / "model", "--frames", 4, "--json", tmp_path / "figures.json", "--cpu"]
    result = succeeded(call_program(module.main, *options))
    rows = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert list(rows) == ["one camera, without", "one camera, with", "stereo, without", "stereo, with"]
    assert all(name in result.out for name in rows)
    assert rows["one camera, without"]["median_scaled"] == rows["stereo, without"]["median_scaled"]
    assert rows["stereo, with"]["fixed_scale"] != rows["stereo, without"]["fixed_scale"]
    assert 0 <= rows["stereo, with"]["wins"] <= 6
