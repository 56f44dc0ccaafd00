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
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple, dataclass
from itertools import repeat
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from tqdm import tqdm

from featdepth.config import Config, Parser, Train
from featdepth.egomotion import check_has_pose
from featdepth.errors import InputError, run_program
from featdepth.intrinsics_files import field_of_view_intrinsics
from featdepth.models import FeatDepth
from featdepth.prediction.cameras import Cameras
from featdepth.prediction.clip_outputs import ClipOutputs
from featdepth.prediction.depth import Way, on_device, predict_disparities
from featdepth.prediction.frames import Wanted, load_batches
from featdepth.prediction.inputs import Source, find_inputs, is_image, list_sources
from featdepth.prediction.outputs import (
    CLIP_KINDS,
    FRAME_KINDS,
    IMAGE_KINDS,
    NEEDS_POSES,
    NEEDS_VIEWS,
    USES_POSES,
    Saved,
    Settings,
    clip_paths,
    done_frames,
    frame_intrinsics,
    remove_outputs,
    save_frame,
    unit_of,
)
from featdepth.prediction.point_cloud import METRES, RELATIVE
from featdepth.prediction.record import claim, fingerprint
from featdepth.prediction.side_by_side import check_video_writer
from featdepth.processes import together
from featdepth.run import compiled, device_name, make_accelerator
from featdepth.scale import describe_scale

KINDS = (*FRAME_KINDS, *CLIP_KINDS)
LONGEST_WAIT = 7 * 24 * 3600  # seconds: a process with nothing to do waits for one with a long video
WRITERS = 4  # threads that write files while the network goes on
MOST_WAITING = 16  # frames that wait for them


@dataclass
class Tally:
    """How many frames came to what."""

    written: int = 0
    skipped: int = 0
    failed: int = 0
    clipped_pixels: int = 0
    clipped_frames: int = 0


def main() -> None:
    arguments = parse_arguments()
    accelerator = make_accelerator(Config(train=Train(timeout=LONGEST_WAIT)), arguments.cpu)
    with accelerator.local_main_process_first():
        model = FeatDepth.from_pretrained(arguments.checkpoint)
    if not model.has_depth:
        raise InputError(f"{arguments.checkpoint}: objective {model.settings.objective} predicts no depth")
    model = model.to(accelerator.device, memory_format=torch.channels_last)
    if NEEDS_POSES.intersection(arguments.save):
        check_has_pose(model)
    settings = Settings(
        Path(arguments.out), arguments.save, arguments.nearest, arguments.farthest, arguments.frame_rate
    )
    cameras = Cameras(arguments.intrinsics, arguments.field_of_view, model)

    # One process looks at the inputs and claims the folder for them; then each takes its share.
    plan = together(accelerator, lambda: plan_work(arguments, model, settings, accelerator), main_only=True)
    sources, failures = broadcast_object_list([plan])[0]
    own = share(sources, accelerator.process_index, accelerator.num_processes, settings)
    accelerator.print(
        f"model      {arguments.checkpoint}, {model.height}x{model.width}\n"
        f"depth      {describe_scale(model.scale_source)}\n"
        f"devices    {accelerator.num_processes} x {device_name(accelerator)}, "
        f"precision {accelerator.mixed_precision}\n"
        f"inputs     {describe(sources)}"
    )
    tally = together(accelerator, lambda: predict_all(own, accelerator, model, settings, cameras, arguments))
    total = Tally(*map(sum, zip(*gather_object([astuple(tally)]), strict=True)))
    if accelerator.is_main_process:
        report(total, len(failures), settings, unit_of(model.scale_source))
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if total.failed or failures:
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
    add("--nearest", type=float, metavar="DEPTH", help="depth of the brightest colour (default: by what is there)")
    add("--farthest", type=float, metavar="DEPTH", help="of the points in point clouds (default: all)")
    add("--frame-rate", type=float, default=10.0, metavar="N", help="frames a second of folders (default: %(default)g)")
    add("--overwrite", action="store_true", help="remove what is there of the inputs, also if another model made it")
    add("--batch-size", type=int, default=8, metavar="N", help="frames in a batch, per process (default: %(default)s)")
    add("--workers", type=int, default=4, metavar="N", help="processes that decode images (default: %(default)s)")
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
    for name, lowest in (("batch_size", 1), ("workers", 0)):
        if getattr(arguments, name) < lowest:
            raise InputError(f"--{name.replace('_', '-')} {getattr(arguments, name)}: has to be at least {lowest}")
    for name in ("nearest", "farthest", "frame_rate"):
        value = getattr(arguments, name)
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"--{name.replace('_', '-')} {value:g}: has to be above 0")
    if arguments.field_of_view is not None:
        field_of_view_intrinsics(arguments.field_of_view, (1, 1))
    if "video" in arguments.save:
        check_video_writer()


def plan_work(
    arguments: argparse.Namespace, model: FeatDepth, settings: Settings, accelerator: Accelerator
) -> tuple[list[Source], list[str]]:
    """What there is to predict, and a line for each input that is nothing; the output folder is claimed for it."""
    inputs = find_inputs(arguments.inputs, settings.out)
    images = [path for path in inputs.paths if not path.is_dir() and is_image(path)]
    if len(images) == len(inputs.paths) and not set(IMAGE_KINDS).intersection(settings.save):
        raise InputError(f"--save {','.join(settings.save)}: is made of folders and videos, and no input is one")
    made_with = {
        "model": fingerprint(model),
        "precision": accelerator.mixed_precision,
        "intrinsics": arguments.intrinsics,
        "field of view": arguments.field_of_view,
    }
    named = claim(settings.out, made_with, inputs.paths, arguments.overwrite)
    for reason, count in inputs.left_out.items():
        print(f"left out   {count} files {reason}")
    for failure in inputs.failures:
        complain(failure)
    sources = list_sources(named)
    if arguments.overwrite:
        remove_outputs(sources, settings.out)
    return sources, inputs.failures


