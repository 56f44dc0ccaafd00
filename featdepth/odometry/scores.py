"""Odometry scores: how far an estimated trajectory is from the true one.

A trajectory is world_from_camera `[N, 4, 4]` (or `[N, 3, 4]`) float64, the true one in metres, the estimated one in any
unit, both of the same frames. Formulas are in docs/odometry.md. Every function raises ValueError for trajectories of
different lengths, with fewer than two poses, or that are not finite.

An estimate has a frame and often a unit of its own, so every score but the 5-frame ATE, which has its own scale for
each snippet, belongs to an alignment:

    none    the first poses coincide, nothing else is changed
    scale   the first poses coincide, and the estimate's path from there is multiplied by Umeyama's scale
    6dof    rotated and moved so that all positions fit best
    7dof    the same, and scaled (Umeyama 1991)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from featdepth.console import count
from featdepth.odometry.rotations import is_rotation, rotation_angles

ALIGNMENTS = ("none", "scale", "6dof", "7dof")
SNIPPET = 5  # frames of the short-range ATE
LENGTHS = (100.0, 200.0, 300.0, 400.0, 500.0, 600.0, 700.0, 800.0)  # metres, of KITTI's segments
SEGMENT_STEP = 10  # frames from the start of one segment to that of the next
STANDSTILL = 1e-9  # units: positions that spread no more than this have no scale


class Similarity(NamedTuple):
    """target = scale * rotation @ point + translation."""

    scale: float
    rotation: np.ndarray  # [3, 3]
    translation: np.ndarray  # [3]


class Segments(NamedTuple):
    """The errors of an estimate over S parts of the true path."""

    lengths: np.ndarray  # [S] metres, nominal: one of those asked for
    translation: np.ndarray  # [S] error at the end of the segment / its length
    rotation: np.ndarray  # [S] radians / metre


def score_trajectory(truth: np.ndarray, estimate: np.ndarray, lengths: Sequence[float] = LENGTHS) -> dict:
    """All scores, each under the alignment that it was made with.

    `{"frames": N, "distance_m": ..., "ate_5_frames": {"mean_m", "std_m", "alignment"}, "none": {...}, "scale": {...} or
    None, "6dof": {...}, "7dof": {...} or None}`, the last four as `score_aligned` gives them.
    """
    truth, estimate = check_pair(truth, estimate)
    mean, deviation = snippet_ate(truth, estimate)
    return {
        "frames": len(truth),
        "distance_m": float(travelled(truth)[-1]),
        "ate_5_frames": {"mean_m": mean, "std_m": deviation, "alignment": f"a scale for each {SNIPPET} frames"},
        **{alignment: score_aligned(truth, estimate, alignment, lengths) for alignment in ALIGNMENTS},
    }


def score_aligned(
    truth: np.ndarray, estimate: np.ndarray, alignment: str, lengths: Sequence[float] = LENGTHS
) -> dict | None:
    """The scores after one of ALIGNMENTS; None where it needs a scale and one of the two does not move.

    `scale`: what the estimate was multiplied by; `ate_rmse_m`; `t_rel_percent` and `r_rel_deg_per_100m` (None where the
    path is too short for any segment), `segments`: how many, `per_length`: the same for each length that has any;
    `rpe_translation_m`, `rpe_rotation_deg`: means over single steps, and their root mean squares, `..._rmse_...`.
    """
    aligned = align(truth, estimate, alignment)
    if aligned is None:
        return None
    truth, _ = check_pair(truth, estimate)
    poses, scale = aligned
    translation, rotation = step_errors(truth, poses)
    rotation = np.degrees(rotation)
    segments = segment_errors(truth, poses, lengths)
    present = [length for length in lengths if (segments.lengths == length).any()]
    return {
        "alignment": alignment,
        "scale": scale,
        "ate_rmse_m": root_mean_square(np.linalg.norm(poses[:, :3, 3] - truth[:, :3, 3], axis=1)),
        **mean_segments(segments),
        "per_length": {f"{length:g}": mean_segments(segments, length) for length in present},
        "rpe_translation_m": float(translation.mean()),
        "rpe_translation_rmse_m": root_mean_square(translation),
        "rpe_rotation_deg": float(rotation.mean()),
        "rpe_rotation_rmse_deg": root_mean_square(rotation),
    }


def align(truth: np.ndarray, estimate: np.ndarray, alignment: str) -> tuple[np.ndarray, float] | None:
    """The estimate `[N, 4, 4]` in the frame of the truth, and the scale that it was multiplied by.

    None where the alignment needs a scale and one of the two trajectories does not move. ValueError for an alignment
    that is not one of ALIGNMENTS.
    """
    if alignment not in ALIGNMENTS:
        raise ValueError(f"alignment {alignment!r} is not one of {', '.join(ALIGNMENTS)}")
    truth, estimate = check_pair(truth, estimate)
    fit = fit_similarity(estimate[:, :3, 3], truth[:, :3, 3], with_scale=alignment in ("scale", "7dof"))
    if fit is None:
        return None
    if alignment in ("6dof", "7dof"):
        return transform(estimate, fit), fit.scale
    from_start = np.linalg.inv(estimate[0]) @ estimate
    from_start[:, :3, 3] *= fit.scale
    return truth[0] @ from_start, fit.scale


def fit_similarity(source: np.ndarray, target: np.ndarray, with_scale: bool) -> Similarity | None:
    """The similarity that brings points `source` `[N, 3]` nearest to `target`, least squares (Umeyama 1991, eq. 40-42).

    Without scale it is a rigid transform. None where a scale is asked for and one of the two does not spread. Where the
    points leave a rotation open (on a line, around it), any one of the best is taken.
    """
    source_mean, target_mean = source.mean(0), target.mean(0)
    source_spread, target_spread = source - source_mean, target - target_mean
    variance = (source_spread**2).sum(1).mean()
    if with_scale and min(variance, (target_spread**2).sum(1).mean()) <= STANDSTILL**2:
        return None
    left, singular, right = np.linalg.svd(target_spread.T @ source_spread / len(source))
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(left) * np.linalg.det(right))])
    rotation = (left * signs) @ right
    scale = float((singular * signs).sum() / variance) if with_scale else 1.0
    return Similarity(scale, rotation, target_mean - scale * rotation @ source_mean)


def transform(poses: np.ndarray, similarity: Similarity) -> np.ndarray:
    """Poses `[N, 4, 4]` seen from the similarity's target."""
    result = poses.copy()
    result[:, :3, :3] = similarity.rotation @ poses[:, :3, :3]
    result[:, :3, 3] = similarity.scale * poses[:, :3, 3] @ similarity.rotation.T + similarity.translation
    return result


