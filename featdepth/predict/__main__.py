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
import math
import sys
from dataclasses import astuple
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from featdepth.cameras.pinhole import field_of_view_intrinsics
from featdepth.config import Config, Parser, Train
from featdepth.data.synthetic import available_cores
from featdepth.errors import InputError, run_program
from featdepth.models import FeatDepth
from featdepth.models.saved import verdict
from featdepth.odometry.egomotion import check_has_pose
from featdepth.parallel.accelerator import device_name, make_accelerator, precision
from featdepth.parallel.loaders import check_shared_memory
from featdepth.parallel.processes import on_all_processes, on_main_process
from featdepth.predict.frames import Wanted, frame_bytes, loader_processes
from featdepth.predict.intrinsics import Cameras
from featdepth.predict.made_with import claim, fingerprint
from featdepth.predict.outputs import (
    CLIP_KINDS,
    FRAME_KINDS,
    IMAGE_KINDS,
    NEEDS_POSES,
    NEEDS_VIEWS,
    Settings,
    is_whole,
    made_files,
    remove_outputs,
)
from featdepth.predict.predictor import Predictor, Tally, complain
from featdepth.predict.side_by_side import check_video_writer
from featdepth.predict.sources import Source, find_inputs, is_image, list_sources
from featdepth.scale import CAMERA_HEIGHT, METRES, RELATIVE, describe_scale, unit_of
from featdepth.wording import count

KINDS = (*FRAME_KINDS, *CLIP_KINDS)
LONGEST_WAIT = 7 * 24 * 3600  # seconds: a process with nothing to do waits for one with a long video


def main() -> None:
    arguments = parse_arguments()
    accelerator = make_accelerator(Config(train=Train(timeout=LONGEST_WAIT)), arguments.cpu)
    model = on_all_processes(accelerator, lambda: load_model(arguments))
    model = model.to(accelerator.device, memory_format=torch.channels_last)
    save, impossible = divide_kinds(arguments.save, model)
    settings = Settings(
        Path(arguments.out),
        save,
        arguments.nearest,
        arguments.farthest,
        arguments.frame_rate,
        arguments.refine,
        arguments.camera_height,
        warn_of(model, arguments),
    )
    scale_source = model.scale_source if arguments.camera_height is None else CAMERA_HEIGHT
    cameras = Cameras(arguments.intrinsics, arguments.field_of_view, model)

    # One process looks at the inputs and claims the folder for them; then each takes its share.
    plan = on_main_process(accelerator, lambda: plan_work(arguments, model, settings, accelerator))
    sources, failures = broadcast_object_list([plan])[0]
    failures += impossible
    own = share(sources, accelerator.process_index, accelerator.num_processes, settings)
    accelerator.print(
        f"model      {arguments.checkpoint}, {model.height}x{model.width}\n"
        f"depth      {describe_scale(scale_source)}\n"
        f"devices    {accelerator.num_processes} x {device_name(accelerator)}, "
        f"precision {precision(accelerator)}\n"
        f"inputs     {describe(sources)}"
    )
    if settings.warning:
        accelerator.print(f"WARNING    {settings.warning}")
    check_memory(
        accelerator, sources, Wanted((model.height, model.width), bool(NEEDS_VIEWS & set(settings.save))), arguments
    )
    if accelerator.is_main_process:
        for failure in failures:
            complain(failure)
    predictor = Predictor(accelerator, model, settings, cameras, arguments.batch_size, arguments.workers)
    tally = on_all_processes(accelerator, lambda: predictor.predict(own))
    total = Tally(*map(sum, zip(*gather_object([astuple(tally)]), strict=True)))
    total.failed += len(failures)
    if accelerator.is_main_process:
        report(total, settings, unit_of(scale_source))
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if total.failed:
        sys.exit(2)


