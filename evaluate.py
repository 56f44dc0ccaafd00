"""Score a trained model's depth against ground truth, beside two predictors that look at no image.

Where the test part has no ground truth, its loss is all that can be said, and is reported instead.

python evaluate.py --config configs/demo.yaml [--checkpoint runs/demo/model] [--out DIR] [key=value ...]
python evaluate.py --config configs/demo.yaml --checkpoint runs/demo/model --against runs/other/model
python evaluate.py --cards runs/one/evaluation runs/two/evaluation
accelerate launch evaluate.py --config configs/kitti.yaml --checkpoint runs/kitti/model
"""

from __future__ import annotations

from featdepth.errors import InputError, end_at_interrupt, run_program

# Before the imports that take seconds.
if __name__ == "__main__":
    end_at_interrupt()

import argparse
import copy
import dataclasses
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from featdepth.config import Config, load_config, parse_arguments
from featdepth.config.checks import check_config
from featdepth.data import build_dataset
from featdepth.data.dataset import STEREO, FrameDataset, NoGroundTruth
from featdepth.data.unused import unused_settings
from featdepth.evaluation.cards.against import compare, format_comparison
from featdepth.evaluation.cards.comparison import compare_cards
from featdepth.evaluation.cards.content import (
    FORMAT,
    Leakage,
    Results,
    describe_losses,
    describe_model,
    describe_scores,
    describe_test,
    finite,
    headline,
    look_for_leakage,
)
from featdepth.evaluation.cards.details import describe_details
from featdepth.evaluation.cards.examples import draw_extremes
from featdepth.evaluation.cards.write_card import command_line, write_card
from featdepth.evaluation.odometry import open_sequences, report_odometry
from featdepth.evaluation.refinement import evaluate_refinement
from featdepth.evaluation.report import (
    format_loss,
    format_refinement,
    format_table,
    image_rows,
    summarise,
    summarise_loss,
    write_results,
)
from featdepth.evaluation.scoring import fit_pixel_median, moving_masks, scale_by_camera_height, score_images
from featdepth.models import FeatDepth
from featdepth.models.saved.provenance import versions
from featdepth.objective import compute_losses
from featdepth.parallel.accelerator import make_accelerator
from featdepth.parallel.loaders import check_shared_memory, sample_bytes
from featdepth.parallel.processes import gather_columns, on_main_process
from featdepth.scale import CAMERA_HEIGHT, describe_scale
from featdepth.wording import count


class Subject(NamedTuple):
    """A model and the data that it is tested on, at its own size of images."""

    checkpoint: str
    model: FeatDepth
    config: Config
    loader: DataLoader
    missing: str | None  # what ground truth there is not, in words; None: there is some
    leakage: Leakage

    def about(self) -> dict:
        """What metrics.json says of the model, beside its scores."""
        return {
            "checkpoint": self.checkpoint,
            "scale_source": self.model.scale_source,
            "contaminated": self.leakage.contaminated,
            "versions": versions(),
        }


class Scores(NamedTuple):
    """What was measured of a subject."""

    results: Results  # of all readable images
    metres_per_unit: float | None  # that depths were scaled with; None: by each image's median alone
    about: dict  # for metrics.json

    @property
    def known(self) -> Results:
        """Of the images with ground truth inside the crop and below the cap."""
        return self.results.take(np.flatnonzero(self.results.table["pixels"] > 0))


