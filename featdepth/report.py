"""What an evaluation reports: the content of metrics.json and per_image.csv, and tables for people."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from featdepth.config import Config
from featdepth.errors import InputError
from featdepth.files import write_text
from featdepth.metrics.depth import METRICS, mean_scores, median
from featdepth.scale import CAMERA_HEIGHT

WIDTH = len(METRICS)
PREDICTORS = ("median_scaled", "fixed_scale", "constant_depth", "pixel_median", "pixel_median_fixed_scale")
TITLES = (
    "model, median-scaled",
    "model, fixed scale (metres)",
    "constant depth, median-scaled",
    "per-pixel median, median-scaled",
    "per-pixel median, fixed scale (metres)",
)


def summarise(table: Tensor, config: Config) -> dict:
    """Means over all images with ground truth: the content of metrics.json."""
    pixels = table[:, -2]
    result: dict = {
        "protocol": config.evaluate.protocol,
        "crop": config.evaluate.crop,
        "cap": config.evaluate.cap,
        "flip": config.evaluate.flip,
        "images": int((pixels > 0).sum()),
    }
    if result["images"] == 0:
        raise InputError("no test image has ground truth inside the crop and below the cap; see evaluate.crop and .cap")
    for position, name in enumerate(PREDICTORS):
        rows = table[:, position * WIDTH : (position + 1) * WIDTH]
        result[name] = None if rows[pixels > 0].isnan().all() else mean_scores(rows, pixels)
    ratios = table[:, -3][pixels > 0].double()
    middle = median(ratios)
    result["scale_ratio"] = {"median": float(middle), "std": float((ratios / middle).std(correction=0))}
    return result


def summarise_loss(losses: dict[str, float], missing: str) -> dict:
    """The content of metrics.json where ground truth is missing: no scores, but the loss and its terms.

    losses: as `validate` gives them; missing: what is missing, in words.
    """
    terms = {name: value for name, value in losses.items() if name not in ("loss", "samples")}
    result = {"no_ground_truth": missing, "images": losses["samples"], "loss": losses["loss"], "terms": terms}
    return result | dict.fromkeys((*PREDICTORS, "scale_ratio"))


def write_results(out: Path, result: dict, images: str | None = None) -> None:
    """`metrics.json`, and `per_image.csv` if `images` has its text, each written whole. Raises InputError."""
    try:
        write_text(out / "metrics.json", json.dumps(result, indent=2) + "\n")
        if images is not None:
            write_text(out / "per_image.csv", images)
    except OSError as error:
        raise InputError(f"{out}: the results cannot be written ({error.strerror}); choose another --out") from error


def image_rows(table: Tensor, names: Sequence[str]) -> str:
    """The content of per_image.csv: scores, median-scaled and at fixed scale, of each image; `names`: by index."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    metric_names = [f"{name}_{metric}" for name in PREDICTORS[:2] for metric in METRICS]
    writer.writerow(["image", *metric_names, "scale_ratio", "pixels"])
    for row in table.tolist():
        writer.writerow([names[int(row[-1])], *row[: 2 * WIDTH], row[-3], int(row[-2])])
    return text.getvalue()


def format_table(result: dict) -> str:
    """The scores as a table for people."""
    flip = ", flip post-processing" if result["flip"] else ""
    lines = [
        f"\n{result['images']} images, protocol {result['protocol']}, "
        f"crop {result['crop']}, cap {result['cap']:g} m{flip}",
        f"{'':<40}" + "".join(f"{name:>10}" for name in METRICS),
    ]
    for name, title in zip(PREDICTORS, TITLES, strict=True):
        if name == "fixed_scale" and result["scale_source"] == CAMERA_HEIGHT:
            title = f"model, scale from {CAMERA_HEIGHT}"
        if result[name] is not None:
            lines.append(f"{title:<40}" + "".join(f"{result[name][metric]:>10.4f}" for metric in METRICS))
        elif name == "fixed_scale":
            lines.append(f"{title:<40}  the model knows no scale")
    ratio = result["scale_ratio"]
    lines.append(f"scale ratio (true / predicted): median {ratio['median']:.3f}, relative spread {ratio['std']:.3f}")
    return "\n".join([*contamination(result), *lines])


def format_loss(result: dict) -> str:
    """The loss and its terms for people, and what they do not say."""
    lines = [
        f"\n{result['images']} images without ground truth ({result['no_ground_truth']}).",
        "The loss says how well frames explain each other, not how right the depth is:",
        *(f"{name:<40}{value:>10.4f}" for name, value in {"loss": result["loss"], **result["terms"]}.items()),
    ]
    return "\n".join([*contamination(result), *lines])


def contamination(result: dict) -> list[str]:
    """A line that says so where the model has seen test drives."""
    names = ", ".join(result["contaminated"])
    return [f"\nCONTAMINATED: trained on drives it must not know: {names}"] if names else []
