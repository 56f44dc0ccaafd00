"""How sure a mean score is: confidence intervals over images, over drives, and of the difference of two models.

Images of one drive resemble each other, so that a thousand of them say less than a thousand of a thousand drives. The
interval over drives takes each drive as one observation: the mean over images is a ratio of drive sums to drive sizes,
and its variance comes from the drives' sums of residuals, corrected for few drives and for drives of unequal size
(Bell and McCaffrey, 2002). No interval here contains the spread over training seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

NODES, WEIGHTS = np.polynomial.legendre.leggauss(64)  # of Gauss's quadrature on [-1, 1]
NEWTON_STEPS = 60


class Interval(NamedTuple):
    """A mean and its confidence interval, in the unit of the values; `reason` says why a bound is NaN."""

    mean: float
    low: float
    high: float
    count: int  # images that were averaged
    groups: int | None  # drives that they come from; None: an interval over images
    degrees: float  # of freedom of Student's t: one less than the drives, fewer where their sizes differ
    level: float  # 0.95: a 95 % interval
    reason: str | None  # None where there is an interval

    @property
    def excludes_zero(self) -> bool:
        """Whether all of the interval lies on one side of 0; False where there is no interval."""
        return self.low > 0 or self.high < 0


def mean_interval(
    values: Sequence[float] | np.ndarray,
    groups: Sequence[str] | None = None,
    level: float = 0.95,
    drop_missing: bool = False,
) -> Interval:
    """The mean of `values` `[N]`, one an image, and its interval at `level` (0 to 1, both excluded).

    groups: the drive of each image `[N]`; the interval is then over drives and holds however much the images of a
    drive resemble each other. None: over images, as if they were independent (Student's t interval).
    drop_missing: leave out NaN, the score of an image without the pixels in question; otherwise NaN makes all NaN, as
    infinite values do. With fewer than two drives (or images) low and high are NaN. `reason` says so each time.
    Raises ValueError where `values` and `groups` differ in length, and for a `level` that is not between 0 and 1.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or (groups is not None and len(groups) != len(values)):
        raise ValueError(f"values {values.shape} and groups {None if groups is None else len(groups)} must be [N]")
    if not 0 < level < 1:
        raise ValueError(f"level {level}: has to be between 0 and 1")
    groups = None if groups is None else np.asarray(groups)
    if drop_missing:
        kept = ~np.isnan(values)
        values, groups = values[kept], None if groups is None else groups[kept]
    sizes, residuals, mean = drive_sums(values, groups)
    drives = None if groups is None else len(sizes)
    reason = why_not(values, len(sizes), "images" if groups is None else "drives")
    if reason is not None:
        return Interval(mean, math.nan, math.nan, len(values), drives, math.nan, level, reason)
    share = sizes / len(values)
    error = math.sqrt((residuals**2 / (1 - share)).sum()) / len(values)
    degrees = degrees_of_freedom(share)
    reach = t_quantile((1 + level) / 2, degrees) * error
    return Interval(mean, mean - reach, mean + reach, len(values), drives, degrees, level, None)


def paired_interval(
    values_a: Sequence[float] | np.ndarray,
    values_b: Sequence[float] | np.ndarray,
    groups: Sequence[str] | None = None,
    level: float = 0.95,
    drop_missing: bool = False,
) -> Interval:
    """The mean difference a - b of two models' scores `[N]` of the same images in the same order, and its interval.

    All else as for `mean_interval`; an image that is missing for one model is missing. Raises ValueError where the
    lengths differ.
    """
    values_a, values_b = np.asarray(values_a, dtype=np.float64), np.asarray(values_b, dtype=np.float64)
    if values_a.shape != values_b.shape:
        raise ValueError(f"scores of {values_a.shape} and {values_b.shape} images cannot be paired")
    return mean_interval(values_a - values_b, groups, level, drop_missing)


def crossed_interval(
    values: Sequence[float] | np.ndarray, drives: Sequence[str], runs: Sequence[str], level: float = 0.95
) -> Interval:
    """As `mean_interval`, where those of a drive resemble each other, and those of a training run too.

    drives, runs: of each of the values `[N]`. The variance is that over drives plus that over runs minus that over what
    both have in common (Cameron, Gelbach and Miller, 2011), and no less than either of the former; the degrees of
    freedom are the fewer. Low and high are NaN with fewer than two drives or runs.
    """
    over_drives, over_runs = (mean_interval(values, groups, level) for groups in (drives, runs))
    if over_drives.reason is not None:
        return over_drives
    if over_runs.reason is not None:
        return over_runs._replace(reason="an interval over drives and runs needs at least 2 runs, not 1")
    common = mean_interval(values, [f"{drive}\0{run}" for drive, run in zip(drives, runs, strict=True)], level)
    ways = over_drives, over_runs, common
    variances = [((way.high - way.mean) / t_quantile((1 + level) / 2, way.degrees)) ** 2 for way in ways]
    variance = max(*variances[:2], variances[0] + variances[1] - variances[2])
    degrees = min(over_drives.degrees, over_runs.degrees)
    reach = t_quantile((1 + level) / 2, degrees) * math.sqrt(variance)
    return over_drives._replace(low=over_drives.mean - reach, high=over_drives.mean + reach, degrees=degrees)


def drive_sums(values: np.ndarray, groups: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, float]:
    """Images `[G]` of each drive, the sums of their residuals `[G]`, and the mean. Each image a drive for None."""
    if len(values) == 0:
        return np.zeros(0), np.zeros(0), math.nan
    with np.errstate(invalid="ignore"):  # what is not finite shows in the mean
        mean = values.mean()
        residuals = values - mean
    if groups is None:
        return np.ones(len(values)), residuals, float(mean)
    _, drive, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    return sizes, np.bincount(drive.ravel(), residuals), float(mean)


def why_not(values: np.ndarray, groups: int, name: str) -> str | None:
    """Why there can be no interval; None where there can."""
    wrong = len(values) - int(np.isfinite(values).sum())
    if wrong:
        return f"{wrong} of {len(values)} values are not finite"
    return None if groups >= 2 else f"an interval needs at least 2 {name}, not {groups}"


def degrees_of_freedom(share: np.ndarray) -> float:
    """Satterthwaite's degrees of freedom of the variance over drives that have these shares `[G]` of the images.

    G - 1 for drives of one size. Otherwise fewer, at least 1: a drive that has most of the images decides alone. The
    expression is Bell and McCaffrey's (trace A)² / trace A², A the variance as a quadratic form in the drives' sums.
    """
    part = share**2 / (1 - share)
    return max(1.0, float(1 / ((share**2).sum() + part.sum() ** 2 - (part**2).sum())))


@lru_cache
def t_quantile(probability: float, degrees: float) -> float:
    """The value below which Student's t with `degrees` >= 1 of freedom falls with `probability` (0.5 to 1, excluded).

    With t = sqrt(degrees) · tan(angle) the density becomes cos(angle)^(degrees - 1), up to its constant. Its integral
    from 0 grows ever slower, so that Newton's steps from 0 approach the angle from below. Raises ValueError.
    """
    if not 0.5 <= probability < 1 or not degrees >= 1:
        raise ValueError(f"no quantile at probability {probability} and {degrees} degrees of freedom")
    constant = math.exp(math.lgamma(degrees / 2) - math.lgamma((degrees + 1) / 2)) * math.sqrt(math.pi)
    angle = 0.0
    for _ in range(NEWTON_STEPS):
        reached = angle / 2 * (WEIGHTS * np.cos(angle / 2 * (NODES + 1)) ** (degrees - 1)).sum()
        angle += ((probability - 0.5) * constant - reached) / math.cos(angle) ** (degrees - 1)
    return math.sqrt(degrees) * math.tan(angle)
