"""The learning rate against its closed form, whatever the number of processes."""

from __future__ import annotations

import math

import pytest

from featdepth.config import Schedule
from featdepth.training.conditions import differences, fitted
from featdepth.training.steps import learning_rate, notes, window_size

LR = 1e-4
SAMPLES, BATCH = 240, 4


def steps_per_epoch(processes: int, accumulate: int = 1) -> int:
    return math.ceil(SAMPLES // (BATCH * processes) / accumulate)


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_rate_follows_the_closed_form_on_any_number_of_processes(processes, accumulate):
    schedule = Schedule(warmup_steps=7, warmup_ratio=0.25, milestones=[2, 5], gamma=0.1)
    steps = steps_per_epoch(processes, accumulate)
    for step in range(7 * steps):
        epoch = step / steps
        expected = LR if epoch < 2 else 0.1 * LR if epoch < 5 else 0.01 * LR
        expected *= min(0.25 + 0.75 * step / 7, 1)
        assert learning_rate(step, step // steps, LR, schedule) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_the_published_schedule(processes):
    schedule, steps = Schedule(), 40_000 // (2 * processes)
    assert learning_rate(0, 0, LR, schedule) == pytest.approx(LR / 3, rel=1e-3)
    assert learning_rate(250, 0, LR, schedule) == pytest.approx(LR * 2 / 3, rel=1e-3)
    assert learning_rate(500, 0, LR, schedule) == LR
    assert learning_rate(499, 0, LR, schedule) < LR
    for epoch, factor in ((19, 1), (20, 0.5), (29, 0.5), (30, 0.25), (39, 0.25)):
        assert learning_rate(epoch * steps, epoch, LR, schedule) == pytest.approx(LR * factor)
        assert learning_rate((epoch + 1) * steps - 1, epoch, LR, schedule) == pytest.approx(LR * factor)


def test_no_warm_up_and_no_milestones():
    schedule = Schedule(warmup_steps=0, milestones=[])
    assert {learning_rate(step, step // 10, LR, schedule) for step in range(100)} == {LR}


def test_the_rate_drops_within_an_epoch_where_a_milestone_is_a_fraction():
    schedule = Schedule(warmup_steps=0, milestones=[1.5], gamma=0.5)
    assert [learning_rate(step, step / 4, 1.0, schedule) for step in (4, 5, 6, 7)] == [1, 1, 0.5, 0.5]


def test_warm_up_longer_than_an_epoch_goes_on_in_optimizer_steps():
    schedule = Schedule(warmup_steps=30, warmup_ratio=0.5, milestones=[1], gamma=0.5)
    rates = [learning_rate(step, step // 10, 1.0, schedule) for step in (9, 10, 29, 30)]
    assert rates == pytest.approx([0.5 + 0.5 * 9 / 30, 0.5 * (0.5 + 0.5 * 10 / 30), 0.5 * (0.5 + 0.5 * 29 / 30), 0.5])


@pytest.mark.parametrize(("batches", "accumulate"), [(9, 4), (8, 4), (3, 4), (5, 1), (1, 1)])
def test_the_batches_of_a_step(batches, accumulate):
    sizes = [window_size(batch, batches, accumulate) for batch in range(batches)]
    assert sum(1 / size for size in sizes) == pytest.approx(math.ceil(batches / accumulate))  # each step counts once
    assert set(sizes[: batches // accumulate * accumulate]) <= {accumulate}
    assert sizes[-1] == (batches % accumulate or accumulate)


def test_a_short_run_has_a_short_warm_up_and_says_so():
    """500 steps of warm-up in a run of 120; and a milestone that 20 epochs of 6 steps do not reach."""
    schedule = Schedule(warmup_steps=500, milestones=[15, 20])
    short = fitted(schedule, 20, 6)
    assert short.warmup_steps == 40 and learning_rate(40, 6, LR, short) == LR
    warm_up, milestone = notes(schedule, 20, 6, None)
    assert "warm-up shortened from 500 to 40 steps" in warm_up and "milestones [20] are not reached" in milestone
    assert fitted(schedule, 20, 6) == fitted(schedule, 20, 6) and schedule.warmup_steps == 500
    (stopped,) = notes(Schedule(milestones=[]), 40, 20_000, 10)
    assert "train.max_steps 10 ends within the warm-up of 500 steps" in stopped


@pytest.mark.parametrize(("epochs", "steps"), [(40, 20_000), (30, 20_000), (20, 75)])
def test_published_lengths_stay_as_they_are(epochs: int, steps: int):
    schedule = Schedule(milestones=[1])
    assert fitted(schedule, epochs, steps) == schedule and notes(schedule, epochs, steps, None) == []


def test_a_changed_length_changes_the_warm_up_with_a_note():
    conditions = {"warm-up": 40, "train.batch_size": 2}
    changes, told = differences(conditions, conditions | {"warm-up": 80})
    assert changes == [] and "warm-up was 40, is 80" in told[0]
    assert differences({"train.batch_size": 2}, conditions) == ([], [])
