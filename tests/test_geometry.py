"""Cameras, motion and warping: conventions, closed forms, inverses, gradients, devices."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from featdepth import geometry

SIZE = (24, 40)


def make_intrinsics(batch: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    intrinsics = torch.tensor([[31.0, 0.0, 18.3], [0.0, 29.0, 12.4], [0.0, 0.0, 1.0]], dtype=dtype)
    intrinsics = intrinsics.repeat(batch, 1, 1)
    intrinsics[:, 0, 0] += torch.arange(batch, dtype=dtype)
    return intrinsics


def make_depth(batch: int = 1, dtype: torch.dtype = torch.float64, size: tuple[int, int] = SIZE) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return 2 + 8 * torch.rand(batch, 1, *size, generator=generator, dtype=dtype)


def make_pose(rotation: list[float], translation: list[float]) -> Tensor:
    vectors = torch.tensor([rotation, translation], dtype=torch.float64)[:, None]
    return geometry.pose_from_vector(vectors[0], vectors[1])


def coordinate_image(height: int, width: int) -> Tensor:
    """`[1, 2, H, W]`: each pixel holds its own (x, y). Bilinear work of any kind is exact on it inside the image."""
    return geometry.pixel_grid(height, width, like=torch.zeros((), dtype=torch.float64))[:2].reshape(
        1, 2, height, width
    )


def visible_points(intrinsics: Tensor, margin: int = 6) -> Tensor:
    """`[1, 3, N]`: random points that are seen at least `margin` pixels inside an image of `SIZE`."""
    generator = torch.Generator().manual_seed(1)
    low = torch.tensor([margin, margin], dtype=torch.float64)[:, None]
    high = torch.tensor([SIZE[1] - 1 - margin, SIZE[0] - 1 - margin], dtype=torch.float64)[:, None]
    pixels = low + (high - low) * torch.rand(2, 50, generator=generator, dtype=torch.float64)
    depth = 1 + 20 * torch.rand(1, 50, generator=generator, dtype=torch.float64)
    rays = torch.linalg.inv(intrinsics[0]) @ torch.cat([pixels, torch.ones_like(depth)])
    return (rays * depth)[None]


def seen_at(points: Tensor, intrinsics: Tensor) -> Tensor:
    """Pixels `[1, 2, N]` by plain division, without the code under test."""
    image = intrinsics @ points
    return image[:, :2] / image[:, 2:]


def read_at(image: Tensor, pixels: Tensor) -> Tensor:
    """Values `[1, C, N]` of `image` at `pixels` `[1, 2, N]`."""
    return geometry.sample(image, pixels[:, :, None])[:, :, 0]


@pytest.mark.parametrize("size", [(64, 96), (33, 57), (192, 640)])
def test_the_identity_warp_changes_nothing(size):
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(2, 3, *size, generator=generator, dtype=torch.float64)
    depth, identity = make_depth(2, size=size), torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    warped = geometry.warp(noise, depth, make_intrinsics(2), identity)
    torch.testing.assert_close(warped, noise, rtol=0, atol=1e-9)
    # In float32 a pixel coordinate carries rounding of up to 1e-4 pixels: an image, unlike noise, does not show it.
    coarse = torch.rand(2, 3, 6, 10, generator=generator)
    image = functional.interpolate(coarse, size, mode="bilinear", align_corners=False)
    warped = geometry.warp(image, depth.float(), make_intrinsics(2).float(), identity.float())
    torch.testing.assert_close(warped, image, rtol=0, atol=1e-5)


def test_the_identity_warp_is_at_the_pixel_itself_at_full_width():
    height, width = 64, 1024
    intrinsics = torch.tensor([[[593.0, 0, 512.3], [0, 614.0, 31.2], [0, 0, 1]]])
    depth = make_depth(1, torch.float32, (height, width)) * 3
    pixels = geometry.correspondences(depth, intrinsics, torch.eye(4)[None])
    torch.testing.assert_close(pixels, coordinate_image(height, width).float(), rtol=0, atol=2e-4)


def test_sampling_reads_pixel_centres_at_integers_and_repeats_the_border():
    image = torch.arange(12.0, dtype=torch.float64).reshape(1, 1, 3, 4)
    pixels = torch.tensor([[[0, 3, 1.5, -9, 50], [0, 2, 0.5, 1, 2]]], dtype=torch.float64)
    assert read_at(image, pixels)[0, 0].tolist() == pytest.approx([0, 11, 3.5, 4, 11])


def test_resized_intrinsics_in_closed_form():
    intrinsics = make_intrinsics()
    resized = geometry.resize_intrinsics(intrinsics, (24, 40), (12, 60))[0]
    assert resized[0, 0] == pytest.approx(31 * 1.5) and resized[1, 1] == pytest.approx(29 * 0.5)
    assert resized[0, 2] == pytest.approx((18.3 + 0.5) * 1.5 - 0.5)
    assert resized[1, 2] == pytest.approx((12.4 + 0.5) * 0.5 - 0.5)
    assert resized[2].tolist() == [0, 0, 1]


@pytest.mark.parametrize("to_size", [(12, 20), (36, 60), (17, 61)])
def test_resized_intrinsics_agree_with_a_resized_image(to_size):
    intrinsics = make_intrinsics()
    points = visible_points(intrinsics)
    resized = functional.interpolate(coordinate_image(*SIZE), to_size, mode="bilinear", align_corners=False)
    pixels = seen_at(points, geometry.resize_intrinsics(intrinsics, SIZE, to_size))
    torch.testing.assert_close(read_at(resized, pixels), seen_at(points, intrinsics))


def test_cropped_intrinsics_agree_with_a_cropped_image():
    intrinsics = make_intrinsics()
    points = visible_points(intrinsics)
    cropped = coordinate_image(*SIZE)[..., 3:, 5:]
    after = geometry.crop_intrinsics(intrinsics, left=5, top=3)
    torch.testing.assert_close(read_at(cropped, seen_at(points, after)), seen_at(points, intrinsics))
    assert after[0, 0, 2] == pytest.approx(13.3) and after[0, 1, 2] == pytest.approx(9.4)


def test_flipped_intrinsics_agree_with_a_flipped_image():
    intrinsics = make_intrinsics()
    before = intrinsics.clone()
    points = visible_points(intrinsics)
    mirrored = points * torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)[:, None]
    flipped = geometry.flip_intrinsics(intrinsics, SIZE[1])
    seen = read_at(coordinate_image(*SIZE).flip(-1), seen_at(mirrored, flipped))
    torch.testing.assert_close(seen, seen_at(points, intrinsics))
    assert flipped[0, 0, 2] == pytest.approx(40 - 1 - 18.3)
    torch.testing.assert_close(geometry.flip_intrinsics(flipped, SIZE[1]), before)
    assert torch.equal(intrinsics, before)


def test_halved_intrinsics_agree_with_a_convolution_of_stride_two():
    intrinsics = make_intrinsics()
    points = visible_points(intrinsics)
    # Any symmetric kernel of sum 1 leaves a linear image as it is, at the centre of its window.
    line = torch.tensor([1.0, 2.0, 4.0, 6.0, 4.0, 2.0, 1.0], dtype=torch.float64) / 20
    kernel = (line[:, None] * line).expand(2, 1, 7, 7)
    features = functional.conv2d(coordinate_image(*SIZE), kernel, stride=2, padding=3, groups=2)
    seen = read_at(features, seen_at(points, geometry.halve_intrinsics(intrinsics)))
    torch.testing.assert_close(seen, seen_at(points, intrinsics))
    resized = read_at(features, seen_at(points, geometry.resize_intrinsics(intrinsics, (2, 2), (1, 1))))
    torch.testing.assert_close(resized, seen_at(points, intrinsics) - 0.5)  # what treating it as a resized image costs


def test_inverted_intrinsics():
    intrinsics = make_intrinsics(3)
    intrinsics[:, 0, 1] = 0.4
    torch.testing.assert_close(geometry.invert_intrinsics(intrinsics), torch.linalg.inv(intrinsics))


def test_projecting_what_was_backprojected_gives_the_pixels_back():
    depth, intrinsics = make_depth(2), make_intrinsics(2)
    points = geometry.backproject(depth, intrinsics)
    torch.testing.assert_close(points[:, 2], depth.flatten(1))
    pixels = geometry.project(points, intrinsics, torch.eye(4, dtype=torch.float64).repeat(2, 1, 1))
    torch.testing.assert_close(pixels, coordinate_image(*SIZE).flatten(2).expand(2, -1, -1))


def test_projection_moves_points_into_the_camera_first():
    points, intrinsics = visible_points(make_intrinsics()), make_intrinsics()
    pose = make_pose([0.02, -0.1, 0.05], [0.3, -0.2, 0.5])
    moved = pose[:, :3, :3] @ points + pose[:, :3, 3:]
    torch.testing.assert_close(geometry.project(points, intrinsics, pose), seen_at(moved, intrinsics))


@pytest.mark.parametrize("length", [0.0, 1e-9, 1e-4, 0.999e-3, 1.001e-3, 0.3, 2.0, math.pi])
def test_rotation_vectors_are_the_matrix_exponential(length):
    axis = torch.tensor([0.6, -0.64, 0.48], dtype=torch.float64)
    x, y, z = (axis * length).tolist()
    cross = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    pose = geometry.pose_from_vector(axis * length, torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    torch.testing.assert_close(pose[:3, :3], torch.linalg.matrix_exp(cross), rtol=0, atol=1e-12)
    assert pose[:3, 3].tolist() == [1, 2, 3] and pose[3].tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("axis_angle", [[0.0, 0.0, 0.0], [1e-5, 0.0, 0.0], [0.1, -0.2, 0.3], [2.0, 1.0, -1.5]])
def test_poses_have_correct_gradients_also_at_the_zero_rotation(axis_angle):
    vector = torch.tensor([axis_angle], dtype=torch.float64, requires_grad=True)
    translation = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(geometry.pose_from_vector, (vector, translation))


def test_poses_are_accurate_in_float32_at_all_angles():
    directions = torch.tensor([[0.6, -0.64, 0.48]], dtype=torch.float64)
    vectors = directions * torch.logspace(-8, 0.5, 60, dtype=torch.float64)[:, None]

    def value_and_gradient(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        vector = vectors.to(dtype).requires_grad_()
        pose = geometry.pose_from_vector(vector, torch.zeros_like(vector))
        weights = torch.linspace(-1, 1, 16, dtype=dtype).reshape(4, 4)
        return pose.detach().double(), torch.autograd.grad((pose * weights).sum(), vector)[0].double()

    (value, gradient), (exact, exact_gradient) = value_and_gradient(torch.float32), value_and_gradient(torch.float64)
    torch.testing.assert_close(value, exact, rtol=0, atol=1e-6)
    torch.testing.assert_close(gradient, exact_gradient, rtol=0, atol=1e-3)


def test_inverted_poses():
    pose = make_pose([0.3, -0.2, 0.7], [1.0, -2.0, 0.5])
    identity = torch.eye(4, dtype=torch.float64)[None]
    torch.testing.assert_close(geometry.invert_pose(pose) @ pose, identity)
    torch.testing.assert_close(geometry.invert_pose(geometry.invert_pose(pose)), pose)


def test_a_change_of_unit_touches_the_translation_alone():
    pose = make_pose([0.3, -0.2, 0.7], [1.0, -2.0, 0.5])
    scaled = geometry.scale_translation(pose, 1 / 36)
    torch.testing.assert_close(scaled[:, :3, :3], pose[:, :3, :3])
    torch.testing.assert_close(scaled[:, :3, 3], pose[:, :3, 3] / 36)
    assert scaled[0, 3].tolist() == [0, 0, 0, 1]


def test_a_sideways_step_shifts_a_frontal_plane_by_its_disparity():
    intrinsics, plane = make_intrinsics(), 4.0
    step = 8.0 / 31.0 * plane / 4  # two pixels
    texture = torch.sin(0.7 * coordinate_image(*SIZE)[:, :1]) + torch.cos(0.5 * coordinate_image(*SIZE)[:, 1:])
    depth = torch.full((1, 1, *SIZE), plane, dtype=torch.float64)
    warped = geometry.warp(texture, depth, intrinsics, make_pose([0.0, 0.0, 0.0], [-step, 0.0, 0.0]))
    torch.testing.assert_close(warped[..., 2:], texture[..., :-2])


def test_a_step_forward_enlarges_a_frontal_plane_around_the_principal_point():
    intrinsics, plane, step = make_intrinsics(), 5.0, -1.0
    depth = torch.full((1, 1, *SIZE), plane, dtype=torch.float64)
    pixels = geometry.correspondences(depth, intrinsics, make_pose([0.0, 0.0, 0.0], [0.0, 0.0, step]))
    centre = intrinsics[:, :2, 2, None, None]
    expected = centre + (coordinate_image(*SIZE) - centre) * plane / (plane + step)
    torch.testing.assert_close(pixels, expected)


def test_a_slanted_plane_moves_by_its_homography():
    intrinsics = make_intrinsics()
    normal, distance = torch.tensor([0.1, 0.5, 0.86], dtype=torch.float64), 6.0  # normal . X = distance
    rays = torch.linalg.inv(intrinsics[0]) @ geometry.pixel_grid(*SIZE, like=intrinsics)
    depth = (distance / (normal @ rays)).reshape(1, 1, *SIZE)
    pose = make_pose([0.03, -0.05, 0.02], [0.2, 0.1, 0.4])
    homography = pose[0, :3, :3] + pose[0, :3, 3:] * normal / distance
    expected = seen_at((homography @ rays)[None], intrinsics).reshape(1, 2, *SIZE)
    torch.testing.assert_close(geometry.correspondences(depth, intrinsics, pose), expected)


def test_depth_and_motion_get_correct_gradients_through_the_warp():
    size = (5, 6)
    generator = torch.Generator().manual_seed(2)
    source = torch.rand(1, 2, *size, generator=generator, dtype=torch.float64)
    depth = make_depth(size=size).requires_grad_()
    intrinsics = torch.tensor([[[6.0, 0, 2.4], [0, 6.0, 2.1], [0, 0, 1]]], dtype=torch.float64)
    rotation = torch.tensor([[0.01, -0.02, 0.03]], dtype=torch.float64, requires_grad=True)
    translation = torch.tensor([[0.11, 0.07, 0.13]], dtype=torch.float64, requires_grad=True)

    def function(depth: Tensor, rotation: Tensor, translation: Tensor) -> Tensor:
        return geometry.warp(source, depth, intrinsics, geometry.pose_from_vector(rotation, translation))

    assert torch.autograd.gradcheck(function, (depth, rotation, translation))


def test_points_behind_the_camera_give_finite_values_and_gradients():
    depth = make_depth(1, torch.float32).requires_grad_()
    pose = torch.eye(4)[None].clone()
    pose[:, 2, 3] = -6  # half of the points are closer
    image = torch.rand(1, 3, *SIZE)
    warped = geometry.warp(image, depth, make_intrinsics(1, torch.float32), pose)
    warped.sum().backward()
    assert warped.isfinite().all() and depth.grad.isfinite().all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_coordinates_that_are_not_finite_show_and_end_no_process(bad):
    image, pixels = torch.rand(1, 2, 8, 16, requires_grad=True), torch.rand(1, 2, 4, 5) * 7
    pixels[0, 0, 1, 2] = bad
    values = geometry.sample(image, pixels.requires_grad_())
    expected = torch.zeros(1, 2, 4, 5, dtype=torch.bool)
    expected[..., 1, 2] = True
    assert torch.equal(values.isnan(), expected)  # first: what follows would end this process
    values.sum().backward()
    assert image.grad.shape == image.shape and pixels.grad.shape == pixels.shape


def test_disparity_spans_the_range_of_depths():
    ends = geometry.disparity_to_depth(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64), 0.1, 100.0)
    assert ends.tolist() == pytest.approx([100.0, 1 / (0.5 * (10 + 0.01)), 0.1])


def test_a_sample_does_not_depend_on_the_rest_of_its_batch():
    generator = torch.Generator().manual_seed(3)
    source = torch.rand(3, 2, *SIZE, generator=generator)
    depth, intrinsics = make_depth(3, torch.float32), make_intrinsics(3, torch.float32)
    vectors = 0.1 * torch.randn(2, 3, 3, generator=generator)
    poses = geometry.pose_from_vector(vectors[0], vectors[1])
    together = geometry.warp(source, depth, intrinsics, poses)
    for index in range(3):
        one = slice(index, index + 1)
        alone = geometry.warp(source[one], depth[one], intrinsics[one], poses[one])
        torch.testing.assert_close(alone, together[one], rtol=0, atol=1e-5)


@pytest.mark.parametrize("device, dtype", [("meta", torch.float32), ("cpu", torch.float64), ("cpu", torch.float32)])
def test_type_and_device_come_from_the_inputs(device, dtype):
    intrinsics, depth = make_intrinsics(2, dtype).to(device), make_depth(2, dtype).to(device)
    vectors = torch.zeros(2, 3, dtype=dtype, device=device)
    pose = geometry.invert_pose(geometry.pose_from_vector(vectors, vectors))
    halved = geometry.halve_intrinsics(geometry.flip_intrinsics(intrinsics, SIZE[1]))
    cropped = geometry.crop_intrinsics(geometry.resize_intrinsics(halved, SIZE, (48, 80)), 1, 2)
    warped = geometry.warp(depth.expand(-1, 3, -1, -1), geometry.disparity_to_depth(depth, 0.1, 9.0), cropped, pose)
    assert warped.shape == (2, 3, *SIZE)
    for result in (pose, cropped, warped, geometry.scale_translation(pose, 2.0)):
        assert result.dtype == dtype and result.device.type == device
