"""Optimizer steps: the learning rate of each, whatever the number of processes, and the batches that make one."""

from __future__ import annotations

from featdepth.config import Schedule


def learning_rate(step: int, epoch: int, lr: float, schedule: Schedule) -> float:
    """The rate of optimizer step `step` in `epoch` (both from 0): linear warm-up, then a drop at each milestone.

    Warm-up starts from `warmup_ratio`; the n-th milestone m multiplies the rate by `gamma` from epoch m on.
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
