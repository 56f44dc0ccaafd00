"""Optimizer steps: where each begins and ends, whether it counts, and its learning rate."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from featdepth.config import Config
from featdepth.console import count
from featdepth.training.bad_steps import BadSteps
from featdepth.training.checkpoint import Progress
from featdepth.training.journal import IntervalLog
from featdepth.training.schedule import fitted, learning_rate, notes, window_size


class Steps:
    """The steps of a run, one after the other: of each of its batches `loss` and `end_batch`, and of the last `judge`.

    They move `progress` on, keep the sums for the log, guard against bad steps and set learning rates. To be made
    where `progress` has been resumed.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: AcceleratedOptimizer,
        config: Config,
        progress: Progress,
        batches: int,
    ) -> None:
        """model: without what Accelerate puts around it; batches: of an epoch, on each process."""
        self.accelerator, self.optimizer, self.config, self.progress = accelerator, optimizer, config, progress
        train = config.train
        self.batches, self.per_epoch = batches, math.ceil(batches / train.accumulate)
        self.schedule = fitted(config.schedule, train.epochs, self.per_epoch)
        self.batch_samples = train.batch_size * accelerator.num_processes
        done = math.ceil(progress.batch / train.accumulate)  # of the epoch in progress
        total = progress.step + (train.epochs - progress.epoch) * self.per_epoch - done
        self.total = total if train.max_steps is None else min(total, train.max_steps)
        self.waited = 0.0  # seconds for the batch in progress
        self.rate = math.nan  # learning rate of the last step
        self.bad = torch.zeros((), dtype=torch.bool)  # whether it was not finite
        self.interval = IntervalLog(accelerator)
        self.interval.restore(progress.interval)
        self.bad_steps = BadSteps(
            model, optimizer.optimizer, train.max_bad_steps, progress.bad_in_a_row, accelerator.scaler
        )

    @property
    def are_done(self) -> bool:
        """Whether the run has taken all its steps; their validation may be left."""
        return self.progress.step >= self.total

    @property
    def epoch_is_done(self) -> bool:
        """Whether the epoch in progress has no batch left."""
        return self.progress.batch >= self.batches

    def due(self, every: int) -> bool:
        """Whether what happens after so many steps, and after the last one, happens now."""
        return self.progress.step % every == 0 or self.progress.step == self.total

    def left_in_epoch(self, loader: DataLoader) -> Iterator[dict[str, Tensor]]:
        """The batches of the epoch in progress that have not been seen; none where only its validation is left."""
        if self.are_done or self.epoch_is_done:
            return
        if self.progress.batch:
            loader = self.accelerator.skip_first_batches(loader, self.progress.batch)
        asked = time.perf_counter()
        for batch in loader:
            self.waited = time.perf_counter() - asked
            yield batch
            asked = time.perf_counter()

    def loss(self, losses: dict[str, Tensor]) -> Tensor:
        """What a batch with the terms `losses` {name: [B]} is to be trained by: the mean of their sum.

        Accelerate divides by `train.accumulate`; the last step of an epoch may have fewer batches, which weigh more.
        """
        loss = torch.stack(list(losses.values())).sum(0).mean()
        accumulate = self.config.train.accumulate
        window = window_size(self.progress.batch, self.batches, accumulate)
        return self.bad_steps.watch(loss) * (accumulate / window)

    def judge(self, norm: Tensor) -> None:
        """Before the optimizer: find out from the gradient norm whether the step counts, and set its learning rate."""
        self.bad = self.bad_steps.judge(norm)
        epoch = self.progress.epoch + self.progress.batch / self.batches
        self.rate = learning_rate(self.progress.step, epoch, self.config.optimizer.lr, self.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate

    def end_batch(self, batch: dict[str, Tensor], losses: dict[str, Tensor]) -> None:
        """After the optimizer, which has or has not taken a step: count the batch, and the step that it ends."""
        self.interval.add(losses, batch["replaced"], self.waited)
        self.bad_steps.samples.append(batch["index"])
        self.progress.batch += 1
        if self.accelerator.sync_gradients:
            self.progress.step += 1
            self.bad_steps.settle(self.progress.step, self.bad)
            self.interval.settle(self.bad)

    def keep_sums(self) -> None:
        """Take into `progress` what a checkpoint needs of the interval in progress. Every process enters."""
        self.progress.interval = self.interval.state()
        self.progress.bad_in_a_row = int(self.bad_steps.in_a_row)

    def time_left(self, images_per_second: float) -> timedelta:
        """Until the last step, at this pace."""
        samples = (self.total - self.progress.step) * self.batch_samples * self.batches / self.per_epoch
        return timedelta(seconds=round(samples / images_per_second))

    def describe(self) -> str:
        """How many steps of how many samples, for the header of a run."""
        accumulate = self.config.train.accumulate
        last = window_size(self.batches - 1, self.batches, accumulate)
        shorter = f", the last of {last * self.batch_samples}" if last < accumulate else ""
        samples = count(self.batch_samples * accumulate, "sample")
        return f"{count(self.total, 'step')} of {samples}, {self.per_epoch} an epoch{shorter}"

    def notes(self) -> list[str]:
        """What of the configured schedule the run is too short for, in lines for people."""
        train = self.config.train
        return notes(self.config.schedule, train.epochs, self.per_epoch, train.max_steps)
