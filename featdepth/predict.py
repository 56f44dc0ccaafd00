"""Predict depth with a trained model: for images, folders of images and videos of any size.

python -m featdepth.predict --checkpoint DIR_OR_HUB_ID INPUT... --out DIR [--save KINDS] [options]
accelerate launch -m featdepth.predict --checkpoint runs/kitti/model drives/ --out depth

INPUT is an image, a folder of png or jpg images, a video file, or a quoted pattern of these ('drives/*/image_02/data').
Folders and videos are clips and get folders of their own below --out. What --save can name, separated by commas:

of each frame  depth_png (16 bits, 256 a metre), npz (float32), tiff (float32), picture (colours and a scale bar)
of a clip      video (frames beside their depth)

Where they are there already, frames are not predicted again. docs/prediction.md has all the rest.
"""

from __future__ import annotations

import argparse
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from tqdm import tqdm

from featdepth.config import Config, Parser, Train
from featdepth.errors import InputError, run_program
from featdepth.models import FeatDepth
from featdepth.prediction.cameras import Cameras
from featdepth.prediction.clip_outputs import ClipOutputs
from featdepth.prediction.depth import on_device, predict_disparities
from featdepth.prediction.frames import Batch, Wanted, load_batches
from featdepth.prediction.inputs import Source, find_inputs, list_sources
from featdepth.prediction.outputs import (
    CLIP_KINDS,
    FRAME_KINDS,
    SHOWS_FRAMES,
    Saved,
    Settings,
    done_frames,
    save_frame,
    unit_of,
)
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
    words: int = 0  # of the command line, that mean nothing


def main() -> None:
    arguments = parse_arguments()
    accelerator = make_accelerator(Config(train=Train(timeout=LONGEST_WAIT)), arguments.cpu)
    with accelerator.local_main_process_first():
        model = FeatDepth.from_pretrained(arguments.checkpoint)
    check_outputs(arguments, model)
    model = model.to(accelerator.device, memory_format=torch.channels_last)
    settings = Settings(Path(arguments.out), arguments.save, arguments.nearest, arguments.frame_rate)
    cameras = Cameras(arguments.intrinsics, arguments.field_of_view, model)

    # One process looks at the inputs and claims the folder for them; then each takes its share.
    plan = together(accelerator, lambda: plan_work(arguments, model, settings, accelerator), main_only=True)
    sources, failures = broadcast_object_list([plan])[0]
    own = share(sources, accelerator.process_index, accelerator.num_processes, settings)
    accelerator.print(
        f"model      {arguments.checkpoint}, {model.height}x{model.width}, depth in {describe_scale(model.scale_source)}\n"
        f"devices    {accelerator.num_processes} x {device_name(accelerator)}, precision {accelerator.mixed_precision}\n"
        f"inputs     {describe(sources)}"
    )
    tally = together(accelerator, lambda: predict_all(own, accelerator, model, settings, cameras, arguments))
    total = Tally(*map(sum, zip(*gather_object([astuple(tally)]), strict=True)))
    if accelerator.is_main_process:
        report(total, len(failures), settings, unit_of(model))
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if total.failed or failures:
        sys.exit(2)
