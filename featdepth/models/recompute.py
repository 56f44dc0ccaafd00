"""Gradient checkpointing: activations that the backward pass computes again instead of finding them in memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

Output = TypeVar("Output")


class Segmented(nn.Module):
    """A network that runs in segments, between which alone activations are kept where `gradient_checkpointing` is on.

    Values, gradients and buffers do not depend on it.
    """

    gradient_checkpointing = False

    def segment(self, function: Callable[..., Output], *inputs: object) -> Output:
        """`function(*inputs)`, some layers of this network."""
        if not (self.gradient_checkpointing and torch.is_grad_enabled()):
            return function(*inputs)
        # The compiler takes apart what changes statistics from what it computes again, and allows no context of ours.
        context = {} if torch.compiler.is_compiling() else {"context_fn": self.contexts}
        return checkpoint(function, *inputs, use_reentrant=False, **context)

    def contexts(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """What surrounds a segment in the forward pass, and when it is computed again."""
        return nullcontext(), KeepStatistics(self)


class KeepStatistics(AbstractContextManager):
    """The running statistics of batch norms stay as they are meanwhile: a batch counts once, however often it is seen.

    They take part still, with no weight: without them the operation would keep other tensors than in the forward pass.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def __enter__(self) -> None:
        norms = [each for each in self.network.modules() if isinstance(each, _BatchNorm)]
        self.settings = [(each, each.momentum, each.num_batches_tracked) for each in norms]
        unused_count = torch.zeros((), dtype=torch.int64)
        for each in norms:
            each.momentum, each.num_batches_tracked = 0.0, unused_count

    def __exit__(self, *_: object) -> None:
        for each, momentum, count in self.settings:
            each.momentum, each.num_batches_tracked = momentum, count
