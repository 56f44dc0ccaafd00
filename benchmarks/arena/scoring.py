"""What a trained competitor scores: by evaluate.py, at input sizes that it has not seen, and what it costs."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.arena.competitors import fill
from benchmarks.arena.programs import run_command, run_script
from benchmarks.arena.training import Plan, configuration
from benchmarks.measure import read_intervals
from featdepth.config import Config
from featdepth.data import build_dataset
from featdepth.data.dataset import FrameDataset
from featdepth.data.samples import Sample
from featdepth.errors import InputError
from featdepth.geometry import resize_intrinsics
from featdepth.kinds import Protocol, protocol_of
from featdepth.metrics.breakdown import DETAILS, score_details
from featdepth.metrics.depth import score_batch
from featdepth.models import FeatDepth
from featdepth.training.validation import score_prediction

DENSE = "evaluate.protocol=eigen_improved"  # truth at all pixels, where a ground has it
IMAGE_SCORES = {  # of an image: name, and what per_image.csv calls it
    "abs_rel": "median_scaled_abs_rel",
    "metric_abs_rel": "fixed_scale_abs_rel",
}
DENSE_SCORES = {
    "edge_accuracy": "edges/accuracy",
    "edge_completeness": "edges/completeness",
    "fscore": "points within 0.5 m/fscore",
}
OTHER_SIZES = "other_sizes"  # of an image: abs_rel, mean over the sizes
SIZE_FACTORS = (0.65, 0.8, 1.3, 1.6)  # of the training size, as in RA-Depth
DEPTH_UNITS = 256  # of a 16 bit png to a metre
Rows = dict[str, dict[str, float]]  # scores of each image or sequence


def score(plan: Plan) -> dict:
    """The content of a run's result but for its training: `images`, `sequences`, and what the network costs."""
    out, checkpoint = plan.folder / "evaluation", plan.folder / "training/model"
    words = ["evaluate.py", *plan.words("--checkpoint", checkpoint)]
    log = plan.folder / "evaluation.log"
    run_script([*words, "--out", out], log, plan.threads, f"{plan.title}: evaluate.py")
    images = read_rows(out / "per_image.csv", IMAGE_SCORES)
    if plan.ground.is_dense:
        run_script([*words, "--out", out / "dense", DENSE], log, plan.threads, f"{plan.title}: evaluate.py {DENSE}")
        for image, scores in read_rows(out / "dense/per_image.csv", DENSE_SCORES).items():
            images[image] |= scores
    model, config = FeatDepth.from_pretrained(checkpoint), configuration(plan.competitor, plan.ground, plan.out, False)
    for image, value in score_other_sizes(model, config).items():
        images[image][OTHER_SIZES] = value
    sequences: Rows = {}
    if plan.ground.has_poses:
        run_script([*words, "--out", out, "--odometry"], log, plan.threads, f"{plan.title}: evaluate.py --odometry")
        sequences = read_sequences(out / "odometry.json")
    memory = max(line["memory_gb"] for line in read_intervals(plan.folder / "training"))
    return {"images": images, "sequences": sequences, "memory_gb": memory, **count_operations(model)}


def read_rows(file: Path, names: dict[str, str]) -> Rows:
    """Some columns of evaluate.py's per_image.csv, NaN where there is nothing."""
    with file.open() as lines:
        return {
            row["image"]: {name: float(row[column] or "nan") for name, column in names.items()}
            for row in csv.DictReader(lines)
        }


def read_sequences(file: Path) -> Rows:
    """Motion of each test sequence: by alignment, and with the prefix `network_` the pose network's."""
    rows: Rows = {}
    for sequence in json.loads(file.read_text())["sequences"]:
        rows[sequence["name"]] = motion_scores(sequence)
        if "pose_network" in sequence:
            own = motion_scores(sequence["pose_network"])
            rows[sequence["name"]] |= {f"network_{name}": value for name, value in own.items()}
    return rows


def motion_scores(sequence: dict) -> dict[str, float]:
    """5-frame ATE (metres), and errors of single steps: degrees, and metres where the scale is known."""
    return {
        "ate": sequence["ate_5_frames"]["mean_m"],
        "rotation": (sequence["6dof"] or sequence["7dof"] or {}).get("rpe_rotation_deg", math.nan),
        "translation": (sequence["none"] or {}).get("rpe_translation_m", math.nan),
    }


@torch.no_grad()
def score_other_sizes(model: FeatDepth, config: Config) -> dict[str, float]:
    """abs_rel of each test image, median-scaled, the mean over input sizes that the model was not trained at."""
    values: dict[str, list[float]] = {}
    model.eval()
    for config.data.height, config.data.width in other_sizes(model.height, model.width):
        dataset = build_dataset(config, "test", frames=[0], require_depth=True)
        for batch in DataLoader(dataset, config.evaluate.batch_size):
            disparity = model.depth(batch["images"][:, 0].float() / 255)[0]
            scores = score_prediction(model, disparity, batch, config, None).median_scaled[:, 0]
            for index, value in zip(batch["index"].tolist(), scores.tolist(), strict=True):
                values.setdefault(str(dataset.samples[index]), []).append(value)
    return {image: float(np.mean(found)) for image, found in values.items()}


