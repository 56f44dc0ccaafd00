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
import torch
from accelerate import Accelerator
from torch import Tensor

from featdepth.data.dataset import FrameDataset
from featdepth.errors import InputError
from featdepth.evaluation.report import contamination, results_in
from featdepth.evaluation.scoring import find_scale, with_unit
from featdepth.evaluation.subject import Subject
from featdepth.files import write_text
from featdepth.odometry.egomotion import chain_motions, check_has_pose, motions_between
from featdepth.odometry.plots import MISSING, draw_plots, has_matplotlib
from featdepth.odometry.scores import ALIGNMENTS, score_trajectory
from featdepth.odometry.table import COLUMNS, METRIC, STRAIGHT_AHEAD, format_scores, shorten
from featdepth.odometry.trajectory_files import write_kitti, write_tum
from featdepth.parallel.processes import gather_values, on_main_process

AVERAGED = (*(key for _, key, _ in COLUMNS[1:]), "rpe_translation_rmse_m", "rpe_rotation_rmse_deg")


class Stretch(NamedTuple):
    """A test sequence of N frames."""

    drive: str
    first_frame: int
    truth: np.ndarray  # world_from_camera [N, 4, 4], metres, in the data's own world
    estimate: np.ndarray  # world_from_camera [N, 4, 4], metres or the model's unit; the world is the first camera
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
    InputError for a model without a pose network or with motions that are not finite, and where nothing can be written.
    """
    model, evaluate = subject.model, subject.config.evaluate
    if evaluate.flip and evaluate.camera_height is None:
        accelerator.print("note       evaluate.flip does not apply to trajectories: it averages depth, not motion")
    unit, about = find_scale(accelerator, subject)
    check_has_pose(model)

    def values(batch: dict[str, Tensor]) -> Tensor:
        motions = motions_between(model, batch["images"][:, 0], batch["images"][:, 1])
        rows = torch.from_numpy(motions).float().flatten(1).to(batch["images"].device)
        return torch.cat([batch["index"][:, None].float(), rows], dim=1)

    with with_unit(model, unit):
        table = gather_values(accelerator, model, subject.loader, values).numpy()
    is_metric = unit is not None
    on_main_process(accelerator, lambda: write_report(subject.dataset, table, is_metric, out, about))


def write_report(dataset: FrameDataset, table: np.ndarray, is_metric: bool, out: Path, about: dict) -> None:
    """What `report_odometry` prints and writes. table: `[n, 17]`, index and motion of each readable pair."""
    if not np.isfinite(table).all():
        bad = dataset.samples[int(table[~np.isfinite(table).all(1)][0, 0])]
        raise InputError(f"{about['checkpoint']}: predicts a motion that is not finite at {bad}; train it again")
    stretches = find_stretches(dataset, table)
    scores = [score_stretch(each, is_metric) for each in stretches]
    result = {"unit": "metres" if is_metric else "unknown", "sequences": scores, "mean": average(scores)}
    result |= {"skipped_pairs": len(dataset.samples) - len(table)} | about
    notes = []
    with results_in(out):
        write_text(out / "odometry.json", json.dumps(result, indent=2) + "\n")
        for stretch, score in zip(stretches, scores, strict=True):
            write_trajectories(out / "odometry", stretch)
            if has_matplotlib():
                stem = out / "odometry" / file_name(stretch)
                notes += draw_plots(stem, stretch.name, stretch.truth, stretch.estimate, score)
    print("\n".join([*contamination(result), format_scores(scores, result["mean"]), *shorten(notes)]))
    if not has_matplotlib():
        print(f"no plots: {MISSING}")
    print(f"written to {out}")


def find_stretches(dataset: FrameDataset, table: np.ndarray) -> list[Stretch]:
    """The sequences that the pairs of `table` (index, motion) make, in order; one ends where a pair is missing."""
    groups: list[list[np.ndarray]] = []
    previous = None
    for row in table[table[:, 0].argsort()]:
        sample = dataset.samples[int(row[0])]
        if previous is None or (sample.drive, sample.frame) != (previous.drive, previous.frame + 1):
            groups.append([])
        groups[-1].append(row)
        previous = sample
    return [make_stretch(dataset, np.stack(group)) for group in groups]


def make_stretch(dataset: FrameDataset, rows: np.ndarray) -> Stretch:
    """The sequence of consecutive pairs `[N-1, 17]`."""
    first = dataset.samples[int(rows[0, 0])]
    frames = range(first.frame, first.frame + len(rows) + 1)
    poses, times = dataset.poses(first.drive), dataset.times(first.drive)
    return Stretch(
        first.drive,
        first.frame,
        np.stack([poses[frame] for frame in frames]),
        chain_motions(rows[:, 1:]),
        np.array([times[frame] for frame in frames]) if all(frame in times for frame in frames) else None,
    )


def score_stretch(stretch: Stretch, is_metric: bool) -> dict:
    """What odometry.json says of a sequence; alignments that take the estimate for metres are None where it is not.

    Beside it, under `straight_ahead`, what going straight ahead at constant speed scores, under alignments with scale.
    """
    scores = score_trajectory(stretch.truth, stretch.estimate)
    if not is_metric:
        scores |= dict.fromkeys(METRIC)
    straight = np.tile(np.eye(4), (len(stretch.truth), 1, 1))
    straight[:, 2, 3] = np.arange(len(straight))
    trivial = score_trajectory(stretch.truth, straight)
    scores[STRAIGHT_AHEAD] = {key: trivial[key] for key in ("ate_5_frames", *ALIGNMENTS) if key not in METRIC}
    return {"name": stretch.name, "drive": stretch.drive, "first_frame": stretch.first_frame} | scores


def average(scores: Sequence[Mapping]) -> dict:
    """Means over sequences, each counting the same, of what they have: by alignment, as in `score_trajectory`."""
    snippets = [score["ate_5_frames"] for score in scores]
    result: dict = {"sequences": len(scores)}
    result["ate_5_frames"] = {key: mean([each[key] for each in snippets]) for key in ("mean_m", "std_m")}
    for alignment in ALIGNMENTS:
        if alignment in scores[0]:
            known = [score[alignment] for score in scores if score[alignment] is not None]
            result[alignment] = {key: mean([each[key] for each in known]) for key in AVERAGED} if known else None
    if STRAIGHT_AHEAD in scores[0]:
        result[STRAIGHT_AHEAD] = average([score[STRAIGHT_AHEAD] for score in scores])
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
