"""Lens distortion against OpenCV's numbers, and pictures against the scene they show."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from featdepth.cameras.lenses import Lens, distort, remap, undistort_points, undistorted_intrinsics, undistortion_map
from featdepth.errors import InputError
from featdepth.geometry import pose_from_vector

# EuRoC's left camera with a third radial coefficient, and a TUM-VI fisheye.
RADTAN = Lens(
    "radtan",
    np.array([[458.654, 0, 367.215], [0, 457.296, 248.375], [0, 0, 1]]),
    (-0.28340811, 0.07395907, 0.00019359, 1.76187114e-05, 0.01),
    (480, 752),
)
FISHEYE = Lens(
    "fisheye",
    np.array([[190.978, 0, 254.931], [0, 190.973, 256.897], [0, 0, 1]]),
    (0.0034823894, 0.0007150348, -0.0020532361, 0.00020293673),
    (512, 512),
)
PINHOLE = RADTAN._replace(model="pinhole", coefficients=())
POINTS = np.array([[0.1, -0.2], [0.7, 0.5], [-0.6, 0.3]])


def small(lens: Lens, factor: float) -> Lens:
    """The lens at a smaller size."""
    intrinsics = lens.intrinsics * [[factor], [factor], [1]]
    return lens._replace(intrinsics=intrinsics, size=(int(lens.size[0] * factor), int(lens.size[1] * factor)))


def scene(points: np.ndarray) -> np.ndarray:
    """A smooth scene at infinity: its brightness 0 .. 255 in the directions `[..., 2]`."""
    x, y = points[..., 0], points[..., 1]
    return 127.5 + 60 * np.sin(5 * x + 2 * y) + 60 * np.cos(3 * x - 6 * y)


def pixel_grid(size: tuple[int, int]) -> np.ndarray:
    y, x = np.mgrid[: size[0], : size[1]].astype(float)
    return np.stack([x, y], axis=-1)


def test_distort_agrees_with_opencv():
    """cv2.projectPoints and cv2.fisheye.distortPoints of OpenCV 5.0."""
    radtan = [[412.436020450511, 158.205975385862], [635.319808233127, 439.372675874559]]
    radtan += [[122.724134728359, 370.300134151827]]
    assert np.allclose(distort(POINTS, RADTAN), radtan, rtol=0, atol=1e-9)
    fisheye = [[290.870501057087, 185.019879751855], [417.587285875849, 373.077019548132]]
    fisheye += [[95.654782641516, 336.533023671841]]
    assert np.allclose(distort(2 * POINTS, FISHEYE), fisheye, rtol=0, atol=1e-9)
    homogeneous = np.concatenate([POINTS, np.ones((3, 1))], axis=1)
    assert np.allclose(distort(POINTS, PINHOLE), (homogeneous @ PINHOLE.intrinsics.T)[:, :2], rtol=0, atol=1e-12)


@pytest.mark.parametrize("lens", [RADTAN, FISHEYE, PINHOLE], ids=lambda lens: lens.model)
def test_undistort_points_inverts_distort(lens: Lens):
    points = np.random.default_rng(0).uniform(-0.8, 0.8, (4, 50, 2))
    assert np.allclose(undistort_points(distort(points, lens), lens), points, rtol=0, atol=1e-9)
    axis = np.zeros((1, 2))
    assert np.allclose(undistort_points(distort(axis, lens), lens), axis, rtol=0, atol=1e-12)


def test_wide_fisheye_is_inverted_until_90_degrees():
    angles = np.radians([10, 45, 80, 89])
    points = np.stack([np.tan(angles) * 0.6, np.tan(angles) * 0.8], axis=-1)
    assert np.allclose(undistort_points(distort(points, FISHEYE), FISHEYE), points, rtol=1e-9)
    ideal = FISHEYE._replace(coefficients=(0.0, 0.0, 0.0, 0.0))
    beyond = ideal.intrinsics[:2, 2] + [190.978 * np.radians(91), 0]
    assert np.isnan(undistort_points(beyond, ideal)).all()


def test_where_the_distortion_turns_there_is_nothing():
    """r (1 - 0.5 r²) grows until r² = 2/3, where it is 0.544."""
    lens = Lens("radtan", np.diag([100.0, 100.0, 1.0]), (-0.5, 0.0, 0.0, 0.0), (200, 200))
    assert np.allclose(distort(np.array([0.81, 0.0]), lens), [54.42795, 0], atol=1e-4)
    assert np.isnan(distort(np.array([0.82, 0.0]), lens)).all()
    assert np.allclose(undistort_points(np.array([54.42795, 0.0]), lens), [0.81, 0], atol=1e-5)
    assert np.isnan(undistort_points(np.array([55.0, 0.0]), lens)).all()


@pytest.mark.parametrize("angles", [(0.0, 0.0, 0.0), (0.05, -0.08, 0.1)], ids=["straight", "turned"])
@pytest.mark.parametrize("lens", [small(RADTAN, 0.25), small(FISHEYE, 0.25)], ids=lambda lens: lens.model)
def test_undistorted_picture_is_what_a_pinhole_would_see(lens: Lens, angles: tuple[float, float, float]):
    taken = scene(np.nan_to_num(undistort_points(pixel_grid(lens.size), lens)))
    size, intrinsics = (50, 70), np.array([[80.0, 0, 33], [0, 90, 26], [0, 0, 1]])
    rotation = pose_from_vector(torch.tensor(angles).double(), torch.zeros(3).double())[:3, :3].numpy()
    rays = np.concatenate([pixel_grid(size), np.ones((*size, 1))], axis=-1) @ np.linalg.inv(intrinsics).T @ rotation.T
    expected = scene(rays[..., :2] / rays[..., 2:])
    picture = remap(taken.astype(np.uint8), undistortion_map(lens, intrinsics, size, rotation))
    shown = picture > 0
    assert shown.mean() > 0.9
    assert abs(picture - expected)[shown].max() < 4
    assert abs(picture - expected)[shown].mean() < 1


def test_remap_of_every_pixel_to_itself_is_exact_and_black_outside():
    image = np.random.default_rng(0).integers(1, 256, (20, 31, 3)).astype(np.uint8)
    grid = pixel_grid((20, 31)).astype(np.float32)
    assert (remap(image, grid) == image).all()
    assert (remap(image[..., 0], grid) == image[..., 0]).all()
    shifted = remap(image, grid[:5] + np.array([0, 17]))
    assert (shifted[:3] == image[17:]).all() and (shifted[3:] == 0).all()
    grid[2, 3] = np.nan
    assert (remap(image, grid)[2, 3] == 0).all()


def test_remap_is_bilinear():
    image = np.array([[0, 100], [50, 250]], np.uint8)
    assert remap(image, np.array([[[0.5, 0.0], [0.0, 0.5], [0.5, 0.5]]], np.float32)).tolist() == [[50, 25, 100]]


@pytest.mark.parametrize("lens", [RADTAN, FISHEYE], ids=lambda lens: lens.model)
def test_undistorted_view_is_full_and_the_largest(lens: Lens):
    intrinsics = undistorted_intrinsics(lens)
    white = np.full(lens.size, 255, np.uint8)
    assert (remap(white, undistortion_map(lens, intrinsics, lens.size)) == 255).all()
    if lens.model == "radtan":
        intrinsics[0, 0] *= 0.999
        intrinsics[1, 1] *= 0.999
        assert (remap(white, undistortion_map(lens, intrinsics, lens.size)) == 0).any()
    else:  # the whole view would be so wide that its middle had no resolution left
        assert np.allclose(intrinsics[0, 0], lens.intrinsics[0, 0] / 2)


def test_view_without_distortion_is_the_camera_itself():
    assert (undistorted_intrinsics(PINHOLE) == PINHOLE.intrinsics).all()
    nothing = PINHOLE._replace(model="radtan", coefficients=(0.0, 0.0, 0.0, 0.0))
    assert np.allclose(undistorted_intrinsics(nothing), PINHOLE.intrinsics, rtol=1e-4)


def test_view_keeps_away_from_where_the_distortion_turns():
    lens = RADTAN._replace(coefficients=(-0.5, 0.0, 0.0, 0.0))
    intrinsics = undistorted_intrinsics(lens)
    assert np.isfinite(undistortion_map(lens, intrinsics, lens.size)).all()
    corner = np.linalg.norm(np.linalg.inv(intrinsics) @ [751, 479, 1] - [0, 0, 1])
    assert corner < np.sqrt(2 / 3)


def test_lens_without_any_view_is_refused():
    outside = PINHOLE.intrinsics.copy()
    outside[0, 2] = 5000
    with pytest.raises(InputError, match="shows no undistorted view"):
        undistorted_intrinsics(RADTAN._replace(intrinsics=outside))