def other_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """(height, width) at SIZE_FACTORS of the training size, rounded to multiples of 32, at least 64."""
    sizes = [tuple(max(64, 32 * round(length * factor / 32)) for length in (height, width)) for factor in SIZE_FACTORS]
    return [size for size in sizes if size != (height, width)]


@torch.no_grad()
def count_operations(model: FeatDepth) -> dict[str, float]:
    """`parameters` of all networks, and `gflop`: 1e9 operations of the depth of an image (a product and sum are 2)."""
    with FlopCounterMode(display=False) as counter:
        model.depth(torch.zeros(1, 3, model.height, model.width))
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "gflop": counter.get_total_flops() / 1e9,
    }


def run_program(plan: Plan) -> tuple[float, dict]:
    """Train other people's program and score what it predicts: seconds of its training, and what `score` gives."""
    competitor, folder = plan.competitor, plan.folder
    truths = list(open_truths(configuration(competitor, plan.ground, plan.out, training=False), plan.ground.is_dense))
    dataset, images, predictions = truths[0][0], folder / "images.txt", folder / "predictions"
    predictions.mkdir(parents=True, exist_ok=True)
    images.write_text("".join(f"{Path(dataset.image_path(each, 0)).absolute()}\n" for each in dataset.samples))
    places = {"data": plan.ground.root, "run": folder / "training", "seed": plan.seed}
    places |= {"images": images, "predictions": predictions}
    places |= {"steps": plan.steps} if plan.seconds is None else {"seconds": plan.seconds}
    command, predict = (fill(competitor, each, places) for each in (competitor.command, competitor.predict))
    seconds = run_command(command, folder / "training.log", plan.threads, f"{plan.title}: its command")
    run_command(predict, folder / "predict.log", plan.threads, f"{plan.title}: its predict")
    rows: Rows = {}
    for number, sample in enumerate(dataset.samples):
        rows[str(sample)] = score_map(read_prediction(predictions / f"{number:06d}"), truths, sample, competitor.metric)
    return seconds, {"images": rows, "sequences": {}}


def open_truths(config: Config, is_dense: bool) -> Iterator[tuple[FrameDataset, Protocol]]:
    """The test images with the truth that is scored, and by what protocol; then the same with truth at all pixels."""
    for protocol in (config.evaluate.protocol, *["eigen_improved"] * is_dense):
        config.evaluate.protocol = protocol
        yield build_dataset(config, "test", frames=[0], require_depth=True), protocol_of(config)


def read_prediction(stem: Path) -> Tensor:
    """The depth `[h, w]` in STEM.npy, or STEM.png with 256 to a unit. Raises InputError."""
    if stem.with_suffix(".npy").exists():
        depth = np.load(stem.with_suffix(".npy"), allow_pickle=False)
    elif stem.with_suffix(".png").exists():
        depth = np.asarray(Image.open(stem.with_suffix(".png"))) / DEPTH_UNITS
    else:
        raise InputError(f"{stem}: the competitor has written neither {stem.name}.npy nor {stem.name}.png")
    depth = torch.from_numpy(np.array(depth, dtype=np.float32))
    if depth.ndim != 2 or not (depth.isfinite() & (depth > 0)).all():
        raise InputError(f"{stem}: the competitor has written no map [h, w] of depths above 0")
    return depth


def score_map(
    depth: Tensor, truths: Sequence[tuple[FrameDataset, Protocol]], sample: Sample, is_metric: bool
) -> dict[str, float]:
    """The scores of a depth map `[h, w]` by the measures of ours; truths: of `open_truths`."""
    scale, found, inverse = 1.0 if is_metric else None, {}, (1 / depth)[None, None]
    for dataset, protocol in truths:
        item = dataset.load(sample)
        truth, size = item["depth"][None], item["depth_size"][None]
        if not found:
            scores = score_batch(inverse, truth, size, *protocol, scale=scale)
            found |= {"abs_rel": float(scores.median_scaled[0, 0]), "metric_abs_rel": float(scores.fixed_scale[0, 0])}
            continue
        intrinsics = resize_intrinsics(item["intrinsics"], dataset.size, tuple(depth.shape))[None]
        row = score_details(inverse, truth, size, intrinsics, None, *protocol, scale)[0].tolist()
        found |= {name: row[DETAILS.index(detail)] for name, detail in DENSE_SCORES.items()}
    return found
