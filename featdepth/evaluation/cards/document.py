"""A card for people: its content in words and tables."""

from __future__ import annotations

from collections.abc import Iterator

from featdepth.console import count
from featdepth.evaluation.cards.blocks import (
    DASH,
    Alarm,
    Block,
    Facts,
    Figures,
    Heading,
    Notice,
    Table,
    Text,
    Title,
    between,
    figure,
)
from featdepth.evaluation.cards.content import FLIPS, SCALE_TITLES, metric_title
from featdepth.kinds import describe_protocol
from featdepth.metrics.depth import METRICS
from featdepth.scale import CAMERA_HEIGHT

FLIP_TITLES = {"plain": "without flip post-processing", "flip": "with flip post-processing"}
TRIVIAL_TITLES = {  # by scale
    "median-scaled": {"constant_depth": "constant depth", "pixel_median": "per-pixel median"},
    "fixed scale (metres)": {"pixel_median_fixed_scale": "per-pixel median"},
}
BETTER = {"this": "this model", "other": "the other", "undecided": "undecided"}
NO_SEEDS = (
    "The 95 % intervals tell how much the means would change with other test images or other test drives. Images of "
    "one drive resemble each other, so the interval over drives is the one to trust. Intervals over images do not "
    "contain the spread over training seeds, nor do intervals over drives: the same configuration trained with another "
    "seed may score outside of both. evaluate.py --cards, given the cards of several seeds, shows that spread."
)
PAIRED = (
    "Differences are this model's score minus the other's, image by image. A model is called better where the 95 % "
    "interval over drives excludes zero; of twenty rows without a true difference one does so by chance. Whether the "
    "two configurations differ, rather than these two trained models, takes several seeds of each."
)
LOSS_MEANING = "The loss says how well frames explain each other, not how accurate the depth is."


def document(card: dict) -> Iterator[Block]:
    """The card of an evaluation, from top to bottom."""
    mark = "CONTAMINATED: " if card["contaminated"] else ""
    yield Title(f"{mark}Score card of {card['model']['checkpoint']}")
    yield from leakage(card["leakage"], "this model")
    if card["against"] is not None:
        yield from leakage(card["against"]["leakage"], "the other model")
    yield from losses(card) if card["kind"] == "loss" else scores(card)
    yield Heading("How this was made")
    yield Facts([(name, DASH if value is None else str(value)) for name, value in provenance(card)])


def leakage(found: dict, subject: str) -> Iterator[Block]:
    """Whether the model was trained on what it is tested on."""
    if found["shared"]:
        yield Alarm(
            f"CONTAMINATED: {subject} was trained on drives that it is tested on ({', '.join(found['shared'])}). "
            "Its scores do not tell how it does on new data."
        )
    if others := sorted({*found["admitted"]} - {*found["shared"]}):
        yield Alarm(
            f"CONTAMINATED: {subject} was trained with a split whose parts share drives ({', '.join(others)}). "
            "Its scores may be better than on new data."
        )
    if found["training_drives"] is None:
        yield Notice(
            f"Leakage unknown: {subject} has no record of the drives that it was trained on; nothing here shows that "
            "it has not seen the test drives."
        )
    elif not found["contaminated"]:
        yield Text(
            f"Leakage check of {subject}: no test drive is among its "
            f"{count(found['training_drives'], 'training drive')}."
        )


def scores(card: dict) -> Iterator[Block]:
    """Scores of the model, of what looks at no image, and of single images."""
    found, test = card["scores"], card["test"]
    fixed = SCALE_TITLES["fixed_scale"]
    if test["camera_height"] is not None:
        fixed = f"scale from {CAMERA_HEIGHT}"
    yield Text(
        f"{count(test['images'], 'image')} of {count(test['drives'], 'drive')}, protocol {test['protocol']}, "
        f"{describe_protocol(test)}. Depth is {card['model']['depth']}."
    )
    yield Notice(NO_SEEDS)
    for flip in FLIPS:
        chosen = " (as in metrics.json)" if test["flip"] == (flip == "flip") else ""
        yield Heading(f"Scores {FLIP_TITLES[flip]}{chosen}")
        yield score_table(
            {SCALE_TITLES["median_scaled"]: found["median_scaled"][flip], fixed: found["fixed_scale"][flip]}
        )
        ratio = card["scale_ratio"][flip]
        yield Text(
            f"Scale ratio (true / predicted): median {figure(ratio['median'])}, relative spread {figure(ratio['std'])}."
        )
    for scale, titles in TRIVIAL_TITLES.items():
        yield Heading(f"Predictors that look at no image, {scale}")
        yield score_table({title: found[name] for name, title in titles.items()})
    for detail in card["details"]:
        yield Heading(detail["title"])
        yield Text(detail["note"])
        rows = [(metric_title(row["name"]), str(row["count"]), *score_cells(row)) for row in detail["rows"]]
        yield Table(("", "images", "mean", "over images", "over drives"), rows)
    if card["against"] is not None:
        yield from comparison(card["against"])
    if card["refinement"] is not None:
        yield from refinement(card["refinement"])
    yield from extremes(card)


