"""The Accelerator of a program: made once, and asked for what the launcher chose."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DynamoBackend,
    InitProcessGroupKwargs,
    TorchDynamoPlugin,
    set_seed,
)
from torch import nn

from featdepth.config import Config
from featdepth.console import count
from featdepth.errors import InputError
from featdepth.parallel.host import keep_freed_memory
from featdepth.parallel.launcher import check_accelerator, check_choices, end_with_launcher

# Compilers that tell what a segment computes again in the backward pass from the statistics that it changes.
RECOMPUTING_BACKENDS = {DynamoBackend.NO, DynamoBackend.AOT_EAGER, DynamoBackend.INDUCTOR}
GRAPH_MODES = {"reduce-overhead", "max-autotune"}  # of inductor

Function = TypeVar("Function", bound=Callable)


def make_accelerator(config: Config, cpu: bool) -> Accelerator:
    """The Accelerator of a program, seeded; precision and compilation are left to the launcher and `accelerate config`.

    Raises InputError when the launcher meant several processes and each would run alone, a tracker is not installed, or
    the compiler and gradient checkpointing do not go together.
    """
    end_with_launcher()
    check_choices()
    try:
        accelerator = start_accelerator(config, cpu)
    # What it says of libraries, precisions and devices that the launcher chose and that are not here.
    except (ValueError, ImportError, NotImplementedError) as error:
        raise InputError(f"Accelerate does not start as the launcher chose: {' '.join(str(error).split())}") from error
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    check_accelerator(accelerator, config.train.accumulate)
    if config.train.gradient_checkpointing and accelerator.state.dynamo_plugin.backend not in RECOMPUTING_BACKENDS:
        raise InputError(
            f"train.gradient_checkpointing does not go with the dynamo backend {compilation(accelerator)}, which would "
            "count batch statistics twice; choose inductor, aot_eager or no"
        )
    # Accelerate turns TF32 on where it compiles float32; the geometry needs all digits.
    torch.backends.cuda.matmul.allow_tf32 = False
    # Accelerate drops what is not installed with a warning only.
    missing = set(config.run.trackers) - {str(getattr(tracker, "value", tracker)) for tracker in accelerator.log_with}
    if missing:
        raise InputError(f"run.trackers: {', '.join(sorted(missing))} is not installed; pip install it, or remove it")
    set_seed(config.train.seed)
    return accelerator


def start_accelerator(config: Config, cpu: bool) -> Accelerator:
    return Accelerator(
        cpu=cpu,
        gradient_accumulation_steps=config.train.accumulate,
        step_scheduler_with_optimizer=False,
        log_with=config.run.trackers or None,
        project_dir=config.run.directory,
        # Without a data seed of its own each process would draw another permutation, and samples would be lost.
        dataloader_config=DataLoaderConfiguration(
            use_seedable_sampler=True, data_seed=config.train.seed, non_blocking=True
        ),
        # The launcher chooses the compiler; one graph for each size, as nearly all batches have the same.
        dynamo_plugin=TorchDynamoPlugin(dynamic=False),
        kwargs_handlers=[
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=timedelta(seconds=config.train.timeout)),
        ],
    )


def compilation(accelerator: Accelerator) -> str:
    """The compiler that the launcher asks for, e.g. inductor, or "no"."""
    return accelerator.state.dynamo_plugin.backend.value.lower()


def precision(accelerator: Accelerator) -> str:
    """What the networks compute in, e.g. bf16; "no" is float32, and so is what the device cannot do."""
    chosen = accelerator.mixed_precision
    return chosen if chosen == "no" or accelerator.native_amp else f"no ({chosen} is not for {accelerator.device.type})"


def compiled(accelerator: Accelerator, function: Function) -> Function:
    """`function` compiled in the way that Accelerate compiles the networks, if it does."""
    if compilation(accelerator) == "no":
        return function
    return torch.compile(function, **accelerator.state.dynamo_plugin.to_kwargs())


def records_graphs(accelerator: Accelerator) -> bool:
    """Whether the launcher asks for CUDA graphs, which overwrite what they gave when they run again."""
    plugin = accelerator.state.dynamo_plugin
    if plugin.backend == DynamoBackend.INDUCTOR:
        return plugin.mode in GRAPH_MODES
    return plugin.backend == DynamoBackend.CUDAGRAPHS


def keep_gradients(accelerator: Accelerator, parameters: Iterable[nn.Parameter]) -> bool:
    """Whether gradients have to be added to memory that stays; if so, it is there afterwards.

    A recorded backward pass overwrites its gradients in the next pass.
    """
    if not records_graphs(accelerator):
        return False
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    return True


def begin_pass(accelerator: Accelerator) -> None:
    """Before each batch: what CUDA graphs gave for the one before is not needed any more.

    They would guess so at each of the functions that are compiled one by one, and take from one what another gave it.
    """
    if records_graphs(accelerator):
        torch.compiler.cudagraph_mark_step_begin()


def bare_model(accelerator: Accelerator, model: nn.Module) -> nn.Module:
    """The model inside what compiles and distributes it. (Accelerate's default would leave the latter out for good.)"""
    return accelerator.unwrap_model(model, keep_torch_compile=False)


def device_name(accelerator: Accelerator) -> str:
    """The device of this process in words."""
    if accelerator.device.type == "cuda":
        return f"{accelerator.device} ({torch.cuda.get_device_name(accelerator.device)})"
    return f"{accelerator.device} ({count(torch.get_num_threads(), 'thread')})"
