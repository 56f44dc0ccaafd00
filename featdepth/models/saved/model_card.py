"""The card of a model, `README.md` in its directory: what it is, what it has seen, how good it is, who may use it."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from featdepth.config.checks import CHOICES
from featdepth.console import count
from featdepth.errors import InputError
from featdepth.files import read_json
from featdepth.kinds import LICENCES, describe_protocol
from featdepth.metrics.depth import METRICS
from featdepth.models.saved.provenance import Provenance
from featdepth.models.saved.storage import LIBRARY, TAGS
from featdepth.scale import describe_scale

LARGEST_SCORES = 16 << 20  # bytes of metrics.json
SHOWN = 20  # names of a list
# Days of the synthetic street, which has the layout of KITTI raw (see featdepth.data.street.kitti_formats).
SYNTHETIC = re.compile(r"2031_09_(26|28|30)/")

TASK = "depth-estimation"  # as the hub calls it
SCALES = {"median_scaled": "median-scaled", "fixed_scale": "fixed scale"}  # that a model is scored at
METRIC_NAMES = {name: f"{name}, {SCALES['median_scaled']}" for name in METRICS}
METRIC_NAMES |= {f"metric_{name}": f"{name}, {SCALES['fixed_scale']}" for name in METRICS}
METRIC_NAMES["loss"] = "loss without gradient"  # of a validation

OBJECTIVES = {
    "photometric": "photometric error between a frame and its neighbours, warped by predicted depth and motion",
    "autoencoder": "stage 1: features learned by an image autoencoder, regularised to have large gradients",
    "feature_metric": "photometric error, and the error of features from stage 1 (feature-metric loss)",
    "joint": "photometric and feature-metric error, with features learned at the same time",
}
USE = """```python
from featdepth import FeatDepth
from PIL import Image

model = FeatDepth.from_pretrained("DIRECTORY_OR_HUB_ID")
depth = model.predict_depth(Image.open("image.jpg"))  # float32 [H, W], {unit}
```"""
USE_OF_FEATURES = "It predicts no depth: train stage 2 with `model.feature_encoder=DIRECTORY_OR_HUB_ID`."


def model_card(
    content: dict, record: Provenance, parameters: int, scale_source: str | None, scores: dict | None = None
) -> ModelCard:
    """The card of the model whose `config.json` has `content`, and which came about as `record` says.

    parameters: how many numbers it has; scale_source: see `FeatDepth.scale_source`; scores: of `evaluate.py`, see
    `read_scores`. What others wrote into the record is shown as code, never as markup.
    """
    kinds, base = kinds_of_data(record), content.get("base")
    has_depth = content["model"]["objective"] != "autoencoder"
    sections = [
        "# FeatDepth",
        "Depth and camera motion from video, learned without labels." if has_depth else "Features for FeatDepth.",
        *warnings(record),
        "## Use",
        USE.replace("{unit}", describe_scale(scale_source)) if has_depth else USE_OF_FEATURES,
        "## Model",
        model_lines(content, parameters, scale_source),
        "## Data",
        data_lines(record, kinds),
        *score_sections(record, scores),
        *configuration_section(record),
        "## Licence",
        licence_lines(kinds, base),
    ]
    results = model_index(record, kinds, scores) if has_depth else []
    data = ModelCardData(
        model_name="FeatDepth" if results else None,
        eval_results=results or None,
        license=licence_of(base),
        base_model=base["source"] if base and base["revision"] else None,  # of the hub, which shows the two together
        library_name=LIBRARY,
        tags=TAGS,
        pipeline_tag=TASK if has_depth else "image-feature-extraction",
        datasets=[kind for kind in kinds if kind in LICENCES] or None,  # a name of others could end the front matter
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")


def kinds_of_data(record: Provenance) -> list[str]:
    """What the model was trained on, as keys of `LICENCES` where they are known there."""
    kinds = set(record.kinds or ())
    if record.drives and all(map(SYNTHETIC.match, record.drives)):
        kinds = kinds - {"kitti_raw"} | {"synthetic"}
    return sorted(kinds)


def warnings(record: Provenance) -> list[str]:
    """What makes its scores worth less, where something does."""
    found = []
    if record.doubt:
        found.append(f"> **NOTHING LEARNED**: {record.doubt}.")
    if record.contaminated:
        found.append(
            f"> **CONTAMINATED**: it was trained on drives that it is tested on ({name_list(record.contaminated)}). "
            "Its scores on these are not comparable with those of other models."
        )
    if record.transductive:
        found.append(
            '> **TRANSDUCTIVE**: its last training saw nothing but the test images ("online refinement"). Report its '
            "scores as such, apart from those of models that meet the test images for the first time."
        )
    return found


def model_lines(content: dict, parameters: int, scale_source: str | None) -> str:
    """Objective, networks, size and unit."""
    model, data = content["model"], content["data"]
    lines = [f"- objective: {code(model['objective'])}, {OBJECTIVES[model['objective']]}"]
    if model["objective"] != "autoencoder":
        lines += [
            f"- depth: {describe_scale(scale_source)}"
            + ("" if scale_source else "; nothing in its training knew how long a metre is"),
            f"- networks: depth {depth_network(model)}, motion ResNet-{model['pose_layers']}",
        ]
    lines += [
        f"- {parameters:,} parameters",
        f"- images: {data['height']} x {data['width']} pixels; others are resized",
        f"- frames in training: {code(data['frames'])}",
    ]
    return "\n".join(lines)


def depth_network(model: dict) -> str:
    """The encoder of the depth network, in words."""
    if model.get("depth") is not None:
        return f"{code(model['depth'])}, of which learned: {code(model.get('tune'))}"
    layers = model.get("depth_layers")
    return code(model.get("encoder")) if layers is None else f"ResNet-{layers}"


def data_lines(record: Provenance, kinds: list[str]) -> str:
    """What the weights have seen, and what they were made with."""
    if record.imported_from:
        lines = [f"- imported from a published checkpoint, {code(record.imported_from)}; its data are not recorded"]
    else:
        names = ", ".join(LICENCES[kind].name if kind in LICENCES else code(kind) for kind in kinds)
        lines = [f"- {names or 'not recorded'}"]
    if record.drives:
        lines.append(f"- {count(len(record.drives), 'drive')}: {name_list(record.drives)}")
    lines += [f"- made with {code(version)}" for version in record.versions or ()]
    return "\n".join(lines)


def score_sections(record: Provenance, scores: dict | None) -> list[str]:
    """Scores of the validation at which the model was saved, and of an evaluation, where there are any."""
    sections = []
    if record.validation:
        rows = "\n".join(f"| {cell(name)} | {value:.4g} |" for name, value in record.validation.items())
        note = "On held-out validation samples; abs_rel and a1 after scaling to the median, metric_* in metres."
        sections += ["## Validation", note, f"| | |\n|---|---|\n{rows}"]
    if scores:
        sections += ["## Evaluation", evaluation_lines(scores)]
    return sections


def model_index(record: Provenance, kinds: list[str], scores: dict | None) -> list[EvalResult]:
    """The scores as the hub lists them beside those of other models; only data that have a name here are listed.

    An evaluation of a model that has seen its test images is left out: the hub shows numbers without reservations.
    """
    found = []
    if record.validation and len(kinds) == 1:
        values = {name: value for name, value in record.validation.items() if name in METRIC_NAMES}
        found += eval_results(kinds[0], "validation", values, {})
    if scores and not (scores.get("contaminated") or record.contaminated or record.transductive):
        measured = {name: scores[name] for name in ("protocol", "crop") if scores[name] in CHOICES[f"evaluate.{name}"]}
        measured |= {"cap": scores["cap"], "flip": bool(scores["flip"])}
        scales = [(mark, scores[name]) for name, mark in zip(SCALES, ("", "metric_"), strict=True) if scores.get(name)]
        values = {f"{mark}{name}": means[name] for mark, means in scales for name in METRICS}
        found += eval_results(str(scores.get("data")), "test", values, measured)
    return found


def eval_results(kind: str, part: str, values: dict[str, float], measured: dict) -> list[EvalResult]:
    """One result for each of `values` (by keys of METRIC_NAMES) on a part of a kind of data; `measured`: how."""
    if kind not in LICENCES:  # a name of others could end the front matter
        return []
    about = {"task_type": TASK, "dataset_type": kind, "dataset_name": LICENCES[kind].name, "dataset_split": part}
    return [
        EvalResult(
            **about,
            dataset_args=measured or None,
            metric_type=name.removeprefix("metric_"),
            metric_name=METRIC_NAMES[name],
            metric_value=round(value, 6),
        )
        for name, value in values.items()
    ]


def evaluation_lines(scores: dict) -> str:
    """The table of an evaluation, and how it was made."""
    how = describe_protocol(scores | {"crop": code(scores["crop"])})
    head = f"{count(scores['images'], 'image')}, protocol {code(scores['protocol'])}, {how}, "
    lines = [head + f"flip {'on' if scores['flip'] else 'off'}.", ""]
    lines += ["| | " + " | ".join(METRICS) + " |", "|---" * (len(METRICS) + 1) + "|"]
    for name, title in SCALES.items():
        if scores.get(name):
            lines.append(f"| {title} | " + " | ".join(f"{scores[name][metric]:.4f}" for metric in METRICS) + " |")
    if scores.get("contaminated"):
        lines += ["", f"**CONTAMINATED**: tested on drives of its training: {name_list(scores['contaminated'])}"]
    return "\n".join(lines)


def read_scores(evaluation: str | Path) -> dict:
    """The content of `metrics.json` in a folder that `evaluate.py` wrote. Raises InputError."""
    path = Path(evaluation) / "metrics.json"
    try:
        scores = read_json(path, LARGEST_SCORES, "the evaluation's scores")
        if scores.get("no_ground_truth"):
            raise InputError(f"{path}: has a loss but no scores, since the test images have no ground truth")
        evaluation_lines(scores)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: no scores of evaluate.py; give the folder that it wrote") from error
    return scores


def configuration_section(record: Provenance) -> list[str]:
    """All settings of the training, as they can be given to it again."""
    if not record.configuration:
        return []
    text = yaml.safe_dump(record.configuration, sort_keys=False, default_flow_style=None, width=120)
    return ["## Configuration", fenced(text, "yaml")]


def licence_of(base: dict | None) -> str:
    """The licence of the weights, for the hub: that of the large model that they started from, where there is one."""
    if base is None:
        return "apache-2.0"
    return base["licence"] or "other"


def licence_lines(kinds: list[str], base: dict | None) -> str:
    """What the code's licence covers, and what those of the data and of the large model it started from add."""
    lines = ["Code: Apache-2.0. What the data's licences say of models trained on them is yours to check:", ""]
    known = dict.fromkeys(LICENCES[kind] for kind in kinds if kind in LICENCES)
    lines += [f"- {data.name}: {data.terms}" for data in known]
    lines += [f"- {code(kind)}: not known here" for kind in kinds if kind not in LICENCES]
    lines = lines if len(lines) > 2 else [*lines, "- the data are not recorded"]
    if base is not None:
        revision = f", revision {code(base['revision'])}" if base["revision"] else ""
        licence = code(base["licence"]) if base["licence"] else "not stated; ask its authors"
        lines += ["", f"The depth network started from {code(base['source'])}{revision}, whose licence is: {licence}."]
    return "\n".join(lines)


def name_list(names: list[str]) -> str:
    """The first names, as code, and how many there are besides."""
    text = ", ".join(map(code, names[:SHOWN]))
    return text if len(names) <= SHOWN else f"{text} and {len(names) - SHOWN} more"


def code(value: object) -> str:
    """A value in one line, as code in markdown, whatever is in it."""
    text = " ".join("".join(each if each.isprintable() else " " for each in str(value)).split())
    text = text[:200] or " "
    ticks = longest_run("`", text) + 1
    padding = " " if "`" in text else ""
    return "`" * ticks + padding + text + padding + "`" * ticks


def cell(value: object) -> str:
    """`code` for a table, whose cells end at a bar even in code."""
    return code(value).replace("|", "\\|")


def fenced(text: str, language: str) -> str:
    """Lines of code in markdown, whatever is in them."""
    fence = "`" * max(3, longest_run("`", text) + 1)
    return f"{fence}{language}\n{text}{fence}"


def longest_run(character: str, text: str) -> int:
    """How often `character` follows itself in `text` at most, counting the first."""
    return max(map(len, re.findall(f"{re.escape(character)}+", text)), default=0)
