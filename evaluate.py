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
import sys
from pathlib import Path

from accelerate import Accelerator

from featdepth.config import load_config, parse_arguments
from featdepth.data.dataset import FrameDataset
from featdepth.evaluation.cards.against import format_comparison
from featdepth.evaluation.cards.assembly import depth_card, loss_card
from featdepth.evaluation.cards.comparison import compare_cards
from featdepth.evaluation.cards.examples import draw_extremes
from featdepth.evaluation.opening import open_refinement_data, open_training_depth
from featdepth.evaluation.report import (
    check_writable,
    format_loss,
    format_refinement,
    format_table,
    image_rows,
    summarise,
    summarise_loss,
    write_results,
)
from featdepth.evaluation.scoring import fit_pixel_median, score_losses, score_refinement, score_subject
from featdepth.evaluation.subject import Subject, open_subject
from featdepth.evaluation.trajectories import report_odometry
from featdepth.parallel.accelerator import make_accelerator
from featdepth.parallel.processes import on_main_process


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
    check_options(accelerator, arguments)

    subject = open_subject(accelerator, checkpoint, config, arguments.odometry)
    other = None if arguments.against is None else open_subject(accelerator, arguments.against, config)
    if arguments.odometry:
        report_odometry(accelerator, subject, out)
    elif subject.missing is None:
        training = open_training_depth(subject.config)
        clips = None if arguments.refine is None else open_refinement_data(subject.config, subject.model)
        report_scores(accelerator, subject, other, training, clips, arguments.refine, out)
    elif other is None:
        report_loss(accelerator, subject, out)
    else:
        raise InputError(f"--against compares scores of depth, and there is no ground truth: {subject.missing}")
    accelerator.wait_for_everyone()
    accelerator.end_training()


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--checkpoint", metavar="DIR", help="model directory or hub id (default: <run>/model)")
    add("--against", metavar="DIR", help="another model, to be compared image by image")
    add("--out", metavar="DIR", help="where the results go (default: <run>/evaluation)")
    add("--odometry", action="store_true", help="score trajectories of the test drives, not depth")
    add("--refine", type=int, metavar="N", help="also score causal refinement, N steps after each frame")
    add("--cpu", action="store_true", help="use no GPU")
    add("--cards", nargs="+", metavar="DIR", help="compare evaluations by their cards; needs no --config")


def check_options(accelerator: Accelerator, arguments: argparse.Namespace) -> None:
    """Raise InputError for options that do not go together."""
    if arguments.odometry and arguments.against is not None:
        raise InputError("--against compares scores of depth, and does not go with --odometry")
    if arguments.refine is None:
        return
    if arguments.refine < 1:
        raise InputError(f"--refine {arguments.refine}: has to be at least 1 step")
    if arguments.odometry:
        raise InputError("--refine is about depth, and does not go with --odometry")
    if accelerator.num_processes > 1:
        raise InputError("--refine follows each clip frame by frame, on one process; start it without a launcher")


def report_scores(
    accelerator: Accelerator,
    subject: Subject,
    other: Subject | None,
    training: tuple[FrameDataset | None, str | None],
    clips: FrameDataset | None,
    steps: int | None,
    out: Path,
) -> None:
    """Print the scores, and write `metrics.json`, `per_image.csv` and the card into `out`. Every process enters.

    other: a model to compare with; training: of `open_training_depth`, for the per-pixel median; clips, steps: to score
    causal refinement on, with so many steps, beside the model as it is.
    """
    pixel_median, note = fit_pixel_median(accelerator, *training)
    accelerator.print(f"median     {note}")
    scores = score_subject(accelerator, subject, pixel_median)
    other_scores = None if other is None else score_subject(accelerator, other, pixel_median)
    refinement = None if clips is None else score_refinement(scores, clips, steps)

    def write() -> None:
        result, card = summarise(scores), depth_card(scores, note, other_scores, refinement)
        write_results(out, result, card, draw_extremes(scores, card), image_rows(scores))
        print(format_table(result))
        if other is not None:
            print(format_comparison(card["against"]))
        if clips is not None:
            print(format_refinement(card["refinement"]))
        print(f"written to {out}")

    on_main_process(accelerator, write)


def report_loss(accelerator: Accelerator, subject: Subject, out: Path) -> None:
    """Print the loss and its terms, and write them to `metrics.json` and the card in `out`. Every process enters."""
    scores = score_losses(accelerator, subject)

    def write() -> None:
        result, card = summarise_loss(scores), loss_card(scores)
        write_results(out, result, card, draw_extremes(scores, card))
        print(format_loss(result))
        print(f"written to {out}")

    on_main_process(accelerator, write)


if __name__ == "__main__":
    run_program(main)
