"""Float32 where networks run in half precision: for last layers, statistics and other numbers that many hang on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn


def in_float32(convolve: Callable[..., Tensor], features: Tensor, convolution: nn.Conv2d) -> Tensor:
    """`convolve(features, weight, bias)` with those of `convolution`, in float32 where half precision is used.

    For last layers, which have few channels: in bfloat16 their output, and all that is made of it, has three digits.
    """
    with without_autocast(features.device):
        return convolve(*map(at_least_float32, (features, convolution.weight, convolution.bias)))


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Operations on `device` run in the precision of their inputs meanwhile."""
    # What has no memory has no autocast either.
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def at_least_float32(tensor: Tensor) -> Tensor:
    """`tensor`, converted where it has half precision."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
