"""Where a model is right: errors by distance, by place in the image, of moving and of static things; and edges, points.

All of it for one image is a row of fixed width, to be gathered from several processes like the scores: the values of
DETAILS, then as many counts of pixels. A count of 0 means that the image has nothing of the kind, and its value is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from featdepth.geometry import resize_intrinsics
from featdepth.metrics.depth import SHALLOWEST, depth_errors, evaluation_mask, median, resize_map
from featdepth.metrics.edges import edge_errors, is_dense
from featdepth.metrics.intervals import Interval, mean_interval, paired_interval
from featdepth.metrics.points import POINT_THRESHOLDS, FScore, point_scores

DISTANCES = ((0, 10), (10, 20), (20, 40), (40, 80))  # metres of true depth, each last one not included
ROWS, COLUMNS = ("upper third", "middle third", "lower third"), ("left third", "centre third", "right third")
MOTION = ("moving", "static")
PARTS = (*(f"{low}-{high} m" for low, high in DISTANCES), *ROWS, *COLUMNS, *MOTION)
PART_METRICS = ("abs_rel", "rmse", "a1")
EDGES = ("edges/accuracy", "edges/completeness")  # pixels
POINTS = tuple(f"points within {threshold:g} m/{name}" for threshold in POINT_THRESHOLDS for name in FScore._fields)
DETAILS = (*(f"{part}/{metric}" for part in PARTS for metric in PART_METRICS), *EDGES, *POINTS)
HIGHER_IS_BETTER = ("a1", "a2", "a3", *FScore._fields)  # of the metrics; of all others less is better


class Comparison(NamedTuple):
    """Two models in one of DETAILS, over the images that have it."""

    detail: str
    mean_a: float
    mean_b: float
    difference: Interval  # of a - b, image by image, over drives
    winner: str  # "a" or "b"; "" where the interval of the difference contains 0, or there is none


def score_details(
    inverse_depth: Tensor,
    depth: Tensor,
    depth_size: Tensor,
    intrinsics: Tensor,
    moving: Sequence[np.ndarray | None] | None = None,
    crop: str = "garg",
    cap: float | None = 80.0,
    clamp: float | None = None,
    scale: float | None = 1.0,
) -> Tensor:
    """A row of details for each image of a batch: float32 `[B, 2 * len(DETAILS)]` on the device of `inverse_depth`.

    inverse_depth: predicted 1/depth `[B, 1, h, w]`; depth `[B, H, W]`, depth_size `[B, 2]` as the data set gives them;
    intrinsics: `[B, 3, 3]` at the size of the predictions; moving: of each image what the data set's `moving_mask`
    gives, bool `[H, W]` or None for unknown; crop, cap, clamp and scale as for `metrics.depth.score_batch`, but where
    the scale is None predictions are scaled by the ratio of medians.
    """
    rows, size = [], tuple(inverse_depth.shape[-2:])
    farthest = cap if clamp is None else clamp
    for index, (height, width) in enumerate(depth_size.tolist()):
        truth = depth[index, :height, :width].cpu()
        mask = evaluation_mask(truth, crop, cap)
        predicted = predicted_depth(inverse_depth[index].squeeze(0).cpu(), truth, mask, scale, farthest)
        camera = resize_intrinsics(intrinsics[index].cpu(), size, (height, width))
        moves = None if moving is None or moving[index] is None else torch.from_numpy(moving[index])
        rows.append(detail_row(predicted, truth, mask, camera, moves))
    return torch.stack(rows).to(inverse_depth.device)


def predicted_depth(
    inverse_depth: Tensor, truth: Tensor, mask: Tensor, scale: float | None, cap: float | None
) -> Tensor:
    """Predicted depth in metres at the size of `truth` `[H, W]`, as it is scored: resized, scaled, clamped.

    inverse_depth: 1/depth `[h, w]`; mask: bool `[H, W]`; scale: metres in the unit of the prediction, or None for the
    ratio of the medians within the mask.
    """
    depth = 1 / resize_map(inverse_depth, tuple(truth.shape)).double()
    if scale is None:
        scale = float(median(truth[mask].double()) / median(depth[mask])) if mask.any() else 1.0
    return (depth * scale).clamp(SHALLOWEST, cap)


def detail_row(
    predicted: Tensor, truth: Tensor, mask: Tensor, intrinsics: Tensor, moving: Tensor | None = None
) -> Tensor:
    """The row float32 `[2 * len(DETAILS)]` of one image: values, then counts.

    predicted, truth: metres `[h, w]`, truth 0 where there is none; mask: bool `[h, w]`, the pixels to compare, all with
    truth; intrinsics: `[3, 3]` of the maps; moving: bool `[h, w]` or None. Edges and points are scored where the truth
    is dense, their counts are true edge pixels and compared pixels.
    """
    values, counts = [], []
    for each in part_errors(predicted, truth, mask, moving).values():
        values += [each[metric] for metric in PART_METRICS]
        counts += [each["pixels"]] * len(PART_METRICS)
    if is_dense(truth):
        edges = edge_errors(predicted, truth, mask)
        values += [edges.accuracy, edges.completeness]
        counts += [edges.true] * len(EDGES)
        for threshold in POINT_THRESHOLDS:
            values += point_scores(predicted, truth, mask, intrinsics, threshold)
        counts += [int(mask.sum())] * len(POINTS)
    missing = len(DETAILS) - len(values)
    return torch.tensor([*values, *[math.nan] * missing, *counts, *[0] * missing], dtype=torch.float32)


def part_errors(
    predicted: Tensor, truth: Tensor, mask: Tensor, moving: Tensor | None = None
) -> dict[str, dict[str, float]]:
    """METRICS of `metrics.depth` and `pixels` of each of PARTS, over the pixels of `mask`; arguments: `detail_row`.

    Thirds are of the whole image. A part without pixels has NaN; without `moving` these are the moving and the static.
    """
    predicted, truth = predicted[mask], truth[mask]
    errors = {}
    for part, belongs in part_masks(truth, mask, moving).items():
        errors[part] = depth_errors(predicted[belongs], truth[belongs]) | {"pixels": int(belongs.sum())}
    return errors


def part_masks(truth: Tensor, mask: Tensor, moving: Tensor | None) -> dict[str, Tensor]:
    """Which of the N pixels of `mask` `[h, w]`, with true depths `[N]`, belong to each of PARTS: bool `[N]`."""
    (height, width), (row, column) = mask.shape, mask.nonzero(as_tuple=True)
    parts = [(truth >= low) & (truth < high) for low, high in DISTANCES]
    parts += [row * len(ROWS) // height == third for third in range(len(ROWS))]
    parts += [column * len(COLUMNS) // width == third for third in range(len(COLUMNS))]
    if moving is None:
        parts += [torch.zeros_like(row, dtype=torch.bool)] * len(MOTION)
    else:
        parts += [moving[mask], ~moving[mask]]
    return dict(zip(PARTS, parts, strict=True))


def mean_details(table: Tensor, drives: Sequence[str] | None = None, level: float = 0.95) -> dict[str, Interval]:
    """The mean of each of DETAILS over the images that have it, with its interval over `drives` `[N]` (None: images).

    table: rows `[N, 2 * len(DETAILS)]`. A detail that no image has is left out.
    """
    values, present = split_table(table)
    return {
        detail: mean_interval(values[here, number], None if drives is None else select(drives, here), level)
        for number, (detail, here) in enumerate(zip(DETAILS, present.T, strict=True))
        if here.any()
    }


def compare_details(
    table_a: Tensor, table_b: Tensor, drives: Sequence[str] | None = None, level: float = 0.95
) -> list[Comparison]:
    """Which of two models wins where: rows `[N, 2 * len(DETAILS)]` of the same images in the same order.

    Only images that have a detail in both tables count for it; a detail that none has is left out. drives `[N]`: of the
    images; None: the intervals are over images. Raises ValueError for tables of different shape.
    """
    if table_a.shape != table_b.shape:
        raise ValueError(f"tables of {tuple(table_a.shape)} and {tuple(table_b.shape)} cannot be compared")
    (values_a, present_a), (values_b, present_b) = split_table(table_a), split_table(table_b)
    found = []
    for number, detail in enumerate(DETAILS):
        here = present_a[:, number] & present_b[:, number]
        if here.any():
            a, b = values_a[here, number], values_b[here, number]
            difference = paired_interval(a, b, None if drives is None else select(drives, here), level)
            found.append(Comparison(detail, float(a.mean()), float(b.mean()), difference, winner(detail, difference)))
    return found


def winner(detail: str, difference: Interval) -> str:
    """Who wins a detail by an interval of a - b: "a", "b", or "" where it is open."""
    if not difference.excludes_zero:
        return ""
    higher_is_better = detail.split("/")[1] in HIGHER_IS_BETTER
    return "a" if (difference.mean > 0) == higher_is_better else "b"


def split_table(table: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Values float64 `[N, len(DETAILS)]` of a table of rows, and where there are any, bool."""
    values, counts = table.cpu().double().numpy().reshape(len(table), 2, len(DETAILS)).swapaxes(0, 1)
    return values, counts > 0


def select(names: Sequence[str], chosen: Sequence[bool]) -> list[str]:
    """The chosen of the names."""
    return [name for name, is_chosen in zip(names, chosen, strict=True) if is_chosen]
