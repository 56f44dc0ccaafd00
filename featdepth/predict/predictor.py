"""The loop of a prediction: decoded ahead by processes, through the networks in batches, written by threads."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from tqdm import tqdm

from featdepth.console import Display
from featdepth.errors import InputError
from featdepth.geometry import resize_intrinsics
from featdepth.models import FeatDepth
from featdepth.parallel.accelerator import compiled
from featdepth.parallel.loaders import check_shared_memory
from featdepth.predict.clip_outputs import ClipOutputs
from featdepth.predict.frames import Batch, InputFrame, Wanted, frame_bytes, load_batches, loader_processes
from featdepth.predict.intrinsics import Cameras
from featdepth.predict.metres import scale_of_clip
from featdepth.predict.network import Launch, Networks, RefinedNetworks
from featdepth.predict.outputs import Saved, done_frames, save_frame
from featdepth.predict.settings import USES_POSES, Settings
from featdepth.predict.sources import FrameSource
from featdepth.scale import Scale

WRITERS = 4  # threads that write files while the networks go on
MOST_WAITING = 16  # frames that wait for them


@dataclass
class Tally:
    """How many frames came to what."""

    written: int = 0
    skipped: int = 0
    failed: int = 0  # frames, sources as a whole, and outputs that could not be made of a source
    clipped_pixels: int = 0  # beyond what 16 bits can say
    clipped_frames: int = 0


def gather_tally(own: Tally) -> Tally:
    """The sums over all processes. Every process enters."""
    return Tally(*map(sum, zip(*gather_object([astuple(own)]), strict=True)))


class Predictor:
    """Predicts sources and writes what `settings` ask for, on the device of `accelerator`'s process.

    batch_size: frames in a batch; workers: processes that decode (0: none but this one).
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: FeatDepth,
        settings: Settings,
        cameras: Cameras,
        batch_size: int = 8,
        workers: int = 4,
    ) -> None:
        self.accelerator, self.model, self.settings, self.cameras = accelerator, model, settings, cameras
        self.batch_size, self.workers = batch_size, workers
        self.launch = Launch(partial(compiled, accelerator), accelerator.autocast)
        self.wanted = Wanted((model.height, model.width), settings.with_views)
        self.tally = Tally()
        self.reported: set[str] = set()  # why outputs could not be made
        self.bar = Display("prediction", None, "frames", hidden=True)
        self.writers: ThreadPoolExecutor | None = None
        self.waiting: deque[Future[Saved]] = deque()  # frames that the writers have, in order

    def check_memory(self, sources: Sequence[FrameSource]) -> None:
        """Raise InputError where loading the largest source takes more shared memory than there is."""
        frames = max((len(source.files) for source in sources), default=0)
        workers = [loader_processes(each, len(each.files), self.batch_size, self.workers) for each in sources]
        batches = sys.maxsize if any(source.is_video for source in sources) else -(-frames // self.batch_size)
        batch_bytes = self.batch_size * frame_bytes(self.wanted)
        check_shared_memory(self.accelerator, "inputs", batch_bytes, batches, max(workers, default=0), "--workers ")

    def predict(self, sources: Iterable[FrameSource]) -> Tally:
        """Predict the sources one by one. What fails is reported on standard error, and counted.

        Raises InputError where the outputs cannot be written.
        """
        sources = list(sources)
        total = None if any(source.is_video for source in sources) else sum(len(source.files) for source in sources)
        hidden = not self.accelerator.is_main_process
        with (
            ThreadPoolExecutor(WRITERS) as self.writers,
            Display("prediction", total, "frames", hidden=hidden) as self.bar,
        ):
            for source in sources:
                try:
                    self.predict_source(source)
                except InputError as error:
                    self.tally.failed += 1
                    print_failure(str(error))
                except OSError as error:
                    place, reason = error.filename or self.settings.out, error.strerror or error
                    raise InputError(f"{place}: cannot be written ({reason}); free some space") from error
        return self.tally

    def predict_source(self, source: FrameSource) -> None:
        """Predict what is missing of a source. Raises InputError where it fails as a whole, OSError in writing."""
        done = done_frames(source, self.settings)
        if source.files:
            self.skip(len(done))  # those of a video are counted as they come
            if len(done) == len(source.files):
                return
        networks, scale = self.networks_for(source), self.scale_for(source)
        # Loader processes come first: they are forks, and would inherit what a thread holds at that moment for ever.
        batches = iter(load_batches(source, self.wanted._replace(done=done), self.batch_size, self.workers))
        self.waiting.clear()
        # Where frames are done already, what is made of all of them is so, too.
        settings = self.settings._replace(save=()) if done else self.settings
        with ClipOutputs(source, settings, scale) as clip:
            for batch in batches:
                self.predict_batch(batch, source, networks, scale)
                self.settle(clip, MOST_WAITING)
            self.settle(clip, 0)

    def networks_for(self, source: FrameSource) -> Networks:
        """Networks that begin a source anew."""
        with_poses = source.is_clip and bool(USES_POSES.intersection(self.settings.save))
        if self.settings.refine and source.is_clip:
            return RefinedNetworks(self.launch, self.model, self.settings.refine, with_poses)
        return Networks(self.launch, self.model, with_poses)

    def scale_for(self, source: FrameSource) -> Scale | None:
        """What depths of a source are measured in; None: single images, of which each has a scale of its own."""
        height = self.settings.camera_height
        if height is None:
            return self.model.scale
        if not source.is_clip:
            return None
        plain = Networks(self.launch, self.model)

        def predict(images: Tensor) -> Tensor:
            return torch.stack([each.disparity for each in plain.predict(images)])

        scale = scale_of_clip(source, height, self.model, self.cameras, predict, self.batch_size)
        tqdm.write(f"scale      {source.path}: {scale.found}")
        return scale

    def predict_batch(self, batch: Batch, source: FrameSource, networks: Networks, scale: Scale | None) -> None:
        """Run the networks on a batch, and hand its frames to the writers."""
        frames = [self.with_camera(frame, source) for frame in batch.frames]
        present = [frame for frame in frames if frame.image is not None]
        # In one line for the clip, not in one for each frame; refinement cannot go on without any of them.
        decisive = present if self.settings.refine else present[:1] if not self.waiting else []
        for frame in decisive if source.is_clip else []:
            if frame.camera.is_hopeless:
                raise InputError(frame.camera.reason)
        intrinsics = np.array([self.seen_intrinsics(frame) for frame in present])
        predicted = networks.predict(batch.images, intrinsics) if present else iter(())
        for frame in frames:
            if frame.error is not None:
                self.count(Saved(frame, error=frame.error))
            elif frame.image is None:
                self.skip(1)
            else:
                job = (save_frame, frame, next(predicted), self.model, scale, source, self.settings)
                self.waiting.append(self.writers.submit(*job))

    def with_camera(self, frame: InputFrame, source: FrameSource) -> InputFrame:
        """A frame with what is known of its camera, where it is to be predicted."""
        if frame.image is None:
            return frame
        return frame._replace(camera=self.cameras.of_frame(Path(frame.path), frame.size, source, self.settings))

    def seen_intrinsics(self, frame: InputFrame) -> np.ndarray:
        """Intrinsics 3x3 of a frame as the networks see it; NaN where they are unknown, or of no use."""
        if frame.camera.intrinsics is None:
            return np.full((3, 3), np.nan)
        intrinsics = torch.from_numpy(frame.camera.intrinsics)
        return resize_intrinsics(intrinsics, frame.size, self.wanted.size).numpy()

    def settle(self, clip: ClipOutputs, most_waiting: int) -> None:
        """Wait until no more than so many frames wait for writers; what is written goes to the outputs of the clip."""
        while len(self.waiting) > most_waiting:
            saved = self.waiting.popleft().result()
            self.count(saved)
            if saved.error is None:
                clip.add(saved)

    def count(self, saved: Saved) -> None:
        """Take a frame into the tally, and report what failed."""
        self.bar.update()
        if saved.error is not None:
            self.tally.failed += 1
            print_failure(saved.error)
            return
        reason = saved.frame.camera.reason
        if reason is not None and reason not in self.reported:
            self.reported.add(reason)
            self.tally.failed += 1
            print_failure(reason)
        self.tally.written += 1
        self.tally.clipped_pixels += saved.clipped
        self.tally.clipped_frames += saved.clipped > 0

    def skip(self, count: int) -> None:
        """Take frames into the tally that are there already."""
        self.tally.skipped += count
        self.bar.update(count)


def print_failure(message: str) -> None:
    """Say what failed, in a line that does not disturb the progress bar."""
    tqdm.write(f"error: {' '.join(message.split())}", file=sys.stderr)
