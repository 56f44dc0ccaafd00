"""Has a model learned anything? What it shows of itself on some validation samples, without ground truth.

Three things tell, none of them alone, since each has innocent reasons to look bad (a standing camera, a view of a wall,
a dark scene): whether its motion points where the matched points of two frames say, whether depth is nearer at the
bottom of the picture, and whether frames warped by depth and motion fit better than frames left as they are.

Motion by alignment fits whatever the depth is, so of a model without a pose network another thing tells, alone: whether
frames warped by its depth fit better than by a flat wall, each with the motion that fits it best.

What its pose network says is compared with alignment by its own depth, too (see `featdepth.alignment`). Nothing is
judged by that: where depth is wrong, so is alignment.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from featdepth import losses
from featdepth.alignment import align
from featdepth.config import Config
from featdepth.data import augment
from featdepth.models import FeatDepth
from featdepth.models.aligned_motion import align_sources
from featdepth.models.inputs import in_evaluation_mode
from featdepth.models.saved.provenance import LEARNED, NOTHING, TOO_FEW, WITHOUT_OPENCV
from featdepth.objective import intrinsics_of, minimum_error, reconstruct, upsampled_depths
from featdepth.odometry.egomotion import motion_gap
from featdepth.two_view.opencv import has_opencv
from featdepth.two_view.relative_pose import match_frames, parallax, relative_pose

MOST_PAIRS = 24  # samples that are looked at, evenly spread over the validation part
MOST_MATCHED = 8  # of them whose points are matched, which takes most of the time
FEWEST_PAIRS = 5  # with fewer nothing is said
NO_ERROR = 1e-3  # photometric error below which two frames are the same but for rounding
LEAST_PARALLAX = 0.5  # pixels at the model's size: below it the direction of a translation means nothing
# Measured on the synthetic street: see docs/reliability.md.
LARGEST_ANGLE = 45.0  # degrees: median angle between the model's translations and those of matched points
LEAST_ROW_CORRELATION = 0.3  # of rows (downwards) and disparity
LEAST_GAIN = 0.1  # part of the photometric error of unwarped frames, or of those warped by a wall, that warping removes


class Signs(NamedTuple):
    """What one sample shows; nan: it does not show that."""

    angle: float  # degrees between the translation of the model and that of matched points
    rotation: float  # degrees between both rotations
    row_correlation: float  # rank correlation of rows and disparity, -1 to 1
    gain: float  # 1: warping explains the other frames entirely, 0: no better than not warping, below 0: worse
    turned: float = math.nan  # degrees between the rotations of the pose network and of alignment
    shifted: float = math.nan  # between their translations, in parts of that of alignment
    relief: float = math.nan  # of a model whose motion is aligned: as `gain`, compared with a flat wall


@torch.no_grad()
def check_model(model: FeatDepth, dataset, config: Config, device: torch.device) -> dict[str, float | int | str] | None:
    """The verdict on a model by samples of a validation part, ready for JSON; None for a model without depth.

    The same for the same model and data; it draws no random numbers, and the model comes back as it was.
    """
    if not model.has_depth:
        return None
    count = min(MOST_PAIRS, len(dataset))
    most_matched = MOST_MATCHED if has_opencv() else 0
    signs = []
    with in_evaluation_mode(model):
        for index in range(count):
            item = dataset[index * len(dataset) // count]
            if not int(item["replaced"]):
                batch = {name: value.to(device) for name, value in default_collate([item]).items()}
                with_matches = sum(math.isfinite(each.angle) for each in signs) < most_matched
                signs.append(signs_of(model, augment(batch), config, with_matches))
    return judge(signs) | ({} if has_opencv() else {WITHOUT_OPENCV: 1})


def signs_of(model: FeatDepth, batch: dict[str, Tensor], config: Config, with_matches: bool = True) -> Signs:
    """What a batch of one sample, after `augment`, shows of the model; with_matches: match its points."""
    prediction = model(batch)
    images, intrinsics = batch["images"].float(), intrinsics_of(prediction, batch).float()
    rows = prediction.disparities[0][0, 0].float().median(dim=1).values.cpu().numpy()
    if len(model.frames) < 2:
        return Signs(math.nan, math.nan, row_correlation(rows), math.nan)
    temporal = [place for place, frame in enumerate(model.frames[1:]) if frame != "s"]
    looked_at = temporal or list(range(len(model.frames) - 1))
    sources, poses = images[:, 1:][:, looked_at], prediction.poses[:, looked_at].float()
    angle, rotation = math.nan, math.nan
    if temporal and with_matches:
        grey = [(255 * each.mean(0)).round().byte().cpu().numpy() for each in (images[0, 0], sources[0, 0])]
        angle, rotation = motion_error(*grey, intrinsics[0].double().cpu().numpy(), poses[0, 0].double().cpu().numpy())
    depth = upsampled_depths(prediction, images.shape[-2:], config)[0]
    warped = torch.stack(reconstruct(sources, depth, intrinsics, poses), dim=1)
    if temporal and model.settings.motion == "aligned":
        wall = torch.ones_like(depth)
        aligned = align_sources(wall, images, intrinsics, model.frames[1:])
        flat = torch.stack(reconstruct(sources, wall, intrinsics, aligned.pose), dim=1)
        relief = photometric_gain(images[0, 0], flat[0], warped[0]) if bool(aligned.is_known.all()) else math.nan
        return Signs(math.nan, math.nan, row_correlation(rows), math.nan, relief=relief)
    gain = photometric_gain(images[0, 0], sources[0], warped[0])
    off = (math.nan, math.nan)
    if temporal and model.has_motion:
        grey = images[:, 0].mean(1, keepdim=True), sources[:, 0].mean(1, keepdim=True)
        off = alignment_gap(*grey, depth, intrinsics, poses[:, 0])
    return Signs(angle, rotation, row_correlation(rows), gain, *off)


def alignment_gap(
    target: Tensor, source: Tensor, depth: Tensor, intrinsics: Tensor, pose: Tensor
) -> tuple[float, float]:
    """Degrees between the rotations of `pose` and of alignment, and the gap of translations in parts of the latter's.

    target, source: grey `[1, 1, h, w]`; depth: of the target; pose: source_from_target `[1, 4, 4]`. nan where they
    cannot be aligned.
    """
    aligned = align(target, source, depth, intrinsics)
    if not bool(aligned.is_known):
        return math.nan, math.nan
    return motion_gap(*(each[0].double().cpu().numpy() for each in (pose, aligned.pose)))


def motion_error(
    target: np.ndarray, source: np.ndarray, intrinsics: np.ndarray, pose: np.ndarray
) -> tuple[float, float]:
    """Degrees between the translations, and between the rotations, of `pose` 4x4 and of matched points.

    target, source: grey, uint8 `[h, w]`; pose: source_from_target. nan where the points do not show them.
    """
    matches = match_frames(target, source)
    if not parallax(matches, intrinsics) >= LEAST_PARALLAX:
        return math.nan, math.nan
    view = relative_pose(matches, intrinsics)
    if view is None:
        return math.nan, math.nan
    length = np.linalg.norm(pose[:3, 3])
    cosine = pose[:3, 3] @ view.translation / max(length, 1e-12)
    turn = (np.trace(pose[:3, :3].T @ view.rotation) - 1) / 2
    return tuple(math.degrees(math.acos(np.clip(each, -1, 1))) for each in (cosine, turn))


def row_correlation(disparities: np.ndarray) -> float:
    """Spearman's rank correlation of the rows, counted downwards, and their disparities `[h]`; 0 for a constant."""
    if np.ptp(disparities) == 0:
        return 0.0
    ranks = disparities.argsort(kind="stable").argsort(kind="stable")
    return float(np.corrcoef(np.arange(len(ranks)), ranks)[0, 1])


