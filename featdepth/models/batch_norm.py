"""Batch norms whose statistics are those of the batches of all processes together."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional

from featdepth.models.decoders import at_least_float32

BATCH_AND_PLACE = (0, 2, 3)  # all dimensions of `[B, C, H, W]` but the channels


def synchronise_batch_norms(network: nn.Module, processes: int) -> None:
    """Let each batch norm in `network` take its statistics over this many processes; names and tensors stay.

    Every process has to see equally many images of the same size. Norms in evaluation mode remain each process's own.
    """
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                setattr(module, name, SynchronisedBatchNorm2d(child, processes))
            elif type(child).__name__ == "BatchNormAct2d":  # timm's
                setattr(module, name, SynchronisedNormAct2d(child, processes))


class SynchronisedBatchNorm2d(nn.BatchNorm2d):
    """`norm` over the batches of all processes, as one process would see them at once; it takes over all its tensors.

    torch's own SyncBatchNorm runs on GPUs alone, makes the host wait to find the processes that have no samples, and
    splits the graph of a compiler. Here all processes have equally many, and there is one sum over them in the forward
    and one in the backward pass, which a compiler takes like any other operation.
    """

    def __init__(self, norm: nn.BatchNorm2d, processes: int) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        self.processes = processes
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.train(norm.training)

    def forward(self, features: Tensor) -> Tensor:
        """`features` `[B, C, H, W]` normalised, in their own type and memory format."""
        if not self.training:
            return super().forward(features)
        variance, mean = torch.var_mean(at_least_float32(features.detach()), BATCH_AND_PLACE, correction=0)
        # The difference of squares in double precision: a channel may vary little around a large mean.
        moments = torch.stack([mean.double(), variance.double() + mean.double().square()])
        mean, square = (sum_over_processes(moments) / self.processes).unbind()
        variance = square - mean.square()
        self.follow(mean, variance, self.processes * features[:, 0].numel())
        statistics = torch.stack([mean, variance]).to(self.weight.dtype)
        return Normalise.apply(features, self.weight, self.bias, statistics, self.eps, self.processes)

    @torch.no_grad()
    def follow(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Take the statistics `[C]` of `count` values of each channel into the running ones."""
        self.num_batches_tracked.add_(1)
        unbiased = variance * (count / max(count - 1, 1))
        for running, latest in ((self.running_mean, mean), (self.running_var, unbiased)):
            running.mul_(1 - self.momentum).add_(latest.to(running.dtype), alpha=self.momentum)


class SynchronisedNormAct2d(SynchronisedBatchNorm2d):
    """The same for timm's batch norm, which has dropout and activation behind it."""

    def __init__(self, norm: nn.BatchNorm2d, processes: int) -> None:
        super().__init__(norm, processes)
        self.drop, self.act = norm.drop, norm.act

    def forward(self, features: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(features)))


class Normalise(torch.autograd.Function):
    """Batch norm with given statistics that the gradient goes through, on all processes."""

    @staticmethod
    def forward(
        context: FunctionCtx,
        features: Tensor,
        weight: Tensor,
        bias: Tensor,
        statistics: Tensor,
        epsilon: float,
        processes: int,
    ) -> Tensor:
        """`features` `[B, C, H, W]` normalised; statistics: mean and variance over all processes `[2, C]`."""
        context.save_for_backward(features, weight, statistics)
        context.epsilon, context.processes = epsilon, processes
        mean, variance = statistics.unbind()
        return functional.batch_norm(features, mean, variance, weight, bias, training=False, eps=epsilon)

    @staticmethod
    def backward(context: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Those of weight and bias are this process's share, as those of all other parameters are."""
        features, weight, statistics = context.saved_tensors
        mean, variance = statistics.unbind()
        slope = (variance + context.epsilon).rsqrt()
        gradient, centred = at_least_float32(gradient), at_least_float32(features) - each_channel(mean)
        sums = torch.stack([gradient.sum(BATCH_AND_PLACE), (gradient * centred).sum(BATCH_AND_PLACE)])
        count = context.processes * gradient[:, 0].numel()
        mean_gradient, mean_product = (sum_over_processes(sums.double()) / count).to(sums.dtype).unbind()
        # Less what changes the mean and the variance, which the norm takes out again.
        through = torch.addcmul(gradient - each_channel(mean_gradient), centred, each_channel(-mean_product * slope**2))
        return (through * each_channel(weight * slope)).to(features.dtype), sums[1] * slope, sums[0], None, None, None


def each_channel(values: Tensor) -> Tensor:
    """`[C]` as it meets `[B, C, H, W]`."""
    return values[:, None, None]


@torch.library.custom_op("featdepth::sum_over_processes", mutates_args=())
def sum_over_processes(values: Tensor) -> Tensor:
    """The sum of `values`, of any shape, over all processes; every process enters. The host does not wait for it."""
    total = values.clone()
    torch.distributed.all_reduce(total)
    return total


@sum_over_processes.register_fake
def _like(values: Tensor) -> Tensor:
    return torch.empty_like(values)
