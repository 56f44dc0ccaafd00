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
from torch.utils.data import DataLoader

from featdepth.config import Config
from featdepth.data import build_dataset
from featdepth.data.dataset import STEREO, FrameDataset
from featdepth.data.splits import Sample
from featdepth.errors import InputError
from featdepth.evaluation.report import contamination
from featdepth.files import write_text
from featdepth.models import FeatDepth
from featdepth.odometry.egomotion import chain_motions, check_has_pose, motions_between
from featdepth.odometry.plots import MISSING, has_matplotlib, plot_segment_errors, plot_ways
from featdepth.odometry.scores import ALIGNMENTS, align, score_trajectory
from featdepth.odometry.trajectory_files import write_kitti, write_tum
from featdepth.parallel.processes import gather_values, on_main_process
from featdepth.wording import count

MOST_BLOCKS = 5  # sequences that the table shows; odometry.json has all
COLUMNS = (  # of the table: heading, key, digits
    ("scale", "scale", 3),
    ("ATE m", "ate_rmse_m", 3),
    ("t_rel %", "t_rel_percent", 3),
    ("r_rel deg/100m", "r_rel_deg_per_100m", 3),
    ("RPE m", "rpe_translation_m", 4),
    ("RPE deg", "rpe_rotation_deg", 4),
)
AVERAGED = (*(key for _, key, _ in COLUMNS[1:]), "rpe_translation_rmse_m", "rpe_rotation_rmse_deg")
METRIC = ("none", "6dof")  # alignments that take the estimate's unit as it is
TRIVIAL = "straight_ahead"  # what an estimate that looks at no image scores


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


def open_sequences(config: Config) -> FrameDataset:
    """The test sequences as pairs of consecutive frames (earlier, later), in order.

    Raises InputError where there are no test frames, or none of them has a pose.
    """
    dataset = build_dataset(config, "test", with_depth=False, frames=[0, 1])
    drives = dataset.drives
    dataset.samples = [pair for drive in drives for pair in known_pairs(dataset, drive)]
    dataset.drives = sorted({sample.drive for sample in dataset.samples})
    dataset.left_out = 0  # a drive's last frame is the earlier one of no pair
    if not dataset.samples:
        names = ", ".join(drives[:5]) + (f" and {len(drives) - 5} more" if len(drives) > 5 else "")
        raise InputError(
            f"test: no true poses of two consecutive frames of {names} below {config.data.root}, so there is no "
            f"odometry to score; docs/data says where data.kind {config.data.kind} has them"
        )
    dataset.prepare_cameras()  # lists may have named the other side only
    return dataset


def known_pairs(dataset: FrameDataset, drive: str) -> list[Sample]:
    """The earlier frame of each pair of consecutive frames of a drive with images and poses, in order.

    They span what the drive's samples span with their neighbours, which belong to the same part of the data.
    """
    targets = [sample.frame for sample in dataset.samples if sample.drive == drive]
    offsets = [offset for offset in dataset.config.frames if offset != STEREO]
    poses = dataset.poses(drive)
    span = range(min(targets) + min(offsets), max(targets) + max(*offsets, 1))
    pairs = [Sample(drive, frame, "l") for frame in span if frame in poses and frame + 1 in poses]
    return [pair for pair in pairs if dataset.image_path(pair, 0) and dataset.image_path(pair, 1)]


def report_odometry(accelerator: Accelerator, model: FeatDepth, loader: DataLoader, out: Path, about: dict) -> None:
    """Score the sequences of `loader` (of `open_sequences`); every process enters.

    Prints a table, and writes `odometry.json` (with `about`) and the folder `odometry` of trajectories and plots into
    `out`. Raises InputError for a model without a pose network or with motions that are not finite, and where nothing
    can be written.
    """
    check_has_pose(model)

    def values(batch: dict[str, Tensor]) -> Tensor:
        motions = motions_between(model, batch["images"][:, 0], batch["images"][:, 1])
        rows = torch.from_numpy(motions).float().flatten(1).to(batch["images"].device)
        return torch.cat([batch["index"][:, None].float(), rows], dim=1)

    table = gather_values(accelerator, model, loader, values).numpy()
    on_main_process(accelerator, lambda: write_report(model, loader.dataset, table, out, about))