def share(sources: list[Source], rank: int, count: int, settings: Settings) -> list[Source]:
    """The part of process `rank` of `count`: its images, and whole clips where something is made of the whole clip."""
    own = []
    for number, source in enumerate(sources):
        if source.is_video or clip_paths(source, settings):
            own += [source] if number % count == rank else []
        else:
            names = list(source.files)[rank::count]
            own += [source._replace(files={name: source.files[name] for name in names})] if names else []
    return own


def predict_all(
    sources: list[Source],
    accelerator: Accelerator,
    model: FeatDepth,
    settings: Settings,
    cameras: Cameras,
    arguments: argparse.Namespace,
) -> Tally:
    """Predict this process's share of the work, source by source. A source or frame that cannot be is told and counted.

    Raises InputError where the outputs cannot be written.
    """
    tally, network = Tally(), compiled(accelerator, model.depth)
    is_countable = not any(source.is_video for source in sources)
    total = sum(len(source.files) for source in sources) if is_countable else None
    bar = tqdm(
        total=total,
        unit="frame",
        dynamic_ncols=True,
        disable=not accelerator.is_main_process or not sys.stderr.isatty(),
    )

    def count(saved: Saved) -> bool:
        """Take a frame into the tally; whether it went well."""
        bar.update()
        if saved.error is not None:
            tally.failed += 1
            complain(saved.error)
            return False
        tally.written += 1
        tally.clipped_pixels += saved.clipped
        tally.clipped_frames += saved.clipped > 0
        return True

    def predict_source(source: Source, pool: ThreadPoolExecutor) -> None:
        done = done_frames(source, settings)
        skipped = len(done) if source.files else 0  # a video's are met on the way
        tally.skipped += skipped
        bar.update(skipped)
        if source.files and len(done) == len(source.files):
            return
        wanted = Wanted((model.height, model.width), bool(NEEDS_VIEWS.intersection(settings.save)), done)
        with_poses = source.is_clip and USES_POSES.intersection(settings.save) and hasattr(model, "pose_decoder")
        way = Way(accelerator, model) if with_poses else None
        waiting: deque[Future[Saved]] = deque()

        def settle() -> None:
            saved = waiting.popleft().result()
            if count(saved):
                clip.add(saved)

        # Loader processes come first: they are forks, and would inherit what a thread holds at that moment for ever.
        batches = iter(load_batches(source, wanted, arguments.batch_size, arguments.workers))
        with ClipOutputs(source, settings, model.scale_source) as clip:
            for batch in batches:
                disparities, poses = iter(()), repeat(None)
                if batch.images is not None:
                    images = on_device(accelerator, batch.images)
                    disparities = iter(predict_disparities(accelerator, network, images))
                    poses = poses if way is None else iter(way.follow(images))
                for frame in batch.frames:
                    if frame.error is not None:
                        count(Saved(frame, error=frame.error))
                    elif frame.image is None:
                        tally.skipped += 1
                        bar.update()
                    else:
                        if source.is_clip and not waiting:
                            frame_intrinsics(frame, source, settings, cameras)  # one line for the clip, not one a frame
                        job = (save_frame, frame, next(disparities), next(poses), model, source, settings, cameras)
                        waiting.append(pool.submit(*job))
                while len(waiting) > MOST_WAITING:
                    settle()
            while waiting:
                settle()

    with ThreadPoolExecutor(WRITERS) as pool:
        for source in sources:
            try:
                predict_source(source, pool)
            except InputError as error:
                tally.failed += 1
                complain(str(error))
            except OSError as error:
                reason = error.strerror or str(error)
                raise InputError(
                    f"{error.filename or settings.out}: cannot be written ({reason}); free some space"
                ) from error
    bar.close()
    return tally


def complain(message: str) -> None:
    """Tell of something that failed, in a line that does not disturb the progress bar."""
    tqdm.write(f"error: {' '.join(message.split())}", file=sys.stderr)


def describe(sources: list[Source]) -> str:
    """The inputs in numbers."""
    images = sum(len(source.files) for source in sources if not source.is_clip)
    folders = [source for source in sources if source.is_clip and not source.is_video]
    frames, videos = sum(len(source.files) for source in folders), sum(source.is_video for source in sources)
    parts = [(images, f"{images} images"), (frames, f"{frames} images in {len(folders)} folders")]
    return ", ".join(text for number, text in [*parts, (videos, f"{videos} videos")] if number)


def report(total: Tally, meaningless: int, settings: Settings, unit: str) -> None:
    """Print how many frames came to what."""
    if total.clipped_frames:
        limit = "256 m" if unit == METRES else "256 units"
        print(
            f"note       {total.clipped_pixels} pixels of {total.clipped_frames} frames are farther than {limit}, the "
            "most that depth_png can say; npz and tiff have their depth"
        )
    if unit == RELATIVE:
        print("note       the model knows no metres: depth is relative, in units of the network")
    parts = [f"{total.written} written"]
    parts += [f"{total.skipped} skipped as already there"] if total.skipped else []
    failed = total.failed + meaningless
    parts += [f"{failed} failed"] if failed else []
    print(f"{settings.out}: {', '.join(parts)}")


if __name__ == "__main__":
    run_program(main)
