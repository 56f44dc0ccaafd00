"""Two models on the same images: the mean of their differences, and how sure its sign is."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from featdepth.console import count
from featdepth.evaluation.cards.content import MODEL_SCALES, paired
from featdepth.evaluation.cards.details import compare_sections
from featdepth.evaluation.scoring import Results
from featdepth.metrics.depth import METRICS
from featdepth.metrics.intervals import paired_interval


def compare(this: Results, other: Results, flip: str) -> dict:
    """Paired comparisons of all scores that both models have, on the images that both have; flip: "plain" or "flip".

    `{"images", "drives", "parts": [{"name", "is_detail", "rows": [row]}]}`; for the rows see `paired`.
    """
    places = {sample: place for place, sample in enumerate(other.samples)}
    this = this.take([place for place, sample in enumerate(this.samples) if sample in places])
    other = other.take([places[sample] for sample in this.samples])
    parts = [
        {"name": name, "is_detail": False, "rows": list(metric_rows(this, other, f"{name}.{flip}"))}
        for name in MODEL_SCALES
    ]
    return {
        "images": len(this.samples),
        "drives": len(set(this.drives)),
        "parts": [part for part in (*parts, *compare_sections(this, other)) if part["rows"]],
    }


def metric_rows(this: Results, other: Results, column: str) -> Iterator[dict]:
    """A row for each of METRICS; none where one of the models has no such scores."""
    if np.isnan(this.table[column]).all() or np.isnan(other.table[column]).all():
        return
    for place, metric in enumerate(METRICS):
        one, two = this.table[column][:, place], other.table[column][:, place]
        over_images, over_drives = paired_interval(one, two), paired_interval(one, two, this.drives)
        yield paired(metric, (one.mean(), two.mean()), over_images, over_drives)


def format_comparison(against: dict) -> str:
    """The comparison as a table for people."""
    images = f"{count(against['images'], 'image')} of {count(against['drives'], 'drive')}"
    lines = [
        f"\nagainst {against['model']['checkpoint']}: {images}; differences with their 95 % intervals over drives",
    ]
    if against["leakage"]["contaminated"]:
        lines.append(f"CONTAMINATED: the other was trained on {', '.join(against['leakage']['contaminated'])}")
    for part in against["parts"]:
        lines.append(f"{part['name'].replace('_', '-'):<28}{'this':>10}{'other':>10}{'difference':>12}")
        for row in part["rows"]:
            numbers = [f"{row[key]:.4f}" if row[key] is not None else "-" for key in ("this", "other", "mean")]
            interval = "no interval" if row["drives"] is None else "{:.4f} to {:.4f}".format(*row["drives"])
            lines.append(
                f"  {row['name']:<26}{numbers[0]:>10}{numbers[1]:>10}{numbers[2]:>12}  {interval:<20} {row['better']}"
            )
    return "\n".join(lines)