def write_report(model: FeatDepth, dataset: FrameDataset, table: np.ndarray, out: Path, about: dict) -> None:
    """What `report_odometry` prints and writes. table: `[n, 17]`, index and motion of each readable pair."""
    if not np.isfinite(table).all():
        bad = dataset.samples[int(table[~np.isfinite(table).all(1)][0, 0])]
        raise InputError(f"{about['checkpoint']}: predicts a motion that is not finite at {bad}; train it again")
    stretches = find_stretches(dataset, table)
    is_metric = model.settings.metres_per_unit is not None
    scores = [score_stretch(each, is_metric) for each in stretches]
    result = {"unit": "metres" if is_metric else "unknown", "sequences": scores, "mean": average(scores)}
    result |= {"skipped_pairs": len(dataset.samples) - len(table)} | about
    notes = []
    try:
        write_text(out / "odometry.json", json.dumps(result, indent=2) + "\n")
        for stretch, score in zip(stretches, scores, strict=True):
            write_trajectories(out / "odometry", stretch)
            if has_matplotlib():
                notes += draw(
                    out / "odometry" / file_name(stretch), stretch.name, stretch.truth, stretch.estimate, score
                )
    except OSError as error:
        raise InputError(f"{out}: the results cannot be written ({error.strerror}); choose another --out") from error
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
    scores[TRIVIAL] = {key: trivial[key] for key in ("ate_5_frames", *ALIGNMENTS) if key not in METRIC}
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
    if TRIVIAL in scores[0]:
        result[TRIVIAL] = average([score[TRIVIAL] for score in scores])
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


def draw(stem: Path, name: str, truth: np.ndarray, estimate: np.ndarray, score: Mapping) -> list[str]:
    """Plot a trajectory and, where it has segments, their errors; alignments none and 7dof, if `score` has them.

    Files begin with `stem`. Returns what could not be drawn, in words. Raises InputError without matplotlib, OSError.
    """
    shown = [alignment for alignment in ("none", "7dof") if score.get(alignment) is not None]
    estimates = {f"estimate, alignment {each}": align(truth, estimate, each)[0] for each in shown}
    plot_ways(stem.with_name(f"{stem.name}_way"), truth, estimates, name)
    per_length = {f"alignment {each}": score[each]["per_length"] for each in shown if score[each]["per_length"]}
    if not per_length:
        return [f"no plot of errors over length of {name}: it is shorter than any segment"]
    plot_segment_errors(stem.with_name(f"{stem.name}_errors"), per_length, name)
    return []


def format_scores(scores: Sequence[Mapping], means: Mapping | None = None) -> str:
    """Scores as a table for people: a block for each sequence, a line for each alignment."""
    lines = [f"\n{'alignment':<14}" + "".join(f"{heading:>16}" for heading, _, _ in COLUMNS)]
    for score in scores[:MOST_BLOCKS]:
        lines += [
            f"{score['name']}: {count(score['frames'], 'frame')}, {score['distance_m']:.1f} m",
            *format_block(score),
        ]
    if len(scores) > MOST_BLOCKS:
        lines.append(f"... {count(len(scores) - MOST_BLOCKS, 'more sequence')} in odometry.json")
    if means is not None and len(scores) > 1:
        lines += [f"mean of {count(len(scores), 'sequence')}", *format_block(means)]
    if any("-" in line.split() for line in lines):
        lines.append("-: unknown; t_rel and r_rel need a way that is longer than a segment (100 m and more)")
    return "\n".join(lines)


def shorten(notes: list[str]) -> list[str]:
    """The first of many notes, and how many there are."""
    return notes if len(notes) <= MOST_BLOCKS else [*notes[:1], f"... and {len(notes) - 1} more like this"]


def format_block(score: Mapping) -> list[str]:
    """The lines of one sequence, or of the mean."""
    lines = []
    for alignment in ALIGNMENTS:
        if alignment not in score:
            continue
        if score[alignment] is None:
            reason = "the unit of the estimate is unknown" if alignment in METRIC else "there is no motion to scale"
            lines.append(f"  {alignment:<12}  {reason}")
            continue
        values = ((score[alignment].get(key), digits) for _, key, digits in COLUMNS)
        cells = ("-" if value is None else f"{value:.{digits}f}" for value, digits in values)
        lines.append(f"  {alignment:<12}" + "".join(f"{cell:>16}" for cell in cells))
    short = score["ate_5_frames"]
    lines.append(f"  5-frame ATE {short['mean_m']:.4f} +- {short['std_m']:.4f} m, each 5 frames scaled on their own")
    if TRIVIAL in score:
        lines += ["  straight ahead at constant speed, without any image:", *format_block(score[TRIVIAL])]
    return lines
