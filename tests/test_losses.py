"""The terms of the objective: values against plain formulas, ranges, symmetries, gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from featdepth import losses
from featdepth.objective import minimum_error

EPSILON = 1e-3  # what the robust L1 makes of no difference


def random_images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def structural(prediction: Tensor, target: Tensor) -> Tensor:
    return losses.structural_dissimilarity(prediction, losses.local_statistics(target))


def naive_dissimilarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(1 - SSIM) / 2 of two images [H, W], window by window."""
    first, second = np.pad(first, 1, mode="reflect"), np.pad(second, 1, mode="reflect")
    height, width = first.shape
    result = np.empty((height - 2, width - 2))
    for y in range(height - 2):
        for x in range(width - 2):
            a, b = first[y : y + 3, x : x + 3], second[y : y + 3, x : x + 3]
            covariance = ((a - a.mean()) * (b - b.mean())).mean()
            top = (2 * a.mean() * b.mean() + 1e-4) * (2 * covariance + 9e-4)
            bottom = (a.mean() ** 2 + b.mean() ** 2 + 1e-4) * (a.var() + b.var() + 9e-4)
            result[y, x] = np.clip((1 - top / bottom) / 2, 0, 1)
    return result


def test_window_means_are_those_of_pooling():
    image = random_images(2, 3, 7, 9)
    torch.testing.assert_close(losses.window_mean(image), functional.avg_pool2d(image, 3, stride=1))


def test_structural_dissimilarity_against_a_loop_over_windows():
    first, second = random_images(2, 3, 6, 8), random_images(2, 3, 6, 8, seed=1)
    result = structural(first, second)
    for sample in range(2):
        for channel in range(3):
            expected = naive_dissimilarity(first[sample, channel].numpy(), second[sample, channel].numpy())
            np.testing.assert_allclose(result[sample, channel].numpy(), expected, atol=1e-12)


def test_structural_dissimilarity_is_accurate_in_float32_in_flat_regions():
    flat = 0.9 + 1e-3 * random_images(1, 3, 16, 16)
    other = 0.9 + 1e-3 * random_images(1, 3, 16, 16, seed=1)
    torch.testing.assert_close(
        structural(flat.float(), other.float()).double(), structural(flat, other), rtol=0, atol=2e-3
    )


def test_structural_dissimilarity_is_symmetric_and_between_0_and_1():
    first, second = random_images(2, 3, 9, 9), random_images(2, 3, 9, 9, seed=1)
    forward = structural(first, second)
    torch.testing.assert_close(forward, structural(second, first))
    assert forward.min() >= 0 and forward.max() <= 1
    checkerboard = ((torch.arange(9)[:, None] + torch.arange(9)) % 2).double().expand(1, 3, 9, 9)
    assert structural(checkerboard, 1 - checkerboard).min() > 0.9  # opposite structure


def test_equal_images_have_no_error_but_the_robust_epsilon():
    image = random_images(2, 3, 8, 8)
    assert structural(image, image).abs().max() < 1e-12
    torch.testing.assert_close(losses.robust_l1(image, image), torch.full((2, 1, 8, 8), EPSILON, dtype=torch.float64))
    error = losses.photometric_error(image, image)
    torch.testing.assert_close(error, torch.full_like(error, 0.15 * EPSILON))


def test_robust_l1_is_the_smooth_absolute_difference_averaged_over_channels():
    first, second = random_images(2, 5, 4, 6), random_images(2, 5, 4, 6, seed=1)
    expected = ((first - second) ** 2 + 1e-6).sqrt().mean(1, keepdim=True)
    torch.testing.assert_close(losses.robust_l1(first, second), expected)
    torch.testing.assert_close(losses.robust_l1(second, first), expected)


def test_photometric_error_weighs_its_two_parts_and_stays_in_range():
    first, second = random_images(2, 3, 8, 8), random_images(2, 3, 8, 8, seed=1)
    expected = 0.85 * structural(first, second).mean(1, keepdim=True) + 0.15 * losses.robust_l1(first, second)
    error = losses.photometric_error(first, second)
    torch.testing.assert_close(error, expected)
    torch.testing.assert_close(losses.photometric_error(first, second, losses.local_statistics(second)), expected)
    black, white = torch.zeros(1, 3, 6, 6), torch.ones(1, 3, 6, 6)
    assert error.min() >= 0 and error.max() <= 1 and losses.photometric_error(black, white).max() <= 1 + 1e-6


def test_smoothness_of_a_ramp_on_a_flat_image():
    y, x = torch.meshgrid(torch.arange(7.0), torch.arange(9.0), indexing="ij")
    ramp = (0.3 * x - 0.2 * y).double().expand(2, 1, 7, 9)
    first, second = losses.smoothness(ramp, torch.zeros(2, 3, 7, 9, dtype=torch.float64), 0.5)
    assert first.tolist() == pytest.approx([0.5, 0.5], abs=1e-6)
    assert second.tolist() == pytest.approx([0, 0], abs=1e-6)


