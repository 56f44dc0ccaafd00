"""Two models on the same images: the mean of their differences, and how sure its sign is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from featdepth.cards.content import HIGHER_IS_BETTER, MODEL_SCALES, Results, bounds, number
from featdepth.metrics.depth import METRICS
from featdepth.metrics.intervals import paired_interval


def compare(this: Results, other: Results, flip: str) -> dict:
    """Paired comparisons of all scores that both models have, on the images that both have; flip: "plain" or "flip".

    `{"images", "drives", "parts": [{"name", "is_detail", "rows": [row]}]}`; for the rows see `paired_row`.
    """
    places = {sample: place for place, sample in enumerate(other.samples)}
    this = this.take([place for place, sample in enumerate(this.samples) if sample in places])
    other = other.take([places[sample] for sample in this.samples])
    parts = [
        {"name": name, "is_detail": False, "rows": list(metric_rows(this, other, f"{name}.{flip}"))}
        for name in MODEL_SCALES
    ]
    for one, two in zip(this.details, other.details, strict=True):
        rows = [
            paired_row(name, values, two.rows[name], this.drives, one.higher_is_better, drop_missing=True)
            for name, values in one.rows.items()
        ]
        parts.append({"name": one.title, "is_detail": True, "rows": [row for row in rows if row["count"]]})
    return {
        "images": len(this.samples),
        "drives": len(set(this.drives)),
        "parts": [part for part in parts if part["rows"]],
    }


def metric_rows(this: Results, other: Results, column: str) -> Iterator[dict]:
    """A row for each of METRICS; none where one of the models has no such scores."""
    if np.isnan(this.table[column]).all() or np.isnan(other.table[column]).all():
        return
    for place, metric in enumerate(METRICS):
        values = this.table[column][:, place], other.table[column][:, place]
        yield paired_row(metric, *values, this.drives, metric in HIGHER_IS_BETTER)


def paired_row(
    name: str,
    this: np.ndarray,
    other: np.ndarray,
    drives: Sequence[str],
    higher_is_better: bool,
    drop_missing: bool = False,
) -> dict:
    """`{"name", "this", "other", "mean", "images", "drives", "count", "better"}` of two models' scores `[N]`.

    this, other: the models' means over the `count` images; mean: of the differences this - other, with 95 % intervals
    over images and over drives (None: there is none); better: "this" or "other" where the interval over drives excludes
    zero, else "undecided". drop_missing: leave out images of which one has no score.
    """
    if drop_missing:
        both = ~np.isnan(this) & ~np.isnan(other)
        this, other, drives = this[both], other[both], np.array(drives)[both]
    over_images, over_drives = paired_interval(this, other), paired_interval(this, other, drives)
    better = "undecided"
    if over_drives.excludes_zero:
        better = "this" if (over_drives.mean > 0) == higher_is_better else "other"
    return {
        "name": name,
        "this": number(this.mean()) if len(this) else None,
        "other": number(other.mean()) if len(other) else None,
        "mean": number(over_images.mean),
        "images": bounds(over_images),
        "drives": bounds(over_drives),
        "count": over_images.count,
        "better": better,
    }


def format_comparison(against: dict) -> str:
    """The comparison as a table for people."""
    lines = [
        f"\nagainst {against['model']['checkpoint']}: {against['images']} images of {against['drives']} drives; "
        "differences with their 95 % intervals over drives",
    ]
    for part in against["parts"]:
        lines.append(f"{part['name'].replace('_', '-'):<28}{'this':>10}{'other':>10}{'difference':>12}")
        for row in part["rows"]:
            numbers = [f"{row[key]:.4f}" if row[key] is not None else "-" for key in ("this", "other", "mean")]
            interval = "no interval" if row["drives"] is None else "{:.4f} to {:.4f}".format(*row["drives"])
            lines.append(
                f"  {row['name']:<26}{numbers[0]:>10}{numbers[1]:>10}{numbers[2]:>12}  {interval:<20} {row['better']}"
            )
    return "\n".join(lines)
