"""Steps whose loss or gradient is not finite: undone on the device, counted, and after too many in a row the end."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, reduce
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from featdepth.console import count
from featdepth.errors import InputError
from featdepth.files import write_text
from featdepth.parallel.processes import on_main_process

RECORD = "bad_steps.json"
SMALLEST_SCALE = 1.0  # of a loss, below which it is not the scale that makes gradients overflow


def spoil_gradient(loss: Tensor) -> Tensor:
    """The same loss, whose gradient is NaN everywhere where the loss itself is not finite."""
    return loss * (1 + 0 * loss.detach())


class BadSteps:
    """Decides from the gradient norm whether a step counts, which every process sees alike, without any waiting.

    The optimizer leaves weights and moments as they are (a fused optimizer's own `found_inf`), batch statistics are put
    back, and the log leaves the step out. limit: so many bad steps in a row end the run; in_a_row: so far; scaler: of
    the losses under float16. That finds out how large gradients may be by letting them overflow, at the start and every
    few thousand steps: such a step is not taken either, but it is no bad one. A bad one leaves the scale as it was.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        limit: int,
        in_a_row: int = 0,
        scaler: GradScaler | None = None,
    ) -> None:
        # Accelerate has one that does nothing for float16 on CPUs.
        self.limit, self.scaler = limit, scaler if scaler is not None and scaler.is_enabled() else None
        device = next(model.parameters()).device
        buffers = list(model.buffers())
        self.groups = [[each for each in buffers if each.dtype == dtype] for dtype in {each.dtype for each in buffers}]
        self.before = self.statistics()
        self.in_a_row = torch.tensor(in_a_row, device=device)
        self.longest = self.in_a_row.clone()
        self.samples: list[Tensor] = []  # indices of the step in progress
        self.history: deque[tuple[int, list[Tensor], Tensor]] = deque(maxlen=2 * limit)  # (step, samples, bad)
        self.infinite_losses = torch.zeros((), device=device)  # of the step in progress, on this process
        self.withheld = torch.zeros((), dtype=torch.bool, device=device)  # whether the optimizer leaves the step out
        self.scale = torch.ones((), device=device)  # of the losses of the step in progress
        # Not before: a scaler gives the optimizer a `found_inf` of its own, which knows gradients but not their norm.
        optimizer.register_step_pre_hook(self.withhold)

    def statistics(self) -> list[Tensor]:
        """A copy of all buffers, flat, one tensor for each of their types."""
        return [torch.cat([each.flatten() for each in group]) for group in self.groups]

    def watch(self, loss: Tensor) -> Tensor:
        """`spoil_gradient(loss)`, of each loss of a step before its backward pass."""
        if self.scaler is not None:
            self.infinite_losses = self.infinite_losses + ~loss.detach().isfinite()
        return spoil_gradient(loss)

    def judge(self, norm: Tensor) -> Tensor:
        """Whether the step with this gradient norm is bad (bool, on the device); the optimizer will then skip it."""
        self.withheld = ~torch.isfinite(norm)
        bad = self.withheld & ~self.overflows()
        self.in_a_row = torch.where(self.withheld, self.in_a_row + bad, 0)
        self.longest = torch.maximum(self.longest, self.in_a_row)
        return bad

    def overflows(self) -> Tensor:
        """Whether gradients that are not finite are so for the scale of the losses alone (bool, on the device)."""
        if self.scaler is None:
            return torch.zeros_like(self.withheld)
        self.scale = self.current_scale()
        # Overflow in a backward pass and the gradient of a loss that is NaN look alike, so processes have to ask.
        infinite_losses = reduce(self.infinite_losses, "sum")
        self.infinite_losses = torch.zeros_like(self.infinite_losses)
        return (infinite_losses == 0) & (self.scale > SMALLEST_SCALE)

    def current_scale(self) -> Tensor:
        """The scale of the losses, on the device; the scaler's own answer would wait for it."""
        return self.scaler.scale(torch.ones_like(self.scale))

    def withhold(self, optimizer: Optimizer, *_: object) -> None:
        """Tell a fused optimizer that starts its step whether to leave everything as it is."""
        optimizer.found_inf = self.withheld.float()

    def settle(self, step: int, bad: Tensor) -> None:
        """After the optimizer: put back the batch statistics of a step that it left out; the scale of a bad one."""
        if self.scaler is not None:
            lowered = self.scale * self.scaler.get_backoff_factor()
            after = torch.where(self.withheld, lowered, self.current_scale())
            self.scaler.update(torch.where(bad, self.scale, after))
        self.before = [
            torch.where(self.withheld, before, after)
            for before, after in zip(self.before, self.statistics(), strict=True)
        ]
        for group, flat in zip(self.groups, self.before, strict=True):
            parts = flat.split([each.numel() for each in group])
            torch._foreach_copy_(group, [part.view_as(each) for part, each in zip(parts, group, strict=True)])
        self.history.append((step, self.samples, bad))
        self.samples = []

    def check(self, accelerator: Accelerator, names: Sequence[object], directory: Path) -> None:
        """InputError after `limit` bad steps in a row, with their samples in `directory`/bad_steps.json.

        names: of the samples, by index. Waits for the device; every process enters.
        """
        if int(self.longest) < self.limit:
            return
        bad = [(step, torch.cat(samples).tolist()) for step, samples, flag in self.history if flag]
        steps: dict[int, list[str]] = {}
        for step, indices in (entry for process in gather_object([bad]) for entry in process):
            steps.setdefault(step, []).extend(str(names[index]) for index in indices)

        def end() -> None:
            record = directory / RECORD
            content = [{"step": step, "samples": samples} for step, samples in sorted(steps.items())]
            write_text(record, json.dumps(content, indent=1) + "\n")
            raise InputError(
                f"step {max(steps)}: loss or gradient was not finite {count(int(self.longest), 'time')} in a row; "
                f"{record} names the samples; look at them, or lower optimizer.lr, and continue with --resume: the "
                "weights are still good"
            )

        on_main_process(accelerator, end)
