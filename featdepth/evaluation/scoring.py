"""Depth of test images against ground truth, and how long a unit of the model is, on all processes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from featdepth.config import Config
from featdepth.console import watched
from featdepth.data import build_dataset
from featdepth.data.dataset import FrameDataset
from featdepth.errors import InputError
from featdepth.metrics.breakdown import score_details
from featdepth.metrics.camera_height import ground_height
from featdepth.metrics.depth import DepthScores, flip_post_process, median, score_batch
from featdepth.metrics.protocols import protocol_of
from featdepth.metrics.trivial import BINS, GRID, depth_histogram, median_depth
from featdepth.models import FeatDepth
from featdepth.parallel.processes import gather_values
from featdepth.training.validation import score_prediction
from featdepth.wording import count

MOST_MEDIAN_FRAMES = 1000  # training frames, evenly spaced, that the per-pixel median is taken over


@torch.no_grad()
def score_images(
    model: FeatDepth,
    batch: dict[str, Tensor],
    pixel_median: Tensor | None,
    metres_per_unit: float | None,
    moving: Sequence[np.ndarray | None],
    config: Config,
) -> dict[str, Tensor]:
    """Columns for each image of a batch: METRICS `[B, 8]` of all predictors, `details`, `pixels` and `index` `[B]`.

    Of the model `median_scaled.plain`, `fixed_scale.plain` and `ratio.plain` `[B]` without, and the same with `.flip`
    with flip post-processing; of the predictors that look at no image `constant_depth`, `pixel_median`,
    `pixel_median_fixed_scale`; `details` is a row of `metrics.breakdown` with or without flip as `evaluate.flip` says.
    What cannot be scored is NaN. pixel_median: `[h, w]` in metres, None: there is none; moving: as for `score_details`.
    """
    columns = {}
    plain = model.depth(batch["images"][:, 0])[0]
    variants = {"plain": plain, "flip": blend_mirrored(model, batch, plain)}
    for flip, disparity in variants.items():
        scores = score_prediction(model, disparity, batch, config, metres_per_unit)
        columns[f"median_scaled.{flip}"] = scores.median_scaled
        columns[f"fixed_scale.{flip}"] = scores.fixed_scale
        columns[f"ratio.{flip}"] = scores.ratio
    columns["details"] = score_details(
        1 / (model.to_depth(variants["flip" if config.evaluate.flip else "plain"]) * (metres_per_unit or 1.0)),
        batch["depth"],
        batch["depth_size"],
        batch["intrinsics"],
        moving,
        *protocol_of(config),
        scale=None if metres_per_unit is None else 1.0,
    )
    constant = score_map(torch.ones(1, 1), batch, config)
    columns["constant_depth"] = constant.median_scaled
    missing = torch.full_like(constant.median_scaled, torch.nan)
    trivial = None if pixel_median is None else score_map(1 / pixel_median, batch, config)
    columns["pixel_median"] = missing if trivial is None else trivial.median_scaled
    columns["pixel_median_fixed_scale"] = missing if trivial is None else trivial.fixed_scale
    return {**columns, "pixels": scores.pixels, "index": batch["index"]}


def fit_pixel_median(accelerator: Accelerator, config: Config) -> tuple[Tensor | None, str]:
    """Median depth (metres) at each place of the image over the training drives, and how it was made, in words.

    None where the training part has no ground truth here; the words say why. Every process enters.
    """
    try:
        dataset = build_dataset(config, "train", with_depth=True, frames=[0], require_depth=True)
    except InputError as error:
        return None, f"no per-pixel median: {error}"
    stride = -(-len(dataset) // MOST_MEDIAN_FRAMES)
    samples = dataset.samples[::stride]
    own = samples[accelerator.process_index :: accelerator.num_processes]
    histogram = torch.zeros(*GRID, BINS)
    for sample in watched(own, "median depth", "frames", len(own), hidden=not accelerator.is_main_process):
        histogram += depth_histogram(dataset.load_depth(sample))
    histogram = accelerator.reduce(histogram.to(accelerator.device), "sum")
    drives = count(len(dataset.drives), "training drive")
    return median_depth(histogram.cpu()), f"of {count(len(samples), 'frame')} of {drives}"


def moving_masks(dataset: FrameDataset, batch: dict[str, Tensor]) -> list[np.ndarray | None]:
    """Which pixels of each image of a batch show moving things, bool `[H, W]`; None where that is unknown."""
    return [
        None if replaced else dataset.moving_mask(dataset.samples[index])
        for index, replaced in zip(batch["index"].tolist(), batch["replaced"].tolist(), strict=True)
    ]


def score_map(inverse_depth: Tensor, batch: dict[str, Tensor], config: Config) -> DepthScores:
    """`DepthScores` of one map `[h, w]` for every image of the batch."""
    maps = inverse_depth.to(batch["depth"].device).expand(len(batch["depth"]), 1, *inverse_depth.shape)
    return score_batch(maps, batch["depth"], batch["depth_size"], *protocol_of(config))


def scale_by_camera_height(
    accelerator: Accelerator, model: FeatDepth, loader: DataLoader, config: Config
) -> tuple[float, dict[str, float]]:
    """Metres in a network unit, so that the camera is as high above the ground as `evaluate.camera_height` says.

    One number for all images, from the median of the heights that they show; beside it, how it was made. Every process
    enters. Raises InputError where no image shows the ground.
    """
    if model.cameras is not None:
        loader.dataset.number_cameras(model.cameras.names)
    heights = gather_values(accelerator, model, loader, lambda batch: ground_heights(model, batch, config))[:, 0]
    shown = heights[~heights.isnan()].double()
    if len(shown) == 0:
        raise InputError(
            f"evaluate.camera_height: none of {count(len(heights), 'prediction')} has a ground plane in the "
            "lower middle of the image; leave it out, or train longer"
        )
    unit = config.evaluate.camera_height / float(median(shown))
    return unit, {
        "metres": config.evaluate.camera_height,
        "metres_per_unit": unit,
        "images": len(shown),
        "images_without_ground": len(heights) - len(shown),
    }


@torch.no_grad()
def ground_heights(model: FeatDepth, batch: dict[str, Tensor], config: Config) -> Tensor:
    """Height of the camera above the ground in each prediction, in network units `[B, 1]`; NaN where none shows."""
    intrinsics = batch["intrinsics"]
    if model.cameras is not None:
        is_flipped = torch.zeros_like(batch["camera"], dtype=torch.bool)
        intrinsics = model.cameras(batch["camera"], intrinsics, is_flipped, batch["images"].shape[-2:])
    depths = model.to_depth(predict_disparity(model, batch, config))
    return torch.tensor([[ground_height(*each)] for each in zip(depths, intrinsics, strict=True)], device=depths.device)


def predict_disparity(model: FeatDepth, batch: dict[str, Tensor], config: Config) -> Tensor:
    """Sigmoid disparities `[B, 1, h, w]` of the batch's targets, with `evaluate.flip` also of their mirrored images."""
    disparity = model.depth(batch["images"][:, 0])[0]
    return blend_mirrored(model, batch, disparity) if config.evaluate.flip else disparity


def blend_mirrored(model: FeatDepth, batch: dict[str, Tensor], disparity: Tensor) -> Tensor:
    """`disparity` `[B, 1, h, w]` of the batch's targets blended with that of their mirrored images."""
    return flip_post_process(disparity, model.depth(batch["images"][:, 0].flip(-1))[0].flip(-1))
