"""Checks of gpu_check.py that take steps themselves: numbers in each precision, and bad steps under float16."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
from gpu_rows import Context, Row, verdict
from step_time import OBJECTIVES, Case, build, configuration, make_batch
from torch import Tensor, nn

from featdepth.config import Config
from featdepth.data import augment
from featdepth.models import FeatDepth, Prediction
from featdepth.objective import compute_losses
from featdepth.training.bad_steps import BadSteps

# Relative errors of a loss, and of a whole gradient, against float64. The minimum over sources and the automask choose:
# where two errors are nearly alike another precision chooses otherwise, which shows in gradients.
TOLERANCES = {
    torch.float32: (1e-4, 0.02),
    torch.bfloat16: (0.05, 0.5),
    torch.float16: (0.01, 0.2),
}
LOSS_SCALE = 2.0**8  # float16's gradients vanish without
POISONED = {5, 10, 11, 12}  # steps of every hundred whose loss is made NaN


def numbers(context: Context) -> dict[str, Callable[[], Iterable[Row]]]:
    return {objective: partial(compare_precisions, context, objective) for objective in OBJECTIVES}


def compare_precisions(context: Context, objective: str) -> Iterator[Row]:
    """A step's losses and gradients in each precision against those in float64 on the CPU."""
    case = Case(64, 96, 2, objective, "float32", 18)
    true_losses, true_gradient = losses_and_gradient(case, torch.device("cpu"), torch.float64)
    for precision, (loss_tolerance, gradient_tolerance) in TOLERANCES.items():
        name = f"{objective}, {str(precision).removeprefix('torch.')}"
        if precision == torch.float16 and context.is_small:
            yield Row(name, "not run", note="CPUs have no float16 convolutions of any use")
            continue
        losses, gradient = losses_and_gradient(case, context.device, precision)
        loss_error = float(((losses - true_losses).abs() / true_losses.abs()).max())
        gradient_error = float((gradient - true_gradient).norm() / true_gradient.norm())
        passed = loss_error <= loss_tolerance and gradient_error <= gradient_tolerance
        figures = {"of a loss": loss_error, "of the gradient": gradient_error}
        yield Row(name, verdict(passed), figures, f"at most {loss_tolerance:g} and {gradient_tolerance:g}")


def losses_and_gradient(case: Case, device: torch.device, precision: torch.dtype) -> tuple[Tensor, Tensor]:
    """Means of the loss terms `[T]` and the gradient `[N]` of a step, float64 on the CPU."""
    config = small_configuration(case)
    model = without_dropout(build(config, torch.device("cpu"))).to(device)
    batch = augment(make_batch(case, device))
    if precision == torch.float64:
        model = model.double()
        batch = {name: value.double() for name, value in batch.items()}
    is_half = precision in (torch.float16, torch.bfloat16)
    torch.backends.cudnn.allow_tf32 = False
    with torch.autocast(device.type, precision if is_half else torch.bfloat16, enabled=is_half):
        prediction = model(batch)
    losses = compute_losses(as_type(prediction, torch.promote_types(precision, torch.float32)), batch, config)
    scale = LOSS_SCALE if precision == torch.float16 else 1.0
    (scale * torch.stack(list(losses.values())).sum(0).mean()).backward()
    means = torch.stack([values.detach().mean() for values in losses.values()])
    gradients = [each.grad.flatten() / scale for each in model.parameters() if each.grad is not None]
    return means.double().cpu(), torch.cat(gradients).double().cpu()


def small_configuration(case: Case) -> Config:
    """Narrow decoders; the automask, which is off by default, is on."""
    config = configuration(case)
    config.model.decoder_width, config.loss.automask = 16, True
    return config


def as_type(prediction: Prediction, dtype: torch.dtype) -> Prediction:
    """The prediction with all of its tensors in a precision."""

    def convert(value: object) -> object:
        if isinstance(value, tuple):
            return tuple(convert(each) for each in value)
        return value.to(dtype) if isinstance(value, Tensor) else value

    return Prediction(*map(convert, prediction))


def without_dropout(model: FeatDepth) -> FeatDepth:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def bad_steps(context: Context) -> dict[str, Callable[[], Iterable[Row]]]:
    return {"steps": partial(train_with_bad_steps, context)}


def train_with_bad_steps(context: Context) -> Iterator[Row]:
    """float16 with a scaler that begins too high; on a CPU float32, with a scale that overflows even that."""
    precision, first_scale = (torch.float32, 2.0**127) if context.is_small else (torch.float16, 2.0**28)
    case = Case(64, 96, 2, "photometric", "float32", 18)
    config = small_configuration(case)
    model = without_dropout(build(config, context.device))
    trainable = list(model.parameters())
    optimizer = torch.optim.Adam(trainable, lr=1e-4, fused=True)
    scaler = torch.amp.GradScaler(context.device.type, init_scale=first_scale)
    guard = BadSteps(model, optimizer, limit=20, scaler=scaler)
    batch = augment(make_batch(case, context.device))
    flags, changes, losses, scales = [], [], [], []
    steps = 16 if context.is_small else 300
    for step in range(steps):
        before = [each.detach().clone() for each in trainable]
        with torch.autocast(context.device.type, torch.float16, enabled=not context.is_small):
            prediction = model(batch)
        loss = torch.stack(list(compute_losses(as_type(prediction, torch.float32), batch, config).values())).sum(0)
        loss = loss.mean() * (torch.nan if step % 100 in POISONED else 1.0)
        scaler.scale(guard.watch(loss)).backward()
        scaler.unscale_(optimizer)
        bad = guard.judge(nn.utils.clip_grad_norm_(trainable, config.optimizer.clip_norm))
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        guard.settle(step, bad)
        flags.append(bool(bad))
        changes.append(any(not torch.equal(old, new) for old, new in zip(before, trainable, strict=True)))
        losses.append(float(loss.detach()))
        scales.append(scaler.get_scale())
    poisoned = [step % 100 in POISONED for step in range(steps)]
    overflows = sum(not changed and not bad for changed, bad in zip(changes, flags, strict=True))
    yield Row("bad steps are found, and no others", verdict(flags == poisoned), {"bad steps": sum(flags)})
    undone = not any(changed and bad for changed, bad in zip(changes, flags, strict=True))
    yield Row("bad steps change no weight", verdict(undone))
    yield Row(
        "overflows are no bad steps", verdict(overflows > 0 and int(guard.longest) == 3), {"overflows": overflows}
    )
    kept = all(scales[step] == scales[step - 1] for step in range(1, steps) if poisoned[step])
    yield Row("bad steps leave the scale", verdict(kept), {"scale at the end": scales[-1]})
    state = [*model.state_dict().values(), *(each for values in optimizer.state.values() for each in values.values())]
    yield Row("weights, statistics and moments are finite", verdict(all(each.isfinite().all() for each in state)))
    learned = {"at first": losses[0], "at last": losses[-1]}
    yield Row("the loss falls", verdict(losses[-1] < losses[0]), learned, str(precision).removeprefix("torch."))
