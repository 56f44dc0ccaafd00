"""Metres without a laser scanner: distances travelled, the velocity term, where a model's scale comes from."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Result, call_program, run_program_process, succeeded
from tiny_models import tiny_batch, tiny_config, tiny_model

import evaluate
import train
from featdepth import FeatDepth
from featdepth.config import Config, load_config
from featdepth.data import build_dataset
from featdepth.data.kitti.oxts import distance_between, read_speed, read_times, steps_between
from featdepth.data.synthetic import Drive, Street
from featdepth.errors import InputError
from featdepth.losses import distance_error
from featdepth.models import Prediction, build_model
from featdepth.objective import compute_losses
from featdepth.scale import describe_scale

SHORT_RUN = ("train.max_steps=4", "train.checkpoint_every=2")
SPEED_OPTIONS = ("data.frames=[0, -1, 1]", "loss.velocity=0.1")


class TestDistanceError:
    def test_closed_form(self) -> None:
        directions = torch.tensor([[2.0, 1.0, -2.0], [0.0, 0.0, 3.0]]) / 3
        lengths = torch.tensor([[1.1, 3.0], [0.5, 0.0]])
        error = distance_error(lengths[..., None] * directions, torch.tensor([[1.0, 2.0], [2.0, 1.0]]))
        expected = [[0.21 / 2, 5 / 8], [3.75 / 8, 1 / 2]]
        torch.testing.assert_close(error, torch.tensor(expected).mean(1))

    def test_it_is_the_relative_error_where_that_is_small(self) -> None:
        for distance in (0.1, 1.0, 30.0):
            translation = torch.tensor([[[0.0, 0.0, 1.01 * distance]]])
            assert distance_error(translation, torch.tensor([[distance]])).item() == pytest.approx(0.01, rel=0.01)

    def test_unknown_distances_count_nothing(self) -> None:
        translations = torch.tensor([[1.5, 7.0], [3.0, 4.0]])[..., None].repeat(1, 1, 3) / 3**0.5
        error = distance_error(translations.requires_grad_(), torch.tensor([[1.0, math.nan], [math.nan, math.nan]]))
        assert error.tolist() == pytest.approx([1.25 / 2, 0.0])
        error.sum().backward()
        assert translations.grad.norm(dim=-1).tolist() == [[pytest.approx(1.5), 0.0], [0.0, 0.0]]

    def test_standing_still_asks_for_no_motion_with_a_bounded_gradient(self) -> None:
        translation = torch.tensor([[[0.0, 0.02, 0.0]]], requires_grad=True)
        error = distance_error(translation, torch.zeros(1, 1))
        error.sum().backward()
        assert error.item() == pytest.approx(0.02) and translation.grad.flatten().tolist() == pytest.approx([0, 2, 0])

    def test_a_short_translation_is_hardly_pulled(self) -> None:
        """Its direction is still random; that of a difference of lengths would pull with 1 / d."""
        translation = torch.tensor([[[0.01, 0.0, 0.0]]], requires_grad=True)
        distance_error(translation, torch.ones(1, 1)).sum().backward()
        assert translation.grad.flatten().tolist() == pytest.approx([-0.01, 0, 0])


def scaled_motion(length: float, unit: float, distances: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """The velocity term, without its weight, of poses `length` units long, and its derivative by their scale."""
    config = tiny_config("photometric", [0, -1, 1], metres_per_unit=unit, velocity=0.5)
    scale = torch.ones((), requires_grad=True)
    direction = torch.tensor([2.0, 1.0, -2.0]) / 3
    moved = torch.eye(4).repeat(len(distances), 2, 1, 1)
    moved[..., :3, 3] = length * direction
    factor = torch.ones_like(moved)
    factor[..., :3, 3] = 0
    poses = moved * factor + moved * (1 - factor) * scale
    disparities = tuple(torch.full((len(distances), 1, 32 >> level, 48 >> level), 0.3) for level in range(4))
    batch = tiny_batch(config, size=len(distances))
    batch["distance"] = torch.tensor(distances)[:, None].expand(-1, 2)
    term = compute_losses(Prediction(disparities, poses), batch, config)["velocity"]
    (gradient,) = torch.autograd.grad(term.sum(), scale)
    return term.detach() / 0.5, gradient / 0.5


class TestVelocityTerm:
    def test_closed_form(self) -> None:
        """Lengths of 0.05 units of 36 m are 1.8 m; the derivative by the scale is their squared part of the truth."""
        term, gradient = scaled_motion(0.05, 36.0, [1.5, 2.4])
        assert term.tolist() == pytest.approx([(1.2**2 - 1) / 2, (1 - 0.75**2) / 2], rel=1e-5)
        assert gradient.item() == pytest.approx(1.2**2 - 0.75**2, rel=1e-5)

    @pytest.mark.parametrize("unit", [1.0, 36.0])
    @pytest.mark.parametrize("metres", [0.3, 2.5])
    def test_only_the_ratio_of_lengths_matters(self, unit: float, metres: float) -> None:
        term, gradient = scaled_motion(0.8 * metres / unit, unit, [metres])
        assert (term.item(), gradient.item()) == pytest.approx(((1 - 0.8**2) / 2, -(0.8**2)), rel=1e-5)

    def test_a_motionless_prediction_has_a_finite_gradient(self) -> None:
        config = tiny_config("photometric", [0, -1], velocity=1.0)
        model, batch = tiny_model(config), tiny_batch(config)
        batch["distance"] = torch.tensor([[0.0], [1.0]])
        torch.nn.init.zeros_(model.pose_decoder.conv3.weight)
        torch.nn.init.zeros_(model.pose_decoder.conv3.bias)
        compute_losses(model(batch), batch, config)["velocity"].sum().backward()
        assert all(each.grad.isfinite().all() for each in model.pose_decoder.parameters())

    def test_it_reaches_the_pose_network_alone_and_only_where_distances_are_known(self) -> None:
        config = tiny_config("photometric", [0, -1, 1, "s"], velocity=1.0)
        model, batch = tiny_model(config), tiny_batch(config)
        batch["distance"] = torch.full((2, 3), math.nan)
        unknown = compute_losses(model(batch), batch, config)
        assert unknown["velocity"].tolist() == [0.0, 0.0]
        without = compute_losses(model(batch), batch, tiny_config("photometric", [0, -1, 1, "s"]))
        assert "velocity" not in without
        batch["distance"][1, 0] = 1.0
        term = compute_losses(model(batch), batch, config)["velocity"]
        assert term[0] == 0 and term[1] > 0
        term.sum().backward()
        assert all(each.grad is None for each in model.depth_encoder.parameters())
        assert max(each.grad.abs().max() for each in model.pose_encoder.parameters()) > 0


TIMES = 0.1 * np.arange(8)


class TestSteps:
    def test_constant_and_growing_speed(self) -> None:
        steps = steps_between(TIMES, TIMES, dict.fromkeys(range(8), 7.0))
        assert steps == pytest.approx(np.full(7, 0.7))
        steps = steps_between(TIMES, TIMES, dict(enumerate(3 + 2 * TIMES)))
        assert steps.sum() == pytest.approx(3 * 0.7 + 0.7**2)
        assert distance_between(steps, 5, 2) == pytest.approx(0.9 + 0.5**2 - 0.2**2)

    def test_packets_that_are_not_simultaneous_with_the_pictures(self) -> None:
        """Neighbouring packets are 0.08 and 0.12 s apart: positions would say so, pictures do not."""
        packet_times = TIMES + 0.01 * (-1) ** np.arange(8)
        assert steps_between(TIMES, packet_times, dict.fromkeys(range(8), 7.0)) == pytest.approx(np.full(7, 0.7))
        growing = steps_between(TIMES, packet_times, dict(enumerate(3 + 2 * packet_times)))
        assert growing[1:-1] == pytest.approx(0.1 * (3 + 2 * (TIMES[1:-2] + 0.05)))

    def test_lost_packets_are_bridged_and_long_gaps_are_unknown(self) -> None:
        kept = {frame: 3 + 2 * TIMES[frame] for frame in (0, 1, 5, 7)}
        whole = steps_between(TIMES, TIMES, dict(enumerate(3 + 2 * TIMES)))
        assert steps_between(TIMES, TIMES, kept) == pytest.approx(whole)
        times = 0.1 * np.arange(40)
        steps = steps_between(times, times, dict.fromkeys([*range(5), *range(25, 40)], 7.0))
        known = np.flatnonzero(np.isfinite(steps))
        assert known.tolist() == [*range(9), *range(20, 39)]
        assert distance_between(steps, 6, 11) is None and distance_between(steps, 25, 35) == pytest.approx(7.0)

    def test_standing_still_is_a_distance_of_nothing(self) -> None:
        steps = steps_between(TIMES, TIMES, dict.fromkeys(range(8), 0.0))
        assert distance_between(steps, 1, 3) == 0.0

    def test_a_missing_or_jumping_clock_makes_distances_unknown(self) -> None:
        speeds = dict.fromkeys(range(8), 7.0)
        assert np.isnan(steps_between(TIMES, np.zeros(0), speeds)).all()
        assert len(steps_between(np.zeros(0), TIMES, speeds)) == 0
        times = TIMES.copy()
        times[3] = math.nan
        assert np.flatnonzero(np.isnan(steps_between(times, TIMES, speeds))).tolist() == [2, 3]
        times[3] = times[5]
        assert np.isnan(steps_between(times, TIMES, speeds)[3])

    def test_frames_beyond_the_drive(self) -> None:
        steps = steps_between(TIMES, TIMES, dict.fromkeys(range(8), 7.0))
        assert distance_between(steps, 0, -1) is None and distance_between(steps, 7, 8) is None

    def test_files_that_are_damaged(self, tmp_path: Path) -> None:
        path = tmp_path / "timestamps.txt"
        path.write_text("2011-09-26 13:10:51.175862102\n\n2011-09-26 13:10:51.275615407\n")
        times = read_times(path)
        assert math.isnan(times[1]) and times[2] - times[0] == pytest.approx(0.099753305, abs=1e-6)
        assert len(read_times(tmp_path / "none.txt")) == 0
        for line in ("now", "2011-09-26", "2011-13-26 13:10:51.1"):
            path.write_text(f"2011-09-26 13:10:51.175862102\n{line}\n")
            with pytest.raises(InputError, match=r"timestamps.txt:2: .* is no time such as"):
                read_times(path)
        packet = tmp_path / "0.txt"
        packet.write_text("1 2 3\n")
        with pytest.raises(InputError, match=r"0.txt:1: .* should be 30 numbers of an inertial measurement"):
            read_speed(packet)
        packet.write_text("")
        with pytest.raises(InputError, match=r"0.txt: has 0 lines"):
            read_speed(packet)


class TestDistancesOfAStreet:
    def test_against_the_true_motion(self, config_file: Path) -> None:
        """Exact on straight roads; in bends the cameras go another way than the inertial unit beside them."""
        dataset = build_dataset(load_config(config_file, [*SPEED_OPTIONS, "data.frames=[0, -1, 2, s]"]), "train")
        assert dataset.known_distances == len(dataset)
        street, errors = Street(drives=6, frames=7, height=64, width=192), []
        for name in dataset.drives:
            drive = Drive(street, int(name.split("_")[-2]) - 1)
            for index in [index for index, sample in enumerate(dataset.samples) if sample.drive == name]:
                frame, found = dataset.samples[index].frame, dataset[index]["distance"]
                places = [drive.camera_pose(frame + offset)[:3, 3] for offset in (0, -1, 2)]
                true = [float(np.linalg.norm(place - places[0])) for place in places[1:]]
                assert found[:2].tolist() == pytest.approx(true, rel=0.05) and found[2].isnan()
                errors.append(abs(found[1].item() / true[1] - 1))
        assert np.median(errors) < 0.01 and min(errors) < 1e-3

    def test_drives_without_measurements_know_nothing(self, street_copy: Path, tmp_path: Path) -> None:
        config = load_config(tmp_path / "tiny.yaml", SPEED_OPTIONS)
        folders = sorted(street_copy.glob("*/*_sync/oxts"))
        shutil.rmtree(folders[0])
        (folders[1] / "data" / "0000000003.txt").unlink()
        some = build_dataset(config, "train")
        assert 0 < some.known_distances < len(some)
        assert f"{some.known_distances} with known distances" in some.describe()
        for folder in folders[1:]:
            shutil.rmtree(folder)
        with pytest.raises(InputError, match=r"loss.velocity is 0.1, but none of 20 training .*; docs/scale.md"):
            build_dataset(config, "train")
        config.loss.velocity = 0.0
        assert "distance" not in build_dataset(config, "train")[0]

    def test_a_damaged_measurement_is_named(self, street_copy: Path, tmp_path: Path) -> None:
        packet = next(street_copy.glob("*/*_0001_sync/oxts/data/0000000003.txt"))
        packet.write_text("49.0 8.4 nan")
        with pytest.raises(InputError, match=f"{packet}:1"):
            build_dataset(load_config(tmp_path / "tiny.yaml", SPEED_OPTIONS), "train")


class TestConfiguration:
    @pytest.mark.parametrize(
        ("overrides", "message"),
        [
            (["data.frames=[0, -1, 1]"], "model.metres_per_unit is 36.0, but nothing in this training knows metres"),
            ([*SPEED_OPTIONS, "model.metres_per_unit=null"], "is null, but the distances of loss.velocity need it"),
            (["data.frames=[0, s]", "loss.velocity=1"], "loss.velocity is 1.0, but .* has no motion"),
            (["model.objective=autoencoder", "loss.velocity=1"], "loss.velocity is 1.0, but objective autoencoder"),
            (["loss.velocity=-1"], "loss.velocity is -1.0, it must not be negative"),
        ],
    )
    def test_refused(self, config_file: Path, overrides: list[str], message: str) -> None:
        with pytest.raises(InputError, match=message):
            load_config(config_file, overrides)

    def test_an_evaluation_needs_no_source_of_metres(self, config_file: Path) -> None:
        assert load_config(config_file, ["data.frames=[0, -1, 1]"], training=False).model.metres_per_unit == 36.0


def metric_config(folder: Path, frames: list[int | str], unit: float | None = 5.4, **settings: object) -> Config:
    config = tiny_config("photometric", frames, metres_per_unit=unit, **settings)
    config.data.root = str(folder)
    return config


def saved(config: Config, folder: Path) -> FeatDepth:
    """The model of `config`, saved and loaded again."""
    build_model(config).save_pretrained(folder)
    return FeatDepth.from_pretrained(folder)


class TestScaleSource:
    @pytest.mark.parametrize(
        ("frames", "unit", "weight", "source"),
        [
            ([0, -1, "s"], 5.4, 0.0, "stereo baseline"),
            ([0, -1], 5.4, 0.1, "known speed"),
            ([0, -1, "s"], 5.4, 0.1, "stereo baseline and known speed"),
            ([0, -1], None, 0.0, None),
        ],
    )
    def test_it_is_saved_with_the_model(
        self, tmp_path: Path, frames: list[int | str], unit: float | None, weight: float, source: str | None
    ) -> None:
        model = saved(metric_config(tmp_path, frames, unit, velocity=weight), tmp_path / "model")
        assert model.scale_source == source
        assert describe_scale(model.scale_source) == (f"metres ({source})" if source else "up to scale")

    def test_models_that_were_saved_without_it(self, tmp_path: Path) -> None:
        for frames, source in (([0, "s"], "stereo baseline"), ([0, -1], "given, source unknown")):
            config = metric_config(tmp_path, frames)
            FeatDepth(config.model, frames, 64, 96).save_pretrained(tmp_path / "model")
            assert "scale_source" not in json.loads((tmp_path / "model" / "config.json").read_text())["training"]
            assert FeatDepth.from_pretrained(tmp_path / "model").scale_source == source

    def test_a_damaged_one_is_refused(self, tmp_path: Path) -> None:
        saved(metric_config(tmp_path, [0, "s"]), tmp_path / "model")
        path = tmp_path / "model" / "config.json"
        path.write_text(path.read_text().replace('"scale_source": "stereo baseline"', '"scale_source": ["x"]'))
        with pytest.raises(InputError, match="the section training is damaged"):
            FeatDepth.from_pretrained(tmp_path / "model")

    def test_fine_tuning_keeps_the_metres_of_the_initial_model(self, tmp_path: Path) -> None:
        saved(metric_config(tmp_path, [0, -1, "s"]), tmp_path / "stereo")
        config = metric_config(tmp_path, [0, -1], init=str(tmp_path / "stereo"))
        expected = "stereo baseline, of the initial model"
        assert saved(config, tmp_path / "tuned").scale_source == expected
        config.model.init = str(tmp_path / "tuned")
        assert saved(config, tmp_path / "tuned_again").scale_source == expected
        config.loss.velocity = 0.1
        assert saved(config, tmp_path / "with_speed").scale_source == "known speed"

    def test_fine_tuning_with_other_metres_is_refused(self, tmp_path: Path) -> None:
        saved(metric_config(tmp_path, [0, -1], None), tmp_path / "mono")
        saved(metric_config(tmp_path, [0, -1, "s"], 36.0), tmp_path / "stereo")
        for name, unit in (("mono", "null"), ("stereo", "36.0")):
            with pytest.raises(InputError, match=rf"is 5.4, that of model.init .*{name} is {unit}, and nothing"):
                build_model(metric_config(tmp_path, [0, -1], init=str(tmp_path / name)))


def train_here(config_file: Path, directory: Path, *options: object) -> Result:
    words = [f"run.directory={directory}", *SPEED_OPTIONS, "train.batch_size=5", *options]
    return succeeded(call_program(train.main, "--config", config_file, *words))


def read_metrics(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def weights(directory: Path) -> bytes:
    return (directory / "model_last" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def speed_run(config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """Four steps with known speed, which are an epoch."""
    directory = tmp_path_factory.mktemp("speed") / "run"
    return train_here(config_file, directory, *SHORT_RUN), directory


class TestTraining:
    def test_header_and_log(self, speed_run: tuple[Result, Path]) -> None:
        result, directory = speed_run
        assert "depth      metres (known speed)\n" in result.out
        assert "20 samples of 4 drives, 20 with known distances\n" in result.out
        lines = read_metrics(directory)
        assert all(line["velocity"] > 0 for line in lines)
        assert FeatDepth.from_pretrained(directory / "model").scale_source == "known speed"

    def test_a_resumed_run_is_the_same(self, speed_run: tuple[Result, Path], config_file: Path, tmp_path: Path) -> None:
        directory = tmp_path / "run"
        shutil.copytree(speed_run[1], directory)
        shutil.rmtree(directory / "checkpoints" / "step_4")
        shutil.rmtree(directory / "model_last")
        train_here(config_file, directory, *SHORT_RUN, "data.workers=1", "--resume")
        assert weights(directory) == weights(speed_run[1])


class TestEvaluation:
    def test_the_scale_is_told(self, speed_run: tuple[Result, Path], config_file: Path, tmp_path: Path) -> None:
        arguments = ("--config", config_file, "--checkpoint", speed_run[1] / "model", "--out", tmp_path)
        result = succeeded(call_program(evaluate.main, *arguments))
        assert "depth      metres (known speed)\n" in result.out
        scores = json.loads((tmp_path / "metrics.json").read_text())
        assert scores["scale_source"] == "known speed" and scores["fixed_scale"] is not None

    def test_without_ground_truth_the_loss_is_reported(
        self, speed_run: tuple[Result, Path], street_copy: Path, tmp_path: Path
    ) -> None:
        """Scans are not there at all; three images in batches of two, on one process and on two."""
        for scans in street_copy.glob("*/*_sync/velodyne_points"):
            shutil.rmtree(scans)
        words = ["--config", tmp_path / "tiny.yaml", "--checkpoint", speed_run[1] / "model", *SPEED_OPTIONS]
        result = succeeded(call_program(evaluate.main, *words, "--out", tmp_path / "one"))
        assert "3 images without ground truth" in result.out and "velodyne_points/data/*.bin" in result.out
        one = json.loads((tmp_path / "one" / "metrics.json").read_text())
        assert one["images"] == 3 and set(one["terms"]) == {"photometric", "smoothness", "velocity"}
        assert one["loss"] == pytest.approx(sum(one["terms"].values())) and f"{one['loss']:.4f}" in result.out
        assert all(one[name] is None for name in ("median_scaled", "fixed_scale", "constant_depth", "scale_ratio"))
        assert one["scale_source"] == "known speed" and one["contaminated"] == [] and one["skipped_images"] == 0
        succeeded(run_program_process(["evaluate.py", "--cpu", *words, "--out", tmp_path / "two"], processes=2))
        two = json.loads((tmp_path / "two" / "metrics.json").read_text())
        assert two["images"] == 3 and two["terms"] == pytest.approx(one["terms"], rel=1e-5)

    def test_a_loss_that_the_model_cannot_have(self, config_file: Path, street_copy: Path, tmp_path: Path) -> None:
        for scans in street_copy.glob("*/*_sync/velodyne_points"):
            shutil.rmtree(scans)
        config = load_config(config_file, ["data.frames=[0, s]"])
        FeatDepth(config.model, config.data.frames, 64, 96).save_pretrained(tmp_path / "model")
        arguments = ("--config", tmp_path / "tiny.yaml", "--checkpoint", tmp_path / "model")
        result = call_program(evaluate.main, *arguments, "--out", tmp_path / "out", "data.frames=[0, -1]")
        assert "has learned no motion for the loss of data.frames [0, -1]" in result.error_line()
        # Alignment does without.
        config = load_config(config_file, ["data.frames=[0, -1]", "model.motion=aligned"], training=False)
        FeatDepth(config.model, config.data.frames, 64, 96).save_pretrained(tmp_path / "model")
        result = call_program(evaluate.main, *arguments, "--out", tmp_path / "out", "data.frames=[0, -1]")
        assert "photometric" in succeeded(result).out

    def test_training_drives_are_still_refused(
        self, speed_run: tuple[Result, Path], street_copy: Path, tmp_path: Path
    ) -> None:
        for scans in street_copy.glob("*/*_sync/velodyne_points"):
            shutil.rmtree(scans)
        train_list = street_copy / "splits" / "train_files.txt"
        arguments = ("--config", tmp_path / "tiny.yaml", "--checkpoint", speed_run[1] / "model")
        result = call_program(evaluate.main, *arguments, "--out", tmp_path / "out", f"data.test_files={train_list}")
        assert "was trained on test drives" in result.error_line()