def score_table(columns: dict[str, dict | None]) -> Table:
    """A row for each metric, and three columns for each of `columns` {title: {metric: score} or None}."""
    header = [text for title in columns for text in (title, "over images", "over drives")]
    rows = [
        (metric_title(metric), *(cell for found in columns.values() for cell in score_cells(found and found[metric])))
        for metric in METRICS
    ]
    return Table(("", *header), rows)


def score_cells(score: dict | None) -> tuple[str, str, str]:
    """Mean and both intervals of a score."""
    if score is None:
        return DASH, DASH, DASH
    return figure(score["mean"]), between(score["images"]), between(score["drives"])


def comparison(against: dict) -> Iterator[Block]:
    """Both models on the same images, and which of them is better where."""
    yield Heading(f"Against {against['model']['checkpoint']}")
    yield Text(f"{count(against['images'], 'image')} of {count(against['drives'], 'drive')} that both have. {PAIRED}")
    for part in against["parts"]:
        title = SCALE_TITLES.get(part["name"], part["name"])
        yield Heading(f"{title}: which is better where" if part["is_detail"] else f"Differences, {title}")
        rows = [
            (
                metric_title(row["name"]),
                figure(row["this"]),
                figure(row["other"]),
                figure(row["mean"]),
                between(row["images"]),
                between(row["drives"]),
                BETTER[row["better"]],
            )
            for row in part["rows"]
        ]
        yield Table(("", "this model", "the other", "difference", "over images", "over drives", "better"), rows)


def refinement(found: dict) -> Iterator[Block]:
    """Causal refinement: what it gains, and what it costs."""
    cameras = "two cameras" if found["stereo"] else "one camera"
    yield Heading("Causal refinement")
    yield Text(
        f"Each of {count(found['frames'], 'frame')} of {count(len(found['clips']), 'clip')} is predicted first and "
        f"learned from afterwards, from {cameras}, in {count(found['steps'], 'step')} with learning rate "
        f"{found['learning_rate']:g}; every clip begins with the model's own weights. The other scores are without it."
    )
    rows = []
    for name in ("without", "with"):
        scores = [found[name][scale] for scale in SCALE_TITLES]
        values = [score and score[metric] for score in scores for metric in ("abs_rel", "a1")]
        rows.append((name, *map(figure, values), f"{found[name]['frames_per_second']:.2f}"))
    rows.append(
        ("gain in abs_rel", *(text for scale in SCALE_TITLES for text in (figure(found["gain"][scale]), "")), "")
    )
    titles = [f"{metric}, {title}" for title in SCALE_TITLES.values() for metric in ("abs_rel", "a1")]
    yield Table(("", *titles, "frames/s"), rows)


def extremes(card: dict) -> Iterator[Block]:
    """The worst and the best images."""
    found = card["extremes"]
    for name, title in (("worst", "Worst images"), ("best", "Best images")):
        if found[name]:
            yield Heading(f"{title}, by {found['ranked_by']}")
            if card["kind"] == "depth":
                yield Text(
                    "From left to right: the image, its disparity (near is bright), the relative error (white: 0.5)."
                )
            yield Figures([(f"{figure(row['value'])}: {row['image']}", row["image"]) for row in found[name]])


def losses(card: dict) -> Iterator[Block]:
    """The loss and its terms, where there is no ground truth."""
    test = card["test"]
    yield Text(
        f"{count(test['images'], 'image')} of {count(test['drives'], 'drive')} without ground truth "
        f"({card['no_ground_truth']}). {LOSS_MEANING}"
    )
    yield Notice(NO_SEEDS)
    yield Heading("Loss and its terms")
    yield Table(
        ("", "mean", "over images", "over drives"),
        [(name, *score_cells(score)) for name, score in card["losses"].items()],
    )
    yield from extremes(card)


def provenance(card: dict) -> Iterator[tuple[str, object]]:
    """Everything that the scores depend on, by name."""
    model, test = card["model"], card["test"]
    yield "command", card["command"]
    yield "checkpoint", model["checkpoint"]
    yield "networks", f"{model['objective']}, {model['height']}x{model['width']}, {model['parameters']:,} parameters"
    yield "sha256 of the weights", model["weights_sha256"]
    yield "training seed", "unknown" if model["seed"] is None else model["seed"]
    yield "training configuration", "unknown" if model["configuration"] is None else model["configuration"]
    yield from (("trained with", line) for line in model["training_versions"])
    yield "test data", f"{test['kind']}, {test['split']}"
    yield "sha256 of the test list", test["sha256"]
    yield "skipped images", test["skipped_images"]
    if card["kind"] == "depth":
        yield "per-pixel median", card["pixel_median_of"]
    yield from (("evaluated with", line) for line in card["versions"])
