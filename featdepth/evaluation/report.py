"""What an evaluation reports: the content of metrics.json and per_image.csv, and tables for people."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from featdepth.console import count
from featdepth.data.samples import Sample
from featdepth.errors import InputError
from featdepth.evaluation.cards.content import MODEL_SCALES, headline, scale_ratio
from featdepth.evaluation.cards.document import LOSS_MEANING
from featdepth.evaluation.cards.write_card import write_card
from featdepth.evaluation.scoring import Scores
from featdepth.files import write_text
from featdepth.kinds import describe_protocol, protocol_of
from featdepth.metrics.breakdown import DETAILS
from featdepth.metrics.depth import METRICS, mean_scores
from featdepth.models.saved.model_card import kinds_of_data
from featdepth.models.saved.provenance import Provenance
from featdepth.scale import CAMERA_HEIGHT

TITLES = {  # of the predictors
    "median_scaled": "model, median-scaled",
    "fixed_scale": "model, fixed scale (metres)",
    "constant_depth": "constant depth, median-scaled",
    "pixel_median": "per-pixel median, median-scaled",
    "pixel_median_fixed_scale": "per-pixel median, fixed scale (metres)",
}


def check_writable(out: Path) -> None:
    """Look before the work, rather than after it, whether `out` can be made. Raises InputError where it cannot."""
    existing = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(f"{out}: the results cannot be written below {existing}; choose another --out")


def summarise(scores: Scores) -> dict:
    """The content of metrics.json: means over all images with ground truth. InputError where no image has any."""
    config, known = scores.subject.config, scores.known
    if not known.samples:
        raise InputError("no test image has ground truth inside the crop and below the cap; see evaluate.crop and .cap")
    flip = headline(config)
    result: dict = {
        "data": tested_data(config.data.kind, known.samples),
        "protocol": config.evaluate.protocol,
        **protocol_of(config)._asdict(),
        "flip": config.evaluate.flip,
        "images": len(known.samples),
    }
    for name in TITLES:
        rows = torch.from_numpy(known.table[f"{name}.{flip}" if name in MODEL_SCALES else name])
        result[name] = None if rows.isnan().all() else mean_scores(rows, torch.ones(len(rows)))
    result |= {"scale_ratio": scale_ratio(known.table[f"ratio.{flip}"]), "skipped_images": scores.skipped_images}
    return result | scores.about | {"without_truth": len(scores.results.samples) - len(known.samples)}


def tested_data(kind: str, samples: Sequence[Sample]) -> str:
    """The name in LICENCES of what a model is tested on: its kind, or "synthetic"."""
    drives = sorted({sample.drive for sample in samples})
    return kinds_of_data(Provenance(drives=drives, kinds=[kind]))[0]


def summarise_loss(scores: Scores) -> dict:
    """The content of metrics.json where ground truth is missing: no scores, but the loss and its terms."""
    terms = {name: float(values.mean()) for name, values in scores.results.table.items()}
    result = {"no_ground_truth": scores.subject.missing, "images": len(scores.results.samples)}
    result |= {"loss": sum(terms.values()), "terms": terms} | dict.fromkeys((*TITLES, "scale_ratio"))
    return result | {"skipped_images": scores.skipped_images} | scores.about


@contextmanager
def results_in(out: Path) -> Iterator[None]:
    """Whatever is written into the folder `out`: InputError, which names it, where that is impossible."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{out}: the results cannot be written ({error.strerror}); choose another --out") from error


def write_results(out: Path, result: dict, card: dict, pictures: dict[str, str], images: str | None = None) -> None:
    """`metrics.json`, the card, and `per_image.csv` if `images` has its text, each written whole. Raises InputError.

    pictures: data URIs by the names of images.
    """
    with results_in(out):
        write_text(out / "metrics.json", json.dumps(result, indent=2) + "\n")
        if images is not None:
            write_text(out / "per_image.csv", images)
        write_card(out, card, pictures)


def image_rows(scores: Scores) -> str:
    """The content of per_image.csv: scores, median-scaled and at fixed scale, of each image, and its details."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    flip, table = headline(scores.subject.config), scores.results.table
    metric_names = [f"{name}_{metric}" for name in MODEL_SCALES for metric in METRICS]
    writer.writerow(["image", *metric_names, "scale_ratio", "pixels", *DETAILS])
    numbers = np.column_stack([table[f"{name}.{flip}"] for name in MODEL_SCALES] + [table[f"ratio.{flip}"]])
    pixels = table["pixels"].astype(int)
    for place, sample in enumerate(scores.results.samples):
        details = ["" if np.isnan(value) else value for value in table["details"][place, : len(DETAILS)].tolist()]
        writer.writerow([sample, *numbers[place].tolist(), pixels[place], *details])
    return text.getvalue()


def format_table(result: dict) -> str:
    """The scores as a table for people."""
    flip = ", flip post-processing" if result["flip"] else ""
    lines = [
        f"\n{count(result['images'], 'image')}, protocol {result['protocol']}, {describe_protocol(result)}{flip}",
        f"{'':<40}" + "".join(f"{name:>10}" for name in METRICS),
    ]
    for name, title in TITLES.items():
        if name == "fixed_scale" and result["scale_source"] == CAMERA_HEIGHT:
            title = f"model, scale from {CAMERA_HEIGHT}"
        if result[name] is not None:
            lines.append(f"{title:<40}" + "".join(f"{result[name][metric]:>10.4f}" for metric in METRICS))
        elif name == "fixed_scale":
            lines.append(f"{title:<40}  the model has no known scale")
    ratio = result["scale_ratio"]
    lines.append(f"scale ratio (true / predicted): median {ratio['median']:.3f}, relative spread {ratio['std']:.3f}")
    if result["without_truth"]:
        lines.append(
            f"{result['without_truth']} of {count(result['images'] + result['without_truth'], 'image')} had no valid "
            "ground truth inside the crop and below the cap, and do not count"
        )
    return "\n".join([*contamination(result), *lines])


def format_loss(result: dict) -> str:
    """The loss and its terms for people, and what they do not say."""
    lines = [
        f"\n{count(result['images'], 'image')} without ground truth ({result['no_ground_truth']}).",
        LOSS_MEANING,
        *(f"{name:<40}{value:>10.4f}" for name, value in {"loss": result["loss"], **result["terms"]}.items()),
    ]
    return "\n".join([*contamination(result), *lines])


def format_refinement(refinement: dict) -> str:
    """Causal refinement as `evaluate_refinement` found it, as a table for people."""
    cameras = "two cameras" if refinement["stereo"] else "one camera"
    rows = [(name, refinement[name]) for name in ("without", "with")]
    lines = [
        f"\ncausal refinement from {cameras}, {count(refinement['steps'], 'step')} after each of "
        f"{count(refinement['frames'], 'frame')}, "
        f"learning rate {refinement['learning_rate']:g}",
        f"{'abs_rel':<40}{'median':>10}{'fixed':>10}{'frames/s':>10}",
    ]
    for name, scores in rows:
        values = [scores[scale] and scores[scale]["abs_rel"] for scale in MODEL_SCALES]
        cells = "".join(f"{'-':>10}" if value is None else f"{value:>10.4f}" for value in values)
        lines.append(f"{f'{name} refinement':<40}{cells}{scores['frames_per_second']:>10.2f}")
    return "\n".join(lines)


def contamination(result: dict) -> list[str]:
    """A line that says so where the model has seen test drives."""
    names = ", ".join(result["contaminated"])
    return [f"\nCONTAMINATED: trained on drives that it should not have seen: {names}"] if names else []
