"""Steps whose loss or gradient is not finite: they leave no trace, and too many of them end a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import (
    FAULTY,
    run_program_process,
    succeeded,
)
from run_records import read_metrics, weights

from featdepth.training.bad_steps import BadSteps, spoil_gradient
from featdepth.training.checkpoint import (
    checkpoints,
    read_manifest,
)


class TestBadSteps:
    @pytest.mark.parametrize("clip", [1.0, float("inf")])
    @pytest.mark.parametrize("spoilt", ["loss", "infinite loss", "gradient"])
    def test_a_bad_step_leaves_no_trace(self, clip: float, spoilt: str) -> None:
        """Weights, moments, step counts and batch statistics: as if there had been no such step."""
        states = []
        for spoil in (False, True):
            torch.manual_seed(0)
            model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
            optimizer = torch.optim.Adam(model.parameters(), lr=0.1, fused=True)
            guard = BadSteps(model, optimizer, limit=5)
            batches = torch.randn(3, 8, 3)
            for number, batch in enumerate(batches):
                if number == 1 and not spoil:
                    continue
                loss = model(batch).square().mean()
                if number == 1 and spoilt == "loss":
                    loss = loss * torch.nan
                elif number == 1 and spoilt == "infinite loss":
                    loss = loss + torch.inf  # its gradient alone would be finite
                spoil_gradient(loss).backward()
                if number == 1 and spoilt == "gradient":
                    model[0].weight.grad[1, 1] = torch.inf
                bad = guard.judge(torch.nn.utils.clip_grad_norm_(model.parameters(), clip))
                assert bool(bad) == (number == 1)
                optimizer.step()
                optimizer.zero_grad()
                guard.settle(number, bad)
            states.append([*model.state_dict().values(), *flat_state(optimizer)])
            assert int(guard.in_a_row) == 0 and int(guard.longest) == int(spoil)
        assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))

    def test_a_finite_loss_keeps_its_gradient_bit_for_bit(self) -> None:
        values = torch.randn(1000, requires_grad=True)
        (plain,) = torch.autograd.grad((values * values).sum().sin(), values)
        (guarded,) = torch.autograd.grad(spoil_gradient((values * values).sum().sin()), values)
        assert torch.equal(plain, guarded)

    def test_overflow_under_float16_is_no_bad_step(self) -> None:
        """A scaler begins with too large a scale; what is left out for that does not end a run, and weights stay."""
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
        guard, take_step = guarded_step(scaler, limit=2)
        for _ in range(6):
            before = take_step.weights()
            assert not take_step(2.0**10)  # beyond float32, scaled like that
            assert torch.equal(before, take_step.weights())
        assert int(guard.longest) == 0 and scaler.get_scale() == 2.0**121
        scaler.update(2.0**10)
        assert not take_step(1.0) and not torch.equal(before, take_step.weights())

    def test_bad_steps_leave_the_scale_of_float16_alone(self) -> None:
        """Halved at each, it would end below all gradients; and they count, as without a scaler."""
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        guard, take_step = guarded_step(scaler, limit=5)
        for number, factor in enumerate([1.0, *3 * [torch.nan, 1.0], *3 * [torch.nan]]):
            before = take_step.weights()
            assert take_step(factor) == (factor != 1.0)
            assert torch.equal(before, take_step.weights()) == (factor != 1.0), number
        assert int(guard.in_a_row) == int(guard.longest) == 3 and scaler.get_scale() == 2.0**10

    def test_a_scaler_that_does_nothing(self) -> None:
        """Accelerate's for float16 on CPUs."""
        guard, take_step = guarded_step(torch.amp.GradScaler("cpu", enabled=False), limit=5)
        assert [take_step(factor) for factor in (1.0, torch.nan, 1.0)] == [False, True, False]
        assert int(guard.longest) == 1

    def test_gradients_that_no_scale_mends_are_bad_steps(self) -> None:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
        guard, take_step = guarded_step(scaler, limit=5)
        flags = [take_step(1.0, spoil=True) for _ in range(8)]
        assert flags == [False] * 4 + [True] * 4 and int(guard.in_a_row) == 4 and scaler.get_scale() == 1.0

    def test_on_one_of_two_processes(self, config_file: Path, run_directory: Path) -> None:
        """Both skip it, one by one counted as one; all else goes on."""
        options = ["train.max_steps=3", "train.log_every=1", f"run.directory={run_directory}"]
        command = [FAULTY, "nan", 1, 2, "--", "--cpu", "--config", config_file, *options]
        succeeded(run_program_process(command, processes=2))
        lines = [line for line in read_metrics(run_directory) if line["split"] == "train"]
        assert [line["bad_steps"] for line in lines] == [0, 1, 0]
        assert lines[1]["loss"] is None and lines[2]["loss"] > 0
        assert all(tensor.isfinite().all() for tensor in weights(run_directory).values())

    def test_too_many_in_a_row_end_the_run(self, config_file: Path, street: Path, run_directory: Path) -> None:
        options = ["train.max_bad_steps=2", "train.checkpoint_every=1", "train.log_every=100"]
        arguments = ["--cpu", "--config", config_file, f"run.directory={run_directory}", *options]
        result = run_program_process([FAULTY, "nan_on", 0, 3, "--", *arguments])
        line = result.error_line()
        assert "step 4: loss or gradient was not finite 2 times in a row" in line
        assert str(run_directory / "bad_steps.json") in line
        record = json.loads((run_directory / "bad_steps.json").read_text())
        assert [entry["step"] for entry in record] == [3, 4]
        listed = (street / "splits" / "train_files.txt").read_text().split("\n")
        named = [sample for entry in record for sample in entry["samples"]]
        assert len(set(named)) == 4 and set(named) <= set(listed)
        last = checkpoints(run_directory / "checkpoints")[-1]
        assert last.name == "step_3" and read_manifest(last)["progress"]["bad_in_a_row"] == 1


def guarded_step(scaler: torch.amp.GradScaler, limit: int) -> tuple[BadSteps, Callable[..., bool]]:
    """A guard, and a function that takes a step of a small model with its loss times a factor: whether it was bad."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, fused=True)
    guard = BadSteps(model, optimizer, limit, scaler=scaler)
    batch = torch.randn(8, 3)

    def take_step(factor: float, spoil: bool = False) -> bool:
        """spoil: a gradient becomes infinite whatever the scale is."""
        scaler.scale(guard.watch(factor * model(batch).square().mean())).backward()
        if spoil:
            model[0].weight.grad[1, 1] = torch.inf
        scaler.unscale_(optimizer)
        bad = guard.judge(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        guard.settle(0, bad)
        assert all(tensor.isfinite().all() for tensor in [*model.state_dict().values(), *flat_state(optimizer)])
        return bool(bad)

    take_step.weights = lambda: torch.cat([each.detach().flatten() for each in model.parameters()])
    return guard, take_step


def flat_state(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [tensor for state in optimizer.state.values() for tensor in state.values()]
