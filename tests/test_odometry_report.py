"""`evaluate.py --odometry` and `python -m featdepth.score_trajectory`, and the poses of KITTI raw that they need."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, Result, call_program, run_program_process, succeeded
from PIL import Image
from road_evaluate import road_disparity
from tiny_models import KnownDepth, tiny_config, tiny_model
from torch.nn import functional

import evaluate
from featdepth import score_trajectory
from featdepth.config import load_config
from featdepth.data.kitti.calibration import Calibration
from featdepth.data.kitti.drives import KittiFiles
from featdepth.data.kitti.oxts import read_speed, read_times, steps_between
from featdepth.data.kitti.oxts_poses import camera_poses
from featdepth.data.synthetic import Drive, Street, render_frame
from featdepth.errors import InputError
from featdepth.evaluation import trajectories
from featdepth.evaluation.opening import open_sequences
from featdepth.models import FeatDepth
from featdepth.odometry import plots
from featdepth.odometry.egomotion import predict_motions
from featdepth.odometry.scores import ALIGNMENTS
from featdepth.odometry.trajectory_files import read_kitti, read_tum, write_kitti, write_tum

EXCERPT = Path(os.environ.get("FEATDEPTH_SHARED", Path(__file__).parents[2] / "shared")) / "kitti_mini" / "kitti_raw"
STREET = Street(drives=6, frames=7, height=64, width=192)
TEST_DRIVE = 5  # the sixth; from 0
NAME = "2031_09_30/2031_09_30_drive_0006_sync 0-6"
FILE = NAME.replace("/", "_").replace(" ", "_")
PLOTS = [f"{FILE}_way.png", f"{FILE}_way.svg"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A metric model with random weights."""
    directory = tmp_path_factory.mktemp("random") / "model"
    tiny_model(tiny_config("photometric", [0, -1, 1])).save_pretrained(directory)
    return directory


def evaluate_here(config_file: Path, checkpoint: Path, out: Path, *overrides: str) -> Result:
    arguments = ["--odometry", "--config", config_file, "--checkpoint", checkpoint, "--out", out, "--cpu", *overrides]
    return call_program(evaluate.main, *arguments)


