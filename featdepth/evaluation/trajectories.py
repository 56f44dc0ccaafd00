"""Odometry of a trained model on its test sequences: trajectories, scores, plots. `evaluate.py --odometry`.

A test sequence is a run of consecutive frames of a test drive's left or only camera that have an image and a known
pose, within what the frames of its test samples span.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from accelerate import Accelerator

from featdepth.console import count
from featdepth.data.dataset import FrameDataset
from featdepth.data.samples import Sample
from featdepth.errors import InputError
from featdepth.evaluation.motions import Motions, find_motions, runs_of_frames
from featdepth.evaluation.report import contamination, results_in
from featdepth.evaluation.scoring import find_scale
from featdepth.evaluation.subject import Subject
from featdepth.files import write_text
from featdepth.odometry.egomotion import chain_motions
from featdepth.odometry.plots import MISSING, draw_plots, has_matplotlib
from featdepth.odometry.scores import ALIGNMENTS, score_trajectory
from featdepth.odometry.table import (
    COLUMNS,
    COMPARED,
    METRIC,
    POSE_NETWORK,
    STRAIGHT_AHEAD,
    format_scores,
    shorten,
)
from featdepth.odometry.trajectory_files import write_kitti, write_tum
from featdepth.parallel.processes import on_main_process

AVERAGED = (*(key for _, key, _ in COLUMNS[1:]), "rpe_translation_rmse_m", "rpe_rotation_rmse_deg")


class Stretch(NamedTuple):
    """A test sequence of N frames."""

    drive: str
    first_frame: int
    truth: np.ndarray  # world_from_camera [N, 4, 4], metres, in the data's own world
    estimate: np.ndarray  # world_from_camera [N, 4, 4], metres or the model's unit; the world is the first camera
    network: np.ndarray | None  # the same by the pose network; None: there is none
    flicker: np.ndarray  # [N-1, 2], see `Motions`
    lost: int  # pairs that are not aligned, see `Motions`
    times: np.ndarray | None  # [N] seconds; None: unknown

    @property
    def last_frame(self) -> int:
        return self.first_frame + len(self.truth) - 1

    @property
    def name(self) -> str:
        return f"{self.drive} {self.first_frame}-{self.last_frame}"


def report_odometry(accelerator: Accelerator, subject: Subject, out: Path) -> None:
    """Score the sequences of a subject whose data are those of `open_sequences`; every process enters.

    Prints a table, and writes `odometry.json` and the folder `odometry` of trajectories and plots into `out`. Raises
    InputError for a model with depths or motions that are not finite, and where nothing can be written.
    """
    evaluate = subject.config.evaluate
    if evaluate.flip and evaluate.camera_height is None:
        accelerator.print("note       evaluate.flip does not apply to trajectories, whose depth is not mirrored")
    unit, about = find_scale(accelerator, subject)
    found = find_motions(accelerator, subject, unit)
    is_metric = unit is not None
    on_main_process(accelerator, lambda: write_report(subject.dataset, found, is_metric, out, about))


def write_report(dataset: FrameDataset, found: Motions, is_metric: bool, out: Path, about: dict) -> None:
    """What `report_odometry` prints and writes, of the motions of all readable pairs."""
    check_finite(dataset, found, about["checkpoint"])
    stretches = find_stretches(dataset, found)
    scores = [score_stretch(each, is_metric) for each in stretches]
    result = {"unit": "metres" if is_metric else "unknown", "motion": "alignment", "pairs": len(found.index)}
    result |= {"lost_pairs": int((~found.is_aligned).sum()), "skipped_pairs": len(dataset) - len(found.index)}
    result |= {"flicker": describe_flicker([stretch.flicker for stretch in stretches])}
    result |= {"sequences": scores, "mean": average(scores)} | about
    notes = []
    with results_in(out):
        write_text(out / "odometry.json", json.dumps(result, indent=2) + "\n")
        for stretch, score in zip(stretches, scores, strict=True):
            write_trajectories(out / "odometry", stretch)
            if has_matplotlib():
                stem = out / "odometry" / file_name(stretch)
                notes += draw_plots(stem, stretch.name, stretch.truth, stretch.estimate, score)
    print("\n".join([*contamination(result), describe_motions(found)]))
    if (changes := result["flicker"]) is not None:
        print(f"flicker    from frame to frame: scale {changes['scale']:.2%}, depth at points {changes['points']:.2%}")
    print("\n".join([format_scores(scores, result["mean"]), *shorten(notes)]))
    if not has_matplotlib():
        print(f"no plots: {MISSING}")
    print(f"written to {out}")


def check_finite(dataset: FrameDataset, found: Motions, checkpoint: str) -> None:
    """Raise InputError for the first pair with a motion, or a depth, that is not finite."""
    for motions in (found.motions, found.network):
        if motions is not None and not np.isfinite(motions).all():
            bad = dataset.samples[found.index[~np.isfinite(motions).all((1, 2))][0]]
            raise InputError(f"{checkpoint}: predicts depth or motion that is not finite at {bad}; train it again")


def describe_motions(found: Motions) -> str:
    """How many motions are aligned, and what stands in for the others, in a line."""
    pairs, aligned = len(found.index), int(found.is_aligned.sum())
    line = f"motion     {aligned} of {count(pairs, 'pair')} aligned"
    if aligned == pairs:
        return line
    stand_in = "motion before it" if found.network is None else "pose network's"
    return f"{line}; in place of each other one stands the {stand_in}"


def find_stretches(dataset: FrameDataset, found: Motions) -> list[Stretch]:
    """The sequences that the pairs make, in order; one ends where a pair is missing."""
    samples = [dataset.samples[place] for place in found.index]
    return [make_stretch(dataset, samples[run.start], found, run) for run in runs_of_frames(samples)]


def make_stretch(dataset: FrameDataset, first: Sample, found: Motions, run: slice) -> Stretch:
    """The sequence of the consecutive pairs in `run`, of which `first` is the first."""
    frames = range(first.frame, first.frame + run.stop - run.start + 1)
    poses, times = dataset.poses(first.drive), dataset.times(first.drive)
    return Stretch(
        first.drive,
        first.frame,
        np.stack([poses[frame] for frame in frames]),
        chain_motions(found.motions[run]),
        None if found.network is None else chain_motions(found.network[run]),
        found.flicker[run],
        int((~found.is_aligned[run]).sum()),
        np.array([times[frame] for frame in frames]) if all(frame in times for frame in frames) else None,
    )


def score_stretch(stretch: Stretch, is_metric: bool) -> dict:
    """What odometry.json says of a sequence.

    Beside it, under `pose_network`, what the pose network's motions score and, under `straight_ahead`, what going
    straight ahead at constant speed does, under alignments with scale.
    """
    about = {"name": stretch.name, "drive": stretch.drive, "first_frame": stretch.first_frame}
    about |= {"lost_pairs": stretch.lost, "flicker": describe_flicker([stretch.flicker])}
    scores = about | score_estimate(stretch.truth, stretch.estimate, is_metric)
    if stretch.network is not None:
        scores[POSE_NETWORK] = score_estimate(stretch.truth, stretch.network, is_metric)
    straight = np.tile(np.eye(4), (len(stretch.truth), 1, 1))
    straight[:, 2, 3] = np.arange(len(straight))
    trivial = score_trajectory(stretch.truth, straight)
    scores[STRAIGHT_AHEAD] = {key: trivial[key] for key in ("ate_5_frames", *ALIGNMENTS) if key not in METRIC}
    return scores


def describe_flicker(changes: Sequence[np.ndarray]) -> dict[str, float] | None:
    """Spread of the scale from frame to frame and median jump of a point, in parts, of sequences' `[N-1, 2]`.

    The spread is about each sequence's own mean, so that a scale that drifts evenly counts little. None where no pair
    is aligned.
    """
    known = [each[~np.isnan(each).any(1)] for each in changes]
    known = np.concatenate([each - [each[:, 0].mean(), 0.0] for each in known if len(each)] or [np.empty((0, 2))])
    return {"scale": float(known[:, 0].std()), "points": float(known[:, 1].mean())} if len(known) else None


def score_estimate(truth: np.ndarray, estimate: np.ndarray, is_metric: bool) -> dict:
    """`score_trajectory`; alignments that take the estimate for metres are None where it is not."""
    return score_trajectory(truth, estimate) | ({} if is_metric else dict.fromkeys(METRIC))


def average(scores: Sequence[Mapping]) -> dict:
    """Means over sequences, each counting the same, of what they have: by alignment, as in `score_trajectory`."""
    snippets = [score["ate_5_frames"] for score in scores]
    result: dict = {"sequences": len(scores)}
    result["ate_5_frames"] = {key: mean([each[key] for each in snippets]) for key in ("mean_m", "std_m")}
    for alignment in ALIGNMENTS:
        if alignment in scores[0]:
            known = [score[alignment] for score in scores if score[alignment] is not None]
            result[alignment] = {key: mean([each[key] for each in known]) for key in AVERAGED} if known else None
    for way in COMPARED:
        if way in scores[0]:
            result[way] = average([score[way] for score in scores])
    return result


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are known; None where none is."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def write_trajectories(folder: Path, stretch: Stretch) -> None:
    """The estimate in both formats, not aligned, and the truth in KITTI's. Both begin at the origin. Raises OSError."""
    stem = file_name(stretch)
    write_kitti(folder / f"{stem}_truth.kitti.txt", np.linalg.inv(stretch.truth[0]) @ stretch.truth)
    write_kitti(folder / f"{stem}.kitti.txt", stretch.estimate)
    times, comment = stretch.times, ""
    if times is None:
        times = np.arange(stretch.first_frame, stretch.last_frame + 1)
        comment = "the data set has no times: the first column counts frames"
    write_tum(folder / f"{stem}.tum.txt", stretch.estimate, times, comment)


def file_name(stretch: Stretch) -> str:
    """A sequence's name as that of a file."""
    return stretch.name.replace("/", "_").replace(" ", "_")
