"""Motion by alignment in training: no pose network, or one that alignment teaches."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import call_program, run_program_process, succeeded
from run_records import differences, interrupted_copy, read_metrics
from tiny_models import tiny_batch, tiny_config, tiny_model
from torch import Tensor

import evaluate
import train
from featdepth.alignment import Alignment
from featdepth.config import Config
from featdepth.config.checks import check_config
from featdepth.data.synthetic import Drive, Street, render_frame
from featdepth.errors import InputError
from featdepth.geometry import pose_from_vector
from featdepth.models import FeatDepth
from featdepth.models.aligned_motion import align_sources, aligned_poses, motion_error
from featdepth.objective import compute_losses, smallest
from featdepth.training.conditions import differences as differences_of_conditions

SIZE = (64, 96)


@pytest.fixture(scope="module")
def drive() -> Drive:
    return Drive(Street(drives=4, frames=3, height=SIZE[0], width=SIZE[1]), 3)


@pytest.fixture(scope="module")
def batch(drive: Drive) -> dict[str, Tensor]:
    """Frames 1, 0 and 2 of a drive and the right picture of frame 1, with its true depth."""
    pictures = [drive.image(1, 2), drive.image(0, 2), drive.image(2, 2), drive.image(1, 3)]
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)[None].float() / 255
    stereo_pose = torch.eye(4)[None]
    stereo_pose[:, 0, 3] = -0.54
    return {
        "images": images,
        "augmented": images.clone(),
        "intrinsics": torch.from_numpy(drive.rig.intrinsics)[None].float(),
        "stereo_pose": stereo_pose,
        "depth": torch.from_numpy(render_frame(drive, 1).depth)[None, None].float().clamp(max=1e3),
    }


def true_poses(drive: Drive) -> Tensor:
    """source_from_target `[2, 4, 4]` of frames 0 and 2, from frame 1."""
    target = drive.camera_pose(1)
    return torch.from_numpy(np.stack([np.linalg.inv(drive.camera_pose(frame)) @ target for frame in (0, 2)])).float()


def without_stereo(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return batch | {key: batch[key][:, :3] for key in ("images", "augmented")}


class TestAligned:
    def test_true_depth_gives_true_poses(self, drive: Drive, batch: dict[str, Tensor]) -> None:
        sources = [-1, 1, "s"]
        alignment = align_sources(batch["depth"], batch["images"], batch["intrinsics"], sources)
        assert alignment.pose.shape == (1, 2, 4, 4) and alignment.is_known.all()
        poses = torch.eye(4).repeat(1, 3, 1, 1)
        poses[:, 2] = batch["stereo_pose"]
        poses = aligned_poses(alignment, batch["depth"], poses, sources)
        assert torch.equal(poses[:, 2], batch["stereo_pose"])
        assert (poses[0, :2] - true_poses(drive)).abs().max() < 0.03

    def test_translations_follow_the_scale_of_depth_and_nothing_else(self, batch: dict[str, Tensor]) -> None:
        depth = batch["depth"].clone().requires_grad_()
        alignment = align_sources(depth, batch["images"], batch["intrinsics"], [-1, 1, "s"])
        poses = aligned_poses(alignment, depth, torch.eye(4).repeat(1, 3, 1, 1), [-1, 1, "s"])
        (gradient,) = torch.autograd.grad(poses[0, 0, 2, 3], depth, retain_graph=True)
        # Of the first degree: the derivative by a common factor is the value itself, and every pixel has a part of it.
        assert (gradient * depth).sum().item() == pytest.approx(poses[0, 0, 2, 3].item(), rel=1e-4)
        assert (gradient * depth).std() < 1e-6
        assert torch.autograd.grad(poses[0, 0, 0, 0], depth, allow_unused=True)[0].abs().max() == 0

    def test_unknown_motion_is_none(self) -> None:
        """A source that stays as it is looks the same at any depth, and teaches nothing."""
        config = tiny_config("photometric", [0, -1], motion="aligned", metres_per_unit=None)
        model, flat = tiny_model(config), tiny_batch(config)
        flat["images"] = torch.full_like(flat["images"], 0.5)
        prediction = model(flat)
        assert not prediction.alignment.is_known.any()
        assert torch.equal(prediction.poses.detach(), torch.eye(4).expand(2, 1, 4, 4))
        flat["images"] = tiny_batch(config)["images"]
        photometric = compute_losses(prediction, flat, config)["photometric"]
        photometric.sum().backward()
        assert max(each.grad.abs().max() for each in model.depth_decoder.parameters()) < 1e-7

    def test_every_parameter_learns(self, batch: dict[str, Tensor]) -> None:
        config = tiny_config("photometric", motion="aligned")
        model = tiny_model(config)
        assert not model.has_motion and not any(name.startswith("pose_") for name, _ in model.named_parameters())
        losses = compute_losses(model(batch), batch, config)
        assert set(losses) == {"photometric", "smoothness"}
        torch.stack(list(losses.values())).sum().backward()
        assert all(each.grad.isfinite().all() and each.grad.abs().max() > 0 for each in model.parameters())

    def test_stereo_teaches_alone_until_depth_is_about_right(self) -> None:
        """Of two samples the first has a stereo error, in place 1, that is far above those of the aligned sources."""
        errors = [torch.rand(2, 1, 4, 6) + each for each in (0.5, 1.0, 3.0)]
        errors[1][0] += 2.0
        together = torch.stack(errors)
        assert torch.equal(smallest(errors, None), together.amin(0))
        believed = smallest(errors, 1)
        assert torch.equal(believed[0], together[1:, 0].amin(0))
        assert torch.equal(believed[1], together[:, 1].amin(0))

    def test_velocity_teaches_the_scale_of_depth(self, drive: Drive, batch: dict[str, Tensor]) -> None:
        """Where translations are longer than the camera moved, depth is to become smaller, and the reverse."""
        config = tiny_config("photometric", [0, -1, 1], motion="aligned", velocity=1.0, metres_per_unit=36.0)
        model, one_camera = tiny_model(config), without_stereo(batch)
        lengths = model(one_camera).poses[:, :, :3, 3].norm(dim=2).detach() * 36.0
        for factor in (0.5, 2.0):
            prediction = model(one_camera)
            prediction.disparities[0].retain_grad()
            losses = compute_losses(prediction, one_camera | {"distance": factor * lengths}, config)
            assert "scale" not in losses
            losses["velocity"].sum().backward()
            assert (prediction.disparities[0].grad.sum() < 0) == (factor < 1)

    def test_scale_of_one_camera_is_held(self, batch: dict[str, Tensor]) -> None:
        config = tiny_config("photometric", [0, -1, 1], motion="aligned", metres_per_unit=None)
        model, one_camera = tiny_model(config), without_stereo(batch)
        optimizer, depths = torch.optim.Adam(model.parameters(), 1e-3), []
        for _ in range(5):
            prediction = model(one_camera)
            depths.append(model.to_depth(prediction.disparities[0]).log().mean().item())
            losses = compute_losses(prediction, one_camera, config)
            optimizer.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            optimizer.step()
        assert abs(depths[-1]) < abs(depths[0]) < 2  # towards one unit, 0, and not beyond it

    @pytest.mark.parametrize("objective", ["photometric", "joint"])
    def test_bfloat16_networks(self, objective: str, batch: dict[str, Tensor]) -> None:
        config = tiny_config(objective, motion="aligned")
        model = tiny_model(config)
        with torch.autocast("cpu", torch.bfloat16):
            prediction = model(batch)
        assert prediction.poses.dtype == torch.float32
        rotation = prediction.poses[..., :3, :3]
        assert (rotation @ rotation.transpose(-1, -2) - torch.eye(3)).abs().max() < 1e-5

    def test_learned_intrinsics_get_a_gradient(self, batch: dict[str, Tensor]) -> None:
        config = tiny_config("photometric", [0, -1, 1], motion="aligned", intrinsics="learned", metres_per_unit=None)
        torch.manual_seed(0)
        model = FeatDepth(config.model, config.data.frames, *SIZE, ["camera"])
        model.cameras.start_from({"camera": batch["intrinsics"][0]}, SIZE)
        one_camera = without_stereo(batch) | {"camera": torch.zeros(1, dtype=torch.int64), "jitter": torch.zeros(1, 5)}
        prediction = model(one_camera)
        compute_losses(prediction, one_camera, config)["photometric"].sum().backward()
        assert model.cameras.focal_change.grad.abs().max() > 0
        model.follow_cameras(one_camera, prediction)
        assert model.cameras.rotation.isfinite().all()


def alignment_at(poses: Tensor, is_known: bool = True) -> Alignment:
    """An alignment of `poses` `[B, T, 4, 4]` that knows rotations to 0.01 radians and translations to 0.1 units."""
    information = torch.diag(torch.tensor([1e4] * 3 + [1e2] * 3)).expand(*poses.shape[:2], 6, 6)
    shape = poses.shape[:2]
    return Alignment(poses, information, torch.ones(shape), torch.ones(shape), torch.full(shape, is_known))


class TestTaught:
    def test_error_in_the_metric_of_the_information(self) -> None:
        aligned = pose_from_vector(torch.tensor([0.1, -0.2, 0.3]), torch.tensor([1.0, 2.0, 3.0]))
        information = torch.diag(torch.tensor([1e4] * 3 + [1e2] * 3))
        for increment, squared in (([0.01, 0, 0, 0, 0, 0], 1), ([0, 0, 0, 0, 0.2, 0], 4), ([0] * 6, 0)):
            rotation, translation = torch.tensor(increment, dtype=torch.float32).split(3)
            error = motion_error(pose_from_vector(rotation, translation) @ aligned, aligned, information)
            assert error.item() == pytest.approx(math.sqrt(1 + squared) - 1, abs=1e-3)

    def test_pose_network_learns_alignment(self, batch: dict[str, Tensor]) -> None:
        """On a batch that stays the same, by the term alone, which leaves depth alone."""
        config = tiny_config("photometric", motion="taught", pose_start="he", dropout=0.0)
        model = tiny_model(config)
        optimizer, errors = torch.optim.Adam(model.parameters(), 1e-4), []
        for _ in range(7):
            losses = compute_losses(model(batch), batch, config)
            optimizer.zero_grad()
            losses["alignment"].sum().backward()
            optimizer.step()
            errors.append(losses["alignment"].item())
        assert errors[-1] < 0.5 * errors[0]
        assert all(each.grad is None for each in model.depth_encoder.parameters())

    def test_scale_of_one_camera_is_held(self, batch: dict[str, Tensor]) -> None:
        config = tiny_config("photometric", [0, -1, 1], motion="taught", metres_per_unit=None)
        one_camera = without_stereo(batch)
        with torch.no_grad():
            losses = compute_losses(tiny_model(config)(one_camera), one_camera, config)
        assert losses["scale"] > 0 and losses["alignment"] > 0

    def test_unknown_motion_teaches_nothing(self, batch: dict[str, Tensor]) -> None:
        config = tiny_config("photometric", motion="taught", pose_start="he")
        prediction = tiny_model(config)(batch)
        poses = torch.eye(4).repeat(1, 2, 1, 1)
        known, unknown = (prediction._replace(alignment=alignment_at(poses, each)) for each in (True, False))
        assert compute_losses(known, batch, config)["alignment"] > 0
        assert compute_losses(unknown, batch, config)["alignment"] == 0


def problem_of(config: Config) -> str:
    with pytest.raises(InputError) as caught:
        check_config(config, "file.yaml", check_files=False)
    return str(caught.value)


@pytest.mark.parametrize(
    ("frames", "settings", "expected"),
    [
        ([0, "s"], {"motion": "aligned"}, "model.motion is aligned, of frames of other moments"),
        ([0], {"objective": "autoencoder", "motion": "taught"}, "which has no use in model.objective autoencoder"),
        ([0, 1], {"motion": "aligned", "init": "model"}, "cannot keep the metres of model.init"),
        ([0, 1], {"motion": "align"}, "did you mean aligned?"),
    ],
)
def test_what_cannot_be(frames: list[int | str], settings: dict[str, object], expected: str) -> None:
    config = tiny_config("photometric", frames)
    for key, value in settings.items():
        setattr(config.model, key, value)
    assert expected in problem_of(config)


def test_checkpoints_of_before_had_a_pose_network() -> None:
    """A run that was begun without the key goes on as it was, and not with another motion."""
    for motion, expected in (("network", []), ("aligned", ["model.motion was network, is aligned"])):
        changes, _ = differences_of_conditions({"device": "cpu"}, {"device": "cpu", "model.motion": motion})
        assert [change.split(" (")[0] for change in changes] == expected


def test_taught_without_a_weight() -> None:
    config = tiny_config("photometric", [0, 1, "s"])
    config.model.motion, config.loss.alignment = "taught", 0.0
    assert "loss.alignment is 0, which teaches" in problem_of(config)


ALIGNED = ("model.motion=aligned",)
STEPS = ("train.max_steps=4", "train.checkpoint_every=2", "train.keep_checkpoints=9", "train.log_every=1")


@pytest.fixture(scope="module")
def aligned_run(config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps of two batches of two on one process."""
    directory = tmp_path_factory.mktemp("aligned") / "run"
    options = [f"run.directory={directory}", *ALIGNED, *STEPS, "train.accumulate=2"]
    succeeded(call_program(train.main, "--cpu", "--config", config_file, *options))
    return directory