def test_smoothness_of_a_curved_surface_on_a_flat_image():
    y, x = torch.meshgrid(torch.arange(7.0), torch.arange(9.0), indexing="ij")
    surface = (0.1 * x**2 + 0.25 * x * y - 0.05 * y**2).double().expand(1, 1, 7, 9)
    _, second = losses.smoothness(surface, torch.zeros(1, 3, 7, 9, dtype=torch.float64), 0.5)
    assert second.item() == pytest.approx(2 * 0.1 + 2 * 0.25 + 2 * 0.05, abs=1e-5)  # xx + (xy + yx) + yy


@pytest.mark.parametrize("sharpness", [0.5, 1.0])
def test_edges_of_the_image_damp_the_derivatives_by_the_exponential_of_their_own(sharpness):
    step = torch.zeros(1, 1, 6, 8, dtype=torch.float64)
    step[..., 4:] = 1
    flat, edge = torch.zeros(1, 3, 6, 8, dtype=torch.float64), 0.8 * step.expand(1, 3, 6, 8)
    undamped, damped = losses.smoothness(step, flat, sharpness), losses.smoothness(step, edge, sharpness)
    for plain, lower in zip(undamped, damped, strict=True):
        torch.testing.assert_close(lower, plain * math.exp(-0.8 * sharpness))
    elsewhere = losses.smoothness(step, edge.roll(2, dims=-1), sharpness)  # an edge where the values are flat
    torch.testing.assert_close(elsewhere[0], undamped[0])


def test_smoothness_of_features_averages_over_channels():
    values, image = random_images(2, 4, 6, 7), random_images(2, 3, 6, 7, seed=1)
    together = losses.smoothness(values, image, 1.0)
    channels = [losses.smoothness(values[:, channel : channel + 1], image, 1.0) for channel in range(4)]
    for order in range(2):
        torch.testing.assert_close(together[order], torch.stack([each[order] for each in channels]).mean(0))


def test_losses_of_a_sample_do_not_depend_on_the_rest_of_the_batch():
    first, second = random_images(3, 3, 6, 7), random_images(3, 3, 6, 7, seed=1)
    error, smooth = losses.photometric_error(first, second), losses.smoothness(first, second, 0.5)
    assert losses.per_sample_mean(error).shape == smooth[0].shape == smooth[1].shape == (3,)
    torch.testing.assert_close(losses.photometric_error(first[1:2], second[1:2]), error[1:2])
    torch.testing.assert_close(losses.smoothness(first[1:2], second[1:2], 0.5)[1], smooth[1][1:2])
    torch.testing.assert_close(losses.per_sample_mean(error)[1], error[1].mean())


def test_normalised_disparity_does_not_depend_on_scale():
    disparity = 0.1 + random_images(2, 1, 5, 6)
    normalised = losses.normalise_disparity(disparity)
    torch.testing.assert_close(normalised.mean((1, 2, 3)), torch.ones(2, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(losses.normalise_disparity(7 * disparity), normalised, atol=1e-5, rtol=0)
    assert losses.normalise_disparity(torch.zeros(1, 1, 4, 4)).isfinite().all()


def test_the_minimum_over_sources_ignores_what_one_of_them_does_not_see():
    target = random_images(1, 3, 8, 16)
    left, right = target.clone(), target.clone()
    left[..., :5], right[..., 11:] = 0, 0
    statistics = losses.local_statistics(target)
    error = minimum_error([left, right], target, statistics)
    torch.testing.assert_close(error, torch.full_like(error, 0.15 * EPSILON))
    assert minimum_error([left], target, statistics)[..., :5].mean() > 0.1


def test_gradients_are_correct():
    first = random_images(1, 3, 5, 5).requires_grad_()
    second = random_images(1, 3, 5, 5, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(losses.photometric_error, (first, second))
    values = random_images(1, 2, 4, 5, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda values: losses.smoothness(values, random_images(1, 3, 4, 5), 0.5), (values,))
    assert torch.autograd.gradcheck(losses.normalise_disparity, (values[:, :1].detach().requires_grad_(),))


def test_gradients_are_finite_where_the_images_are_equal():
    image = random_images(1, 3, 5, 5, dtype=torch.float32)
    prediction = image.clone().requires_grad_()
    losses.photometric_error(prediction, image).sum().backward()
    assert prediction.grad.isfinite().all()


@pytest.mark.parametrize("dimension", [-1, -2])
def test_gradient_of_differences(dimension):
    values = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.equal(losses.difference(values, dimension), values.diff(dim=dimension))
    assert torch.autograd.gradcheck(losses.difference, (values, dimension))
