"""Scoring: what is measured of a model on its test images, on all processes together."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from featdepth.config import Config
from featdepth.config.checks import check_config
from featdepth.console import count, watched
from featdepth.data.dataset import FrameDataset
from featdepth.data.samples import Sample
from featdepth.errors import InputError
from featdepth.evaluation.refinement import evaluate_refinement
from featdepth.evaluation.subject import Subject
from featdepth.kinds import protocol_of
from featdepth.metrics.breakdown import score_details
from featdepth.metrics.camera_height import ground_height
from featdepth.metrics.depth import DepthScores, median, score_batch
from featdepth.metrics.trivial import BINS, GRID, depth_histogram, median_depth
from featdepth.models import FeatDepth
from featdepth.objective import compute_losses
from featdepth.parallel.processes import gather_columns, gather_values
from featdepth.scale import CAMERA_HEIGHT
from featdepth.training.validation import blend_mirrored, predict_disparity, score_prediction

MOST_MEDIAN_FRAMES = 1000  # training frames, evenly spaced, that the per-pixel median is taken over


class Results(NamedTuple):
    """What was measured of one model on N images."""

    samples: list[Sample]
    table: dict[str, np.ndarray]  # columns `[N]` or `[N, K]` by name, see `score_images`

    @property
    def drives(self) -> list[str]:
        """Of each image."""
        return [sample.drive for sample in self.samples]

    @classmethod
    def of(cls, columns: dict[str, Tensor], samples: Sequence[Sample]) -> Results:
        """Columns with an `index` each among `samples`, as `gather_columns` gives them, by name of image."""
        table = {name: values.double().numpy() for name, values in columns.items()}
        return cls([samples[int(index)] for index in table.pop("index")], table)

    def take(self, places: Sequence[int]) -> Results:
        """Those of some of the images, in this order."""
        table = {name: values[places] for name, values in self.table.items()}
        return Results([self.samples[place] for place in places], table)


class Scores(NamedTuple):
    """What was measured of a subject: its scores, or where there is no ground truth its loss."""

    subject: Subject
    results: Results  # of all readable images
    metres_per_unit: float | None  # that depths were scaled with; None: by each image's median alone
    about: dict  # for metrics.json

    @property
    def known(self) -> Results:
        """Of the images with ground truth inside the crop and below the cap."""
        return self.results.take(np.flatnonzero(self.results.table["pixels"] > 0))

    @property
    def skipped_images(self) -> int:
        """How many of the test images cannot be read."""
        return len(self.subject.dataset) - len(self.results.samples)


def score_subject(accelerator: Accelerator, subject: Subject, pixel_median: Tensor | None) -> Scores:
    """Scores of all readable test images; for `pixel_median` see `fit_pixel_median`. Every process enters."""
    unit, about = find_scale(accelerator, subject)

    def columns(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        moving = moving_masks(subject.dataset, batch)
        return score_images(subject.model, batch, pixel_median, unit, moving, subject.config)

    table = gather_columns(accelerator, subject.model, subject.loader, columns)
    return Scores(subject, Results.of(table, subject.dataset.samples), unit, about)


def score_losses(accelerator: Accelerator, subject: Subject) -> Scores:
    """The terms of the loss of all readable test images. Every process enters.

    Frames and weights of the terms are the configuration's, the networks and their range of depths the model's;
    InputError where the two do not go together.
    """
    model, config = subject.model, subject.config
    # The loss does not depend on metres, but the report says how long the model's unit is.
    unit, about = find_scale(accelerator, subject)
    config.model, model.frames = model.settings, config.data.frames
    check_config(config, subject.checkpoint, check_files=False, training=False)
    if model.temporal_sources and not model.has_motion and model.settings.motion != "aligned":
        raise InputError(
            f"{subject.checkpoint}: has learned no motion for the loss of data.frames {config.data.frames}"
        )
    subject.dataset.number_cameras(model.camera_names)

    def columns(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**compute_losses(model(batch), batch, config), "index": batch["index"]}

    table = gather_columns(accelerator, model, subject.loader, columns)
    return Scores(subject, Results.of(table, subject.dataset.samples), unit, about)


def score_refinement(scores: Scores, dataset: FrameDataset, steps: int) -> dict:
    """Causal refinement (see `evaluate_refinement`) of a scored subject, with the metres that it was scored with."""
    subject = scores.subject
    with with_unit(subject.model, scores.metres_per_unit):
        return evaluate_refinement(subject.model, dataset, subject.config, steps)


def find_scale(accelerator: Accelerator, subject: Subject) -> tuple[float | None, dict]:
    """Metres in a unit of the model, by `evaluate.camera_height` where that is set, and `about` with how it was found.

    Every process enters. Raises InputError where no image shows the ground.
    """
    about = subject.about()
    if subject.config.evaluate.camera_height is None:
        return subject.model.settings.metres_per_unit, about
    unit, found = scale_by_camera_height(accelerator, subject.model, subject.loader, subject.config)
    accelerator.print(
        f"scale      {found['metres']:g} m of camera height, {unit:.4g} m in a unit; "
        f"{found['images']} of {count(found['images'] + found['images_without_ground'], 'image')} show the ground"
    )
    return unit, about | {"scale_source": CAMERA_HEIGHT, "camera_height": found}


@contextmanager
def with_unit(model: FeatDepth, unit: float | None) -> Iterator[None]:
    """The model with another length of its unit (metres), for a while."""
    own = model.settings
    model.settings = dataclasses.replace(own, metres_per_unit=unit)
    try:
        yield
    finally:
        model.settings = own


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


def fit_pixel_median(
    accelerator: Accelerator, dataset: FrameDataset | None, missing: str | None
) -> tuple[Tensor | None, str]:
    """Median depth (metres) at each place of the image over the training drives, and how it was made, in words.

    dataset, missing: of `open_training_depth`; where there are no such images, None, and the words say why. Every
    process enters.
    """
    if dataset is None:
        return None, f"no per-pixel median: {missing}"
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
    """Scores of one map `[h, w]` for every image of the batch."""
    maps = inverse_depth.to(batch["depth"].device).expand(len(batch["depth"]), 1, *inverse_depth.shape)
    return score_batch(maps, batch["depth"], batch["depth_size"], *protocol_of(config))


def scale_by_camera_height(
    accelerator: Accelerator, model: FeatDepth, loader: DataLoader, config: Config
) -> tuple[float, dict[str, float]]:
    """Metres in a network unit, so that the camera is as high above the ground as `evaluate.camera_height` says.

    One number for all images, from the median of the heights that they show; beside it, how it was made. Every process
    enters. Raises InputError where no image shows the ground.
    """
    loader.dataset.number_cameras(model.camera_names)
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
    depths, intrinsics = model.to_depth(predict_disparity(model, batch, config)), seen_intrinsics(model, batch)
    return torch.tensor([[ground_height(*each)] for each in zip(depths, intrinsics, strict=True)], device=depths.device)


def seen_intrinsics(model: FeatDepth, batch: dict[str, Tensor]) -> Tensor:
    """Intrinsics `[B, 3, 3]` of a batch of test images: the model's own where it has learned them, else the data's."""
    if model.cameras is None:
        return batch["intrinsics"]
    is_flipped = torch.zeros_like(batch["camera"], dtype=torch.bool)
    return model.cameras(batch["camera"], batch["intrinsics"], is_flipped, batch["images"].shape[-2:])
