"""Confidence intervals: closed forms, few and unequal drives, and what a 95 % interval has to cover."""

from __future__ import annotations

import json
import math
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from conftest import REPOSITORY, call_program, succeeded

from featdepth.metrics.intervals import (
    crossed_interval,
    degrees_of_freedom,
    mean_interval,
    paired_interval,
    t_quantile,
)

# Student's t as printed in tables.
TABLE = {
    (0.95, 5): 2.015048373,
    (0.975, 1): 12.706204736,
    (0.975, 2): 4.302652730,
    (0.975, 7): 2.364624252,
    (0.975, 27): 2.051830516,
    (0.975, 120): 1.979930405,
    (0.99, 10): 2.763769458,
    (0.995, 2): 9.924843201,
    (0.9995, 1): 636.619248769,
    (0.9995, 30): 3.645958635,
}


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    return import_module("intervals")


@pytest.mark.parametrize(("probability", "degrees"), TABLE)
def test_quantiles_of_t_are_those_of_the_tables(probability: float, degrees: int) -> None:
    assert t_quantile(probability, degrees) == pytest.approx(TABLE[probability, degrees], rel=1e-8)


def test_quantiles_of_t_at_its_ends() -> None:
    assert t_quantile(0.975, 1e6) == pytest.approx(1.959964 + 2.372e-6, abs=1e-7)  # nearly the normal distribution
    assert t_quantile(0.5, 3.3) == 0
    one_degree = math.tan(math.pi * (0.87 - 0.5))  # Cauchy's distribution
    assert t_quantile(0.87, 1.0) == pytest.approx(one_degree, rel=1e-12)
    assert t_quantile(0.975, 4) > t_quantile(0.975, 4.5) > t_quantile(0.975, 5)
    for probability, degrees in ((1.0, 5), (0.2, 5), (0.9, 0.5), (0.9, math.nan)):
        with pytest.raises(ValueError, match="no quantile"):
            t_quantile(probability, degrees)


def test_interval_over_images_is_students() -> None:
    found = mean_interval([1.0, 2.0, 3.0, 4.0])
    reach = 3.182446305 * math.sqrt(5 / 3) / 2
    assert (found.mean, found.low, found.high) == pytest.approx((2.5, 2.5 - reach, 2.5 + reach))
    assert (found.count, found.groups, found.level, found.reason) == (4, None, 0.95, None)
    assert found.degrees == pytest.approx(3)
    narrower = mean_interval([1.0, 2.0, 3.0, 4.0], level=0.5)
    assert found.low < narrower.low < narrower.high < found.high


def test_drives_of_one_size_count_as_their_means() -> None:
    values = np.random.default_rng(0).normal(size=(6, 5)) + np.arange(6)[:, None]
    over_drives = mean_interval(values.ravel(), np.repeat(list("abcdef"), 5))
    over_means = mean_interval(values.mean(1))
    assert over_drives[:3] == pytest.approx(over_means[:3])
    assert over_drives.degrees == pytest.approx(5) and (over_drives.count, over_drives.groups) == (30, 6)
    shuffled = np.random.default_rng(1).permutation(30)
    again = mean_interval(values.ravel()[shuffled], np.repeat(list("abcdef"), 5)[shuffled])
    assert again[:3] == pytest.approx(over_drives[:3])


def test_images_that_repeat_say_no_more() -> None:
    values, drives = np.array([1.0, 2.0, 4.0, 3.0]), ["a", "b", "c", "d"]
    once, often = mean_interval(values, drives), mean_interval(np.repeat(values, 50), np.repeat(drives, 50))
    assert often[:3] == pytest.approx(once[:3])
    over_images = mean_interval(np.repeat(values, 50))
    assert over_images.high - over_images.low < 0.2 * (often.high - often.low)


def test_the_mean_is_over_images_and_variance_over_drives_of_unequal_size() -> None:
    values, drives = [0.0, 0.0, 0.0, 1.0], ["a", "a", "a", "b"]
    found = mean_interval(values, drives)
    # Residual sums -0.75 and 0.75, divided by 1 - 3/4 and 1 - 1/4; two drives have one degree of freedom.
    error = math.sqrt(0.75**2 / 0.25 + 0.75**2 / 0.75) / 4
    assert found.mean == 0.25
    assert (found.low, found.high) == pytest.approx((0.25 - 12.706204736 * error, 0.25 + 12.706204736 * error))
    assert found.degrees == 1.0


def test_degrees_of_freedom_fall_with_unequal_sizes() -> None:
    """Against the definition: (trace A)² / trace A², A the variance as a quadratic form in independent images."""
    assert degrees_of_freedom(np.full(8, 1 / 8)) == pytest.approx(7)
    share = np.array([1, 2, 3, 10, 20]) / 36
    away_from_mean = np.eye(5) - share[:, None]
    form = away_from_mean @ np.diag(share) @ away_from_mean.T / np.sqrt(np.outer(1 - share, 1 - share))
    expected = np.trace(form) ** 2 / (form**2).sum()
    assert degrees_of_freedom(share) == pytest.approx(expected)
    assert 1 < expected < 4
    assert degrees_of_freedom(np.array([0.999, 0.001])) == 1


