"""Time and memory of a training step as a multiple of the bare networks.

python benchmarks/step_time.py [--objectives feature_metric joint ...] [--sizes 192x640 320x1024] [--batches 1 2 4]
    [--precisions float32 bfloat16] [--compile] [--levers] [--motion] [--repeat 7] [--cpu] [--json FILE]

A step is everything between two batches: augmentation, forward, losses, backward, clipping, Adam. The bare networks
are the depth network once and the pose network once for each pair (and the autoencoder, where the objective trains it),
forward and backward of a trivial sum, channels-last, without an optimizer; "plain" is their plain form, in which the
decoders convolve maps that were doubled in size before. "x bare" is the ratio to the plain form of the same objective,
precision, size and batch; "x step" that to the ordinary step. --compile adds the step with its objective compiled, and
with networks and augmentation compiled too; --levers what saves memory: recomputed activations, and the batch in passes
of one sample; --motion the step without a pose network, and with one that alignment teaches. On a GPU bfloat16 and the
compiled steps are measured unless told otherwise. The rows of one objective and precision are interleaved, so that a
noisy machine slows them alike; medians, and ratios within a round. Peak memory is that of a process of its own.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from measure import (
    PRECISIONS,
    WARM_UP,
    Column,
    add_variants,
    choose_variants,
    compiled,
    device_of,
    finish,
    heading,
    interleaved,
    make_parser,
    median_ratio,
    peak_memory,
    run_python,
    size,
    start,
    table_line,
)
from torch import Tensor
from torch.nn import functional

from featdepth.config import Config, Data, Model
from featdepth.data import augment
from featdepth.models import FeatDepth, decoders
from featdepth.models.featdepth import channels_last
from featdepth.objective import compute_losses
from featdepth.parallel.host import keep_freed_memory
from featdepth.training.bad_steps import BadSteps, spoil_gradient

FRAMES = [0, -1, 1]
OBJECTIVES = ("photometric", "autoencoder", "feature_metric", "joint")
COLUMNS = [
    Column("seconds", "s/step", 4),
    Column("times_bare", "x bare", 3),
    Column("times_step", "x step", 3),
    Column("images_per_second", "images/s", 2),
    Column("peak_gb", "peak GB", 2),
]


class Case(NamedTuple):
    """What a step is measured for; sizes in pixels."""

    height: int
    width: int
    batch: int
    objective: str
    precision: str
    layers: int


def main() -> None:
    parser = make_parser(__doc__, repeat=7)
    parser.add_argument("--objectives", nargs="+", default=OBJECTIVES, choices=OBJECTIVES)
    parser.add_argument("--sizes", nargs="+", type=size, default=[(192, 640)], metavar="HEIGHTxWIDTH")
    parser.add_argument("--batches", nargs="+", type=int, default=[2])
    add_variants(parser)
    parser.add_argument("--levers", action="store_true", help="add steps that save memory")
    parser.add_argument("--motion", action="store_true", help="add steps with motion by alignment")
    parser.add_argument("--layers", type=int, default=50, help="of the depth network's and the autoencoder's ResNet")
    parser.add_argument("--only", help=argparse.SUPPRESS)  # one row, for its peak memory
    arguments = parser.parse_args()
    device = device_of(arguments)
    choose_variants(arguments, device)
    if arguments.only:
        measure_memory(arguments, device)
        return

    networks = f"ResNet-{arguments.layers} and -18"
    result = start(device, {"frames": len(FRAMES), "networks": networks, "rounds": arguments.repeat})
    result["rows"] = []
    for (height, width), batch in product(arguments.sizes, arguments.batches):
        print(f"\nbatch {batch} of {height}x{width}\n{heading(COLUMNS)}", flush=True)
        for objective, precision in product(arguments.objectives, arguments.precisions):
            case = Case(height, width, batch, objective, precision, arguments.layers)
            for name, row in measure_time(case, arguments, device).items():
                row["peak_gb"] = memory_of(name, case, arguments)
                result["rows"].append({"name": name, **case._asdict(), **row})
                print(table_line(f"{objective}, {name}{mark(precision)}", row, COLUMNS), flush=True)
    finish(result, arguments)


def mark(precision: str) -> str:
    """What the name of a row says about its precision."""
    return "" if precision == "float32" else ", bf16"


def measure_time(case: Case, arguments: argparse.Namespace, device: torch.device) -> dict[str, dict[str, float]]:
    """The figures of each row but its memory."""
    accelerator = accelerator_for(case, device)
    runs = {name: make(case, accelerator) for name, make in makers(case, arguments).items()}
    seconds = interleaved(runs, arguments.repeat, device)
    rows = {}
    for name, values in seconds.items():
        middle = statistics.median(values)
        rows[name] = {"seconds": middle, "images_per_second": case.batch / middle}
        rows[name]["times_bare"] = median_ratio(values, seconds["bare, plain"])
        if name.startswith("step, "):
            rows[name]["times_step"] = median_ratio(values, seconds["step"])
    if device.type == "cuda":
        del runs
        torch.cuda.empty_cache()  # what is kept here the processes that measure memory would lack
    return rows


def memory_of(name: str, case: Case, arguments: argparse.Namespace) -> float:
    """Peak memory in GB of a process that does nothing but this row."""
    words = ["--sizes", f"{case.height}x{case.width}", "--batches", case.batch, "--objectives", case.objective]
    words += ["--precisions", case.precision, "--layers", case.layers, "--compile", "--levers", "--motion"]
    words += ["--cpu"] if arguments.cpu else []
    return float(run_python([Path(__file__).resolve(), *words, "--only", name]).split()[-1])


def measure_memory(arguments: argparse.Namespace, device: torch.device) -> None:
    """Print the peak memory in GB of the one row."""
    (height, width), batch = arguments.sizes[0], arguments.batches[0]
    case = Case(height, width, batch, arguments.objectives[0], arguments.precisions[0], arguments.layers)
    run = makers(case, arguments)[arguments.only](case, accelerator_for(case, device))
    for _ in range(WARM_UP):
        run()
    print(peak_memory(device))


def accelerator_for(case: Case, device: torch.device) -> Accelerator:
    """An Accelerator of the case's precision; there is but one at a time in a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    if device.type == "cpu":
        keep_freed_memory()  # for all rows, as train.py does
    return Accelerator(cpu=device.type == "cpu", mixed_precision=PRECISIONS[case.precision])