def parse_arguments() -> argparse.Namespace:
    parser = Parser(
        prog="python -m featdepth.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="image, folder, video or pattern")
    add("--checkpoint", required=True, metavar="DIR", help="model directory, or hub id")
    add("--out", required=True, metavar="DIR", help="new or empty folder, or one of an earlier run of the same model")
    add("--save", default="depth_png,picture", metavar="KINDS", help=f"of {', '.join(KINDS)} (default: %(default)s)")
    known = parser.add_mutually_exclusive_group()
    known.add_argument("--intrinsics", metavar="FILE", help="calibration of upright frames (docs/intrinsics.md)")
    known.add_argument("--field-of-view", type=float, metavar="DEGREES", help="horizontal, of upright frames")
    height = "of the camera above the ground: depth in metres by it, one scale for a clip, for models that know none"
    add("--camera-height", type=float, metavar="METRES", help=height)
    add("--nearest", type=float, metavar="DEPTH", help="depth of the brightest colour (default: by what is there)")
    add("--farthest", type=float, metavar="DEPTH", help="of the points in point clouds (default: all)")
    add("--frame-rate", type=float, default=10.0, metavar="N", help="frames a second of folders (default: %(default)g)")
    add(
        "--refine",
        type=int,
        default=0,
        metavar="N",
        help="learn from each frame of a clip, in N steps, before the next",
    )
    add("--overwrite", action="store_true", help="remove what is there of the inputs, also if another model made it")
    add("--batch-size", type=int, default=8, metavar="N", help="frames in a batch, per process (default: %(default)s)")
    workers = min(4, available_cores())
    add("--workers", type=int, default=workers, metavar="N", help="processes that decode images (default: %(default)s)")
    add("--cpu", action="store_true", help="use no GPU")
    arguments = parser.parse_args()
    arguments.save = [kind for kind in arguments.save.split(",") if kind]
    check_arguments(arguments)
    return arguments


def check_arguments(arguments: argparse.Namespace) -> None:
    """Raise InputError for an option without sense."""
    unknown = [kind for kind in arguments.save if kind not in KINDS]
    if unknown or not arguments.save:
        raise InputError(f"--save {','.join(unknown) or 'nothing'}: can be {', '.join(KINDS)}, separated by commas")
    for name, lowest in (("batch_size", 1), ("workers", 0), ("refine", 0)):
        if getattr(arguments, name) < lowest:
            raise InputError(f"--{name.replace('_', '-')} {getattr(arguments, name)}: has to be at least {lowest}")
    for name in ("nearest", "farthest", "frame_rate", "camera_height"):
        value = getattr(arguments, name)
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"--{name.replace('_', '-')} {value:g}: has to be above 0")
    if arguments.field_of_view is not None:
        field_of_view_intrinsics(arguments.field_of_view, (1, 1))
    if arguments.refine and arguments.camera_height is not None:
        raise InputError("--camera-height: goes with one scale for a clip, which --refine changes from frame to frame")


def divide_kinds(save: list[str], model: FeatDepth) -> tuple[list[str], list[str]]:
    """The kinds of `save` that can be made here with this model, and a line for those that cannot.

    Raises InputError where none can.
    """
    troubles: dict[str, list[str]] = {}
    checks = ((NEEDS_POSES, lambda: check_has_pose(model)), ({"video"}, check_video_writer))
    for kinds, check in checks:
        asked = [kind for kind in save if kind in kinds]
        if not asked:
            continue
        try:
            check()
        except InputError as error:
            troubles[f"no {', '.join(asked)}: {error}"] = asked
    missing = {kind for kinds in troubles.values() for kind in kinds}
    left = [kind for kind in save if kind not in missing]
    if not left:
        raise InputError("; ".join(troubles))
    return left, list(troubles)


def load_model(arguments: argparse.Namespace) -> FeatDepth:
    """The model, on the CPU. Raises InputError where it cannot do what is asked for."""
    model = FeatDepth.from_pretrained(arguments.checkpoint)
    if not model.has_depth:
        raise InputError(f"{arguments.checkpoint}: objective {model.settings.objective} predicts no depth")
    divide_kinds(arguments.save, model)
    if arguments.refine:
        check_has_pose(model)
    return model


def warn_of(model: FeatDepth, arguments: argparse.Namespace) -> str:
    """What speaks against the model's depth and against the intrinsics that it has learned; empty: nothing known."""
    doubts = [verdict.warning(model.training_record)]
    if model.cameras is not None and arguments.intrinsics is None and arguments.field_of_view is None:
        doubts.append(model.cameras.warning((model.height, model.width)))
    return "; ".join(filter(None, doubts))