def snippet_ate(truth: np.ndarray, estimate: np.ndarray, frames: int = SNIPPET) -> tuple[float, float]:
    """Mean and population standard deviation (metres) of the short-range ATE, one value for each start but the last.

    As the field computes it: positions are the translations of M_i, M_i M_i+1, ... with the inverse motions
    M_i = (P_i^-1 P_i+1)^-1, beginning with the origin; the estimate's are scaled to fit in least squares; the value is
    the root of the summed squared distances divided by the number of positions. Snippets are shorter at the end.
    """
    truth, estimate = check_pair(truth, estimate)
    truth_ways, is_there = snippets(truth, frames)
    estimate_ways, _ = snippets(estimate, frames)
    squares = (estimate_ways**2).sum((1, 2))
    # Where the estimate stands still no scale changes it.
    scales = (truth_ways * estimate_ways).sum((1, 2)) / np.where(squares > 0, squares, 1.0)
    differences = scales[:, None, None] * estimate_ways - truth_ways
    values = np.sqrt((differences**2).sum((1, 2))) / is_there.sum(1)
    return float(values.mean()), float(values.std())


def snippets(poses: np.ndarray, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions `[N-1, frames, 3]` of the snippet from each frame on, and which of them exist; the others are 0."""
    motions = np.linalg.inv(relative_poses(poses[:-1], poses[1:]))
    count = len(motions)
    ways, is_there = np.zeros((count, frames, 3)), np.zeros((count, frames), dtype=bool)
    is_there[:, 0] = True
    products = np.tile(np.eye(4), (count, 1, 1))
    for position in range(1, min(frames, count + 1)):
        going = count - position + 1  # snippets that are as long as this
        products[:going] = products[:going] @ motions[position - 1 :]
        ways[:going, position] = products[:going, :3, 3]
        is_there[:going, position] = True
    return ways, is_there


def segment_errors(truth: np.ndarray, estimate: np.ndarray, lengths: Sequence[float] = LENGTHS) -> Segments:
    """Errors over the segments of KITTI's development kit; empty where the path is shorter than all of them.

    Segments start at every tenth frame and end at the first frame beyond `length` metres of the true path. Errors are
    those of (E_a^-1 E_b)^-1 (T_a^-1 T_b), divided by the nominal length.
    """
    truth, estimate = check_pair(truth, estimate)
    distances = travelled(truth)
    starts, nominal = np.meshgrid(np.arange(0, len(truth), SEGMENT_STEP), np.asarray(lengths, float), indexing="ij")
    starts, nominal = starts.ravel(), nominal.ravel()
    ends = np.searchsorted(distances, distances[starts] + nominal, side="right")
    starts, ends, nominal = (values[ends < len(truth)] for values in (starts, ends, nominal))
    error = relative_poses(relative_poses(estimate[starts], estimate[ends]), relative_poses(truth[starts], truth[ends]))
    return Segments(
        nominal, np.linalg.norm(error[:, :3, 3], axis=1) / nominal, rotation_angles(error[:, :3, :3]) / nominal
    )


def mean_segments(segments: Segments, length: float | None = None) -> dict:
    """t_rel (%) and r_rel (degrees / 100 m), None without segments, and their number: of all, or of one length."""
    chosen = slice(None) if length is None else segments.lengths == length
    translation, rotation = segments.translation[chosen], segments.rotation[chosen]
    is_empty = len(translation) == 0
    return {
        "t_rel_percent": None if is_empty else float(translation.mean() * 100),
        "r_rel_deg_per_100m": None if is_empty else float(np.degrees(rotation.mean()) * 100),
        "segments": len(translation),
    }


def step_errors(truth: np.ndarray, estimate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Relative pose errors over one frame: metres `[N-1]` and radians `[N-1]` (Sturm et al. 2012)."""
    truth, estimate = check_pair(truth, estimate)
    steps = (relative_poses(poses[:-1], poses[1:]) for poses in (truth, estimate))
    error = relative_poses(*steps)
    return np.linalg.norm(error[:, :3, 3], axis=1), rotation_angles(error[:, :3, :3])


def travelled(poses: np.ndarray) -> np.ndarray:
    """The length `[N]` of the path from the first frame to each, in the unit of the poses."""
    steps = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1)
    return np.concatenate([[0.0], steps.cumsum()])


