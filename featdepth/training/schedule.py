"""The learning rate of each optimizer step, whatever the number of processes, and the batches that make one."""

from __future__ import annotations

import dataclasses

from featdepth.config import Schedule
from featdepth.console import count

SHORTEST_RUN = 3  # warm-ups that fit into a run


def fitted(schedule: Schedule, epochs: int, steps_per_epoch: int) -> Schedule:
    """The schedule of a run of so many `epochs`: its warm-up is cut where it would be more than a third of the run.

    It depends on the whole length that is configured, not on `train.max_steps`, at which a run may stop and go on
    later: both parts then have the rates of one. No published length is so short.
    """
    most = epochs * steps_per_epoch // SHORTEST_RUN
    return dataclasses.replace(schedule, warmup_steps=min(schedule.warmup_steps, most))


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
