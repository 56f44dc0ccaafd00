"""Predict depth with a trained model: for images, folders of images and videos of any size.

python -m featdepth.predict --checkpoint DIR_OR_HUB_ID INPUT... --out DIR [--save KINDS] [options]
accelerate launch -m featdepth.predict --checkpoint runs/kitti/model drives/ --out depth

INPUT is an image, a folder of png or jpg images, a video file, or a quoted pattern of these ('drives/*/image_02/data').
Folders and videos are clips and get folders of their own below --out. What --save can name, separated by commas:

of each frame  depth_png (16 bits, 256 a metre), npz and tiff (float32), picture (in colour, with a scale bar),
               points (a point cloud as PLY)
of a clip      video (frames beside their depth), trajectory (KITTI's and TUM's format), fused_points (one point cloud
               of all frames), page (one HTML file that shows all of it; single images have one, too)

Where they are there already, frames are not predicted again. docs/prediction.md has all the rest.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from featdepth.config import Config, Train
from featdepth.console import count
from featdepth.errors import InputError, run_program
from featdepth.models import FeatDepth
from featdepth.parallel.accelerator import device_name, make_accelerator, precision
from featdepth.parallel.processes import on_all_processes, on_main_process
from featdepth.predict.intrinsics import Cameras
from featdepth.predict.made_with import model_digest
from featdepth.predict.predictor import Predictor, Tally, gather_tally, print_failure
from featdepth.predict.settings import Settings, parse_arguments
from featdepth.predict.side_by_side import check_video_writer
from featdepth.predict.sources import FrameSource
from featdepth.predict.work import describe, plan_work, share
from featdepth.scale import CAMERA_HEIGHT, METRES, RELATIVE, describe_scale, unit_of

LONGEST_WAIT = 7 * 24 * 3600  # seconds: a process with nothing to do waits for one with a long video


def main() -> None:
    arguments = parse_arguments(__doc__)
    accelerator = make_accelerator(Config(train=Train(timeout=LONGEST_WAIT)), arguments.cpu)
    model = on_all_processes(accelerator, lambda: load_model(arguments))
    model = model.to(accelerator.device, memory_format=torch.channels_last)
    settings, impossible = choose_settings(arguments, model)
    scale_source = model.scale_source if settings.camera_height is None else CAMERA_HEIGHT

    # One process looks at the inputs and claims the folder for them; then each takes its share.
    plan = on_main_process(accelerator, lambda: plan_here(arguments, model, settings, accelerator))
    sources, failures = broadcast_object_list([plan])[0]
    failures += impossible
    accelerator.print(
        f"model      {arguments.checkpoint}, {model.height}x{model.width}\n"
        f"depth      {describe_scale(scale_source)}\n"
        f"devices    {accelerator.num_processes} x {device_name(accelerator)}, "
        f"precision {precision(accelerator)}\n"
        f"inputs     {describe(sources)}"
    )
    if settings.warning:
        accelerator.print(f"WARNING    {settings.warning}")

    cameras = Cameras(arguments.intrinsics, arguments.field_of_view, model)
    predictor = Predictor(accelerator, model, settings, cameras, arguments.batch_size, arguments.workers)
    predictor.check_memory(sources)
    if accelerator.is_main_process:
        for failure in failures:
            print_failure(failure)
    own = share(sources, accelerator.process_index, accelerator.num_processes, settings)
    total = gather_tally(on_all_processes(accelerator, lambda: predictor.predict(own)))
    total.failed += len(failures)
    if accelerator.is_main_process:
        report(total, settings, unit_of(scale_source))
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if total.failed:
        sys.exit(2)


def load_model(arguments: argparse.Namespace) -> FeatDepth:
    """The model, on the CPU. Raises InputError where it cannot do what is asked for."""
    model = FeatDepth.from_pretrained(arguments.checkpoint)
    if not model.has_depth:
        raise InputError(f"{arguments.checkpoint}: objective {model.settings.objective} predicts no depth")
    divide_kinds(arguments.save)
    return model


def choose_settings(arguments: argparse.Namespace, model: FeatDepth) -> tuple[Settings, list[str]]:
    """The settings that the command line means for this model, and a line for each kind that cannot be made."""
    save, impossible = divide_kinds(arguments.save)
    doubts = [model.provenance.doubt]
    if model.cameras is not None and arguments.intrinsics is None and arguments.field_of_view is None:
        doubts.append(model.cameras.warning((model.height, model.width)))
    settings = Settings(
        Path(arguments.out),
        save,
        arguments.nearest,
        arguments.farthest,
        arguments.frame_rate,
        arguments.refine,
        arguments.camera_height,
        "; ".join(filter(None, doubts)),
    )
    return settings, impossible


def divide_kinds(save: list[str]) -> tuple[list[str], list[str]]:
    """The kinds of `save` that can be made here, and a line for those that cannot. Raises InputError where none can."""
    if "video" not in save:
        return save, []
    try:
        check_video_writer()
    except InputError as error:
        trouble, left = f"no video: {error}", [kind for kind in save if kind != "video"]
        if not left:
            raise InputError(trouble) from error
        return left, [trouble]
    return save, []


def plan_here(
    arguments: argparse.Namespace, model: FeatDepth, settings: Settings, accelerator: Accelerator
) -> tuple[list[FrameSource], list[str]]:
    """`plan_work` for the inputs of the command line."""
    made_with = {
        "model": model_digest(model),
        "precision": accelerator.mixed_precision,
        "refinement": settings.refine,
        "camera height": settings.camera_height,
    }
    intrinsics = {"intrinsics": arguments.intrinsics, "field of view": arguments.field_of_view}
    return plan_work(arguments.inputs, settings, made_with, intrinsics, arguments.overwrite)


def report(total: Tally, settings: Settings, unit: str) -> None:
    """Print how many frames came to what."""
    if total.clipped_frames:
        limit = "256 m" if unit == METRES else "256 units"
        print(
            f"note       {count(total.clipped_pixels, 'pixel')} of {count(total.clipped_frames, 'frame')} farther "
            f"than {limit}, the most that depth_png can say; npz and tiff have their depth"
        )
    if unit == RELATIVE:
        print("note       the model has no metric scale: depth is relative, in units of the network")
    parts = [f"{total.written} written"]
    parts += [f"{total.skipped} skipped as already there"] if total.skipped else []
    parts += [f"{total.failed} failed"] if total.failed else []
    print(f"{settings.out}: {', '.join(parts)}")


if __name__ == "__main__":
    run_program(main)
