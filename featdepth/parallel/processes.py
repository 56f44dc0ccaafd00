"""What the processes of a program do together: fail, and gather what each has computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader

from featdepth.console import watched
from featdepth.data import augment
from featdepth.errors import FailedElsewhere, InputError, one_line
from featdepth.parallel.accelerator import begin_pass

Answer = TypeVar("Answer")


def on_all_processes(accelerator: Accelerator, work: Callable[[], Answer]) -> Answer:
    """The result of `work()` on this process; where it fails on one process, all of them end.

    Where it raises InputError or OSError on any process, all of them end with an error instead of waiting for one
    another: the process itself with its own, the others with FailedElsewhere. Every process enters.
    """
    result, failure = None, None
    try:
        result = work()
    except (InputError, OSError) as error:
        failure = error
    failures = gather_object([None if failure is None else one_line(failure)])
    if failure is not None:
        raise failure
    for message in failures:
        if message is not None:
            raise FailedElsewhere(message)
    return result


def on_main_process(accelerator: Accelerator, work: Callable[[], Answer]) -> Answer | None:
    """`on_all_processes` of work that the main process does alone; None on the others, which enter too."""
    return on_all_processes(accelerator, lambda: work() if accelerator.is_main_process else None)


@torch.no_grad()
def gather_values(
    accelerator: Accelerator,
    model: nn.Module,
    loader: DataLoader,
    values: Callable[[dict[str, Tensor]], Tensor],
    interrupted: Callable[[], bool] = lambda: False,
    name: str = "evaluation",
) -> Tensor | None:
    """`values(batch)` `[B, K]` of every readable sample of `loader`, in its order, on every process: CPU `[N, K]`.

    The model is in evaluation mode meanwhile, and comes back as it was. Every process enters. What the loader repeats
    to give all processes the same number of batches is dropped, and so are stand-ins for samples that cannot be read.
    None where `interrupted()`, asked after each batch and answered alike on all processes, says so.
    """
    was_training = model.training
    model.eval()
    rows = []
    for batch in watched(loader, name, "batches", len(loader), hidden=not accelerator.is_main_process):
        begin_pass(accelerator)
        batch = augment(batch)
        row, replaced = accelerator.gather_for_metrics((values(batch), batch["replaced"]))
        rows.append(row[replaced == 0].cpu())
        if interrupted():
            return None
    model.train(was_training)
    return torch.cat(rows)


def gather_columns(
    accelerator: Accelerator,
    model: nn.Module,
    loader: DataLoader,
    columns: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    interrupted: Callable[[], bool] = lambda: False,
    name: str = "evaluation",
) -> dict[str, Tensor] | None:
    """`gather_values` of named columns: `columns(batch)` {name: `[B]` or `[B, K]`} -> CPU {name: `[N]` or `[N, K]`}."""
    widths: dict[str, int | None] = {}

    def values(batch: dict[str, Tensor]) -> Tensor:
        found = columns(batch)
        widths.update({name: column.shape[1] if column.ndim > 1 else None for name, column in found.items()})
        return torch.cat([column.float().reshape(len(column), -1) for column in found.values()], dim=1)

    table = gather_values(accelerator, model, loader, values, interrupted, name)
    if table is None:
        return None
    parts = table.split([1 if width is None else width for width in widths.values()], dim=1)
    return {
        name: part[:, 0] if width is None else part for (name, width), part in zip(widths.items(), parts, strict=True)
    }
