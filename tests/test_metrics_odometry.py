"""Odometry scores against closed forms, and against the reference cases where they are."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from check_reference import compare

from featdepth.odometry.egomotion import chain_motions
from featdepth.odometry.interpolate import poses_from_quaternions
from featdepth.odometry.rotations import is_rotation, nearest_rotations, quaternions_from_rotations, rotation_angles
from featdepth.odometry.scores import (
    ALIGNMENTS,
    align,
    score_aligned,
    score_trajectory,
    segment_errors,
    snippet_ate,
    step_errors,
)

REFERENCE = Path(os.environ.get("FEATDEPTH_SHARED", Path(__file__).parents[2] / "shared")) / "reference"
SCORES = ("ate_rmse_m", "t_rel_percent", "r_rel_deg_per_100m", "rpe_translation_m", "rpe_rotation_deg")


def random_poses(count: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return poses_from_quaternions(random.normal(0, 5, (count, 3)), random.normal(size=(count, 4)))


def straight(count: int, step: float = 1.0, yaw: float = 0.0) -> np.ndarray:
    """Poses of `count` frames that go ahead by `step` metres and turn by `yaw` radians each."""
    motion = np.eye(4)  # earlier_from_later
    motion[:3, :3] = [[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]]
    motion[2, 3] = step
    return chain_motions(np.tile(np.linalg.inv(motion), (count - 1, 1, 1)))


def moved(poses: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """The same way in another world and another unit."""
    other = np.linalg.inv(random_poses(1, seed=9))[0] @ poses
    other[:, :3, 3] *= scale
    return other


class TestAlignments:
    def test_a_trajectory_against_itself_has_no_error(self) -> None:
        truth = straight(300, yaw=0.01)
        scores = score_trajectory(truth, truth)
        assert scores["ate_5_frames"]["mean_m"] < 1e-12
        for alignment in ALIGNMENTS:
            assert all(scores[alignment][name] < 1e-8 for name in SCORES), alignment
            assert scores[alignment]["alignment"] == alignment
            assert scores[alignment]["scale"] == pytest.approx(1.0, abs=1e-12)

    @pytest.mark.parametrize(
        ("scale", "exact"),
        [(1.0, {"none", "scale", "6dof", "7dof"}), (0.2, {"scale", "7dof"})],
        ids=["rigid", "similar"],
    )
    def test_what_an_alignment_undoes(self, scale: float, exact: set[str]) -> None:
        """Another world and another unit: the first pose is common to all, a scale only to two."""
        truth = random_poses(40)
        for alignment in ALIGNMENTS:
            poses, found = align(truth, moved(truth, scale), alignment)
            assert np.allclose(poses, truth, atol=1e-9) == (alignment in exact), alignment
            assert found == pytest.approx(1 / scale if alignment in ("scale", "7dof") else 1.0)

    @pytest.mark.parametrize("alignment", ["6dof", "7dof"])
    def test_no_small_change_comes_nearer(self, alignment: str) -> None:
        truth = random_poses(30)
        estimate = moved(truth, 0.5)
        random = np.random.default_rng(1)
        estimate[:, :3, 3] += random.normal(0, 0.3, (30, 3))
        poses, _ = align(truth, estimate, alignment)

        def squares(positions: np.ndarray) -> float:
            return ((positions - truth[:, :3, 3]) ** 2).sum()

        positions, centre = poses[:, :3, 3], poses[:, :3, 3].mean(0)
        best = squares(positions)
        for change in random.normal(0, 1e-3, (6, 3)):
            turn = poses_from_quaternions(np.zeros((1, 3)), np.append(change, 1.0)[None])[0, :3, :3]
            assert squares(positions + change) > best and squares((positions - centre) @ turn + centre) > best
        for scale in (0.999, 1.001):
            assert alignment == "6dof" or squares((positions - centre) * scale + centre) > best

    def test_a_mirrored_way_is_turned_and_never_mirrored(self) -> None:
        truth = random_poses(20)
        estimate = truth.copy()
        estimate[:, 0, 3] *= -1
        poses, _ = align(truth, estimate, "7dof")
        assert is_rotation(poses[:, :3, :3], 1e-9).all()

    def test_without_motion_there_is_no_scale(self) -> None:
        truth, still = straight(20), np.tile(np.eye(4), (20, 1, 1))
        for one, other in ((truth, still), (still, truth)):
            scores = score_trajectory(one, other)
            assert scores["scale"] is None and scores["7dof"] is None
            assert scores["none"]["ate_rmse_m"] == pytest.approx(np.sqrt(np.mean(np.arange(20.0) ** 2)))
            assert scores["6dof"]["ate_rmse_m"] == pytest.approx(np.std(np.arange(20.0)))

    def test_each_number_says_its_alignment(self) -> None:
        scores = score_trajectory(straight(10), straight(10))
        assert [scores[alignment]["alignment"] for alignment in ALIGNMENTS] == list(ALIGNMENTS)
        assert "scale" in scores["ate_5_frames"]["alignment"]
        assert scores["frames"] == 10 and scores["distance_m"] == pytest.approx(9.0)


class TestSegments:
    def test_a_scale_error_of_one_percent(self) -> None:
        """Steps of 0.25 m overshoot a segment by 0.25 m, which its nominal length does not count."""
        truth, estimate = straight(4000, 0.25), straight(4000, 0.25 * 1.01)
        scores = score_trajectory(truth, estimate)
        for alignment in ("none", "6dof"):
            per_length = scores[alignment]["per_length"]
            assert list(per_length) == ["100", "200", "300", "400", "500", "600", "700", "800"]
            for length, each in per_length.items():
                assert each["t_rel_percent"] == pytest.approx((float(length) + 0.25) / float(length))
            assert scores[alignment]["t_rel_percent"] == pytest.approx(1.0, rel=3e-3)
            assert scores[alignment]["r_rel_deg_per_100m"] < 1e-9
        for alignment in ("scale", "7dof"):
            assert scores[alignment]["t_rel_percent"] < 1e-9
            assert scores[alignment]["scale"] == pytest.approx(1 / 1.01)

    def test_a_constant_turn(self) -> None:
        """The estimate turns by 0.01 degrees a frame of half a metre: 2 degrees in 100 m, and one frame more."""
        scores = score_aligned(straight(500, 0.5), straight(500, 0.5, np.radians(0.01)), "none", lengths=[100])
        assert scores["r_rel_deg_per_100m"] == pytest.approx(201 * 0.01)
        assert scores["rpe_rotation_deg"] == pytest.approx(0.01)

    def test_they_start_at_every_tenth_frame_and_end_beyond_their_length(self) -> None:
        """Of 250 frames, one metre apart, those that start up to 148 end at 249 at the latest."""
        segments = segment_errors(straight(250), straight(250), [100.0, 240.0])
        assert (segments.lengths == 100).sum() == 15 and (segments.lengths == 240).sum() == 1
        assert len(segment_errors(straight(101), straight(101)).lengths) == 0
        assert len(segment_errors(straight(102), straight(102)).lengths) == 1

    def test_a_short_way_has_none(self) -> None:
        scores = score_aligned(straight(50), straight(50), "7dof")
        assert scores["t_rel_percent"] is None and scores["r_rel_deg_per_100m"] is None
        assert scores["segments"] == 0 and scores["per_length"] == {}

    def test_errors_are_independent_of_rotation_and_place(self) -> None:
        truth, estimate = straight(300, 0.99), straight(300, 1.02, 0.001)
        here, there = segment_errors(truth, estimate), segment_errors(moved(truth), moved(estimate))
        assert np.allclose(here.translation, there.translation) and np.allclose(here.rotation, there.rotation)


class TestShortRange:
    def test_five_frames_have_a_scale_of_their_own(self) -> None:
        truth = straight(30, yaw=0.02)
        estimate = truth.copy()
        estimate[:, :3, 3] *= 7.0
        assert snippet_ate(truth, estimate) == pytest.approx((0.0, 0.0), abs=1e-12)

    def test_two_poses(self) -> None:
        """One step of 2 m, estimated at a right angle: the best scale is 0, and 2 positions share the error."""
        truth, estimate = straight(2, 2.0), np.tile(np.eye(4), (2, 1, 1))
        estimate[1, 0, 3] = 1.0
        assert snippet_ate(truth, estimate) == pytest.approx((1.0, 0.0))

    def test_an_estimate_that_stands_still(self) -> None:
        """Positions 0 .. 4 m from the first 3 starts of 6 poses, fewer at the end."""
        still = np.tile(np.eye(4), (6, 1, 1))
        whole = np.sqrt(30.0) / 5
        expected = [whole, whole, np.sqrt(14.0) / 4, np.sqrt(5.0) / 3, 1 / 2]
        mean, deviation = snippet_ate(straight(6), still)
        assert (mean, deviation) == pytest.approx((np.mean(expected), np.std(expected)))

    def test_steps(self) -> None:
        translation, rotation = step_errors(straight(9), straight(9, 1.5, 0.1))
        assert np.allclose(translation, 0.5) and np.allclose(rotation, 0.1)
        scores = score_aligned(straight(9), straight(9, 1.5), "none")
        assert scores["rpe_translation_m"] == pytest.approx(0.5) == scores["rpe_translation_rmse_m"]


BAD = {
    "one pose": (straight(2)[:1], "fewer than two poses: 1"),
    "no pose": (np.zeros((0, 4, 4)), "fewer than two poses: 0"),
    "another length": (straight(4), "the truth has 5 poses, the estimate 4"),
    "positions only": (np.zeros((5, 3)), r"shape \[5, 3\]"),
    "not finite": (np.where(np.arange(5)[:, None, None] == 3, np.nan, straight(5)), "not finite"),
    "no rotations": (np.zeros((5, 3, 4)), "not rigid transforms, the first at index 0"),
    "mirrored": (straight(5) * np.diag([-1.0, 1, 1, 1]).sum(1), "not rigid transforms"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_trajectory_is_refused(name: str) -> None:
    estimate, message = BAD[name]
    for score in (score_trajectory, snippet_ate, segment_errors, step_errors):
        with pytest.raises(ValueError, match=message):
            score(straight(5), estimate)
    with pytest.raises(ValueError, match="alignment 'sim3' is not one of none, scale, 6dof, 7dof"):
        align(straight(5), straight(5), "sim3")


def test_rows_of_three_and_four_are_the_same() -> None:
    truth, estimate = straight(120), straight(120, 1.1, 0.01)
    assert score_trajectory(truth[:, :3], estimate[:, :3]) == score_trajectory(truth, estimate)


class TestRotations:
    def test_quaternions_and_back(self) -> None:
        """Half turns about each axis and in between, where the trace tells nothing, are right too."""
        half_turns = np.array([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [1, 1, 0, 0], [1, -2, 3, 0], [0, 0, 0, 1]])
        quaternions = np.concatenate([half_turns, np.random.default_rng(0).normal(size=(50, 4))])
        quaternions /= np.linalg.norm(quaternions, axis=1, keepdims=True)
        rotations = poses_from_quaternions(np.zeros((56, 3)), quaternions)[:, :3, :3]
        found = quaternions_from_rotations(rotations)
        assert np.allclose(abs((found * quaternions).sum(1)), 1, atol=1e-12)
        assert (found[:, 3] >= 0).all() and np.allclose(np.linalg.norm(found, axis=1), 1)

    def test_angles(self) -> None:
        for angle in (0.0, 1e-9, 0.3, 3.0, np.pi):
            assert rotation_angles(straight(2, yaw=angle)[1:, :3, :3]) == pytest.approx([angle], rel=1e-6, abs=1e-15)

    def test_repair(self) -> None:
        rotations = random_poses(5)[:, :3, :3]
        assert np.allclose(nearest_rotations(rotations * 1.001), rotations)
        assert list(is_rotation(np.stack([np.eye(3), -np.eye(3), 2 * np.eye(3)]))) == [True, False, False]


class TestReference:
    @pytest.mark.parametrize("sequence", ["04", "10"])
    def test_the_case_is_reproduced(self, sequence: str) -> None:
        path = REFERENCE / f"odometry_{sequence}.npz"
        if not path.is_file():
            pytest.skip("KITTI's poses are not here")
        comparisons = compare(path)
        assert len(comparisons) == 11 and [each for each in comparisons if not each.passed] == []

    def test_the_comparison_can_fail(self, tmp_path: Path) -> None:
        truth, estimate = straight(150)[:, :3], straight(150, 1.1, 0.01)[:, :3]
        scores = score_trajectory(truth, estimate)
        expected = {"ate_5frame_mean": scores["ate_5_frames"]["mean_m"] * 1.00001, "frames": 150}
        expected["scale"] = {"t_rel_percent": scores["scale"]["t_rel_percent"], "segments": 6}
        content = np.frombuffer(json.dumps(expected).encode(), dtype=np.uint8)
        np.savez(tmp_path / "case.npz", gt=truth, est=estimate, expected=content)
        failed = {each.quantity for each in compare(tmp_path / "case.npz") if not each.passed}
        assert failed == {"ate_5frame_mean", "scale segments"}