def plan_work(
    arguments: argparse.Namespace, model: FeatDepth, settings: Settings, accelerator: Accelerator
) -> tuple[list[Source], list[str]]:
    """What there is to predict, and a line for each input that is nothing; the output folder is claimed for it."""
    inputs = find_inputs(arguments.inputs, settings.out)
    images = [path for path in inputs.paths if not path.is_dir() and is_image(path)]
    asked = f"--refine {settings.refine}" if settings.refine else f"--save {','.join(settings.save)}"
    if len(images) == len(inputs.paths):
        for_clips = [kind for kind in settings.save if kind not in IMAGE_KINDS]
        if settings.refine or len(for_clips) == len(settings.save):
            raise InputError(f"{asked}: is for folders and videos, and no input is one")
        if for_clips:
            print(f"note       no {', '.join(for_clips)}: that is for folders and videos, and no input is one")
    made_with = {
        "model": fingerprint(model),
        "precision": accelerator.mixed_precision,
        "refinement": arguments.refine,
        "camera height": arguments.camera_height,
    }
    intrinsics = {"intrinsics": arguments.intrinsics, "field of view": arguments.field_of_view}
    dependent = settings.dependent_kinds

    def may_change(name: str, path: Path, were_given: bool) -> bool:
        """Others may take the place of intrinsics that nothing was made with, and, to be used, of none."""
        is_used = not dependent.isdisjoint(settings.save)
        files = (made_files(source, settings.out, dependent) for source in list_sources({name: path}))
        return (is_used and not were_given) or not any(files)

    named, changed = claim(settings.out, made_with, intrinsics, inputs.paths, arguments.overwrite, may_change)
    for reason, number in inputs.left_out.items():
        print(f"left out   {count(number, 'file')} {reason}")
    sources = list_sources(named)
    if arguments.overwrite:
        remove_outputs(sources, settings.out)
    elif changed:
        remove_outputs(list_sources({name: named[name] for name in changed}), settings.out, dependent)
    return sources, inputs.failures


def check_memory(
    accelerator: Accelerator, sources: list[Source], wanted: Wanted, arguments: argparse.Namespace
) -> None:
    """Raise InputError where loading the largest source takes more shared memory than there is."""
    frames = max((len(source.files) for source in sources), default=0)
    workers = max(
        (loader_processes(each, len(each.files), arguments.batch_size, arguments.workers) for each in sources),
        default=0,
    )
    batches = sys.maxsize if any(source.is_video for source in sources) else -(-frames // arguments.batch_size)
    batch_bytes = arguments.batch_size * frame_bytes(wanted)
    check_shared_memory(accelerator, "inputs", batch_bytes, batches, workers, "--workers ")


def share(sources: list[Source], rank: int, count: int, settings: Settings) -> list[Source]:
    """The part of process `rank` of `count`: its images, and whole clips where something is made of the whole clip."""
    own = []
    for number, source in enumerate(sources):
        if source.is_video or is_whole(source, settings):
            own += [source] if number % count == rank else []
        else:
            names = list(source.files)[rank::count]
            own += [source._replace(files={name: source.files[name] for name in names})] if names else []
    return own


def describe(sources: list[Source]) -> str:
    """The inputs in numbers."""
    images = sum(len(source.files) for source in sources if not source.is_clip)
    folders = [source for source in sources if source.is_clip and not source.is_video]
    frames, videos = sum(len(source.files) for source in folders), sum(source.is_video for source in sources)
    parts = [count(images, "image")] if images else []
    parts += [f"{count(frames, 'image')} in {count(len(folders), 'folder')}"] if folders else []
    return ", ".join(parts + ([count(videos, "video")] if videos else []))


def report(total: Tally, settings: Settings, unit: str) -> None:
    """Print how many frames came to what."""
    if total.clipped_frames:
        limit = "256 m" if unit == METRES else "256 units"
        print(
            f"note       {count(total.clipped_pixels, 'pixel')} of {count(total.clipped_frames, 'frame')} farther "
            f"than {limit}, the most that depth_png can say; npz and tiff have their depth"
        )
    if unit == RELATIVE:
        print("note       the model knows no metres: depth is relative, in units of the network")
    parts = [f"{total.written} written"]
    parts += [f"{total.skipped} skipped as already there"] if total.skipped else []
    parts += [f"{total.failed} failed"] if total.failed else []
    print(f"{settings.out}: {', '.join(parts)}")


if __name__ == "__main__":
    run_program(main)
