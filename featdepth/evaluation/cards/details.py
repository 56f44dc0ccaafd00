"""The scores beyond the seven in a card: by distance, place and motion, of edges and of points in space."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from featdepth.evaluation.cards.content import paired, score_of
from featdepth.evaluation.scoring import Results
from featdepth.metrics.breakdown import COLUMNS, DETAILS, MOTION, PARTS, ROWS, compare_details, mean_details

BY_DISTANCE = [part for part in PARTS if part not in (*ROWS, *COLUMNS, *MOTION)]
SCALED = (
    "Flip post-processing as in metrics.json; at fixed scale where that is known, else scaled by each image's median. "
    "Means are over the images that have any of it."
)
SECTIONS = {  # title: what it is, and the parts whose details it has
    "By true distance": (SCALED, BY_DISTANCE),
    "By place in the image": (
        f"Thirds of the whole image, of which what is inside the crop counts. {SCALED}",
        [*ROWS, *COLUMNS],
    ),
    "Moving and static things": (f"Where the data tell what moves. {SCALED}", MOTION),
    "Depth edges": ("Pixels between predicted and true edges, 0 to 10, where the ground truth is dense.", ["edges"]),
    "Points in space": (
        "Where the ground truth is dense: the share of predicted points near a true one (precision), of true points "
        "near a predicted one (recall), and their harmonic mean.",
        [name.split("/")[0] for name in DETAILS if name.startswith("points")],
    ),
}


def describe_details(results: Results) -> list[dict]:
    """`[{"title", "note", "rows": [{"name", **score}]}]`: those of SECTIONS of which any image has something."""
    table = torch.from_numpy(results.table["details"])
    over_images, over_drives = mean_details(table), mean_details(table, results.drives)
    rows = [{"name": name, **score_of(over_images[name], over_drives[name])} for name in over_images]
    return [
        {"title": title, "note": note, "rows": chosen}
        for title, (note, parts) in SECTIONS.items()
        if (chosen := rows_of(parts, rows))
    ]


def compare_sections(this: Results, other: Results) -> list[dict]:
    """The same of the differences of two models on the same images in the same order; for the rows see `paired`."""
    tables = [torch.from_numpy(results.table["details"]) for results in (this, other)]
    over_images, over_drives = compare_details(*tables), compare_details(*tables, this.drives)
    rows = [
        paired(one.detail, (one.mean_a, one.mean_b), one.difference, two.difference)
        for one, two in zip(over_images, over_drives, strict=True)
    ]
    return [
        {"name": title, "is_detail": True, "rows": chosen}
        for title, (_, parts) in SECTIONS.items()
        if (chosen := rows_of(parts, rows))
    ]


def rows_of(parts: Sequence[str], rows: Sequence[dict]) -> list[dict]:
    """Those of the rows whose details are of one of the parts."""
    return [row for row in rows if row["name"].split("/")[0] in parts]
