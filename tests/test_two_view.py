"""Matching and two-view geometry: against closed forms, exact points, and the synthetic street's exact geometry."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from featdepth.data.synthetic import Drive, RenderedFrame, Street, render_frame
from featdepth.errors import InputError
from featdepth.geometry import pose_from_vector
from featdepth.two_view import matching
from featdepth.two_view.relative_pose import (
    Matches,
    focal_from_matches,
    fundamental,
    match_frames,
    motion,
    parallax,
    relative_pose,
    triangulate,
)

SIZE = (96, 320)
INTRINSICS = np.array([[200.0, 0.0, 163.0], [0.0, 210.0, 46.0], [0.0, 0.0, 1.0]])


def waves(shift: tuple[float, float] = (0.0, 0.0), gain: float = 1.0, offset: float = 0.0) -> np.ndarray:
    """A smooth random pattern uint8 that can be shifted by any part of a pixel: the content moves by `shift` (x, y)."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]].astype(float)
    direction, length = random.uniform(0, 2 * np.pi, 80), random.uniform(6, 40, 80)
    phase = random.uniform(0, 2 * np.pi, 80)
    grey = np.zeros(SIZE)
    for angle, wave, start in zip(direction, length, phase, strict=True):
        along = np.cos(angle) * (x - shift[0]) + np.sin(angle) * (y - shift[1])
        grey += np.sin(2 * np.pi * along / wave + start)
    return (128 + offset + gain * 8 * grey).clip(0, 255).astype(np.uint8)


def pose(rotation: tuple[float, float, float], translation: tuple[float, float, float]) -> np.ndarray:
    """4x4 of a rotation vector (degrees) and a translation."""
    vector = torch.tensor(rotation, dtype=torch.float64).deg2rad()
    return pose_from_vector(vector, torch.tensor(translation, dtype=torch.float64)).numpy()


def exact_matches(
    other_from_one: np.ndarray, count: int = 150, intrinsics: np.ndarray = INTRINSICS, noise: float = 0.0, seed: int = 0
) -> tuple[Matches, np.ndarray]:
    """Matches of random points 4 to 40 away, seen in both frames, and their depths in the first."""
    random = np.random.default_rng(seed)
    pixels = random.uniform((0, 0), (SIZE[1] - 1, SIZE[0] - 1), (count, 2))
    depth = random.uniform(4, 40, count)
    rays = np.concatenate([pixels, np.ones((count, 1))], 1) @ np.linalg.inv(intrinsics).T
    moved = (rays * depth[:, None]) @ other_from_one[:3, :3].T + other_from_one[:3, 3]
    seen = moved @ intrinsics.T
    other = seen[:, :2] / seen[:, 2:] + noise * random.standard_normal((count, 2))
    return Matches(pixels, other), depth


def angle_between(one: np.ndarray, other: np.ndarray) -> float:
    """Degrees between two rotations 3x3, or two directions [3]."""
    if one.ndim == 2:
        cosine = (np.trace(one @ other.T) - 1) / 2
    else:
        cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


