"""Measures how far the picture moves in each sample, ranks those of training, and shows how motion is distributed.

python -m featdepth.data.motion --config configs/kitti.yaml [key=value ...] [--out motion.csv] [--workers N]

Every pair of frames of training and validation is measured once and kept in data.cache, or in the user's cache folder;
an interrupted measurement continues. Then `data.min_motion` (pixels at the training width) leaves out static samples.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from featdepth.config import Config, load_config, parse_arguments
from featdepth.config.reading import mixed_configs
from featdepth.console import Display, count
from featdepth.data import build_dataset
from featdepth.data.dataset import SKIPPING_ADVICE, FrameDataset
from featdepth.data.motion_record import MotionRecord, Pair
from featdepth.data.selection import pairs_of, smallest_distance, smallest_motion
from featdepth.errors import InputError, run_program
from featdepth.files import write_text
from featdepth.two_view.matching import Features, find_features, match_features, motion
from featdepth.two_view.opencv import opencv

MEASURED_WIDTH = 320  # pixels: motion is measured at no more than this
RUN = 32  # pairs that are measured in one go; frames that follow each other are then decoded once
MOTION_BINS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, math.inf)  # pixels
LONGEST_BAR = 40  # characters


def main() -> None:
    arguments = parse_arguments(None, __doc__, add_options)
    opencv()  # said before any work
    config = load_config(arguments.config, arguments.overrides, training=False)
    workers = config.data.workers if arguments.workers is None else arguments.workers
    rows = []
    for each in (config, *mixed_configs(config)):
        dataset = build_everything(each, "train")
        record = MotionRecord(dataset.config)
        measure(dataset, record, workers)
        rows += [
            (str(sample), smallest_motion(dataset, sample, record), smallest_distance(dataset, sample))
            for sample in dataset.samples
        ]
    validation = build_everything(config, "validation")  # what is mixed in has no part in it
    measure(validation, MotionRecord(validation.config), workers)
    if all(math.isnan(row[1]) for row in rows):
        raise InputError("data.frames: nothing was recognised in any neighbour of any sample; look at the pictures")
    write_ranking(rows, Path(arguments.out))
    print(histogram(np.array([row[1] for row in rows]), config.data.width))
    print(f"all samples, from the one that moves least to the one that moves most: {arguments.out}")


def build_everything(config: Config, part: str) -> FrameDataset:
    """A part of the configuration's own data, with its static samples."""
    data = replace(config.data, min_motion=None, min_distance=None, mix=[], drive_balance=0.0)
    return build_dataset(replace(config, data=data), part, with_depth=False)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", default="motion.csv", metavar="FILE", help="where the ranking goes (default: %(default)s)"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="processes that decode (default: data.workers)")


class PairRuns(Dataset):
    """Pairs of frames of a data set, RUN at a time, to be measured by loader processes."""

    def __init__(self, dataset: FrameDataset, pairs: Sequence[tuple[Pair, object]]) -> None:
        """pairs: of paths, each with its camera; best in the order of the frames."""
        self.dataset = dataset
        self.runs = [pairs[start : start + RUN] for start in range(0, len(pairs), RUN)]

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        """`index`, and the motion float64 `[N]` of each of the run's pairs (pixels at the training width)."""
        known: dict[str, Features | None] = {}
        motions = []
        for pair, camera in self.runs[index]:
            for path in pair:
                if path not in known:
                    known[path] = self.features(path, camera)
            one, other = (known[path] for path in pair)
            motions.append(math.nan if one is None or other is None else motion(match_features(one, other)))
        return index, torch.tensor(motions, dtype=torch.float64) * self.scale()

    def scale(self) -> float:
        """Pixels of the training width in one of those that are measured in."""
        return max(1.0, self.dataset.size[1] / MEASURED_WIDTH)

    def features(self, path: str, camera: object) -> Features | None:
        """The corners of a frame; None where it cannot be read and `data.skip_bad_frames` allows that."""
        try:
            frame = self.dataset.load_frame(path, camera)
        except InputError as error:
            if not self.dataset.config.skip_bad_frames:
                raise InputError(f"{error}{SKIPPING_ADVICE}") from error
            return None
        height, width = (max(16, round(side / self.scale())) for side in self.dataset.size)
        grey = frame.float().mean(0)[None, None]
        small = functional.interpolate(grey, (height, width), mode="bilinear", antialias=True, align_corners=False)
        return find_features(small[0, 0].round().byte().numpy())


def measure(dataset: FrameDataset, record: MotionRecord, workers: int) -> None:
    """Measure what the record lacks of the samples' pairs, and add it as it comes."""
    cameras = {
        tuple(sorted(pair)): dataset.camera_of(sample)
        for sample in dataset.samples
        for pair in pairs_of(dataset, sample)
    }
    if not cameras:
        raise InputError("data.frames: there is no neighbour in time, so nothing moves; add some, as in [0, -1, 1]")
    missing = [(pair, camera) for pair, camera in cameras.items() if record.find(pair) is None]
    runs = PairRuns(dataset, missing)
    with Display("motion", len(missing), "pairs") as progress:
        for index, motions in DataLoader(runs, batch_size=None, num_workers=workers):
            record.add({pair: value for (pair, _), value in zip(runs.runs[index], motions.tolist(), strict=True)})
            progress.update(len(motions))
    measured = count(len(missing), "pair of frames", "pairs of frames")
    known = len(cameras) - len(missing)
    print(f"{measured} measured, {known} {'was' if known == 1 else 'were'} known; kept in {record.path}")


def write_ranking(rows: list[tuple[str, float, float]], path: Path) -> None:
    """A csv file of samples, pixels and metres, sorted by pixels and then by name; unknown values are empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["sample", "motion_pixels", "distance_metres"])
    for name, pixels, metres in sorted(rows, key=lambda row: (math.isnan(row[1]), row[1], row[0])):
        writer.writerow([name, *("" if math.isnan(value) else f"{value:.3f}" for value in (pixels, metres))])
    try:
        write_text(path, text.getvalue())
    except OSError as error:
        raise InputError(f"{path}: the ranking cannot be written ({error.strerror}); choose another --out") from error


def histogram(motions: np.ndarray, width: int) -> str:
    """How many samples move by how many pixels, in lines for people; NaN: nothing was recognised."""
    known = motions[~np.isnan(motions)]
    low, middle, high = np.quantile(known, [0.05, 0.5, 0.95])
    lines = [
        f"motion of {count(len(motions), 'sample')} in pixels at {width} wide: median {middle:.2f}, "
        f"90 % between {low:.2f} and {high:.2f}"
    ]
    counts, _ = np.histogram(known, MOTION_BINS)
    for first, last, number in zip(MOTION_BINS, MOTION_BINS[1:], counts.tolist(), strict=False):
        name = f"{first:g} and more" if last == math.inf else f"{first:g} to {last:g}"
        bar = "#" * math.ceil(LONGEST_BAR * number / max(counts))
        lines.append(f"  {name:>12} {number:>8} {number / len(motions):>6.1%}  {bar}".rstrip())
    if len(known) < len(motions):
        lines.append(f"  {'unknown':>12} {len(motions) - len(known):>8}  nothing in common with a neighbour")
    return "\n".join(lines)


if __name__ == "__main__":
    run_program(main)
