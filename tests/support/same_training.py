"""Training by other means that has to come to the same: steps and short runs, and what may differ between them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import call_program, succeeded
from run_records import read_metrics
from torch import Tensor, nn

import train
from featdepth.config import Config
from featdepth.models import FeatDepth
from featdepth.objective import compute_losses

# Sums in another order: of a loss, and of a gradient relative to the largest of its tensor.
ROUNDING, GRADIENT_ROUNDING = 1e-5, 1e-4


def one_graph(function: Callable, backend: str = "eager") -> Callable:
    """`function` compiled; an error where it cannot be one graph of fixed shapes."""
    return torch.compile(function, fullgraph=True, dynamic=False, backend=backend)


def training_step(
    model: FeatDepth,
    batch: dict[str, Tensor],
    config: Config,
    networks: Callable | None = None,
    losses_of: Callable = compute_losses,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses and gradients of a step without its optimizer; `networks`, if given: `model` compiled."""
    model.zero_grad()
    losses = losses_of((model if networks is None else networks)(batch), batch, config)
    torch.stack(list(losses.values())).sum(0).mean().backward()
    gradients = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    return {name: values.detach() for name, values in losses.items()}, gradients


def assert_same_step(
    found: tuple[dict[str, Tensor], ...], expected: tuple[dict[str, Tensor], ...], least: float = 1e-12
) -> None:
    """Losses and gradients are equal but for rounding; gradients below `least` are rounding themselves."""
    torch.testing.assert_close(found[0], expected[0], rtol=ROUNDING, atol=1e-9)
    assert found[1].keys() == expected[1].keys() and found[1]
    for name, gradient in expected[1].items():
        error = (found[1][name] - gradient).abs().max() / gradient.abs().max().clamp(min=least)
        assert error <= GRADIENT_ROUNDING, (name, float(error))


def assert_same_statistics(one: nn.Module, other: nn.Module) -> None:
    torch.testing.assert_close(dict(one.named_buffers()), dict(other.named_buffers()), rtol=ROUNDING, atol=1e-7)


SHORT_RUN = (
    "data.frames=[0, -1]",
    "model.metres_per_unit=null",
    "train.batch_size=1",
    "train.max_steps=2",
    "train.log_every=1",
    "train.checkpoint_every=1",
    "train.panel_samples=1",
)


def run_here(config_file: Path, directory: Path, *options: object, **environment: str) -> str:
    """train.py in this process, under `environment`: what it printed."""
    words = ["--config", config_file, f"run.directory={directory}", *SHORT_RUN, *options]
    return succeeded(call_program(train.main, *words, environment=environment)).out


def assert_same_metrics(one: Path, other: Path, tolerance: float) -> None:
    """Losses and scores of two runs differ by at most `tolerance`, relative; the steps and rates are the same."""
    lines = list(zip(read_metrics(one), read_metrics(other), strict=True))
    assert len(lines) == 3
    for found, expected in lines:
        names = {"loss", "photometric", "smoothness", "abs_rel", "silog"} & expected.keys()
        assert found["loss"] > 0 and found["step"] == expected["step"] and found.get("lr") == expected.get("lr")
        assert {name: found[name] for name in names} == pytest.approx(
            {name: expected[name] for name in names}, rel=tolerance
        )


def kept_bytes(model: FeatDepth, run: Callable[[], object]) -> int:
    """Memory that `run` keeps for the backward pass, less the parameters'."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = run()  # a tensor that is freed meanwhile would lend its address to another
    parameters = {each.untyped_storage().data_ptr() for each in model.parameters()}
    del kept
    return sum(size for address, size in sizes.items() if address not in parameters)