@pytest.fixture(scope="module")
def evaluated(config_file: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    out = tmp_path_factory.mktemp("odometry") / "evaluation"
    return succeeded(evaluate_here(config_file, checkpoint, out)), out


def read_result(out: Path) -> dict:
    return json.loads((out / "odometry.json").read_text())


def true_poses() -> np.ndarray:
    drive = Drive(STREET, TEST_DRIVE)
    return np.stack([drive.camera_pose(frame) for frame in range(STREET.frames)])


class TestEvaluation:
    def test_files(self, evaluated: tuple[Result, Path], checkpoint: Path) -> None:
        _, out = evaluated
        result = read_result(out)
        assert result["unit"] == "metres" and result["skipped_pairs"] == 0 and result["contaminated"] == []
        assert result["checkpoint"] == str(checkpoint) and len(result["versions"]) == 2
        [score] = result["sequences"]
        assert (score["name"], score["frames"]) == (NAME, 7)
        for alignment in ALIGNMENTS:
            assert score[alignment]["alignment"] == alignment and score[alignment]["ate_rmse_m"] > 0
            assert result["mean"][alignment]["ate_rmse_m"] == score[alignment]["ate_rmse_m"]
        assert set(score["straight_ahead"]) == {"ate_5_frames", "scale", "7dof"}
        assert result["mean"]["straight_ahead"]["7dof"]["rpe_rotation_deg"] > 0
        expected = [f"{FILE}.kitti.txt", f"{FILE}.tum.txt", f"{FILE}_truth.kitti.txt", *PLOTS]
        assert sorted(path.name for path in (out / "odometry").iterdir()) == sorted(expected)
        for name in PLOTS:
            content = (out / "odometry" / name).read_bytes()
            assert content.startswith(b"\x89PNG") or b"<svg" in content

    def test_trajectories(self, evaluated: tuple[Result, Path]) -> None:
        """The truth is the street's own, and both estimates are the same."""
        folder = evaluated[1] / "odometry"
        truth = true_poses()
        expected = np.linalg.inv(truth[0]) @ truth
        assert np.allclose(read_kitti(folder / f"{FILE}_truth.kitti.txt"), expected, atol=1e-6)
        tum = read_tum(folder / f"{FILE}.tum.txt")
        assert np.allclose(tum.poses, read_kitti(folder / f"{FILE}.kitti.txt"), atol=1e-8)
        assert np.allclose(np.diff(tum.times), 0.1) and np.array_equal(tum.poses[0], np.eye(4))

    def test_the_table_states_the_alignment_of_each_line(self, evaluated: tuple[Result, Path]) -> None:
        result, out = evaluated
        model, trivial = result.out.split("  straight ahead at constant speed, without any image:\n")
        [score] = read_result(out)["sequences"]
        assert f"{score['straight_ahead']['7dof']['ate_rmse_m']:.3f}" in trivial
        aligned, network = model.split("  motion by alignment with the model's depth:\n")[1].split("  pose network:\n")
        for block, scores in ((aligned, score), (network, score["pose_network"])):
            rows = {line.split()[0]: line.split()[1:] for line in block.splitlines() if line.startswith("  ")}
            for alignment in ALIGNMENTS:
                scale, ate, t_rel, r_rel, metres, degrees = rows[alignment]
                assert (t_rel, r_rel) == ("-", "-")
                printed = [float(number) for number in (scale, ate, metres, degrees)]
                keys = ("scale", "ate_rmse_m", "rpe_translation_m", "rpe_rotation_deg")
                assert printed == pytest.approx([scores[alignment][key] for key in keys], abs=6e-4)
        assert f"{NAME}: 7 frames" in result.out and "scaled on their own" in result.out
        assert "at least" not in result.err and str(out) in result.out

    def test_right_motions_score_perfectly(
        self, config_file: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Batches of two come in the order of the frames; one alignment after the other leaves nothing over.

        The motions are those of the pose network, and stand in for all others.
        """
        monkeypatch.setattr("featdepth.odometry.aligned.LARGEST_GAP", 0.0)
        poses = true_poses()
        motions = torch.from_numpy(np.linalg.inv(poses[1:]) @ poses[:-1]).float()
        motions[:, :3, 3] /= tiny_config("photometric").model.metres_per_unit
        following = iter(motions)
        monkeypatch.setattr(FeatDepth, "motion", lambda model, *pair: torch.stack([next(following) for _ in pair[0]]))
        succeeded(evaluate_here(config_file, checkpoint, tmp_path / "out"))
        result = read_result(tmp_path / "out")
        [score] = result["sequences"]
        assert score["distance_m"] > 1 and score["lost_pairs"] == result["lost_pairs"] == result["pairs"] == 6
        for scores in (score, score["pose_network"]):
            for alignment in ALIGNMENTS:
                assert scores[alignment]["ate_rmse_m"] < 1e-4, alignment
                assert scores[alignment]["rpe_rotation_deg"] < 1e-3, alignment
            assert scores["ate_5_frames"]["mean_m"] < 1e-4

    def test_two_processes_agree(self, config_file: Path, checkpoint: Path, evaluated, tmp_path: Path) -> None:
        """Six pairs in batches of four: the second process gets fewer, and the loader repeats some."""
        arguments = ["evaluate.py", "--odometry", "--config", config_file, "--checkpoint", checkpoint, "--cpu"]
        succeeded(run_program_process([*arguments, "--out", tmp_path / "out", "evaluate.batch_size=4"], processes=2))
        one, two = read_result(evaluated[1]), read_result(tmp_path / "out")
        assert two["skipped_pairs"] == 0 and len(two["sequences"]) == 1
        first, second = (read_kitti(out / "odometry" / f"{FILE}.kitti.txt") for out in (evaluated[1], tmp_path / "out"))
        assert np.allclose(first, second, atol=1e-6)
        for alignment in ALIGNMENTS:
            assert two["mean"][alignment]["ate_rmse_m"] == pytest.approx(one["mean"][alignment]["ate_rmse_m"], rel=1e-4)

    def test_without_matplotlib_scores_are_written(
        self, config_file: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(trajectories, "has_matplotlib", lambda: False)
        result = succeeded(evaluate_here(config_file, checkpoint, tmp_path / "out"))
        assert "no plots: plots need matplotlib (pip install matplotlib)" in result.out
        names = sorted(path.name for path in (tmp_path / "out" / "odometry").iterdir())
        assert len(names) == 3 and read_result(tmp_path / "out")["sequences"]

    def test_a_model_without_scale_has_no_metres(self, config_file: Path, tmp_path: Path) -> None:
        model = tiny_model(tiny_config("photometric", [0, -1, 1], metres_per_unit=None))
        model.save_pretrained(tmp_path / "model")
        result = succeeded(evaluate_here(config_file, tmp_path / "model", tmp_path / "out"))
        [score] = read_result(tmp_path / "out")["sequences"]
        assert score["none"] is None and score["6dof"] is None and score["7dof"]["ate_rmse_m"] > 0
        assert score["pose_network"]["none"] is None and score["pose_network"]["7dof"]["ate_rmse_m"] > 0
        assert result.out.count("the unit of the estimate is unknown") == 2 * 2

    def test_a_missing_frame_ends_a_sequence(self, street_copy: Path, checkpoint: Path) -> None:
        config = load_config(street_copy.parent / "tiny.yaml", [], training=False)
        drive = NAME.split()[0]
        (street_copy / drive / "image_02" / "data" / "0000000002.png").unlink()
        listed = street_copy / "splits" / "test_files.txt"
        listed.write_text(f"{drive} 3 l\n{drive} 5 l\n")
        pairs = open_sequences(config).samples
        assert [pair.frame for pair in pairs] == [3, 4, 5]
        listed.write_text(f"{drive} 0 l\n{drive} 5 l\n")
        assert [pair.frame for pair in open_sequences(config).samples] == [0, 3, 4, 5]

    def test_an_unreadable_frame_ends_a_sequence_on_request(
        self, street_copy: Path, checkpoint: Path, tmp_path: Path
    ) -> None:
        damaged = street_copy / NAME.split()[0] / "image_02" / "data" / "0000000003.png"
        damaged.write_bytes(damaged.read_bytes()[:500])
        config_file = street_copy.parent / "tiny.yaml"
        assert damaged.name in evaluate_here(config_file, checkpoint, tmp_path / "out").error_line()
        succeeded(evaluate_here(config_file, checkpoint, tmp_path / "out", "data.skip_bad_frames=true"))
        result = read_result(tmp_path / "out")
        assert [score["frames"] for score in result["sequences"]] == [3, 3] and result["skipped_pairs"] == 2
        assert [score["first_frame"] for score in result["sequences"]] == [0, 4]

    def test_what_cannot_be_scored_is_refused(self, street_copy: Path, checkpoint: Path, tmp_path: Path) -> None:
        shutil.rmtree(street_copy / NAME.split()[0] / "oxts")
        line = evaluate_here(street_copy.parent / "tiny.yaml", checkpoint, tmp_path / "out").error_line()
        assert "no true poses" in line and NAME.split()[0] in line
        assert not (tmp_path / "out").exists()

    def test_depth_that_is_not_finite_is_refused(
        self, config_file: Path, checkpoint: Path, tmp_path, monkeypatch
    ) -> None:
        monkeypatch.setattr(FeatDepth, "to_depth", lambda model, disparity: disparity * float("nan"))
        line = evaluate_here(config_file, checkpoint, tmp_path / "out").error_line()
        assert "not finite at" in line and NAME.split()[0] in line


@pytest.fixture
def stereo_checkpoint(tmp_path: Path) -> Path:
    """A model without a pose network."""
    tiny_model(tiny_config("photometric", [0, "s"])).save_pretrained(tmp_path / "stereo")
    return tmp_path / "stereo"


def spoil(street: Path, frame: int) -> None:
    """Make noise of a frame of the test drive."""
    file = street / NAME.split()[0] / "image_02" / "data" / f"{frame:010d}.png"
    noise = np.random.default_rng(frame).integers(0, 256, (STREET.height, STREET.width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file)


def written_motions(out: Path) -> np.ndarray:
    """later_from_earlier of the trajectory that was written."""
    poses = read_kitti(out / "odometry" / f"{FILE}.kitti.txt")
    return np.linalg.inv(poses[1:]) @ poses[:-1]


class TestMotionByAlignment:
    def test_true_depth_gives_the_true_way(
        self, config_file: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The way that is written is that of alignment, and the pose network's stands beside it."""
        pairs = open_sequences(load_config(config_file, [], training=False))
        images = torch.stack([*(item["images"][0] for item in pairs), pairs[len(pairs) - 1]["images"][1]])
        drive = Drive(STREET, TEST_DRIVE)
        depth = torch.from_numpy(np.stack([render_frame(drive, frame).depth for frame in range(STREET.frames)]))
        depth = functional.interpolate(depth[:, None].float(), images.shape[-2:], mode="nearest-exact")
        known = images.float() / 255, depth / tiny_config("photometric").model.metres_per_unit
        monkeypatch.setattr(FeatDepth, "known", known, raising=False)
        monkeypatch.setattr(FeatDepth, "predict_disparity", KnownDepth.predict_disparity)
        printed = succeeded(evaluate_here(config_file, checkpoint, tmp_path / "out")).out
        assert "motion     6 of 6 pairs aligned\n" in printed
        result = read_result(tmp_path / "out")
        assert (result["motion"], result["pairs"], result["lost_pairs"]) == ("alignment", 6, 0)
        [score] = result["sequences"]
        assert score["none"]["rpe_rotation_deg"] < 0.1 and score["none"]["rpe_translation_m"] < 0.06
        assert score["none"]["ate_rmse_m"] < 0.02 * score["distance_m"]
        assert score["pose_network"]["none"]["rpe_translation_m"] > 0.5
        assert result["mean"]["pose_network"]["7dof"] is not None
        assert 0 < result["flicker"]["scale"] < 0.01 and result["flicker"]["points"] < 0.02
        assert score["flicker"] == result["flicker"] and "flicker    from frame to frame: scale 0." in printed
        poses = true_poses()
        assert np.allclose(written_motions(tmp_path / "out"), np.linalg.inv(poses[1:]) @ poses[:-1], rtol=0, atol=0.1)

    def test_the_pose_network_stands_in_for_what_is_lost(
        self, street_copy: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spoil(street_copy, 3)
        monkeypatch.setattr(FeatDepth, "predict_disparity", road_disparity)
        printed = succeeded(evaluate_here(street_copy.parent / "tiny.yaml", checkpoint, tmp_path / "out")).out
        assert "motion     4 of 6 pairs aligned; in place of each other one stands the pose network's\n" in printed
        result = read_result(tmp_path / "out")
        assert result["lost_pairs"] == result["sequences"][0]["lost_pairs"] == 2
        pairs = open_sequences(load_config(street_copy.parent / "tiny.yaml", [], training=False))
        frames = [*(item["images"][0] for item in pairs), pairs[len(pairs) - 1]["images"][1]]
        network = predict_motions(FeatDepth.from_pretrained(checkpoint).eval(), frames)
        is_network = np.isclose(written_motions(tmp_path / "out"), network, atol=1e-5).all((1, 2))
        assert is_network.tolist() == [False, False, True, True, False, False]

    def test_without_a_pose_network_the_motion_before_does(
        self, street_copy: Path, stereo_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And so with two processes, whose batches end in other places."""
        config_file, out = street_copy.parent / "tiny.yaml", tmp_path / "out"
        spoil(street_copy, 3)
        words = ["--odometry", "--config", config_file, "--checkpoint", stereo_checkpoint, "--cpu"]
        program = [REPOSITORY / "tests" / "support" / "road_evaluate.py", *words, "--out", tmp_path / "two"]
        two_processes = succeeded(run_program_process(program, processes=2)).out
        monkeypatch.setattr(FeatDepth, "predict_disparity", road_disparity)
        printed = succeeded(evaluate_here(config_file, stereo_checkpoint, out)).out
        said = "motion     4 of 6 pairs aligned; in place of each other one stands the motion before it\n"
        assert said in printed and said in two_processes and "pose network" not in printed
        motions = written_motions(out)
        assert np.allclose(motions[2:4], motions[1], atol=1e-6) and not np.allclose(motions[4], motions[1], atol=1e-3)
        assert np.allclose(written_motions(tmp_path / "two"), motions, atol=1e-4)
        assert "pose_network" not in read_result(out)["sequences"][0]
        assert read_result(tmp_path / "two")["lost_pairs"] == read_result(out)["lost_pairs"] == 2

    def test_standing_still_where_all_is_lost(self, street_copy: Path, stereo_checkpoint: Path, tmp_path: Path) -> None:
        for frame in range(7):
            spoil(street_copy, frame)
        config_file = street_copy.parent / "tiny.yaml"
        printed = succeeded(evaluate_here(config_file, stereo_checkpoint, tmp_path / "out")).out
        assert "motion     0 of 6 pairs aligned" in printed and "flicker" not in printed
        assert read_result(tmp_path / "out")["flicker"] is None
        assert np.array_equal(written_motions(tmp_path / "out"), np.tile(np.eye(4), (6, 1, 1)))


class TestKittiRawPoses:
    def test_they_are_those_of_the_street(self, street: Path) -> None:
        config = load_config(street.parent / "tiny.yaml", [], training=False)
        poses = open_sequences(config).poses(NAME.split()[0])
        found, truth = np.stack([poses[frame] for frame in range(7)]), true_poses()
        assert np.allclose(np.linalg.inv(found[0]) @ found, np.linalg.inv(truth[0]) @ truth, atol=1e-6)

    def test_real_ones_agree_with_the_speeds(self) -> None:
        if not EXCERPT.is_dir():
            pytest.skip("KITTI is not here")
        drive = "2011_09_26/2011_09_26_drive_0013_sync"
        times = read_times(EXCERPT / drive / "image_02" / "timestamps.txt")
        packet_times = read_times(EXCERPT / drive / "oxts" / "timestamps.txt")
        packets = KittiFiles(EXCERPT).packets(drive)
        poses = camera_poses(times, packet_times, packets, Calibration(EXCERPT / "2011_09_26"))
        frames = list(poses)
        assert frames == list(range(96, 115))  # the picture of 95 was taken before the first packet
        stacked = np.stack(list(poses.values()))
        ways = (np.linalg.inv(stacked[:-1]) @ stacked[1:])[:, :3, 3]
        speeds = {packet: read_speed(path) for packet, path in packets.items()}
        steps = steps_between(times, packet_times, speeds)[96:114]
        assert np.allclose(np.linalg.norm(ways, axis=1), steps, rtol=0.02)
        assert abs(ways[:, :2]).max() < 0.02  # straight on


@pytest.fixture
def ways(tmp_path: Path) -> tuple[Path, Path]:
    """A way of 150 m in 301 poses, and an estimate that is 1 % too long, both with times."""
    truth = np.tile(np.eye(4), (301, 1, 1))
    truth[:, 2, 3] = 0.5 * np.arange(301)
    estimate = truth.copy()
    estimate[:, 2, 3] *= 1.01
    write_tum(tmp_path / "truth.txt", truth, 0.1 * np.arange(301))
    write_tum(tmp_path / "estimate.txt", estimate, 0.1 * np.arange(301))
    return tmp_path / "truth.txt", tmp_path / "estimate.txt"


class TestScoreTrajectory:
    def test_with_plots(self, ways: tuple[Path, Path], tmp_path: Path) -> None:
        result = succeeded(call_program(score_trajectory.main, *ways, "--out", tmp_path / "out"))
        scores = read_result(tmp_path / "out")
        assert scores["none"]["t_rel_percent"] == pytest.approx(1.005) and scores["frames"] == 301
        assert scores["7dof"]["t_rel_percent"] < 1e-6
        names = {path.name for path in (tmp_path / "out").iterdir()}
        drawn = {f"odometry_{what}.{kind}" for what in ("way", "errors") for kind in ("png", "svg")}
        assert names == {"odometry.json", *drawn}
        assert "1.005" in result.out and "no plot" not in result.out
        succeeded(call_program(score_trajectory.main, *ways, "--out", tmp_path / "again"))
        for name in names:
            assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name

    def test_chosen_alignment_and_lengths(self, ways: tuple[Path, Path]) -> None:
        result = succeeded(call_program(score_trajectory.main, *ways, "--alignment", "scale", "--lengths", "20", "400"))
        lines = [line.split() for line in result.out.splitlines() if line.startswith("  ")]
        assert [line[0] for line in lines] == ["scale", "5-frame"]
        assert lines[0][1:4] == ["0.990", "0.000", "0.000"]

    def test_poses_are_compared_at_their_times(self, ways: tuple[Path, Path], tmp_path: Path) -> None:
        """Every third pose, 10 ms late and so 5 cm ahead, and one from before the truth began."""
        late = np.tile(np.eye(4), (51, 1, 1))
        late[:, 2, 3] = np.append(-3.0, 1.5 * np.arange(50) + 0.05)
        write_tum(tmp_path / "late.txt", late, np.append(-1.0, 0.3 * np.arange(50) + 0.01))
        result = succeeded(
            call_program(score_trajectory.main, ways[0], tmp_path / "late.txt", "--out", tmp_path / "out")
        )
        scores = read_result(tmp_path / "out")
        assert scores["frames"] == 50 and scores["none"]["ate_rmse_m"] < 1e-6
        assert "1 of 51 poses have no true pose within 0.02 s" in result.out

    def test_without_times_they_are_compared_line_by_line(self, ways: tuple[Path, Path], tmp_path: Path) -> None:
        write_kitti(tmp_path / "kitti.txt", read_tum(ways[1]).poses)
        result = succeeded(call_program(score_trajectory.main, ways[0], tmp_path / "kitti.txt"))
        assert "1.005" in result.out
        write_kitti(tmp_path / "kitti.txt", read_tum(ways[1]).poses[:-1])
        line = call_program(score_trajectory.main, ways[0], tmp_path / "kitti.txt").error_line()
        assert "has 301 poses" in line and "kitti.txt 300" in line

    def test_bad_input_is_one_line(self, ways: tuple[Path, Path], tmp_path: Path) -> None:
        truth, estimate = ways
        write_tum(tmp_path / "later.txt", read_tum(estimate).poses, 1e3 + np.arange(301))
        write_kitti(tmp_path / "single.txt", np.eye(4)[None])
        (tmp_path / "file").touch()
        for arguments, message in (
            ((truth, tmp_path / "later.txt"), "within 0.02 s of 0 of the 301 times"),
            ((tmp_path / "single.txt", tmp_path / "single.txt"), "a single pose"),
            ((truth, tmp_path / "missing.txt"), "missing.txt"),
            ((truth, estimate, "--lengths", "0"), "--lengths"),
            ((truth, estimate, "--alignment", "sim3"), "sim3"),
            ((truth, estimate, "--out", tmp_path / "file"), "choose another --out"),
        ):
            assert message in call_program(score_trajectory.main, *arguments).error_line()

    def test_plots_without_matplotlib_are_refused_in_words(self, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        with pytest.raises(InputError, match="pip install matplotlib"):
            plots.plot_ways(tmp_path / "way", np.eye(4)[None], {}, "way")
