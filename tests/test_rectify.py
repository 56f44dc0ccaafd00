"""Stereo rectification: exact for points and rays, as large as the images allow, refused for what is no pair."""

from __future__ import annotations

import numpy as np
import pytest
from euroc_tree import LENSES, MOUNTS

from featdepth.cameras.lenses import Lens, distort, undistortion_map
from featdepth.cameras.rectify import RectifiedPair, rectify
from featdepth.errors import InputError
from featdepth.geometry import pose_from_vector

RIGHT_FROM_LEFT = np.linalg.inv(MOUNTS[1]) @ MOUNTS[0]
IDEAL = Lens("pinhole", np.array([[90.0, 0, 47.5], [0, 90, 31.5], [0, 0, 1]]), (), (64, 96))


def moved(translation: list[float], turn: list[float] = (0.0, 0.0, 0.0)) -> np.ndarray:
    """right_from_left of a right camera at -`translation` after a rotation vector `turn` (radians)."""
    import torch

    return pose_from_vector(torch.tensor(turn).double(), torch.tensor(translation).double()).numpy()


@pytest.fixture(scope="module")
def pair() -> RectifiedPair:
    return rectify(*LENSES, RIGHT_FROM_LEFT)


def test_points_are_seen_in_the_same_row(pair):
    """Points in the room, projected by the cameras as they were, are where the rectified cameras say."""
    random = np.random.default_rng(0)
    height, width = pair.size
    depth = random.uniform(1.0, 20.0, (500, 1))
    pixels = np.stack([random.uniform(60, width - 1, 500), random.uniform(0, height - 1, 500)], axis=1)
    points = np.column_stack([pixels, np.ones(500)]) @ np.linalg.inv(pair.intrinsics).T * depth
    in_left = points @ pair.left_from_rectified.T
    in_right = in_left @ RIGHT_FROM_LEFT[:3, :3].T + RIGHT_FROM_LEFT[:3, 3]
    # The same row, and a disparity of f b / Z.
    disparity = pair.intrinsics[0, 0] * pair.baseline / depth[:, 0]
    rays = np.column_stack([pixels - np.stack([disparity, 0 * disparity], axis=1), np.ones(500)])
    expected = rays @ np.linalg.inv(pair.intrinsics).T @ pair.right_from_rectified.T
    shown, wanted = (distort(each[:, :2] / each[:, 2:], LENSES[1]) for each in (in_right, expected))
    np.testing.assert_allclose(shown, wanted, atol=1e-6)
    assert pair.baseline == pytest.approx(0.11007, abs=1e-4)


def test_both_cameras_turn_as_little_as_it_takes(pair):
    for rotation in (pair.left_from_rectified, pair.right_from_rectified):
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
        assert np.linalg.det(rotation) == pytest.approx(1)
    # One looks up by what the other looks down.
    assert pair.left_from_rectified[2, 1] == pytest.approx(-pair.right_from_rectified[2, 1], rel=1e-9)
    assert min(pair.left_from_rectified[2, 2], pair.right_from_rectified[2, 2]) > np.cos(np.radians(1))


def test_every_pixel_was_seen_and_a_larger_image_would_have_black_ones(pair):
    height, width = pair.size
    grown = np.add(pair.intrinsics, [[0, 0, 1], [0, 0, 1], [0, 0, 0]])
    outside = []
    for lens, rotation in zip(LENSES, pair[2:4], strict=True):
        pixels = undistortion_map(lens, grown, (height + 2, width + 2), rotation)
        is_inside = ((pixels >= -1e-3) & (pixels <= [lens.size[1] - 1 + 1e-3, lens.size[0] - 1 + 1e-3])).all(axis=-1)
        assert is_inside[1:-1, 1:-1].all()
        outside.append(~is_inside)
    beyond = outside[0] | outside[1]
    assert all(edge.any() for edge in (beyond[0], beyond[-1], beyond[:, 0], beyond[:, -1]))
    assert height > 0.9 * 480 and width > 0.9 * 752


def test_a_pair_that_is_rectified_stays_as_it_is():
    pair = rectify(IDEAL, IDEAL, moved([-0.3, 0, 0]))
    assert pair.size == IDEAL.size and pair.baseline == pytest.approx(0.3)
    np.testing.assert_allclose(pair.intrinsics, IDEAL.intrinsics)
    np.testing.assert_allclose([pair.left_from_rectified, pair.right_from_rectified], [np.eye(3)] * 2, atol=1e-12)


@pytest.mark.parametrize(
    ("pose", "message"),
    [
        (moved([0.3, 0, 0]), r"centre is at \[-0.3, 0.0, 0.0\] .* not to its right"),
        (moved([0, -0.3, 0]), r"not to its right"),
        (moved([0, 0, 0]), r"not to its right"),
        (moved([-0.3, 0, 0], [1.5, 0, 0]), r"look into different directions|see too little in common"),
    ],
)
def test_what_is_no_stereo_pair_is_refused(pose, message):
    with pytest.raises(InputError, match=message):
        rectify(IDEAL, IDEAL, pose)


def test_distortion_without_inverse_is_refused():
    folded = Lens("radtan", IDEAL.intrinsics, (-3.0, 0.0, 0.0, 0.0), IDEAL.size)
    with pytest.raises(InputError, match="their distortion is no lens's"):
        rectify(folded, IDEAL, moved([-0.3, 0, 0]))