def photometric_gain(target: Tensor, sources: Tensor, warped: Tensor) -> float:
    """The part of the photometric error of `sources` `[S, 3, h, w]` to `target` `[3, h, w]` that warping removes.

    Each pixel counts with its best source. nan where nothing moves at all.
    """
    statistics = losses.local_statistics(target[None])
    without, with_warping = (
        float(minimum_error([each[None] for each in group], target[None], statistics).mean())
        for group in (sources, warped)
    )
    return 1 - with_warping / without if without > NO_ERROR else math.nan


def judge(signs: Sequence[Signs]) -> dict[str, float | int | str]:
    """The verdict, and the medians that it is made from; what no sample shows is left out.

    Nothing is learned where at least two of the three signs are bad, of which there have to be two, or the relief is.
    """
    if len(signs) < FEWEST_PAIRS:
        return {"verdict": TOO_FEW, "samples": len(signs)}
    medians = {}
    for name, values in zip(Signs._fields, zip(*signs, strict=True), strict=True):
        known = [value for value in values if math.isfinite(value)]
        if len(known) >= FEWEST_PAIRS:
            medians[name] = float(np.median(known))
    bad = [
        medians.get("angle", 0.0) > LARGEST_ANGLE,
        medians.get("row_correlation", 1.0) < LEAST_ROW_CORRELATION,
        medians.get("gain", 1.0) < LEAST_GAIN,
    ]
    is_flat = medians.get("relief", 1.0) < LEAST_GAIN
    return {"verdict": NOTHING if sum(bad) >= 2 or is_flat else LEARNED, "samples": len(signs), **medians}