def makers(case: Case, arguments: argparse.Namespace) -> dict[str, Callable[[Case, Accelerator], Callable]]:
    """What is timed, by name: what makes the run of a case."""
    made = {"bare, plain": plain_networks, "bare": bare_networks, "step": training_step}
    if arguments.compile:
        made["step, compiled"] = partial(training_step, compile_objective=True)
        made["step, all compiled"] = partial(training_step, compile_objective=True, compile_all=True)
    if arguments.levers:
        made["step, recomputed"] = partial(training_step, recompute=True)
    if arguments.levers and case.batch > 1:
        made["step, accumulated"] = partial(training_step, passes=case.batch)
    if arguments.motion and case.objective != "autoencoder":
        made |= {f"step, {motion}": partial(training_step, motion=motion) for motion in ("aligned", "taught")}
    return made


def configuration(case: Case, motion: str = "network") -> Config:
    settings = Model(
        objective=case.objective,
        motion=motion,
        depth_layers=case.layers,
        feature_layers=case.layers,
        pretrained=False,
        pose_size=None,
        metres_per_unit=None,
    )
    return Config(data=Data(root=".", frames=FRAMES, height=case.height, width=case.width), model=settings)


def build(config: Config, device: torch.device) -> FeatDepth:
    torch.manual_seed(0)
    model = FeatDepth(config.model, config.data.frames, config.data.height, config.data.width)
    return model.to(device, memory_format=torch.channels_last).train()


