"""The losses and depth scores of a validation, and the predictions that are scored."""

from __future__ import annotations

from collections.abc import Callable

from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from featdepth.config import Config
from featdepth.kinds import protocol_of
from featdepth.metrics.depth import DepthScores, flip_post_process, mean_scores, score_batch
from featdepth.models import FeatDepth
from featdepth.objective import compute_losses
from featdepth.parallel.accelerator import bare_model
from featdepth.parallel.processes import gather_columns


def validate(
    accelerator: Accelerator,
    model: nn.Module,
    loader: DataLoader,
    config: Config,
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
    with_depth = loader.dataset.with_depth and bare.has_depth
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
) -> DepthScores:
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