@pytest.mark.long
class TestRuns:
    def test_saved_model_has_depth_alone(self, aligned_run: Path) -> None:
        model = FeatDepth.from_pretrained(aligned_run / "model")
        assert model.settings.motion == "aligned" and model.scale_source == "stereo baseline" and not model.has_motion
        assert model.predict_depth(torch.rand(1, 3, 70, 100)).shape == (1, 1, 70, 100)

    def test_it_is_followed_and_scored(self, aligned_run: Path, config_file: Path, tmp_path: Path) -> None:
        for words, said in (((), "abs_rel"), (("--odometry",), "pairs aligned")):
            arguments = ["--config", config_file, "--checkpoint", aligned_run / "model", *words]
            arguments += [f"run.directory={tmp_path}", "data.workers=0"]
            printed = succeeded(call_program(evaluate.main, "--cpu", *arguments)).out
            assert said in printed and "pose network" not in printed

    def test_continues_exactly(self, aligned_run: Path, config_file: Path, tmp_path: Path) -> None:
        directory = interrupted_copy(aligned_run, tmp_path / "run", step=2)
        options = [f"run.directory={directory}", "--resume", *ALIGNED, *STEPS, "train.accumulate=2"]
        succeeded(call_program(train.main, "--cpu", "--config", config_file, *options))
        assert differences(aligned_run, directory) == []

    @pytest.mark.parametrize("motion", ["aligned", "taught"])
    def test_two_processes_do_what_one_does(self, motion: str, config_file: Path, tmp_path: Path) -> None:
        losses = []
        for processes, samples in ((1, 2), (2, 1)):
            directory = tmp_path / str(processes)
            options = [f"run.directory={directory}", f"model.motion={motion}", "train.max_steps=2", "train.log_every=1"]
            options += [f"train.batch_size={samples}", "data.flip=0.0", "data.colour_jitter=0.0", "model.dropout=0.0"]
            command = ["train.py", "--cpu", "--config", config_file, *options]
            succeeded(run_program_process(command, processes=processes))
            losses.append([line["loss"] for line in read_metrics(directory) if line["split"] == "train"])
        assert losses[1] == pytest.approx(losses[0], rel=1e-3)
