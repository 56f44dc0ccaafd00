"""Depth scores as the field computes them, with both conventions of scale side by side.

A prediction is scored as inverse depth: it is resized to the ground truth's size, inverted, scaled and clamped. Scale
is either the image's own median ratio (all that a model without known scale can have) or one fixed factor to metres.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

METRICS = ("abs_rel", "sq_rel", "rmse", "rmse_log", "a1", "a2", "a3", "silog")
SHALLOWEST = 1e-3  # metres: ground truth below is ignored, predictions are clamped to it
CROPS = {  # first and last row, first and last column: parts of height and width
    "none": (0.0, 1.0, 0.0, 1.0),
    "garg": (0.40810811, 0.99189189, 0.03594771, 0.96405229),
    # Of Cityscapes' images without their lower quarter: the rows from 256 to 768, the columns from 192 to 1856.
    "cityscapes": (1 / 3, 1.0, 0.09375, 0.90625),
    # Of NYU Depth V2, as Eigen et al. (2014): the rows from 45 to 471 of 480, the columns from 41 to 601 of 640.
    "nyu": (45 / 480, 471 / 480, 41 / 640, 601 / 640),
}


class DepthScores(NamedTuple):
    """Scores of one image, or of a batch with a leading [B]. Without valid ground truth: NaN, and `pixels` is 0."""

    median_scaled: Tensor  # float32 [8]: METRICS, after scaling by the ratio of medians
    fixed_scale: Tensor  # float32 [8]: METRICS, after scaling by one factor; NaN where the scale is unknown
    ratio: Tensor  # float32 []: median of the ground truth / median of the prediction
    pixels: Tensor  # float32 []: how many pixels were compared


def depth_errors(predicted: Tensor, ground_truth: Tensor) -> dict[str, float]:
    """The METRICS of predicted and true depths `[N]` (metres, positive); NaN for N = 0.

    abs_rel, sq_rel (metres), rmse (metres), rmse_log; a1, a2, a3: parts within a factor of 1.25, 1.25², 1.25³; silog:
    KITTI's scale-invariant error, 100 · standard deviation of log(predicted) - log(ground_truth).
    """
    predicted, ground_truth = predicted.double(), ground_truth.double()
    error = predicted - ground_truth
    log_error = predicted.log() - ground_truth.log()
    factor = torch.maximum(predicted / ground_truth, ground_truth / predicted)
    values = {
        "abs_rel": (error.abs() / ground_truth).mean(),
        "sq_rel": (error.square() / ground_truth).mean(),
        "rmse": error.square().mean().sqrt(),
        "rmse_log": log_error.square().mean().sqrt(),
        "a1": (factor < 1.25).double().mean(),
        "a2": (factor < 1.25**2).double().mean(),
        "a3": (factor < 1.25**3).double().mean(),
        "silog": 100 * (log_error - log_error.mean()).square().mean().sqrt(),
    }
    return {name: float(value) for name, value in values.items()}


def crop_of(height: int, width: int, crop: str) -> tuple[slice, slice]:
    """Rows and columns of one of CROPS of an image; the bounds are truncated to whole pixels."""
    top, bottom, left, right = CROPS[crop]
    return slice(int(top * height), int(bottom * height)), slice(int(left * width), int(right * width))


def evaluation_mask(ground_truth: Tensor, crop: str = "garg", cap: float | None = 80.0) -> Tensor:
    """Which pixels `[h, w]` of a sparse ground truth (metres, 0 = none) are compared: bool `[h, w]`.

    crop: one of CROPS; cap: those strictly between 1e-3 and cap (metres), or for None every pixel above 0.
    """
    if crop not in CROPS:
        raise ValueError(f"unknown crop {crop!r}")
    mask = ground_truth > 0 if cap is None else (ground_truth > SHALLOWEST) & (ground_truth < cap)
    cropped = torch.zeros_like(mask)
    window = crop_of(*mask.shape, crop)
    cropped[window] = mask[window]
    return cropped


def resize_map(values: Tensor, size: tuple[int, int]) -> Tensor:
    """A map `[h, w]` bilinearly resized to `size`, half-pixel centres, without antialiasing."""
    return functional.interpolate(values[None, None].float(), size, mode="bilinear", align_corners=False)[0, 0]


def flip_post_process(disparity: Tensor, flipped_disparity: Tensor) -> Tensor:
    """Blend the disparity `[..., h, w]` of an image with that of the mirrored image, mirrored back.

    Their mean, except towards the left and right borders: there the one is taken that saw what the border hides.
    """
    column = torch.linspace(0, 1, disparity.shape[-1], dtype=disparity.dtype, device=disparity.device)
    left = 1 - (20 * (column - 0.05)).clamp(0, 1)
    right = left.flip(0)
    mean = (disparity + flipped_disparity) / 2
    return right * disparity + left * flipped_disparity + (1 - left - right) * mean


def median(values: Tensor) -> Tensor:
    """The median of `values` `[N]`, N > 0: the mean of the two middle ones where N is even (torch takes the lower)."""
    ordered = values.sort().values
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def score_image(
    inverse_depth: Tensor,
    ground_truth: Tensor,
    mask: Tensor | None = None,
    scale: float | None = 1.0,
    cap: float | None = 80.0,
) -> DepthScores:
    """Score one prediction against one ground truth.

    inverse_depth: predicted 1/depth `[h, w]`, of any size, positive; ground_truth: metres, 0 = none, `[H, W]` at its
    own size without padding; mask: bool `[H, W]` (default: `evaluation_mask(ground_truth, cap=cap)`); scale: factor
    from the predicted depth to metres (1.0: it is in metres; None: unknown); cap: predictions are clamped to 1e-3..cap
    metres; None: only to 1e-3 and more.
    """
    mask = evaluation_mask(ground_truth, cap=cap) if mask is None else mask
    truth = ground_truth[mask].cpu().double()
    if truth.numel() == 0:
        nothing = torch.full((len(METRICS),), torch.nan)
        return DepthScores(nothing, nothing, torch.tensor(torch.nan), torch.tensor(0.0))
    predicted = 1 / resize_map(inverse_depth, tuple(ground_truth.shape))[mask].cpu().double()
    ratio = median(truth) / median(predicted)
    median_scaled = errors_row(predicted * ratio, truth, cap)
    fixed_scale = torch.full_like(median_scaled, torch.nan)
    if scale is not None:
        fixed_scale = errors_row(predicted * scale, truth, cap)
    return DepthScores(median_scaled, fixed_scale, ratio.float(), torch.tensor(float(truth.numel())))


def errors_row(predicted: Tensor, truth: Tensor, cap: float | None) -> Tensor:
    """METRICS float32 `[8]` of depths `[N]`, the predicted ones clamped to 1e-3..cap, or for None to 1e-3 and more."""
    return torch.tensor(list(depth_errors(predicted.clamp(SHALLOWEST, cap), truth).values()))


def score_batch(
    inverse_depth: Tensor,
    depth: Tensor,
    depth_size: Tensor,
    crop: str = "garg",
    cap: float | None = 80.0,
    clamp: float | None = None,
    scale: float | None = 1.0,
) -> DepthScores:
    """Score a batch; every field has a leading [B] and lies on the device of `inverse_depth`, ready to be gathered.

    inverse_depth: predicted 1/depth `[B, 1, h, w]` or `[B, h, w]`; depth `[B, H, W]` and depth_size `[B, 2]` as the
    data set gives them; crop, cap and scale as for `evaluation_mask` and `score_image`; clamp: predictions are clamped
    to 1e-3..clamp metres, None: to the cap.
    """
    rows, farthest = [], cap if clamp is None else clamp
    for predicted, truth, size in zip(inverse_depth.flatten(0, -3), depth, depth_size.tolist(), strict=True):
        truth = truth[: size[0], : size[1]]
        rows.append(score_image(predicted, truth, evaluation_mask(truth, crop, cap), scale, farthest))
    return DepthScores(*(torch.stack(column).to(inverse_depth.device) for column in zip(*rows, strict=True)))


def mean_scores(rows: Tensor, pixels: Tensor) -> dict[str, float] | None:
    """Means over the images that have ground truth: {metric: mean}, of scores `[N, 8]` and their pixels `[N]`.

    None where no image has ground truth. A prediction that is not finite shows: it makes the means NaN.
    """
    rows = rows[pixels > 0].double()
    if len(rows) == 0:
        return None
    return dict(zip(METRICS, rows.mean(0).tolist(), strict=True))
