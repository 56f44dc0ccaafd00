"""Score a trained model's depth against ground truth, beside two predictors that look at no image.

Where the test part has no ground truth, its loss is all that can be said, and is reported instead.

python evaluate.py --config configs/demo.yaml [--checkpoint runs/demo/model] [--out DIR] [key=value ...]
accelerate launch evaluate.py --config configs/kitti.yaml --checkpoint runs/kitti/model
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from featdepth.config import Config, load_config, parse_arguments
from featdepth.config_checks import check_config
from featdepth.data import build_dataset
from featdepth.data.dataset import FrameDataset, NoGroundTruth
from featdepth.data.splits import seen_again
from featdepth.errors import InputError, run_program
from featdepth.metrics.depth import score_batch
from featdepth.metrics.trivial import BINS, GRID, depth_histogram, median_depth
from featdepth.models import FeatDepth
from featdepth.odometry_report import open_sequences, report_odometry
from featdepth.report import format_loss, format_table, image_rows, summarise, summarise_loss, write_results
from featdepth.run import make_accelerator, versions
from featdepth.scale import CAMERA_HEIGHT, describe_scale
from featdepth.validation import (
    gather_values,
    predict_disparity,
    scale_by_camera_height,
    score_prediction,
    validate,
)

MOST_MEDIAN_FRAMES = 1000  # training frames, evenly spaced, that the per-pixel median is taken over


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
    dataset, missing = (open_sequences(config), None) if arguments.odometry else open_test_data(config)
    contaminated = find_contamination(model, dataset.recordings(), config)
    accelerator.print(
        f"model      {checkpoint}, {model.settings.objective}, {model.height}x{model.width}\n"
        f"depth      {describe_scale(model.scale_source)}\n"
        f"devices    {accelerator.num_processes} x {accelerator.device}\n"
        f"test       {dataset.describe()}"
    )
    loader = accelerator.prepare(DataLoader(dataset, config.evaluate.batch_size, num_workers=config.data.workers))
    about = {"checkpoint": str(checkpoint), "scale_source": model.scale_source, "contaminated": contaminated}
    about["versions"] = versions()
    if arguments.odometry:
        report_odometry(accelerator, model, loader, out, about)
    elif missing is None:
        report_scores(accelerator, model, loader, config, out, about)
    else:
        report_loss(accelerator, model, loader, config, out, about, missing)
    accelerator.wait_for_everyone()
    accelerator.end_training()


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", metavar="DIR", help="model directory or hub id (default: <run>/model)")
    parser.add_argument("--out", metavar="DIR", help="where the results go (default: <run>/evaluation)")
    parser.add_argument("--odometry", action="store_true", help="score trajectories of the test drives, not depth")
    parser.add_argument("--cpu", action="store_true", help="use no GPU")


def check_writable(out: Path) -> None:
    """Look before the work, rather than after it, whether `out` can be made. Raises InputError where it cannot."""
    existing = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(f"{out}: the results cannot be written below {existing}; choose another --out")


def open_test_data(config: Config) -> tuple[FrameDataset, str | None]:
    """The test images with ground truth, and None; where none has any, all with their sources, and what is missing."""
    try:
        return build_dataset(config, "test", frames=[0], require_depth=True), None
    except NoGroundTruth as missing:
        return build_dataset(config, "test", with_depth=False), str(missing)


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


def report_scores(
    accelerator: Accelerator, model: FeatDepth, loader: DataLoader, config: Config, out: Path, about: dict
) -> None:
    """Print the table and write `metrics.json` (with `about`) and `per_image.csv` into `out`. Every process enters."""
    pixel_median, note = fit_pixel_median(accelerator, config)
    accelerator.print(f"median     {note}")
    unit = model.settings.metres_per_unit
    if config.evaluate.camera_height is not None:
        unit, found = scale_by_camera_height(accelerator, model, loader, config)
        about |= {"scale_source": CAMERA_HEIGHT, "camera_height": found}
        accelerator.print(
            f"scale      {found['metres']:g} m of camera height, {unit:.4g} m in a unit; "
            f"{found['images']} images show the ground, {found['images_without_ground']} do not"
        )
    table = gather_values(accelerator, model, loader, lambda batch: score_all(model, batch, pixel_median, unit, config))
    if accelerator.is_main_process:
        samples = loader.dataset.samples
        result = summarise(table, config) | {"skipped_images": len(samples) - len(table)} | about
        write_results(out, result, image_rows(table, list(map(str, samples))))
        print(format_table(result))
        print(f"written to {out}")


def report_loss(
    accelerator: Accelerator,
    model: FeatDepth,
    loader: DataLoader,
    config: Config,
    out: Path,
    about: dict,
    missing: str,
) -> None:
    """Print the loss and its terms, and write them (with `about`) to `metrics.json` in `out`. Every process enters.

    missing: what ground truth there is not. Frames and weights of the terms are the configuration's, the networks and
    their range of depths the model's; InputError where the two do not go together.
    """
    config.model, model.frames = model.settings, config.data.frames
    check_config(config, about["checkpoint"], check_files=False, training=False)
    if model.temporal_sources and not hasattr(model, "pose_decoder"):
        frames = config.data.frames
        raise InputError(f"{about['checkpoint']}: has learned no motion for the loss of data.frames {frames}")
    if model.cameras is not None:
        loader.dataset.number_cameras(model.cameras.names)
    losses = validate(accelerator, model, loader, config, with_depth=False)
    if accelerator.is_main_process:
        result = summarise_loss(losses, missing) | {"skipped_images": len(loader.dataset) - losses["samples"]} | about
        write_results(out, result)
        print(format_loss(result))
        print(f"written to {out}")


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
def score_all(
    model: FeatDepth,
    batch: dict[str, Tensor],
    pixel_median: Tensor | None,
    metres_per_unit: float | None,
    config: Config,
) -> Tensor:
    """One row `[B, 5 * 8 + 3]` per image: METRICS of each of PREDICTORS, then scale ratio, pixels, index."""
    scores = score_prediction(model, predict_disparity(model, batch, config), batch, config, metres_per_unit)
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


if __name__ == "__main__":
    run_program(main)