def make_frames(case: Case, device: torch.device) -> Tensor:
    """Smooth random frames uint8 `[B, F, 3, H, W]`."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(case.batch * len(FRAMES), 3, 12, 40, generator=generator)
    images = functional.interpolate(coarse, (case.height, case.width), mode="bilinear")
    return (images.unflatten(0, (case.batch, len(FRAMES))) * 255).byte().to(device)


def make_batch(case: Case, device: torch.device) -> dict[str, Tensor]:
    """A batch as the loader gives it."""
    scale = torch.tensor([[case.width], [case.height], [1.0]])
    intrinsics = torch.tensor([[0.58, 0, 0.5], [0, 1.92, 0.5], [0, 0, 1]]) * scale
    return {
        "images": make_frames(case, device),
        "intrinsics": intrinsics.repeat(case.batch, 1, 1).to(device),
        "jitter": torch.tensor([[1, 1.1, 0.9, 1.1, 0.05]]).repeat(case.batch, 1).to(device),
    }


def bare_networks(case: Case, accelerator: Accelerator) -> Callable[[], None]:
    """Forward and backward of the networks that the objective trains, each as often as it has to run."""
    model = build(configuration(case), accelerator.device)
    images = make_frames(case, accelerator.device).float() / 255
    target, sources = channels_last(images[:, 0]), images[:, 1:].unbind(1)
    pairs = [channels_last(torch.cat([images[:, 0], source], dim=1)) for source in sources]

    def run() -> None:
        with accelerator.autocast():
            total = 0
            if model.has_depth:
                total = sum(disparity.sum() for disparity in model.depth_decoder(model.depth_encoder(target)))
                for pair in pairs:
                    total = total + sum(each.sum() for each in model.pose_decoder(model.pose_encoder(pair)))
            if hasattr(model, "feature_decoder"):
                features = model.feature_encoder(target)
                total = total + sum(each.sum() for each in (*features, *model.feature_decoder(features)))
        model.zero_grad()
        total.backward()

    return run


def plain_networks(case: Case, accelerator: Accelerator) -> Callable[[], None]:
    """The same in the plain form."""
    plain = bare_networks(case, accelerator)

    def run() -> None:
        with (
            patch.object(decoders, "convolve_upsampled", convolve_repeated),
            patch.object(decoders.DepthLevel, "joined", joined_plainly),
        ):
            plain()

    return run


def convolve_repeated(features: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    padded = functional.pad(functional.interpolate(features, scale_factor=2), (1, 1, 1, 1), mode="reflect")
    return functional.conv2d(padded, weight, bias)


def joined_plainly(level: decoders.DepthLevel, reduced: Tensor, coarser: tuple[Tensor, Tensor] | None) -> Tensor:
    if coarser is None:
        return level.join(reduced)
    features, disparity = coarser
    return level.join(torch.cat([reduced, functional.interpolate(features, scale_factor=2), disparity], dim=1))


def training_step(
    case: Case,
    accelerator: Accelerator,
    compile_objective: bool = False,
    compile_all: bool = False,
    recompute: bool = False,
    passes: int = 1,
    motion: str = "network",
) -> Callable[[], None]:
    """A step of train.py.

    recompute: with gradient checkpointing; passes: that the batch is divided into; motion: `model.motion`.
    """
    config = configuration(case, motion)
    model = build(config, accelerator.device)
    if recompute:
        model.gradient_checkpointing_enable()
    model = accelerator.prepare_model(model)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trainable, lr=1e-5, fused=True)
    bad_steps = BadSteps(model, optimizer, config.train.max_bad_steps)
    batch = make_batch(case, accelerator.device)
    parts = [{key: value[index::passes] for key, value in batch.items()} for index in range(passes)]
    losses_of = compiled(compute_losses, fullgraph=True) if compile_objective else compute_losses
    predict, augment_batch = (compiled(model), compiled(augment)) if compile_all else (model, augment)

    def run() -> None:
        for part in parts:
            augmented = augment_batch(part)
            losses = losses_of(predict(augmented), augmented, config)
            spoil_gradient(torch.stack(list(losses.values())).sum(0).mean() / passes).backward()
        bad = bad_steps.judge(torch.nn.utils.clip_grad_norm_(trainable, config.optimizer.clip_norm))
        optimizer.step()
        optimizer.zero_grad()
        bad_steps.settle(0, bad)

    return run


if __name__ == "__main__":
    main()
