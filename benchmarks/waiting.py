"""Finds where a step of train.py makes the host wait for the GPU, outside of the lines of its log. For gpu_check.py."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
from accelerate.state import AcceleratorState, GradientState
from measure import REPOSITORY
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import train
from featdepth.config import Config
from featdepth.data import augment
from featdepth.models import FeatDepth
from featdepth.objective import compute_losses
from featdepth.training.bad_steps import BadSteps
from featdepth.training.steps import IntervalLog

WARM_UP = 2  # batches in which libraries may set themselves up
# Where train.py may wait: what it logs, checks, saves and validates between two steps.
MAY_WAIT = ((IntervalLog, "close"), (BadSteps, "check"), (train, "save_checkpoint"), (train, "validate"))
SYNCHRONISING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "is_nonzero")  # of aten


def train_without_waiting(device: torch.device, words: list[object], steps: int = 7) -> str | None:
    """Run train.py on a GPU, with an error where it waits within a step: what and where, or None."""
    passes = 0

    def begin(accelerator: object) -> None:
        nonlocal passes
        passes += 1
        if passes > WARM_UP:
            torch.cuda.set_sync_debug_mode("error")
        begin_pass(accelerator)

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    options = [f"train.max_steps={steps}", "train.log_every=3", "train.checkpoint_every=1000"]
    begin_pass = train.begin_pass
    with ExitStack() as stack:
        stack.enter_context(patch.object(sys, "argv", ["train.py", *map(str, [*words, *options])]))
        stack.enter_context(patch.object(train, "begin_pass", begin))
        for owner, name in MAY_WAIT:
            stack.enter_context(patch.object(owner, name, permitted(getattr(owner, name))))
        stack.callback(torch.cuda.set_sync_debug_mode, "default")
        try:
            train.main()
        except RuntimeError as error:
            if "synchronizing" not in str(error):
                raise
            return f"waits at {place_of(traceback.extract_tb(error.__traceback__))}"
    if passes <= WARM_UP:
        raise RuntimeError(f"{passes} batches are too few to see anything")
    return None


def permitted(function: Callable) -> Callable:
    """`function`, which may wait, as may what follows until the next batch."""

    def waits(*arguments: object, **options: object) -> object:
        torch.cuda.set_sync_debug_mode("default")
        return function(*arguments, **options)

    return waits


def place_of(stack: traceback.StackSummary) -> str:
    """The innermost line of this repository, of its programs and not its benchmarks."""
    here = Path(__file__).parent
    frames = [frame for frame in stack if Path(frame.filename).is_relative_to(REPOSITORY)]
    frames = [
        frame for frame in frames if not Path(frame.filename).is_relative_to(here) and ".venv" not in frame.filename
    ]
    if not frames:
        return "an unknown place"
    return f"{Path(frames[-1].filename).relative_to(REPOSITORY)}:{frames[-1].lineno} ({frames[-1].line})"


def blocking_calls(config: Config) -> list[str]:
    """What would make the host wait in a step, but for its backward pass: found without a GPU, by tensors of no data.

    Such tensors say that they are on a GPU, and every operation is seen. (Autograd asks a true GPU for its streams.)
    """
    cameras = ["camera"] if config.model.intrinsics == "learned" else []
    model = FeatDepth(config.model, config.data.frames, config.data.height, config.data.width, cameras).train()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        pretend_gpu(model)
        batch = {name: on_gpu(value) for name, value in raw_batch(config).items()}
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(trainable, fused=True)
        guard, interval = BadSteps(model, optimizer, limit=20), IntervalLog(None)
        for parameter in trainable:
            parameter.grad = on_gpu(parameter)
        with watched() as found:
            batch = augment(batch)
            prediction = model(batch)
            losses = compute_losses(prediction, batch, config)
            guard.watch(torch.stack(list(losses.values())).sum(0).mean())
            bad = guard.judge(nn.utils.clip_grad_norm_(trainable, config.optimizer.clip_norm))
            optimizer.step()
            model.follow_cameras(batch, prediction)
            interval.add(losses, batch["replaced"], 0.0)
            guard.settle(1, bad)
            interval.settle(bad)
    return list(dict.fromkeys(found))


def raw_batch(config: Config, size: int = 2) -> dict[str, Tensor]:
    """What the loader gives, without its content."""
    data, frames = config.data, len(config.data.frames)
    return {
        "images": torch.zeros(size, frames, 3, data.height, data.width, dtype=torch.uint8),
        "intrinsics": torch.eye(3).repeat(size, 1, 1),
        "stereo_pose": torch.eye(4).repeat(size, 1, 1),
        "jitter": torch.ones(size, 5),
        "distance": torch.ones(size, frames - 1),
        **{name: torch.zeros(size, dtype=torch.int64) for name in ("camera", "index", "replaced")},
    }


def pretend_gpu(model: nn.Module) -> None:
    """Replace all parameters and buffers by tensors that pretend to be on a GPU."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(on_gpu(parameter), requires_grad=parameter.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, on_gpu(buffer))


def on_gpu(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")


@contextmanager
def watched() -> Iterator[list[str]]:
    """The places of all operations meanwhile that make the host wait."""
    found: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            options = options or {}
            result = function(*arguments, **options)
            tensors = [each for each in tree_leaves((arguments, options, result)) if isinstance(each, Tensor)]
            # Numbers travel with the operation; only copies of them to the device are waited for.
            devices = {each.device.type for each in tensors if each.ndim or "copy" in function._opname}
            if (len(devices) > 1 and not options.get("non_blocking")) or function._opname in SYNCHRONISING:
                found.append(f"{function} at {place_of(traceback.extract_stack())}")
            return result

    with Watch():
        yield found
