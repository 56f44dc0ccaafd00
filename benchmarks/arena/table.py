"""The arena's table: means, differences from the first competitor with intervals, and costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.measure import Column
from featdepth.metrics.intervals import Interval, crossed_interval

IMAGE_COLUMNS = [
    Column("abs_rel", "abs_rel", 4),
    Column("metric_abs_rel", "metric abs_rel", 4),
    Column("edge_accuracy", "edge accuracy, px", 3),
    Column("edge_completeness", "edge completeness, px", 3),
    Column("fscore", "F-score, 0.5 m", 3),
]
SIZES = Column("other_sizes", "other sizes / own", 3)  # abs_rel there in units of that at the training size
SEQUENCE_COLUMNS = [
    Column(f"{prefix}{key}", f"{title}{unit}", 4)
    for prefix, title in (("", "aligned"), ("network_", "network"))
    for key, unit in (("ate", " ATE, m"), ("rotation", " rotation, deg"), ("translation", " translation, m"))
]
COSTS = [
    Column("steps", "steps", 0),
    Column("step_seconds", "s / step", 3),
    Column("seconds", "s of training, in all", 0),
    Column("memory_gb", "peak memory, GB", 2),
    Column("millions", "parameters, 1e6", 2),
    Column("gflop", "GFLOP of an image's depth", 2),
]


class Observation(NamedTuple):
    """Scores of one image or sequence by one trained model."""

    run: str  # ground and seed
    drive: str  # ground and drive
    scores: dict[str, float]


def summarise(results: dict[str, list[dict]]) -> dict[str, dict]:
    """By competitor `means`, `differences` from the first one (see `Interval`) and `costs`, of their results."""
    observed = {name: observations(own) for name, own in results.items()}
    first = next(iter(observed))
    rows = {}
    for name, own in results.items():
        means, differences = {}, {}
        for column in (*IMAGE_COLUMNS, *SEQUENCE_COLUMNS):
            if (value := mean_of(observed[name], column.key)) is not None:
                means[column.key] = value
                if name != first and mean_of(observed[first], column.key) is not None:
                    differences[column.key] = difference(observed[name], observed[first], column.key)._asdict()
        if (value := mean_of(observed[name], SIZES.key)) is not None:
            means[SIZES.key] = value / means["abs_rel"]
        rows[name] = {"means": means, "differences": differences, "costs": costs(own)}
    return rows


def observations(results: Sequence[dict]) -> dict[tuple, Observation]:
    """All images and sequences of a competitor's runs, by ground, seed and name."""
    found = {}
    for result in results:
        run = f"{result['ground']} {result['seed']}"
        for name, scores in (*result["images"].items(), *result["sequences"].items()):
            # Images are "<drive> <frame> <side>", sequences "<drive> <first>-<last>".
            drive = f"{result['ground']} {name.split(' ')[0]}"
            found[run, name] = Observation(run, drive, scores)
    return found


def mean_of(observed: dict[tuple, Observation], key: str) -> float | None:
    """The mean over what has the score; None where nothing has."""
    values = [each.scores.get(key, math.nan) for each in observed.values()]
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else None


def difference(own: dict[tuple, Observation], first: dict[tuple, Observation], key: str) -> Interval:
    """Own score minus the first competitor's, over the images or sequences that both have scored."""
    pairs = [(own[name], first[name]) for name in own if name in first]
    values = [mine.scores.get(key, math.nan) - other.scores.get(key, math.nan) for mine, other in pairs]
    known = [place for place, value in enumerate(values) if not math.isnan(value)]
    runs, drives = ([getattr(pairs[place][0], group) for place in known] for group in ("run", "drive"))
    return crossed_interval([values[place] for place in known], drives, runs)


def costs(results: Sequence[dict]) -> dict[str, float]:
    """Means of what the runs cost; peak memory is the largest."""
    found = {}
    for key in ("steps", "step_seconds", "seconds", "gflop", "parameters", "memory_gb"):
        values = [result[key] for result in results if result.get(key) is not None]
        if values:
            found[key] = max(values) if key == "memory_gb" else float(np.mean(values))
    if "parameters" in found:
        found["millions"] = found.pop("parameters") / 1e6
    return found


def format_tables(rows: dict[str, dict], title: str) -> str:
    """The tables in Markdown."""
    columns = [*IMAGE_COLUMNS, SIZES, *SEQUENCE_COLUMNS]
    columns = [column for column in columns if any(column.key in row["means"] for row in rows.values())]
    first = next(iter(rows))
    compared = [column for column in columns if any(column.key in row["differences"] for row in rows.values())]
    parts = [title, format_table(columns, {name: cells(row["means"], columns) for name, row in rows.items()})]
    if compared:
        parts.append(f"Difference from {first} in % of its mean, 95 % intervals over drives and runs, bold without 0:")
        base = rows[first]["means"]
        differences = {
            name: [relative(row["differences"].get(column.key), base.get(column.key)) for column in compared]
            for name, row in list(rows.items())[1:]
        }
        parts.append(format_table(compared, differences))
        reasons = {each["reason"] for row in rows.values() for each in row["differences"].values() if each["reason"]}
        parts += [f"No interval: {reason}." for reason in sorted(reasons)]
    parts += ["Cost:", format_table(COSTS, {name: cells(row["costs"], COSTS) for name, row in rows.items()})]
    return "\n\n".join(parts) + "\n"


def format_table(columns: Sequence[Column], lines: dict[str, list[str]]) -> str:
    """A table in Markdown."""
    heading = [["", *(column.title for column in columns)], ["---", *["---:"] * len(columns)]]
    return "\n".join(f"| {' | '.join(line)} |" for line in (*heading, *([name, *own] for name, own in lines.items())))


def cells(values: dict[str, float], columns: Sequence[Column]) -> list[str]:
    """The figures of a line; a dash where there is none."""
    return [f"{values[column.key]:.{column.digits}f}" if column.key in values else "-" for column in columns]


def relative(interval: dict | None, base: float) -> str:
    """A difference in % of `base`."""
    if interval is None:
        return "-"
    mean, low, high = (100 * interval[key] / base for key in ("mean", "low", "high"))
    if interval["reason"]:
        return f"{mean:+.1f}"
    text = f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"
    return f"**{text}**" if low > 0 or high < 0 else text