def test_paired_interval_is_of_the_differences() -> None:
    rng = np.random.default_rng(3)
    hardness, drives = rng.normal(size=40) * 5, np.repeat(np.arange(8), 5)
    better, worse = hardness + rng.normal(size=40) * 0.1, hardness + 1 + rng.normal(size=40) * 0.1
    found = paired_interval(better, worse, drives)
    assert found == mean_interval(better - worse, drives)
    assert found.mean == pytest.approx(-1, abs=0.1) and found.excludes_zero
    assert not paired_interval(better, better, drives).excludes_zero
    unpaired = mean_interval(better, drives)
    assert unpaired.high - unpaired.low > 5 * (found.high - found.low)  # what is hard for both cancels


def test_no_interval_has_a_reason_and_is_nan() -> None:
    cases = {
        "at least 2 drives, not 1": mean_interval([1.0, 2.0], ["a", "a"]),
        "at least 2 drives, not 0": mean_interval([], []),
        "at least 2 images, not 1": mean_interval([1.0]),
        "1 of 3 values are not finite": mean_interval([1.0, math.nan, 2.0], ["a", "b", "c"]),
        "2 of 3 values are not finite": mean_interval([math.inf, -math.inf, 2.0], drop_missing=True),
    }
    for reason, found in cases.items():
        assert reason in found.reason
        assert math.isnan(found.low) and math.isnan(found.high) and not found.excludes_zero
    assert cases["at least 2 drives, not 1"].mean == 1.5 and cases["at least 2 drives, not 1"].groups == 1
    assert math.isnan(cases["1 of 3 values are not finite"].mean)


def test_missing_values_are_dropped_only_when_asked() -> None:
    values, drives = [1.0, math.nan, 3.0, 5.0], ["a", "a", "b", "c"]
    assert mean_interval(values, drives, drop_missing=True) == mean_interval([1.0, 3.0, 5.0], ["a", "b", "c"])
    other = [1.0, 1.0, math.nan, 1.0]
    found = paired_interval(values, other, drives, drop_missing=True)
    assert (found.count, found.mean) == (2, 2)


def test_lengths_and_levels_are_checked() -> None:
    with pytest.raises(ValueError, match="groups 1"):
        mean_interval([1.0, 2.0], ["a"])
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_interval([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="level 95"):
        mean_interval([1.0, 2.0], level=95)


@pytest.mark.parametrize("drives", ["8 drives of 7 to 60 images", "the Eigen split's 28 drives"])
@pytest.mark.parametrize("errors", ["normal", "heavy tails", "skewed"])
def test_95_percent_intervals_over_drives_cover_no_difference(benchmark: ModuleType, drives: str, errors: str) -> None:
    comparisons = 400
    found = benchmark.coverage(benchmark.SIZES[drives], benchmark.ERRORS[errors], comparisons, seed=2)
    chance = 3 * 100 * math.sqrt(0.95 * 0.05 / comparisons)  # three standard deviations of a count of 95 %
    assert 95 - chance < found["drives"] < 95 + chance
    assert found["images"] < 70  # images of a drive taken as independent
    assert found["bootstrap"] < found["drives"]
    if drives.startswith("8"):
        assert found["bootstrap"] < 91


def test_benchmark_writes_its_table(benchmark: ModuleType, tmp_path: Path) -> None:
    result = succeeded(call_program(benchmark.main, "--repeat", 10, "--json", tmp_path / "figures.json"))
    rows = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert len(rows) == len(benchmark.SIZES) * len(benchmark.ERRORS)
    for name, row in rows.items():
        assert name in result.out and all(0 <= row[key] <= 100 for key in ("drives", "images", "bootstrap"))
        assert 0.5 < row["width"] < 3


def test_drives_and_runs_both_make_a_mean_uncertain() -> None:
    random = np.random.default_rng(3)
    of_drive, of_run = random.normal(size=6), random.normal(size=4)
    drives, runs = np.repeat(list("abcdef"), 4), np.tile(list("wxyz"), 6)
    values = (of_drive[:, None] + of_run).ravel()
    found = crossed_interval(values, drives, runs)
    # Variances of the two means, and that of values as if all 24 were independent, which both of them contain.
    both = of_drive.var(ddof=1) / 6 + of_run.var(ddof=1) / 4
    reach = t_quantile(0.975, 3) * math.sqrt(both - values.var(ddof=1) / 24)
    assert found[:3] == pytest.approx((values.mean(), values.mean() - reach, values.mean() + reach))
    assert (found.count, found.groups, found.degrees) == (24, 6, pytest.approx(3))
    only_drives = crossed_interval(np.repeat(of_drive, 4), drives, runs)
    over_drives = mean_interval(np.repeat(of_drive, 4), drives)
    assert only_drives.high - only_drives.low > over_drives.high - over_drives.low  # of 3 degrees of freedom, not 5
    one_run = crossed_interval(values, drives, ["w"] * 24)
    assert "at least 2 runs" in one_run.reason and math.isnan(one_run.low) and one_run.mean == found.mean
