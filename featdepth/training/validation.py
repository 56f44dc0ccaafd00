"""Predictions of a whole dataset on all processes: per-sample losses and depth scores, gathered without duplicates."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from featdepth.config import Config
from featdepth.console import watched
from featdepth.data import augment, build_dataset
from featdepth.data.dataset import FrameDataset
from featdepth.errors import InputError
from featdepth.metrics.breakdown import score_details
from featdepth.metrics.camera_height import ground_height
from featdepth.metrics.depth import flip_post_process, mean_scores, median, score_batch
from featdepth.metrics.protocols import protocol_of
from featdepth.metrics.trivial import BINS, GRID, depth_histogram, median_depth
from featdepth.models import FeatDepth
from featdepth.objective import compute_losses
from featdepth.training.run_directory import bare_model, begin_pass
from featdepth.wording import count

MOST_MEDIAN_FRAMES = 1000  # training frames, evenly spaced, that the per-pixel median is taken over


@torch.no_grad()
def gather_values(
    accelerator: Accelerator,
    model: nn.Module,
    loader: DataLoader,
    values: Callable[[dict[str, Tensor]], Tensor],
    interrupted: Callable[[], bool] = lambda: False,
    name: str = "evaluation",
) -> Tensor | None:
    """`values(batch)` `[B, K]` of every readable sample of `loader`, in its order, on every process: CPU `[N, K]`.

    The model is in evaluation mode meanwhile, and comes back as it was. Every process enters. What the loader repeats
    to give all processes the same number of batches is dropped, and so are stand-ins for samples that cannot be read.
    None where `interrupted()`, asked after each batch and answered alike on all processes, says so.
    """
    was_training = model.training
    model.eval()
    rows = []
    for batch in watched(loader, name, "batches", len(loader), hidden=not accelerator.is_main_process):
        begin_pass(accelerator)
        batch = augment(batch)
        row, replaced = accelerator.gather_for_metrics((values(batch), batch["replaced"]))
        rows.append(row[replaced == 0].cpu())
        if interrupted():
            return None
    model.train(was_training)
    return torch.cat(rows)


def gather_columns(
    accelerator: Accelerator,
    model: nn.Module,
    loader: DataLoader,
    columns: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    interrupted: Callable[[], bool] = lambda: False,
    name: str = "evaluation",
) -> dict[str, Tensor] | None:
    """`gather_values` of named columns: `columns(batch)` {name: `[B]` or `[B, K]`} -> CPU {name: `[N]` or `[N, K]`}."""
    widths: dict[str, int | None] = {}

    def values(batch: dict[str, Tensor]) -> Tensor:
        found = columns(batch)
        widths.update({name: column.shape[1] if column.ndim > 1 else None for name, column in found.items()})
        return torch.cat([column.float().reshape(len(column), -1) for column in found.values()], dim=1)

    table = gather_values(accelerator, model, loader, values, interrupted, name)
    if table is None:
        return None
    parts = table.split([1 if width is None else width for width in widths.values()], dim=1)
    return {
        name: part[:, 0] if width is None else part for (name, width), part in zip(widths.items(), parts, strict=True)
    }


def validate(
    accelerator: Accelerator,
    model: nn.Module,
    loader: DataLoader,
    config: Config,
    with_depth: bool,
    interrupted: Callable[[], bool] = lambda: False,
    losses_of: Callable[..., dict[str, Tensor]] = compute_losses,
) -> dict[str, float] | None:
    """The validation loss and its terms, and depth scores when the samples have ground truth: means over all samples.

    The loss is the training loss without gradient, augmentation and dropout. Depth scores: `abs_rel`, ... after
    per-image median scaling, and `metric_abs_rel`, ... without it, where the model knows its scale. None where
    `interrupted` (see `gather_values`). losses_of: `compute_losses`, or that compiled.
    """
    names: list[str] = []

    def columns(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        prediction = model(batch)
        losses = losses_of(prediction, batch, config)
        names[:] = losses
        if not with_depth:
            return losses
        scores = score_prediction(bare, prediction.disparities[0], batch, config, bare.settings.metres_per_unit)
        return {**losses, "median": scores.median_scaled, "fixed": scores.fixed_scale, "pixels": scores.pixels}

    bare: FeatDepth = bare_model(accelerator, model)
    table = gather_columns(accelerator, model, loader, columns, interrupted, "validation")
    if table is None:
        return None
    means = {name: float(table[name].double().mean()) for name in names}
    result = {"loss": sum(means.values()), **means, "samples": len(table[names[0]])}
    if with_depth:
        result |= mean_scores(table["median"], table["pixels"]) or {}
        if bare.settings.metres_per_unit is not None:
            metric = mean_scores(table["fixed"], table["pixels"]) or {}
            result |= {f"metric_{name}": value for name, value in metric.items()}
    return result


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


def score_map(inverse_depth: Tensor, batch: dict[str, Tensor], config: Config):
    """`DepthScores` of one map `[h, w]` for every image of the batch."""
    maps = inverse_depth.to(batch["depth"].device).expand(len(batch["depth"]), 1, *inverse_depth.shape)
    return score_batch(maps, batch["depth"], batch["depth_size"], *protocol_of(config))


def score_prediction(
    model: FeatDepth, disparity: Tensor, batch: dict[str, Tensor], config: Config, metres_per_unit: float | None
):
    """`DepthScores` of sigmoid disparities `[B, 1, h, w]` against the batch's ground truth.

    metres_per_unit: of the network's unit; None: the scale is unknown.
    """
    return score_batch(
        1 / (model.to_depth(disparity) * (metres_per_unit or 1.0)),
        batch["depth"],
        batch["depth_size"],
        *protocol_of(config),
        scale=None if metres_per_unit is None else 1.0,
    )


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
