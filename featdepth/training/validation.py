"""Predictions of a whole dataset on all processes: per-sample losses and depth scores, gathered without duplicates."""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from featdepth.config import Config
from featdepth.console import watched
from featdepth.data import augment
from featdepth.metrics.depth import flip_post_process, mean_scores, score_batch
from featdepth.metrics.protocols import protocol_of
from featdepth.models import FeatDepth
from featdepth.objective import compute_losses
from featdepth.training.run_directory import bare_model, begin_pass


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


def predict_disparity(model: FeatDepth, batch: dict[str, Tensor], config: Config) -> Tensor:
    """Sigmoid disparities `[B, 1, h, w]` of the batch's targets, with `evaluate.flip` also of their mirrored images."""
    disparity = model.depth(batch["images"][:, 0])[0]
    return blend_mirrored(model, batch, disparity) if config.evaluate.flip else disparity


def blend_mirrored(model: FeatDepth, batch: dict[str, Tensor], disparity: Tensor) -> Tensor:
    """`disparity` `[B, 1, h, w]` of the batch's targets blended with that of their mirrored images."""
    return flip_post_process(disparity, model.depth(batch["images"][:, 0].flip(-1))[0].flip(-1))
