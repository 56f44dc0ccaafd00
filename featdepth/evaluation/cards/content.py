"""The content of `card.json`: scores with their intervals, and everything that they depend on.

A score is `{"mean", "images", "drives", "count"}`: the mean over `count` images and its 95 % intervals `[low, high]`
over images and over drives; null where there is none (fewer than two drives) or where it is not finite.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np

from featdepth.config import Config
from featdepth.data.samples import Sample
from featdepth.data.splits import source_name
from featdepth.evaluation.scoring import Results
from featdepth.kinds import protocol_of
from featdepth.metrics.breakdown import HIGHER_IS_BETTER
from featdepth.metrics.depth import METRICS
from featdepth.metrics.intervals import Interval, mean_interval
from featdepth.models import FeatDepth
from featdepth.models.saved.digest import weights_digest
from featdepth.scale import describe_scale

FORMAT = 1  # of card.json: raise it when a reader of the old one would misread the new one
SCALE_TITLES = {"median_scaled": "median-scaled", "fixed_scale": "fixed scale (metres)"}
MODEL_SCALES = tuple(SCALE_TITLES)
FLIPS = ("plain", "flip")  # without and with flip post-processing
TRIVIAL = ("constant_depth", "pixel_median", "pixel_median_fixed_scale")
EXTREMES = 10  # images with the largest and with the smallest error that are shown


def describe_model(model: FeatDepth, checkpoint: str, scale_source: str | None) -> dict:
    """What the model is and how it came to be, as far as its own record tells.

    configuration: digest of its training's configuration but for the seed, equal for seeds of one configuration.
    """
    record = model.provenance
    return {
        "checkpoint": checkpoint,
        "objective": model.settings.objective,
        "height": model.height,
        "width": model.width,
        "parameters": sum(tensor.numel() for tensor in model.parameters()),
        "weights_sha256": weights_digest(model),
        "depth": describe_scale(scale_source),
        "seed": (record.configuration or {}).get("train", {}).get("seed"),
        "configuration": record.configuration_digest,
        "training_versions": record.versions or [],
    }


def describe_test(config: Config, samples: Sequence[Sample], skipped: int) -> dict:
    """How predictions are scored, and on which images `samples`; `skipped`: how many of the list cannot be read.

    flip: which of the two variants metrics.json has.
    """
    evaluate = config.evaluate
    return {
        "protocol": evaluate.protocol,
        **protocol_of(config)._asdict(),
        "flip": evaluate.flip,
        "camera_height": evaluate.camera_height,
        "kind": config.data.kind,
        "split": source_name(config, "test"),
        "sha256": list_digest(samples),
        "images": len(samples),
        "drives": len({sample.drive for sample in samples}),
        "skipped_images": skipped,
    }


def list_digest(samples: Sequence[Sample]) -> str:
    """sha256 of the samples' lines `<drive> <frame> <l|r>`, sorted by their bytes, each ended by a newline.

    `LC_ALL=C sort test_files.txt | sha256sum` gives the same for a list whose frames have no leading zeros.
    """
    lines = sorted(f"{sample}\n".encode() for sample in samples)
    return hashlib.sha256(b"".join(lines)).hexdigest()


def is_higher_better(metric: str) -> bool:
    """Whether more of a metric is better; that of a detail stands behind its part, as in "0-10 m/a1"."""
    return metric.split("/")[-1] in HIGHER_IS_BETTER


def metric_title(metric: str) -> str:
    """Its name, and whether more or less of it is better."""
    return f"{metric} {'↑' if is_higher_better(metric) else '↓'}"


def headline(config: Config) -> str:
    """The variant that the configuration asks for, "plain" or "flip": that of metrics.json."""
    return "flip" if config.evaluate.flip else "plain"


def describe_scores(results: Results, config: Config) -> dict:
    """All scores, and the images with the largest and the smallest errors.

    `scores` is `{predictor: {"plain" | "flip": {metric: score}}}` of the model, `{predictor: {metric: score}}` of the
    others; None instead of `{metric: score}` for what there is not: a known scale, training drives with ground truth.
    """
    table, drives = results.table, results.drives
    scores: dict = {
        name: {flip: column_scores(table[f"{name}.{flip}"], drives) for flip in FLIPS} for name in MODEL_SCALES
    }
    scores |= {name: column_scores(table[name], drives) for name in TRIVIAL}
    flip = headline(config)
    ranked_by = "median_scaled" if scores["fixed_scale"][flip] is None else "fixed_scale"
    return {
        "scores": scores,
        "scale_ratio": {flip: scale_ratio(table[f"ratio.{flip}"]) for flip in FLIPS},
        "extremes": extremes(
            table[f"{ranked_by}.{flip}"][:, 0], results.samples, f"{METRICS[0]}, {SCALE_TITLES[ranked_by]}"
        ),
    }


def describe_losses(results: Results) -> dict:
    """The loss and its terms, and the images with the largest and the smallest loss; the table has the terms alone."""
    loss = sum(results.table.values())
    losses = {name: score(values, results.drives) for name, values in {"loss": loss, **results.table}.items()}
    return {"losses": losses, "extremes": extremes(loss, results.samples, "loss")}


def scale_ratio(ratios: np.ndarray) -> dict[str, float | None]:
    """Median and relative spread of the ratios `[N]` of true and predicted depth."""
    middle = np.median(ratios)
    return {"median": number(middle), "std": number((ratios / middle).std())}


def column_scores(rows: np.ndarray, drives: Sequence[str]) -> dict | None:
    """{metric: score} of rows `[N, 8]`; None where no image has any."""
    if np.isnan(rows).all():
        return None
    return {metric: score(values, drives) for metric, values in zip(METRICS, rows.T, strict=True)}


def score(values: np.ndarray, drives: Sequence[str]) -> dict:
    """Mean of `values` `[N]` and its intervals over images and over drives."""
    return score_of(mean_interval(values), mean_interval(values, drives))


def score_of(over_images: Interval, over_drives: Interval) -> dict:
    """A mean with both of its intervals, as cards have it."""
    return {
        "mean": number(over_images.mean),
        "images": bounds(over_images),
        "drives": bounds(over_drives),
        "count": over_images.count,
    }


def paired(name: str, means: tuple[float, float], over_images: Interval, over_drives: Interval) -> dict:
    """`{"name", "this", "other", "mean", "images", "drives", "count", "better"}`: two models in one score.

    means: of both over the `count` images; the intervals are of the differences this - other. better: "this" or "other"
    where the interval over drives excludes zero, else "undecided".
    """
    better = "undecided"
    if over_drives.excludes_zero:
        better = "this" if (over_drives.mean > 0) == is_higher_better(name) else "other"
    both = {"this": number(means[0]), "other": number(means[1])}
    return {"name": name, **both, **score_of(over_images, over_drives), "better": better}


def bounds(interval: Interval) -> list[float] | None:
    """Low and high; None where there is no interval."""
    found = number(interval.low), number(interval.high)
    return None if None in found else list(found)


def number(value: float) -> float | None:
    """A float as JSON has it: None where it is not finite."""
    return float(value) if math.isfinite(value) else None


def finite(content: object) -> object:
    """Nested dicts and lists with null in the place of every number that is not finite."""
    if isinstance(content, dict):
        return {name: finite(value) for name, value in content.items()}
    if isinstance(content, list):
        return [finite(value) for value in content]
    return number(content) if isinstance(content, float) else content


def extremes(values: np.ndarray, samples: Sequence[Sample], ranked_by: str) -> dict:
    """The ten images with the largest `values` `[N]`, largest first, and the ten smallest others, smallest first.

    What is not finite counts as largest. ranked_by: what the values are.
    """
    order = np.argsort(-np.where(np.isfinite(values), values, np.inf), kind="stable").tolist()
    parts = {"worst": order[:EXTREMES], "best": order[EXTREMES:][-EXTREMES:][::-1]}
    entries = {
        name: [{"image": str(samples[place]), "value": number(values[place])} for place in places]
        for name, places in parts.items()
    }
    return {"ranked_by": ranked_by, **entries}
