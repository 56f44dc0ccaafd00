"""Learned intrinsics: their geometry, what makes them observable, training with them, and what is kept of them."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import call_program, run_program_process, succeeded
from run_records import differences, interrupted_copy, read_metrics
from tiny_models import HEIGHT, WIDTH, tiny_batch, tiny_config, tiny_intrinsics, tiny_model
from torch import Tensor

import train
from featdepth import geometry
from featdepth.config import load_config
from featdepth.data import build_dataset
from featdepth.data.dataset import UNNUMBERED
from featdepth.data.synthetic import Drive, Street, render_frame, write_street
from featdepth.errors import InputError
from featdepth.models import FeatDepth, Prediction, build_model
from featdepth.models.learned_intrinsics import FOCAL_UNIT, LARGEST_TOLERANCE, RECENT_STEPS, LearnedIntrinsics
from featdepth.objective import compute_losses

SIZE = (HEIGHT, WIDTH)
FRAMES = [0, -1, 1]


def two_cameras(square_pixels: bool = True) -> LearnedIntrinsics:
    cameras = LearnedIntrinsics(["a", "b"], square_pixels)
    first, second = tiny_intrinsics(2)
    cameras.start_from({"a": first, "b": second}, SIZE)
    return cameras


def of_batch(cameras: LearnedIntrinsics, camera: list[int], flip: bool = False, size: tuple[int, int] = SIZE) -> Tensor:
    given = torch.eye(3).repeat(len(camera), 1, 1)
    return cameras(torch.tensor(camera), given, torch.full((len(camera),), flip), size)


class TestIntrinsics:
    def test_begin_with_what_they_start_from(self):
        torch.testing.assert_close(of_batch(two_cameras(), [1, 0]), tiny_intrinsics(2).flip(0))

    def test_are_mirrored_with_the_image(self):
        expected = geometry.flip_intrinsics(tiny_intrinsics(2), WIDTH)
        torch.testing.assert_close(of_batch(two_cameras(), [0, 1], flip=True), expected)

    def test_follow_the_size_of_the_images(self):
        expected = geometry.resize_intrinsics(tiny_intrinsics(2), SIZE, (128, 320))
        torch.testing.assert_close(of_batch(two_cameras(), [0, 1], size=(128, 320)), expected)

    def test_of_a_camera_that_is_not_learned_are_the_given_ones(self):
        found = of_batch(two_cameras(), [UNNUMBERED, 1], flip=True)
        torch.testing.assert_close(found[0], torch.eye(3))

    @pytest.mark.parametrize("square_pixels", [True, False])
    def test_keep_their_ratio_where_pixels_are_square(self, square_pixels: bool):
        cameras = two_cameras(square_pixels)
        of_batch(cameras, [0])[0, 0, 0].backward()
        with torch.no_grad():
            for parameter in cameras.parameters():
                parameter += 0.01 * parameter.grad.sign()
        before, after = tiny_intrinsics(1)[0], of_batch(cameras, [0])[0].detach()
        assert after[0, 0] > before[0, 0]
        ratio_stays = math.isclose(after[0, 0] / after[1, 1], before[0, 0] / before[1, 1], rel_tol=1e-5)
        assert ratio_stays == square_pixels

    def test_of_a_camera_absent_from_a_batch_have_a_gradient_of_zero(self):
        cameras = two_cameras()
        of_batch(cameras, [0, UNNUMBERED]).sum().backward()
        for parameter in cameras.parameters():
            assert parameter.grad[0].abs().min() > 0
            assert parameter.grad[1].abs().max() == 0


class TestTolerance:
    def test_is_the_error_that_a_rotation_hides_up_to_one_pixel_at_the_edge(self):
        """The wrong focal length with the angle that moves the middle of the image as far as the true one does."""
        width, focal, angle = 640, 500.0, 0.03
        cameras = LearnedIntrinsics(["a"], square_pixels=True)
        cameras.start_from({"a": pinhole(focal, width, width)}, (width, width))
        cameras.rotation[0] = torch.tensor([angle**2, 0.0])
        wrong = focal * (1 + float(cameras.tolerance((width, width))))
        edge = torch.tensor([[[width / 2], [0.0]]])
        shifts = [
            move(edge, f, torch.tensor([0.0, turn, 0.0]))
            for f, turn in ((focal, angle), (wrong, angle * focal / wrong))
        ]
        assert abs(float(shifts[0] - shifts[1])) == pytest.approx(1, rel=0.15)

    def test_is_infinite_without_rotation(self):
        assert two_cameras().tolerance(SIZE).isinf().all()

    def test_takes_both_axes_together_where_pixels_are_square(self):
        both, apart = (LearnedIntrinsics(["a"], square) for square in (True, False))
        for cameras in (both, apart):
            cameras.rotation[0] = torch.tensor([0.02, 0.02]).square()
        one = 2 / (100 * 0.02)  # with the start's focal length of one width
        assert float(both.tolerance((100, 100))) == pytest.approx(one / math.sqrt(2))
        assert float(apart.tolerance((100, 100))) == pytest.approx(one)


def pinhole(focal: float, height: int, width: int) -> Tensor:
    return torch.tensor([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])


def move(pixel: Tensor, focal: float, turn: Tensor) -> Tensor:
    """x of the pixel `[1, 2, 1]`, counted from the principal point, after the camera has turned."""
    intrinsics = torch.diag(torch.tensor([focal, focal, 1.0]))[None]
    rays = geometry.invert_intrinsics(intrinsics) @ torch.cat([pixel, torch.ones(1, 1, 1)], dim=1)
    return geometry.project(rays, intrinsics, geometry.pose_from_vector(turn, torch.zeros(3))[None])[0, 0, 0]


class TestStatistics:
    def test_spread_is_that_of_the_last_steps(self):
        cameras, poses = two_cameras(), torch.eye(4).repeat(1, 2, 1, 1)
        random = np.random.default_rng(0)
        far = RECENT_STEPS // 2 + 7
        for step in range(far + RECENT_STEPS):
            with torch.no_grad():  # far off at first, then around the start
                cameras.focal_change[0] = (1.0 if step < far else random.normal(0, 0.01)) / FOCAL_UNIT
            cameras.follow(torch.tensor([0]), poses)
        described = cameras.describe(SIZE)
        assert described["a"]["focal_spread"][0] == pytest.approx(0.01, rel=0.15)
        assert described["b"]["focal_spread"] == [0, 0]

    def test_rotation_is_each_cameras_own(self):
        cameras = two_cameras()
        turns = torch.tensor([[0.0, 0.03, 0.0], [0.01, 0.0, 0.5], [9.0, 9.0, 9.0]])  # roll says nothing
        poses = geometry.pose_from_vector(turns, torch.ones(3, 3))[:, None]
        for _ in range(3):
            cameras.follow(torch.tensor([0, 1, UNNUMBERED]), poses)
        found = cameras.rotation.sqrt()
        torch.testing.assert_close(found[0], torch.tensor([0.03, 0.0]), atol=1e-4, rtol=0)
        torch.testing.assert_close(found[1], torch.tensor([0.0, 0.01]), atol=1e-3, rtol=0)
        assert cameras.samples.tolist() == [3, 3]

    def test_warning_names_the_cameras_that_do_not_turn(self):
        cameras = two_cameras()
        cameras.rotation[0] = 0.1**2
        assert float(cameras.tolerance(SIZE)[0]) < LARGEST_TOLERANCE
        assert "focal length of b;" in cameras.warning(SIZE)
        cameras.rotation[1] = 0.1**2
        assert cameras.warning(SIZE) is None


class TestLearning:
    """The objective alone, on frames of the synthetic street with their exact depth: the focal length, the principal
    point and all poses are learned together, from a wrong focal length."""

    @pytest.mark.parametrize("start", [0.75, pytest.param(1.3, marks=pytest.mark.long)])
    def test_bends_give_the_focal_length(self, start: float):
        truth, found, warning = learn_from_exact_depth(start, turning=3, steps=200)
        assert found == pytest.approx(truth, rel=0.03)
        assert warning is None

    def test_a_straight_drive_gives_a_warning(self):
        truth, found, warning = learn_from_exact_depth(0.7, turning=0, steps=60)
        assert "the frames turn too little" in warning
        assert found != pytest.approx(truth, rel=0.03)


def learn_from_exact_depth(start: float, turning: float, steps: int) -> tuple[float, float, str | None]:
    """True and learned focal length (pixels) after a start of `start` times the truth, and the warning."""
    size, count = (64, 192), 3
    config = tiny_config("photometric", [0, 1], pyramid=True, min_depth=1.0, max_depth=200.0)
    drive = Drive(Street(height=size[0], width=size[1], frames=20, turning=turning), 0)
    frames = [render_frame(drive, frame) for frame in range(4, 5 + count)]
    images = torch.stack([torch.from_numpy(frame.image).permute(2, 0, 1) for frame in frames]) / 255
    inverse = torch.stack([1 / torch.from_numpy(frame.depth)[None].clamp(1, 200) for frame in frames[:-1]])
    disparity = (inverse - 1 / 200) / (1 - 1 / 200)
    shapes = [(size[0] >> scale, size[1] >> scale) for scale in range(1, 5)]
    disparities = tuple(torch.nn.functional.interpolate(disparity, shape, mode="area") for shape in shapes)
    batch = {"images": torch.stack([images[:-1], images[1:]], dim=1)}

    truth = torch.from_numpy(drive.rig.intrinsics).float()
    cameras = LearnedIntrinsics(["a"], square_pixels=True)
    cameras.start_from({"a": truth * torch.tensor([[start, 1, 1], [1, start, 1], [1, 1, 1]])}, size)
    camera, given, flip = torch.zeros(count, dtype=torch.int64), truth.expand(count, 3, 3), torch.zeros(count) > 0
    motion = torch.zeros(count, 6, requires_grad=True)
    optimizer = torch.optim.Adam([{"params": motion}, {"params": cameras.parameters()}], betas=(0.9, 0.99))
    for step in range(steps):
        for group, rate in zip(optimizer.param_groups, (3e-3, 2e-3), strict=True):
            group["lr"] = rate * (1 + math.cos(math.pi * step / steps)) / 2
        poses = geometry.pose_from_vector(motion[:, :3], 10 * motion[:, 3:])[:, None]
        prediction = Prediction(disparities, poses, intrinsics=cameras(camera, given, flip, size))
        optimizer.zero_grad()
        compute_losses(prediction, batch, config)["photometric"].mean().backward()
        optimizer.step()
        cameras.follow(camera, poses)
    found = cameras(camera, given, flip, size)[0, 0, 0].item()
    return truth[0, 0].item(), found, cameras.warning(size)


class TestObjective:
    def test_uses_the_learned_intrinsics(self):
        config = tiny_config("feature_metric", FRAMES)
        model, batch = tiny_model(config), tiny_batch(config)
        prediction = model(batch)
        other = {**batch, "intrinsics": 1.3 * batch["intrinsics"]}
        expected = compute_losses(prediction, other, config)
        found = compute_losses(prediction._replace(intrinsics=other["intrinsics"]), batch, config)
        assert all(torch.equal(expected[name], found[name]) for name in expected)
        assert not torch.equal(found["photometric"], compute_losses(prediction, batch, config)["photometric"])

    def test_pyramid_of_one_scale_is_the_published_one(self):
        single, pyramid = (tiny_config("photometric", FRAMES, pyramid=value) for value in (False, True))
        prediction, batch = tiny_model(single)(tiny_batch(single)), tiny_batch(single)
        finest = prediction._replace(disparities=prediction.disparities[:1])
        torch.testing.assert_close(compute_losses(finest, batch, single), compute_losses(finest, batch, pyramid))
        found = compute_losses(prediction, batch, pyramid)["photometric"]
        assert not torch.allclose(found, compute_losses(prediction, batch, single)["photometric"], rtol=1e-3)


def street_config(root: Path, config_file: Path, *overrides: str):
    return load_config(config_file, [f"data.root={root}", *LEARNED, *overrides])


LEARNED = ("data.frames=[0,-1,1]", "model.metres_per_unit=null", "model.intrinsics=learned", "data.field_of_view=60")
OWN_INTRINSICS = "data.field_of_view=null"


class TestDataset:
    def test_both_cameras_of_a_day_are_one(self, street: Path, config_file: Path):
        starts = build_dataset(street_config(street, config_file), "train").start_intrinsics()
        assert list(starts) == ["2031_09_26", "2031_09_28", "2031_09_30"]

    def test_starts_from_the_field_of_view_whatever_the_calibration(self, street: Path, config_file: Path):
        data = build_dataset(street_config(street, config_file), "train")
        data.number_cameras(list(data.start_intrinsics()))
        found = data[0]["intrinsics"]  # 64x192 pixels on the disk, 64x96 in training
        focal = 96 / 2 / math.tan(math.radians(30))
        expected = torch.tensor([[focal, 0, 95 / 2], [0, 2 * focal, 63 / 2], [0, 0, 1]])
        torch.testing.assert_close(found, expected)

    def test_starts_from_the_calibration_without_one(self, street: Path, config_file: Path):
        config = street_config(street, config_file, OWN_INTRINSICS)
        given = load_config(config_file, [f"data.root={street}"])
        starts = build_dataset(config, "train").start_intrinsics()
        torch.testing.assert_close(starts["2031_09_26"], build_dataset(given, "train")[0]["intrinsics"])

    def test_samples_have_their_cameras_place(self, street: Path, config_file: Path):
        data = build_dataset(street_config(street, config_file), "train")
        days = sorted(data.start_intrinsics())  # of a training part they are known from the start
        assert all(days[int(data[index]["camera"])] == data.samples[index].date for index in range(len(data)))
        data.number_cameras(["2031_09_28", "2031_09_26", "2031_09_30"])
        found = {data.samples[index].date: int(data[index]["camera"]) for index in range(len(data))}
        assert found == {"2031_09_28": 0, "2031_09_26": 1, "2031_09_30": 2}

    def test_a_camera_nobody_knows_is_refused_by_name(self, street: Path, config_file: Path):
        data = build_dataset(street_config(street, config_file), "validation")
        with pytest.raises(InputError, match="no training sample is of the camera 2031_09_28"):
            data.number_cameras(["2031_09_26"])

    def test_a_camera_with_a_calibration_keeps_it(self, street: Path, config_file: Path):
        data = build_dataset(street_config(street, config_file, OWN_INTRINSICS), "validation")
        data.number_cameras(["2031_09_26"])
        assert int(data[0]["camera"]) == UNNUMBERED


class TestConfiguration:
    @pytest.mark.parametrize(
        ("overrides", "message"),
        [
            (["data.frames=[0]", "model.objective=autoencoder"], "model.intrinsics is learned, which has no use"),
            (["data.frames=[0,s]", "model.metres_per_unit=36.0"], "model.intrinsics is learned, from frames of other"),
            (["data.field_of_view=200"], "data.field_of_view is 200.0, it must be from 1 to 170"),
            (["data.intrinsics=fixed"], "data.field_of_view is set, and data.intrinsics fixed too"),
            (["model.initial_depth=0.1"], r"model.initial_depth is 0.1, it must lie between model.min_depth \(0.1\)"),
            (["model.initial_depth=100"], "model.initial_depth is 100.0, it must lie between"),
            (["model.intrinsics=guessed"], "expected one of given, learned"),
        ],
    )
    def test_what_cannot_be_learned_is_refused(self, street: Path, config_file: Path, overrides, message: str):
        with pytest.raises(InputError, match=message):
            street_config(street, config_file, *overrides)


def test_untrained_models_say_about_the_initial_depth():
    config = tiny_config("photometric", FRAMES, metres_per_unit=None, initial_depth=2.0)
    medians = []
    for seed in range(5):
        torch.manual_seed(seed)
        for disparity in build_model(config)(tiny_batch(config)).disparities:
            depth = geometry.disparity_to_depth(disparity, config.model.min_depth, config.model.max_depth)
            medians.append(depth.median().item())
    assert sum(medians) / len(medians) == pytest.approx(2, rel=0.2)


def learned_model(**settings: object) -> FeatDepth:
    config = tiny_config("photometric", FRAMES, intrinsics="learned", metres_per_unit=None, **settings)
    model = build_model(config, dict(zip("ab", tiny_intrinsics(2), strict=True)))
    with torch.no_grad():
        model.cameras.focal_change.fill_(0.1 / FOCAL_UNIT)
    return model


class TestModelDirectory:
    def test_gives_the_same_intrinsics_again(self, tmp_path: Path):
        model = learned_model()
        model.save_pretrained(tmp_path / "model")
        loaded = FeatDepth.from_pretrained(tmp_path / "model")
        assert loaded.cameras.names == ["a", "b"]
        assert torch.equal(loaded.cameras.values(), model.cameras.values())

    def test_says_what_was_learned(self, tmp_path: Path):
        learned_model().save_pretrained(tmp_path / "model")
        described = json.loads((tmp_path / "model" / "config.json").read_text())["cameras"]["a"]
        focal = tiny_intrinsics(1)[0, 0, 0].item() / WIDTH * math.exp(0.1)
        assert described["focal"][0] == pytest.approx(focal)
        assert described["field_of_view"] == pytest.approx(math.degrees(2 * math.atan(0.5 / focal)))
        assert described["tolerance"] is None

    @pytest.mark.parametrize("square_pixels", [True, False])
    def test_fine_tuning_starts_from_the_cameras_it_knows(self, tmp_path: Path, square_pixels: bool):
        model = learned_model()
        model.save_pretrained(tmp_path / "model")
        config = tiny_config(
            "photometric", FRAMES, intrinsics="learned", metres_per_unit=None, square_pixels=square_pixels,
            init=str(tmp_path / "model"),
        )  # fmt: skip
        tuned = build_model(config, {"b": pinhole(50, *SIZE), "c": pinhole(70, *SIZE)})
        values = tuned.cameras.values().detach()
        torch.testing.assert_close(values[0], model.cameras.values()[1].detach())
        assert values[1, 0] * WIDTH == pytest.approx(70)

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda content: content.pop("cameras"), "config.json: has no section cameras"),
            (lambda content: content["cameras"].pop("a"), "weights of another architecture"),
        ],
    )
    def test_damage_is_reported(self, tmp_path: Path, damage, message: str):
        learned_model().save_pretrained(tmp_path / "model")
        file = tmp_path / "model" / "config.json"
        content = json.loads(file.read_text())
        damage(content)
        file.write_text(json.dumps(content))
        with pytest.raises(InputError, match=message):
            FeatDepth.from_pretrained(tmp_path / "model")


TRAINING = (
    *("train.max_steps=4", "train.checkpoint_every=2", "train.keep_checkpoints=9", "train.log_every=2"),
    *("data.workers=0", "train.panel_samples=1"),
)


@pytest.fixture(scope="module")
def learned_run(config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps on one process."""
    directory = tmp_path_factory.mktemp("learned") / "run"
    options = [f"run.directory={directory}", *LEARNED, *TRAINING]
    result = succeeded(call_program(train.main, "--cpu", "--config", config_file, *options))
    assert "note: the frames turn too little to learn the focal length of 2031_09_26" in result.out + result.err
    return directory


