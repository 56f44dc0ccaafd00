"""The learning rate as a function of the optimizer step, whatever the number of processes."""

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
