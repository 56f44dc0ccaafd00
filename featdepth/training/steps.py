"""Optimizer steps: where each begins and ends, whether it counts, its learning rate, and the sums for the log."""

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

from featdepth.config import Config, Schedule
from featdepth.console import count
from featdepth.parallel.host import peak_memory_gb
from featdepth.training.bad_steps import BadSteps
from featdepth.training.checkpoint import Progress
from featdepth.training.conditions import fitted


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


class IntervalLog:
    """Sums since the last log line, kept on the device, so that a step never waits for them.

    The sums of the step in progress are apart until `settle` says whether they count.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.names: list[str] = []  # of the loss terms; the loss itself is their sum
        self.sums: Tensor | None = None  # of the terms, their samples; all samples, replaced ones, waiting, bad steps
        self.window: Tensor | None = None  # the same of the step in progress
        self.started = time.perf_counter()

    def add(self, losses: dict[str, Tensor], replaced: Tensor, waited: float) -> None:
        """One batch: `losses` {name: [B]}, `replaced` [B], seconds that the loop waited for it."""
        self.names = list(losses)
        values = [term.detach().sum() for term in losses.values()]
        count = torch.full_like(values[0], len(replaced))
        others = [count, count, replaced.sum().to(count.dtype), torch.full_like(count, waited), torch.zeros_like(count)]
        sums = torch.stack([*values, *others])
        self.window = sums if self.window is None else self.window + sums

    def settle(self, bad: Tensor) -> None:
        """Close a step; where it is `bad` (bool, on the device), its losses do not count, and it is counted as bad."""
        of_terms = torch.arange(len(self.window), device=self.window.device) <= len(self.names)
        window = torch.where(bad & of_terms, 0, self.window)
        window[-1] = bad
        self.sums = window if self.sums is None else self.sums + window
        self.window = None

    def state(self) -> list[list[float]]:
        """The sums of each process, for a checkpoint. Every process enters."""
        return [] if self.sums is None else self.accelerator.gather(self.sums[None]).tolist()

    def restore(self, state: list[list[float]]) -> None:
        """Continue from the sums of a checkpoint; those of processes that it no longer has go to the main one."""
        rank, count = self.accelerator.process_index, self.accelerator.num_processes
        own = state[rank : rank + 1] + (state[count:] if rank == 0 else [])
        sums = torch.tensor(own).sum(0) if own else torch.zeros(len(state[0])) if state else None
        self.sums = None if sums is None else sums.to(self.accelerator.device)

    def close(self) -> dict[str, float | None]:
        """Sample-weighted means over all processes, and speed; starts the next interval. Every process enters.

        The losses are null where no step of the interval counts; `bad_steps` says how many do not.
        """
        sums = self.accelerator.reduce(self.sums, "sum").tolist()
        elapsed = time.perf_counter() - self.started
        self.sums, self.started = None, time.perf_counter()
        *terms, counted, samples, replaced, waited, bad = sums
        means = {name: value / counted if counted else None for name, value in zip(self.names, terms, strict=True)}
        return {
            "loss": sum(means.values()) if counted else None,
            **means,
            "images_per_second": samples / elapsed,
            "data_wait": waited / (elapsed * self.accelerator.num_processes),
            "replaced": int(replaced),
            "bad_steps": round(bad / self.accelerator.num_processes),
            "memory_gb": peak_memory_gb(self.accelerator.device),
            **({} if self.accelerator.scaler is None else {"loss_scale": self.accelerator.scaler.get_scale()}),
        }


def notes(schedule: Schedule, epochs: int, steps_per_epoch: int, max_steps: int | None) -> list[str]:
    """What of a configured schedule a run is too short for, in lines for people."""
    found, warmup_steps = [], fitted(schedule, epochs, steps_per_epoch).warmup_steps
    if warmup_steps < schedule.warmup_steps:
        found.append(
            f"warm-up shortened from {schedule.warmup_steps} to {count(warmup_steps, 'step')}, a third of the "
            f"{count(epochs * steps_per_epoch, 'step')} of train.epochs {epochs} (schedule.warmup_steps)"
        )
    if max_steps is not None and 0 < max_steps < min(warmup_steps, epochs * steps_per_epoch):
        found.append(f"train.max_steps {max_steps} ends within the warm-up of {count(warmup_steps, 'step')}")
    beyond = [milestone for milestone in schedule.milestones if milestone >= epochs]
    if beyond:
        found.append(f"schedule.milestones {beyond} are not reached in train.epochs {epochs}")
    return found


def learning_rate(step: int, epoch: float, lr: float, schedule: Schedule) -> float:
    """The rate of optimizer step `step` after `epoch` epochs, of which it may be in the midst (both from 0).

    Linear warm-up from `warmup_ratio`, then a drop at each milestone: the n-th, m, multiplies the rate by `gamma` from
    epoch m on, which may be a fraction.
    """
    rate = lr * schedule.gamma ** sum(epoch >= milestone for milestone in schedule.milestones)
    if step < schedule.warmup_steps:
        rate *= schedule.warmup_ratio + (1 - schedule.warmup_ratio) * step / schedule.warmup_steps
    return rate


def window_size(batch: int, batches: int, accumulate: int) -> int:
    """Batches of the optimizer step that `batch` (from 0) belongs to, of an epoch of `batches`.

    `accumulate`, but for the last step of an epoch, which has what is left.
    """
    return min(accumulate, batches - batch // accumulate * accumulate)