class TestTraining:
    def test_logs_and_saves_what_it_learns(self, learned_run: Path):
        lines = [line for line in read_metrics(learned_run) if line["split"] == "train"]
        focals = [line["focal 2031_09_26"] for line in lines]
        assert len(focals) == 2
        assert focals[0] != focals[1]
        assert all(line["rotation"] > 0 for line in lines)
        model = FeatDepth.from_pretrained(learned_run / "model_last")
        assert model.cameras.values()[0, 0].item() == pytest.approx(focals[-1])
        assert int(model.cameras.steps) == 4

    def test_continues_exactly(self, learned_run: Path, config_file: Path, tmp_path: Path):
        directory = interrupted_copy(learned_run, tmp_path / "run", step=2)
        options = [f"run.directory={directory}", "--resume", *LEARNED, *TRAINING]
        succeeded(call_program(train.main, "--cpu", "--config", config_file, *options))
        assert differences(learned_run, directory) == []

    def test_other_intrinsics_are_another_run(self, learned_run: Path, config_file: Path, tmp_path: Path):
        directory = interrupted_copy(learned_run, tmp_path / "run", step=2)
        options = [f"run.directory={directory}", "--resume", *LEARNED, *TRAINING, "model.intrinsics=given"]
        error = call_program(train.main, "--cpu", "--config", config_file, *options).error_line()
        assert "model.intrinsics was learned, is given" in error

    def test_two_processes_learn_the_same_values(self, config_file: Path, tmp_path: Path):
        """Batches in which cameras are absent included: nothing waits for their gradients."""
        options = [f"run.directory={tmp_path / 'run'}", *LEARNED, *TRAINING, "train.batch_size=1"]
        succeeded(run_program_process(["train.py", "--cpu", "--config", config_file, *options], processes=2))
        model = FeatDepth.from_pretrained(tmp_path / "run" / "model_last")
        assert model.cameras.focal_change.abs().min() > 0


class TestTurningStreet:
    @pytest.mark.parametrize(("degrees", "frames"), [(3, 6), (3, 30), (1, 20)])
    def test_turns_in_a_third_of_its_frames(self, degrees: float, frames: int):
        for index in range(3):
            drive = Drive(Street(frames=frames, turning=degrees), index)
            headings = [drive.camera_pose(frame)[:3, 2] for frame in range(frames)]
            turns = [np.degrees(np.arccos(one @ other)) for one, other in pairwise(headings)]
            assert np.mean(np.array(turns) >= degrees) >= 1 / 3

    def test_is_another_street(self, street_copy: Path):
        with pytest.raises(InputError, match="holds another street"):
            write_street(street_copy, drives=6, frames=7, height=64, width=192, workers=1, turning=3)

    def test_has_its_limit(self):
        with pytest.raises(InputError, match="--turning 9: has to be from 0 to 5"):
            Street(turning=9)
