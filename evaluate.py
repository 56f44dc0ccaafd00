"""Score a trained model's depth against ground truth, beside two predictors that look at no image.

python evaluate.py --config configs/demo.yaml [--checkpoint runs/demo/model] [--out DIR] [key=value ...]
accelerate launch evaluate.py --config configs/kitti.yaml --checkpoint runs/kitti/model
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from featdepth.config import Config, load_config, parse_arguments
from featdepth.data import build_dataset
from featdepth.data.splits import seen_again
from featdepth.errors import InputError, run_program
from featdepth.files import write_text
from featdepth.metrics.depth import METRICS, flip_post_process, mean_scores, median, score_batch
from featdepth.metrics.trivial import BINS, GRID, depth_histogram, median_depth
from featdepth.models import FeatDepth
from featdepth.run import make_accelerator, versions
from featdepth.validation import gather_values, score_prediction

MOST_MEDIAN_FRAMES = 1000  # training frames, evenly spaced, that the per-pixel median is taken over
WIDTH = len(METRICS)
PREDICTORS = ("median_scaled", "fixed_scale", "constant_depth", "pixel_median", "pixel_median_fixed_scale")
TITLES = (
    "model, median-scaled",
    "model, fixed scale (metres)",
    "constant depth, median-scaled",
    "per-pixel median, median-scaled",
    "per-pixel median, fixed scale (metres)",
)


def main() -> None:
    arguments = parse_arguments(None, __doc__, add_options)
    config = load_config(arguments.config, arguments.overrides, training=False)
    checkpoint = arguments.checkpoint or f"{config.run.directory}/model"
    out = Path(arguments.out or f"{config.run.directory}/evaluation")
    config.run.trackers = []
    accelerator = make_accelerator(config, arguments.cpu)
    check_writable(out)

    # The model decides on the size of its images.
    model = FeatDepth.from_pretrained(checkpoint)
    if not model.has_depth:
        raise InputError(f"{checkpoint}: objective {model.settings.objective} predicts no depth")
    model = model.to(accelerator.device, memory_format=torch.channels_last)
    config.data.height, config.data.width = model.height, model.width
    dataset = build_dataset(config, "test", frames=[0], require_depth=True)
    contaminated = find_contamination(model, dataset.recordings(), config)
    pixel_median, note = fit_pixel_median(accelerator, config)
    accelerator.print(
        f"model      {checkpoint}, {model.settings.objective}, {model.height}x{model.width}\n"
        f"devices    {accelerator.num_processes} x {accelerator.device}\n"
        f"test       {dataset.describe()}\n"
        f"median     {note}"
    )

    loader = accelerator.prepare(DataLoader(dataset, config.evaluate.batch_size, num_workers=config.data.workers))
    table = gather_values(accelerator, model, loader, lambda batch: score_all(model, batch, pixel_median, config))
    if accelerator.is_main_process:
        result = summarise(table, config) | {
            "checkpoint": str(checkpoint),
            "contaminated": contaminated,
            "skipped_images": len(dataset) - len(table),
            "versions": versions(),
        }
        write_results(out, result, table, [str(sample) for sample in dataset.samples])
        print(format_table(result))
        print(f"written to {out}")
    accelerator.wait_for_everyone()
    accelerator.end_training()


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", metavar="DIR", help="model directory or hub id (default: <run>/model)")
    parser.add_argument("--out", metavar="DIR", help="where the results go (default: <run>/evaluation)")
    parser.add_argument("--cpu", action="store_true", help="use no GPU")


def check_writable(out: Path) -> None:
    """Look before the work, rather than after it, whether `out` can be made. Raises InputError where it cannot."""
    existing = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(f"{out}: the results cannot be written below {existing}; choose another --out")


def find_contamination(model: FeatDepth, tested: list[str], config: Config) -> list[str]:
    """The test recordings that the model was trained on, and those its own record admits. Refused unless allowed."""
    record = model.training_record
    shared = seen_again(record.get("drives", []), tested)
    if shared and not config.data.allow_leakage:
        raise InputError(
            f"the model was trained on test drives ({', '.join(shared)}); its scores would mean nothing, "
            "data.allow_leakage=true prints them marked CONTAMINATED"
        )
    return sorted({*shared, *record.get("contaminated", [])})


def fit_pixel_median(accelerator: Accelerator, config: Config) -> tuple[Tensor | None, str]:
    """Median depth (metres) at each place of the image over the training drives, and how it was made, in words.

    None where the training part has no ground truth here; the words say why. Every process enters.
    """
    try:
        dataset = build_dataset(config, "train", with_depth=True, frames=[0], require_depth=True)
    except InputError as error:
        return None, f"no per-pixel median: {error}"
    stride = -(-len(dataset) // MOST_MEDIAN_FRAMES)
    samples = dataset.samples[::stride]
    histogram = sum(
        (
            depth_histogram(dataset.load_depth(sample))
            for sample in samples[accelerator.process_index :: accelerator.num_processes]
        ),
        start=torch.zeros(*GRID, BINS),
    )
    histogram = accelerator.reduce(histogram.to(accelerator.device), "sum")
    return median_depth(histogram.cpu()), f"of {len(samples)} frames of {len(dataset.drives)} training drives"


@torch.no_grad()
def score_all(model: FeatDepth, batch: dict[str, Tensor], pixel_median: Tensor | None, config: Config) -> Tensor:
    """One row `[B, 5 * 8 + 3]` per image: METRICS of each of PREDICTORS, then scale ratio, pixels, index."""
    images = batch["images"][:, 0]
    disparity = model.depth(images)[0]
    if config.evaluate.flip:
        disparity = flip_post_process(disparity, model.depth(images.flip(-1))[0].flip(-1))
    scores = score_prediction(model, disparity, batch, config)
    constant = score_trivial(torch.ones(1, 1), batch, config)
    columns = [scores.median_scaled, scores.fixed_scale, constant.median_scaled]
    if pixel_median is not None:
        trivial = score_trivial(1 / pixel_median, batch, config)
        columns += [trivial.median_scaled, trivial.fixed_scale]
    else:
        columns += [torch.full_like(scores.median_scaled, torch.nan)] * 2
    columns += [torch.stack([scores.ratio, scores.pixels, batch["index"].float()], dim=1)]
    return torch.cat(columns, dim=1)


def score_trivial(inverse_depth: Tensor, batch: dict[str, Tensor], config: Config):
    """`DepthScores` of one map `[h, w]` for every image of the batch."""
    maps = inverse_depth.to(batch["depth"].device).expand(len(batch["depth"]), 1, *inverse_depth.shape)
    return score_batch(maps, batch["depth"], batch["depth_size"], config.evaluate.crop, config.evaluate.cap)


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


def write_results(out: Path, result: dict, table: Tensor, names: list[str]) -> None:
    """`metrics.json` and `per_image.csv` (median-scaled and fixed scale of each image), each written whole."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    metric_names = [f"{name}_{metric}" for name in PREDICTORS[:2] for metric in METRICS]
    writer.writerow(["image", *metric_names, "scale_ratio", "pixels"])
    for row in table.tolist():
        writer.writerow([names[int(row[-1])], *row[: 2 * WIDTH], row[-3], int(row[-2])])
    try:
        write_text(out / "metrics.json", json.dumps(result, indent=2) + "\n")
        write_text(out / "per_image.csv", text.getvalue())
    except OSError as error:
        raise InputError(f"{out}: the results cannot be written ({error.strerror}); choose another --out") from error


def format_table(result: dict) -> str:
    """The scores as a table for people."""
    flip = ", flip post-processing" if result["flip"] else ""
    lines = [
        f"\n{result['images']} images, protocol {result['protocol']}, "
        f"crop {result['crop']}, cap {result['cap']:g} m{flip}",
        f"{'':<40}" + "".join(f"{name:>10}" for name in METRICS),
    ]
    for name, title in zip(PREDICTORS, TITLES, strict=True):
        if result[name] is not None:
            lines.append(f"{title:<40}" + "".join(f"{result[name][metric]:>10.4f}" for metric in METRICS))
        elif name == "fixed_scale":
            lines.append(f"{title:<40}  the model knows no scale")
    ratio = result["scale_ratio"]
    lines.append(f"scale ratio (true / predicted): median {ratio['median']:.3f}, relative spread {ratio['std']:.3f}")
    if result["contaminated"]:
        lines.insert(0, f"\nCONTAMINATED: trained on drives it must not know: {', '.join(result['contaminated'])}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_program(main)
