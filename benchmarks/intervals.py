"""How often a 95 % interval says that two equally good models differ: simulated comparisons without a true difference.

python benchmarks/intervals.py [--repeat 1000] [--seed 0] [--json FILE]

Each comparison is of two models on the same images; the difference of their errors has a part that all images of a
drive share, and noise of each image. 8 drives and the 28 of the Eigen split, of equal and of unequal size. Shown: how
often the interval covers the true difference, 0, in percent (over drives, over images as if they were independent, and
the percentile bootstrap of drives), and the width of the first in multiples of the true 95 % range of the mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from measure import Column, finish, heading, make_parser, start, table_line

from featdepth.data.kitti.eigen import eigen_split
from featdepth.metrics.intervals import Interval, paired_interval

SIZES = {
    "8 drives of 25 images": [25] * 8,
    "8 drives of 7 to 60 images": [7, 10, 13, 18, 24, 33, 44, 60],
    "28 drives of 25 images": [25] * 28,
    "the Eigen split's 28 drives": [len(samples) for samples in eigen_split()["test"].values()],
    "28 drives of 4 to 70 images": [round(size) for size in np.geomspace(4, 70, 28)],
}
DRIVE_SHARE = 0.3  # of the variance of a difference is common to the images of a drive
RESAMPLES = 1000  # of the percentile bootstrap
COLUMNS = [
    Column("drives", "drives, %", 1),
    Column("images", "images, %", 1),
    Column("bootstrap", "bootstrap, %", 1),
    Column("width", "width", 2),
]
Draw = Callable[[np.random.Generator, int], np.ndarray]


def normal(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.normal(size=count)


def heavy(rng: np.random.Generator, count: int) -> np.ndarray:
    """The difference of two log-normal errors: both models fail badly now and then, equally often."""
    spread = math.sqrt(2 * math.e * (math.e - 1))
    return (np.exp(rng.normal(size=count)) - np.exp(rng.normal(size=count))) / spread


def skewed(rng: np.random.Generator, count: int) -> np.ndarray:
    """One model is usually a little better and seldom much worse: a gamma distribution of skewness 1, about 0."""
    return rng.gamma(4, size=count) / 2 - 2


def very_skewed(rng: np.random.Generator, count: int) -> np.ndarray:
    """The same, more so: an exponential distribution (skewness 2), about 0."""
    return rng.exponential(size=count) - 1


ERRORS: dict[str, Draw] = {"normal": normal, "heavy tails": heavy, "skewed": skewed, "very skewed": very_skewed}


def main() -> None:
    parser = make_parser(__doc__, repeat=1000, on_gpu=False)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    result = start(torch.device("cpu"), {"comparisons": arguments.repeat, "seed": arguments.seed})
    result["rows"] = {}
    print(f"\n{heading(COLUMNS)}")
    for title, sizes in SIZES.items():
        for errors, draw in ERRORS.items():
            name = f"{title}, {errors}"
            result["rows"][name] = coverage(sizes, draw, arguments.repeat, arguments.seed)
            print(table_line(name, result["rows"][name], COLUMNS), flush=True)
    finish(result, arguments)


def coverage(sizes: list[int], draw: Draw, comparisons: int, seed: int) -> dict[str, float]:
    """Of so many comparisons of equally good models, how many percent of each kind of interval cover 0."""
    rng = np.random.default_rng(seed)
    drives = np.repeat(np.arange(len(sizes)), sizes)
    spread = math.sqrt(DRIVE_SHARE * np.square(sizes).sum() + (1 - DRIVE_SHARE) * len(drives)) / len(drives)
    covered, widths = [], []
    for _ in range(comparisons):
        model_a, model_b = simulate(rng, drives, draw)
        over_drives = paired_interval(model_a, model_b, drives)
        bootstrapped = percentile_bootstrap(rng, model_a - model_b, drives)
        covered.append([*map(covers_zero, (over_drives, paired_interval(model_a, model_b))), bootstrapped])
        widths.append((over_drives.high - over_drives.low) / (2 * 1.96 * spread))
    shares = 100 * np.mean(covered, axis=0)
    return dict(zip(("drives", "images", "bootstrap"), shares.tolist(), strict=True)) | {
        "width": float(np.mean(widths))
    }


def simulate(rng: np.random.Generator, drives: np.ndarray, draw: Draw) -> tuple[np.ndarray, np.ndarray]:
    """Errors `[N]` of two equally good models on images of these drives; hard drives and images are hard for both."""
    hardness = rng.normal(size=drives[-1] + 1)[drives] + rng.normal(size=len(drives))
    common, own = draw(rng, drives[-1] + 1)[drives], draw(rng, len(drives))
    return hardness, hardness + math.sqrt(DRIVE_SHARE) * common + math.sqrt(1 - DRIVE_SHARE) * own


def covers_zero(interval: Interval) -> bool:
    return interval.low <= 0 <= interval.high


def percentile_bootstrap(rng: np.random.Generator, values: np.ndarray, drives: np.ndarray) -> bool:
    """Whether 0 lies in the middle 95 % of the means of as many drives, drawn with replacement."""
    sums, sizes = np.bincount(drives, values), np.bincount(drives)
    drawn = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=RESAMPLES)
    low, high = np.quantile(drawn @ sums / (drawn @ sizes), [0.025, 0.975])
    return bool(low <= 0 <= high)


if __name__ == "__main__":
    main()
