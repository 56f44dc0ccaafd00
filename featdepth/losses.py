"""The terms of the objective as pure functions of images, features and disparities.

Each returns a per-pixel map `[B, 1, H, W]` or one value per sample `[B]`; nothing is averaged over the batch here.
Images are float32 in [0, 1].
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional

SSIM_C1 = 0.01**2
SSIM_C2 = 0.03**2
SSIM_SHARE = 0.85  # weight of the structural part of the photometric error, Sec. 3.2
ROBUST_EPSILON = 1e-3  # the robust L1 is sqrt(d^2 + epsilon^2)
PRIOR_SCALES = 4  # each half the size of the one before
SHORTEST_DISTANCE = 0.1  # metres: errors of shorter distances are parts of this one


class LocalStatistics(NamedTuple):
    """Means and variances of an image over 3x3 windows, each `[B, C, H, W]`."""

    padded: Tensor  # the image with one reflected pixel on each side
    mean: Tensor
    variance: Tensor


def robust_l1(prediction: Tensor, target: Tensor) -> Tensor:
    """Smooth absolute difference sqrt(d^2 + 1e-6), averaged over channels: `[B, C, H, W]` twice to `[B, 1, H, W]`."""
    return ((prediction - target).square() + ROBUST_EPSILON**2).sqrt().mean(1, keepdim=True)


def local_statistics(image: Tensor) -> LocalStatistics:
    """Window statistics of `image` `[B, C, H, W]` for SSIM; those of a target serve all its reconstructions."""
    padded = functional.pad(image, (1, 1, 1, 1), mode="reflect")
    mean = window_mean(padded)
    return LocalStatistics(padded, mean, window_mean(padded.square()) - mean.square())


def window_mean(image: Tensor) -> Tensor:
    """Mean over 3x3 windows: `[..., H, W]` to `[..., H - 2, W - 2]`; separable sums, faster than pooling."""
    rows = image[..., :-2, :] + image[..., 1:-1, :] + image[..., 2:, :]
    return (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]) / 9


def structural_dissimilarity(prediction: Tensor, target: LocalStatistics) -> Tensor:
    """(1 - SSIM) / 2 in [0, 1] over 3x3 windows, `[B, C, H, W]`; 0 where both images agree."""
    own = local_statistics(prediction)
    covariance = window_mean(own.padded * target.padded) - own.mean * target.mean
    numerator = (2 * own.mean * target.mean + SSIM_C1) * (2 * covariance + SSIM_C2)
    denominator = (own.mean.square() + target.mean.square() + SSIM_C1) * (own.variance + target.variance + SSIM_C2)
    return ((1 - numerator / denominator) / 2).clamp(0, 1)


def photometric_error(prediction: Tensor, target: Tensor, statistics: LocalStatistics | None = None) -> Tensor:
    """0.85 * SSIM part + 0.15 * robust L1, `[B, 3, H, W]` twice to `[B, 1, H, W]`, in [0, 1] (Sec. 3.2).

    statistics: `local_statistics(target)` where they are already known.
    """
    statistics = local_statistics(target) if statistics is None else statistics
    dissimilarity = structural_dissimilarity(prediction, statistics).mean(1, keepdim=True)
    return SSIM_SHARE * dissimilarity + (1 - SSIM_SHARE) * robust_l1(prediction, target)


def per_sample_mean(values: Tensor) -> Tensor:
    """Mean of everything but the batch: `[B, ...]` to `[B]`."""
    return values.flatten(1).mean(1)


def differences(image: Tensor) -> tuple[Tensor, Tensor]:
    """Forward differences along x `[B, C, H, W - 1]` and along y `[B, C, H - 1, W]`."""
    return difference(image, -1), difference(image, -2)


def difference(image: Tensor, dimension: int) -> Tensor:
    """Forward differences along one dimension, which gets shorter by one."""
    return Difference.apply(image, dimension)


class Difference(torch.autograd.Function):
    """`difference`. Autograd's own gradient would fill and add up a map of zeros for each of the two slices."""

    @staticmethod
    def forward(context: FunctionCtx, image: Tensor, dimension: int) -> Tensor:
        context.dimension = dimension
        count = image.shape[dimension] - 1
        return image.narrow(dimension, 1, count) - image.narrow(dimension, 0, count)

    @staticmethod
    def backward(context: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        """A pixel ends one difference and starts the next."""
        padded = functional.pad(gradient, (1, 1) if context.dimension == -1 else (0, 0, 1, 1))
        count = padded.shape[context.dimension] - 1
        return padded.narrow(context.dimension, 0, count) - padded.narrow(context.dimension, 1, count), None


def smoothness(values: Tensor, image: Tensor, edge_sharpness: float) -> tuple[Tensor, Tensor]:
    """First- and second-order derivatives of `values`, damped at image edges: two values per sample `[B]`.

    values: disparity `[B, 1, H, W]` or features `[B, C, H, W]`; image: `[B, 3, H, W]` of the same size. Each derivative
    is weighted with exp(-edge_sharpness * channel mean of the image's derivative of the same order), averaged, and the
    directions are summed: x and y; xx, xy, yx and yy. The same derivatives make up L_dis and L_cvt (Sec. 3.3).
    """
    values_x, values_y = differences(values)
    image_x, image_y = differences(image)
    first = _damped(values_x, image_x, edge_sharpness) + _damped(values_y, image_y, edge_sharpness)
    (values_xx, values_xy), (image_xx, image_xy) = differences(values_x), differences(image_x)
    values_yy, image_yy = difference(values_y, -2), difference(image_y, -2)
    mixed = _damped(values_xy, image_xy, edge_sharpness)  # xy and yx are the same
    second = _damped(values_xx, image_xx, edge_sharpness) + 2 * mixed + _damped(values_yy, image_yy, edge_sharpness)
    return first, second


def _damped(derivative: Tensor, image_derivative: Tensor, edge_sharpness: float) -> Tensor:
    if derivative[0].numel() == 0:  # a map of two pixels, as the deepest features of small images, has no second one
        return derivative.new_zeros(len(derivative))
    weight = torch.exp(-edge_sharpness * image_derivative.abs().mean(1, keepdim=True))
    # The weight is the same for all channels: their mean comes first, and the product is of one channel.
    return per_sample_mean(derivative.abs().mean(1, keepdim=True) * weight)


def distance_error(translations: Tensor, distances: Tensor) -> Tensor:
    """|l^2 - d^2| / (2 max(d, 0.1 m)^2), averaged over the known d: `[B]`; for l near d the relative error of l.

    translations: with lengths l, `[B, S, 3]` (metres); distances: true lengths d, `[B, S]` (metres, NaN where unknown).
    A sample without any known distance gets 0, and no gradient.
    """
    is_known = distances.isfinite()
    # NaN must not come near the gradient, not even in the branch of `where` that is not taken.
    true = torch.where(is_known, distances, 0.0)
    error = (translations.square().sum(-1) - true.square()).abs() / (2 * true.clamp(min=SHORTEST_DISTANCE).square())
    return torch.where(is_known, error, 0.0).sum(1) / is_known.sum(1).clamp(min=1)


def affine_error(disparity: Tensor, prior: Tensor) -> Tensor:
    """How far two maps of inverse depth differ up to scale and shift: `[B]`.

    disparity, prior: `[B, 1, H, W]`; the prior is NaN where nothing is known, and a sample without anything known gets
    0 and no gradient. Both are brought to median 0 and mean absolute deviation 1 over what is known. The error is the
    mean absolute difference, and half of the first derivatives of the difference at PRIOR_SCALES resolutions, which
    keep edges where the prior has them, and as sharp (Ranftl et al., TPAMI 2022).
    """
    is_known = prior.isfinite()
    # NaN must not come near the gradient, not even in the branch of `where` that is not taken.
    difference_of_maps = without_affine(disparity, is_known) - without_affine(torch.where(is_known, prior, 0), is_known)
    error = known_mean(difference_of_maps.abs(), is_known)
    for step in (2**scale for scale in range(PRIOR_SCALES)):
        coarse, known = difference_of_maps[..., ::step, ::step], is_known[..., ::step, ::step]
        for dimension in (-1, -2):
            count = coarse.shape[dimension] - 1
            both = known.narrow(dimension, 0, count) & known.narrow(dimension, 1, count)
            error = error + known_mean(difference(coarse, dimension).abs(), both) / 2
    return error


def without_affine(values: Tensor, is_known: Tensor) -> Tensor:
    """`values` `[B, 1, H, W]` less their median, divided by their mean absolute deviation, both over what is known.

    Maps that vary by less than a hundredth of their size are taken for constant ones with noise, which stays small.
    """
    median = torch.where(is_known, values, torch.nan).flatten(1).nanmedian(1).values
    centred = values - torch.where(is_known.flatten(1).any(1), median, 0.0)[:, None, None, None]
    deviation, size = known_mean(centred.abs(), is_known), known_mean(values.abs(), is_known)
    return centred / torch.maximum(deviation, 0.01 * size).clamp(min=1e-12)[:, None, None, None]


def known_mean(values: Tensor, is_known: Tensor) -> Tensor:
    """Mean of each sample over what is known: `[B, 1, H, W]` twice to `[B]`; 0 where that is nothing."""
    return torch.where(is_known, values, 0.0).flatten(1).sum(1) / is_known.flatten(1).sum(1).clamp(min=1)


def normalise_disparity(disparity: Tensor) -> Tensor:
    """Disparity `[B, 1, H, W]` divided by its mean over the image, so that its smoothness does not depend on scale."""
    return disparity / (disparity.mean((2, 3), keepdim=True) + 1e-7)