class TestMatching:
    @pytest.mark.parametrize("shift", [(5.3, -2.7), (-40.25, 0.5), (0.4, 0.0)])
    def test_finds_a_shift_to_a_fraction_of_a_pixel(self, shift: tuple[float, float]) -> None:
        matches = match_frames(waves(), waves(shift))
        errors = np.linalg.norm(matches.other - matches.one - shift, axis=1)
        assert len(errors) > 100
        assert np.median(errors) < 0.05 and np.quantile(errors, 0.9) < 0.3
        assert motion(matches) == pytest.approx(np.hypot(*shift), abs=0.05)

    def test_brightness_and_contrast_do_not_matter(self) -> None:
        matches = match_frames(waves(), waves((3.5, 1.25), gain=0.6, offset=30))
        assert len(matches.one) > 100
        assert np.median(matches.other - matches.one, axis=0) == pytest.approx((3.5, 1.25), abs=0.05)

    def test_nothing_moves(self) -> None:
        assert motion(match_frames(waves(), waves())) < 1e-3

    def test_nothing_to_see(self) -> None:
        blank = np.full(SIZE, 90, dtype=np.uint8)
        matches = match_frames(blank, waves())
        assert matches.one.shape == matches.other.shape == (0, 2)
        assert np.isnan(motion(matches)) and np.isnan(parallax(matches, INTRINSICS))
        assert relative_pose(matches, INTRINSICS) is None and fundamental(matches) is None

    def test_corners_are_spread_over_the_frame(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A vivid half does not take all corners from a faint one."""
        monkeypatch.setattr(matching, "MOST_CORNERS", 100)
        frame = waves(gain=0.15)
        frame[:, : SIZE[1] // 2] = waves()[:, : SIZE[1] // 2]
        right = match_frames(frame, frame).one[:, 0] > SIZE[1] / 2
        assert len(right) < 150
        assert 0.3 < right.mean() < 0.7

    def test_same_frames_same_matches(self) -> None:
        first, second = (match_frames(waves(), waves((2.0, 1.0))) for _ in range(2))
        assert np.array_equal(first.one, second.one) and np.array_equal(first.other, second.other)

    def test_without_opencv_or_with_an_old_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("cv2.__version__", "4.14.0")
        with pytest.raises(InputError, match=r"OpenCV 4.14.0 is too old"):
            match_frames(waves(), waves())
        monkeypatch.setitem(sys.modules, "cv2", None)
        with pytest.raises(InputError, match="not installed; pip install 'opencv-python-headless"):
            match_frames(waves(), waves())

    def test_frames_of_different_sizes(self) -> None:
        with pytest.raises(ValueError, match="different sizes"):
            match_frames(waves(), waves()[:-2])


@pytest.fixture(scope="module")
def street() -> tuple[Drive, list[RenderedFrame]]:
    """A drive of the synthetic street and two of its frames."""
    drive = Drive(Street(frames=3, height=96, width=320, seed=2), 1)
    return drive, [render_frame(drive, frame) for frame in (0, 1)]


def grey(frame: RenderedFrame) -> np.ndarray:
    return frame.image.astype(float).mean(-1).round().astype(np.uint8)


class TestStreet:
    def test_matches_are_where_the_geometry_says(self, street: tuple[Drive, list[RenderedFrame]]) -> None:
        drive, (one, other) = street
        matches = match_frames(grey(one), grey(other))
        other_from_one = np.linalg.inv(drive.camera_pose(1)) @ drive.camera_pose(0)
        x, y = matches.one.astype(int).T
        kept = np.isfinite(one.depth[y, x]) & ~one.moving[y, x]
        rays = np.stack([x, y, np.ones_like(x)], 1)[kept] @ np.linalg.inv(drive.rig.intrinsics).T
        points = rays * one.depth[y, x][kept][:, None] @ other_from_one[:3, :3].T + other_from_one[:3, 3]
        seen = points @ drive.rig.intrinsics.T
        errors = np.linalg.norm(seen[:, :2] / seen[:, 2:] - matches.other[kept], axis=1)
        assert kept.sum() > 100
        assert np.median(errors) < 0.25 and (errors < 2).mean() > 0.85

    def test_relative_pose(self, street: tuple[Drive, list[RenderedFrame]]) -> None:
        drive, (one, other) = street
        other_from_one = np.linalg.inv(drive.camera_pose(1)) @ drive.camera_pose(0)
        view = relative_pose(match_frames(grey(one), grey(other)), drive.rig.intrinsics)
        assert angle_between(view.rotation, other_from_one[:3, :3]) < 0.3
        assert angle_between(view.translation, other_from_one[:3, 3]) < 5
        assert view.inliers.mean() > 0.8 and view.error < 0.3


MOTIONS = {
    "forward": pose((0, 0, 0), (0, 0, -1)),
    "backward": pose((0.2, 0.5, 0), (0, 0.1, 1)),
    "sideways": pose((0, 0, 0), (-0.5, 0, 0)),
    "bend": pose((0.3, 4, -1), (0.2, 0, -1)),
}


class TestRelativePose:
    @pytest.mark.parametrize("name", MOTIONS)
    def test_exact_points(self, name: str) -> None:
        truth = MOTIONS[name]
        matches, depth = exact_matches(truth)
        view = relative_pose(matches, INTRINSICS)
        assert angle_between(view.rotation, truth[:3, :3]) < 0.01
        assert angle_between(view.translation, truth[:3, 3]) < 0.1
        assert view.inliers.all() and view.error < 1e-3
        units = np.linalg.norm(truth[:3, 3])
        assert np.median(np.abs(triangulate(matches, INTRINSICS, view) * units / depth - 1)) < 0.01

    def test_outliers_are_found(self) -> None:
        truth = MOTIONS["bend"]
        matches, _ = exact_matches(truth, noise=0.2)
        wrong = np.random.default_rng(1).random(len(matches.one)) < 0.35
        matches.other[wrong] += np.random.default_rng(2).uniform(-30, 30, (wrong.sum(), 2))
        view = relative_pose(matches, INTRINSICS)
        assert angle_between(view.rotation, truth[:3, :3]) < 0.2
        assert angle_between(view.translation, truth[:3, 3]) < 2
        # Some wrong matches lie near their epipolar lines by chance.
        assert view.inliers[~wrong].mean() > 0.98 and view.inliers[wrong].mean() < 0.25

    def test_plane(self) -> None:
        """The ground alone: an eight-point estimate is not defined there, the refined one agrees with it."""
        matches, _ = exact_matches(MOTIONS["forward"])
        below = matches.one[:, 1] > 60
        plane_depth = 1.6 * INTRINSICS[1, 1] / (matches.one[below, 1] - INTRINSICS[1, 2])
        rays = np.concatenate([matches.one[below], np.ones((below.sum(), 1))], 1) @ np.linalg.inv(INTRINSICS).T
        seen = (rays * plane_depth[:, None] + MOTIONS["forward"][:3, 3]) @ INTRINSICS.T
        view = relative_pose(Matches(matches.one[below], seen[:, :2] / seen[:, 2:]), INTRINSICS)
        assert view.inliers.all() and view.error < 0.05

    def test_too_few_matches(self) -> None:
        matches, _ = exact_matches(MOTIONS["bend"], count=11)
        assert relative_pose(matches, INTRINSICS) is None and fundamental(matches) is None

    def test_nothing_agrees(self) -> None:
        random = np.random.default_rng(0)
        matches = Matches(random.uniform(0, 96, (13, 2)), random.uniform(0, 96, (13, 2)))
        assert relative_pose(matches, INTRINSICS) is None


class TestParallax:
    def test_rotation_is_not_parallax(self) -> None:
        matches, _ = exact_matches(pose((1, 5, -3), (0, 0, 0)))
        assert motion(matches) > 15
        assert parallax(matches, INTRINSICS) < 1e-3

    def test_forward_motion(self) -> None:
        still, _ = exact_matches(MOTIONS["forward"])
        turning, _ = exact_matches(pose((0, 5, 0), (0, 0, 0)) @ MOTIONS["forward"])
        assert parallax(still, INTRINSICS) == pytest.approx(motion(still), rel=0.2)
        assert parallax(turning, INTRINSICS) == pytest.approx(motion(still), rel=0.3) and motion(turning) > 10

    def test_wrong_matches_hardly_count(self) -> None:
        matches, _ = exact_matches(pose((0, 3, 0), (0, 0, 0)))
        matches.other[:40] += 50
        assert parallax(matches, INTRINSICS) < 0.5


class TestFundamental:
    @pytest.mark.parametrize("shift", [0.0, 3.0])
    def test_what_does_not_move_or_moves_alike_agrees(self, shift: float) -> None:
        one = np.rint(np.random.default_rng(0).uniform((0, 0), (319, 95), (100, 2)))
        _, inliers = fundamental(Matches(one, one + np.array([shift, 0.0])))
        assert inliers.all()

    def test_planes_with_repeated_matches(self) -> None:
        """For some of these OpenCV's MAGSAC++ ends in an error."""
        random = np.random.default_rng(5)
        for _ in range(60):
            one = np.rint(random.uniform((0, 0), (319, 95), (40, 2)))
            homography = np.eye(3) + random.normal(0, 1, (3, 3)) * [[0.05, 0.05, 5], [0.05, 0.05, 5], [1e-4, 1e-4, 0]]
            other = np.concatenate([one, np.ones((40, 1))], axis=1) @ homography.T
            other = other[:, :2] / other[:, 2:] + random.normal(0, 0.05, (40, 2))
            other[:4] += random.uniform(-30, 30, (4, 2))
            _, inliers = fundamental(Matches(np.concatenate([one, one[:10]]), np.concatenate([other, other[:10]])))
            assert inliers.mean() > 0.8

    def test_epipolar_lines(self) -> None:
        matches, _ = exact_matches(MOTIONS["bend"], noise=0.1)
        matches.other[:30] += np.random.default_rng(3).uniform(10, 30, (30, 2))
        matrix, inliers = fundamental(matches)
        assert np.linalg.svd(matrix)[1][2] == pytest.approx(0, abs=1e-12)
        assert inliers[30:].mean() > 0.98 and inliers[:30].mean() < 0.4
        one, other = (np.concatenate([each, np.ones((len(each), 1))], 1) for each in matches)
        lines = one @ matrix.T
        distances = np.abs((other * lines).sum(1)) / np.linalg.norm(lines[:, :2], axis=1)
        assert np.median(distances[30:]) < 0.15


class TestFocal:
    def pairs(self, degrees: float, intrinsics: np.ndarray, count: int = 6) -> list[Matches]:
        """Forward motion with turns by up to `degrees`, matched to 0.2 pixels."""
        turns = np.linspace(-degrees, degrees, count)
        return [
            exact_matches(pose((0.2 * turn, turn, 0), (0, 0, -1)), 120, intrinsics, 0.2, seed)[0]
            for seed, turn in enumerate(turns)
        ]

    @pytest.mark.parametrize("focal", [150.0, 400.0])
    def test_found_where_the_camera_turns(self, focal: float) -> None:
        intrinsics = np.array([[focal, 0, 159.5], [0, focal, 47.5], [0, 0, 1]])
        found = focal_from_matches(self.pairs(6, intrinsics), SIZE)
        assert found.pixels == pytest.approx(focal, rel=0.03)
        assert 0 < found.spread < 0.1 * focal and abs(found.pixels - focal) < 4 * found.spread

    @pytest.mark.parametrize("degrees", [0.0, 1.0])
    def test_not_observable_without_turning(self, degrees: float) -> None:
        """With a degree the smallest error lies at 130 pixels, and means nothing."""
        intrinsics = np.array([[200.0, 0, 159.5], [0, 200.0, 47.5], [0, 0, 1]])
        assert focal_from_matches(self.pairs(degrees, intrinsics), SIZE) is None

    def test_too_few_pairs(self) -> None:
        intrinsics = np.array([[200.0, 0, 159.5], [0, 200.0, 47.5], [0, 0, 1]])
        assert focal_from_matches(self.pairs(6, intrinsics, count=3), SIZE) is None