def main() -> None:
    if "--cards" in sys.argv[1:]:
        print(compare_cards(sys.argv[1:]))
        return
    arguments = parse_arguments(None, __doc__, add_options)
    config = load_config(arguments.config, arguments.overrides, training=False)
    checkpoint = arguments.checkpoint or f"{config.run.directory}/model"
    out = Path(arguments.out or f"{config.run.directory}/evaluation")
    config.run.trackers = []
    accelerator = make_accelerator(config, arguments.cpu)
    check_writable(out)
    if arguments.odometry and arguments.against is not None:
        raise InputError("--against compares scores of depth, and does not go with --odometry")
    if arguments.refine is not None:
        check_refinement(accelerator, arguments)

    subject = open_subject(accelerator, checkpoint, config, arguments.odometry)
    other = None if arguments.against is None else open_subject(accelerator, arguments.against, config)
    if arguments.odometry:
        if config.evaluate.flip and config.evaluate.camera_height is None:
            accelerator.print("note       evaluate.flip has no use for trajectories: it averages depth, not motion")
        with scaled(accelerator, subject) as about:
            report_odometry(accelerator, subject.model, subject.loader, out, about)
    elif subject.missing is None:
        report_scores(accelerator, subject, other, out, arguments.refine)
    elif other is None:
        report_loss(accelerator, subject, out)
    else:
        raise InputError(f"--against compares scores of depth, and there is no ground truth: {subject.missing}")
    accelerator.wait_for_everyone()
    accelerator.end_training()


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", metavar="DIR", help="model directory or hub id (default: <run>/model)")
    parser.add_argument("--against", metavar="DIR", help="another model, to be compared image by image")
    parser.add_argument("--out", metavar="DIR", help="where the results go (default: <run>/evaluation)")
    parser.add_argument("--odometry", action="store_true", help="score trajectories of the test drives, not depth")
    parser.add_argument(
        "--refine", type=int, metavar="N", help="also score causal refinement, N steps after each frame"
    )
    parser.add_argument("--cpu", action="store_true", help="use no GPU")
    parser.add_argument(
        "--cards", nargs="+", metavar="DIR", help="compare evaluations that are done, by their cards; needs no --config"
    )


def check_refinement(accelerator: Accelerator, arguments: argparse.Namespace) -> None:
    """Raise InputError where --refine makes no sense."""
    if arguments.refine < 1:
        raise InputError(f"--refine {arguments.refine}: has to be at least 1 step")
    if arguments.odometry:
        raise InputError("--refine is about depth, and does not go with --odometry")
    if accelerator.num_processes > 1:
        raise InputError("--refine follows each clip frame by frame, on one process; start it without a launcher")


def check_writable(out: Path) -> None:
    """Look before the work, rather than after it, whether `out` can be made. Raises InputError where it cannot."""
    existing = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(f"{out}: the results cannot be written below {existing}; choose another --out")