def relative_poses(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """first_from_second `[N, 4, 4]`: first^-1 second."""
    return np.linalg.inv(first) @ second


def root_mean_square(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def check_pair(truth: np.ndarray, estimate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both trajectories as float64 `[N, 4, 4]`. Raises ValueError as the module says."""
    truth, estimate = (check_poses(poses, name) for poses, name in ((truth, "the truth"), (estimate, "the estimate")))
    if len(truth) != len(estimate):
        raise ValueError(
            f"the truth has {count(len(truth), 'pose')}, the estimate {len(estimate)}; they must be of the same frames"
        )
    return truth, estimate


def check_poses(poses: np.ndarray, name: str) -> np.ndarray:
    """`[N, 3, 4]` or `[N, 4, 4]` as float64 `[N, 4, 4]`; ValueError, which says `name`, for anything else."""
    poses = np.asarray(poses, dtype=np.float64)
    if poses.ndim != 3 or poses.shape[1:] not in ((3, 4), (4, 4)):
        raise ValueError(f"{name} has the shape {list(poses.shape)}, it should be [N, 4, 4] or [N, 3, 4]")
    if len(poses) < 2:
        raise ValueError(f"{name} has fewer than two poses: {len(poses)}")
    if not np.isfinite(poses).all():
        raise ValueError(f"{name} has numbers that are not finite")
    whole = np.tile(np.eye(4), (len(poses), 1, 1))
    whole[:, :3] = poses[:, :3]
    is_rigid = is_rotation(whole[:, :3, :3])
    if not is_rigid.all():
        raise ValueError(f"{name} has poses that are not rigid transforms, the first at index {is_rigid.argmin()}")
    return whole