def open_subject(accelerator: Accelerator, checkpoint: str, config: Config, odometry: bool = False) -> Subject:
    """Load a model and the test data as it sees them, for depth or for `odometry`, and print what they are."""
    model = FeatDepth.from_pretrained(checkpoint)
    if not model.has_depth:
        raise InputError(f"{checkpoint}: objective {model.settings.objective} predicts no depth")
    model = model.to(accelerator.device, memory_format=torch.channels_last)
    # The model decides on the size of its images.
    config = copy.deepcopy(config)
    config.data.height, config.data.width = model.height, model.width
    dataset, missing = (open_sequences(config), None) if odometry else open_test_data(config)
    leakage = find_contamination(model, checkpoint, dataset.recordings(), config)
    accelerator.print(
        f"model      {checkpoint}, {model.settings.objective}, {model.height}x{model.width}\n"
        f"depth      {describe_scale(model.scale_source)}\n"
        f"devices    {accelerator.num_processes} x {accelerator.device}\n"
        f"test       {dataset.describe()}"
    )
    for note in unused_settings(dataset.members):
        accelerator.print(f"note       {note}")
    batch_bytes = config.evaluate.batch_size * sample_bytes(dataset)
    batches = -(-len(dataset) // config.evaluate.batch_size)
    check_shared_memory(accelerator, "test", batch_bytes, batches, config.data.workers)
    loader = accelerator.prepare(DataLoader(dataset, config.evaluate.batch_size, num_workers=config.data.workers))
    return Subject(str(checkpoint), model, config, loader, missing, leakage)


def open_test_data(config: Config) -> tuple[FrameDataset, str | None]:
    """The test images with ground truth, and None; where none has any, all with their sources, and what is missing."""
    try:
        return build_dataset(config, "test", frames=[0], require_depth=True), None
    except NoGroundTruth as missing:
        return build_dataset(config, "test", with_depth=False), str(missing)


def find_contamination(model: FeatDepth, checkpoint: str, tested: list[str], config: Config) -> Leakage:
    """What the model's own record says about the recordings that it is `tested` on. Refused unless allowed."""
    leakage = look_for_leakage(model, tested)
    if leakage.shared and not config.data.allow_leakage:
        raise InputError(
            f"{checkpoint}: the model was trained on test drives ({', '.join(leakage.shared)}); its scores would mean "
            "nothing, data.allow_leakage=true prints them marked CONTAMINATED"
        )
    return leakage


def report_scores(
    accelerator: Accelerator, subject: Subject, other: Subject | None, out: Path, refinement_steps: int | None
) -> None:
    """Print the scores, and write `metrics.json`, `per_image.csv` and the card into `out`. Every process enters.

    refinement_steps: of causal refinement, which is scored beside the model as it is; None: it is not.
    """
    pixel_median, note = fit_pixel_median(accelerator, subject.config)
    accelerator.print(f"median     {note}")
    scores = score_subject(accelerator, subject, pixel_median)
    other_scores = None if other is None else score_subject(accelerator, other, pixel_median)
    refinement = (
        None if refinement_steps is None else score_refinement(subject, refinement_steps, scores.metres_per_unit)
    )

    def write() -> None:
        config, known = subject.config, scores.known
        skipped = len(subject.loader.dataset) - len(scores.results.samples)
        result = summarise(known, config) | {"skipped_images": skipped} | scores.about
        result["without_truth"] = len(scores.results.samples) - len(known.samples)
        against = None if other is None else compare_subjects(known, other, other_scores, config)
        card = describe("depth", subject, known, skipped, scores.about["scale_source"])
        card |= describe_scores(known, config)
        card |= {"details": describe_details(known), "pixel_median_of": note, "against": against}
        card["refinement"] = refinement
        pictures = draw_extremes(subject.model, subject.loader.dataset, config, scores.metres_per_unit, card)
        write_results(out, result, image_rows(scores.results, config))
        write_card(out, card, pictures)
        print(format_table(result))
        if result["without_truth"]:
            images = "image" if len(scores.results.samples) == 1 else "images"
            print(
                f"{result['without_truth']} of {len(scores.results.samples)} {images} had no valid ground truth inside "
                "the crop and below the cap, and do not count"
            )
        if against is not None:
            print(format_comparison(against))
        if refinement is not None:
            print(format_refinement(refinement))
        print(f"written to {out}")

    on_main_process(accelerator, write)


def compare_subjects(this: Results, other: Subject, other_scores: Scores, config: Config) -> dict:
    """What the card says of the model that this one is compared with."""
    return {
        "model": describe_model(other.model, other.checkpoint, other_scores.about["scale_source"]),
        "leakage": other.leakage.describe(),
        **compare(this, other_scores.known, headline(config)),
    }


def score_subject(accelerator: Accelerator, subject: Subject, pixel_median: Tensor | None) -> Scores:
    """Scores of all readable test images. Every process enters."""
    model, loader, config = subject.model, subject.loader, subject.config
    unit, about = find_scale(accelerator, subject)

    def columns(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return score_images(model, batch, pixel_median, unit, moving_masks(loader.dataset, batch), config)

    table = gather_columns(accelerator, model, loader, columns)
    return Scores(Results.of(table, loader.dataset.samples), unit, about)


def find_scale(accelerator: Accelerator, subject: Subject) -> tuple[float | None, dict]:
    """Metres in a unit of the model, by `evaluate.camera_height` where that is set, and `about` with how it was found.

    Every process enters. Raises InputError where no image shows the ground.
    """
    about = subject.about()
    if subject.config.evaluate.camera_height is None:
        return subject.model.settings.metres_per_unit, about
    unit, found = scale_by_camera_height(accelerator, subject.model, subject.loader, subject.config)
    accelerator.print(
        f"scale      {found['metres']:g} m of camera height, {unit:.4g} m in a unit; "
        f"{found['images']} of {count(found['images'] + found['images_without_ground'], 'image')} show the ground"
    )
    return unit, about | {"scale_source": CAMERA_HEIGHT, "camera_height": found}


@contextmanager
def with_unit(model: FeatDepth, unit: float | None) -> Iterator[None]:
    """The model with another length of its unit (metres), for a while."""
    own = model.settings
    model.settings = dataclasses.replace(own, metres_per_unit=unit)
    try:
        yield
    finally:
        model.settings = own


@contextmanager
def scaled(accelerator: Accelerator, subject: Subject) -> Iterator[dict]:
    """The subject's model with the scale of `find_scale`, for a while; gives what is to be said of it."""
    unit, about = find_scale(accelerator, subject)
    with with_unit(subject.model, unit):
        yield about


def score_refinement(subject: Subject, steps: int, unit: float | None) -> dict:
    """Scores with and without causal refinement: from both cameras, where the configuration has them, else from one."""
    config = subject.config
    with_stereo = STEREO in config.data.frames and subject.model.scale_source is not None
    dataset = build_dataset(config, "test", frames=[0, STEREO] if with_stereo else [0], require_depth=True)
    with with_unit(subject.model, unit):
        return finite(evaluate_refinement(subject.model, dataset, config, steps))


def report_loss(accelerator: Accelerator, subject: Subject, out: Path) -> None:
    """Print the loss and its terms, and write them to `metrics.json` and the card in `out`. Every process enters.

    Frames and weights of the terms are the configuration's, the networks and their range of depths the model's;
    InputError where the two do not go together.
    """
    model, config, loader = subject.model, subject.config, subject.loader
    # The loss knows no metres, but how long the model's unit is can be told all the same.
    unit, about = find_scale(accelerator, subject)
    if config.evaluate.flip:
        accelerator.print("note       evaluate.flip has no use for a loss: depth is not scored without ground truth")
    config.model, model.frames = model.settings, config.data.frames
    check_config(config, subject.checkpoint, check_files=False, training=False)
    if model.temporal_sources and not hasattr(model, "pose_decoder"):
        raise InputError(
            f"{subject.checkpoint}: has learned no motion for the loss of data.frames {config.data.frames}"
        )
    if model.cameras is not None:
        loader.dataset.number_cameras(model.cameras.names)
    table = gather_columns(
        accelerator,
        model,
        loader,
        lambda batch: {**compute_losses(model(batch), batch, config), "index": batch["index"]},
    )

    def write() -> None:
        results = Results.of(table, loader.dataset.samples)
        skipped = len(loader.dataset) - len(results.samples)
        result = summarise_loss(results.table, subject.missing) | {"skipped_images": skipped} | about
        card = describe("loss", subject, results, skipped, about["scale_source"])
        card |= describe_losses(results) | {"no_ground_truth": subject.missing, "against": None}
        pictures = draw_extremes(model, loader.dataset, config, unit, card)
        write_results(out, result)
        write_card(out, card, pictures)
        print(format_loss(result))
        print(f"written to {out}")

    on_main_process(accelerator, write)


def describe(kind: str, subject: Subject, results: Results, skipped: int, scale_source: str | None) -> dict:
    """What every card says, of whatever kind: who was tested, on what, and how."""
    return {
        "format": FORMAT,
        "kind": kind,
        "contaminated": subject.leakage.contaminated,
        "leakage": subject.leakage.describe(),
        "model": describe_model(subject.model, subject.checkpoint, scale_source),
        "test": describe_test(subject.config, results.samples, skipped),
        "command": command_line(),
        "versions": versions(),
    }


if __name__ == "__main__":
    run_program(main)
