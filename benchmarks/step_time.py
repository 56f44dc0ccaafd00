"""Time and memory of a training step as a multiple of the bare networks.

python benchmarks/step_time.py [--objectives feature_metric joint ...] [--height 192 --width 640 --batch 2]
    [--repeat 7] [--precision bfloat16] [--compile] [--cpu] [--json FILE]

A step is everything between two batches: augmentation, forward, losses, backward, clipping, Adam. The bare networks
are the depth network once and the pose network once for each pair (and the autoencoder, where the objective trains it),
forward and backward of a trivial sum, channels-last, without an optimizer; "plain" is their plain form, in which the
decoders convolve maps that were doubled in size before. Ratios are to the plain form. Rounds are interleaved, so that
a noisy machine slows all rows alike; medians, and ratios within a round. Peak memory is that of a process of its own.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1]))

from featdepth.badsteps import BadSteps, propagate
from featdepth.config import Config, Data, Model
from featdepth.data import augment
from featdepth.models import FeatDepth, decoders
from featdepth.models.featdepth import channels_last
from featdepth.objective import compute_losses

FRAMES = [0, -1, 1]
OBJECTIVES = ("photometric", "autoencoder", "feature_metric", "joint")
PRECISIONS = {"float32": "no", "bfloat16": "bf16"}
WARM_UP = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objectives", nargs="+", default=OBJECTIVES, choices=OBJECTIVES)
    parser.add_argument("--height", type=int, default=192)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--precision", choices=list(PRECISIONS), default="float32")
    parser.add_argument("--compile", action="store_true", help="add rows with the objective compiled")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--only", help=argparse.SUPPRESS)  # one row, for its peak memory
    arguments = parser.parse_args()
    accelerator = Accelerator(cpu=arguments.cpu, mixed_precision=PRECISIONS[arguments.precision])
    if arguments.only:
        run = rows(arguments, accelerator, only=arguments.only)[arguments.only]
        for _ in range(WARM_UP):
            run()
        print(peak_memory(accelerator.device))
        return

    runs = rows(arguments, accelerator)
    seconds = interleaved(runs, arguments.repeat, accelerator.device)
    result = {"machine": machine(accelerator.device), "torch": torch.__version__, "rows": {}}
    print(f"{result['machine']}, torch {torch.__version__}, {arguments.precision}")
    print(f"batch {arguments.batch} of {arguments.height}x{arguments.width}, {len(FRAMES)} frames; ResNet-50 and -18")
    print(f"{'':32}{'s/step':>9}{'x bare':>9}{'images/s':>10}{'peak GB':>9}")
    for name, values in seconds.items():
        bare = seconds[f"{name.split(',')[0]}, bare, plain"]
        row = {
            "seconds": statistics.median(values),
            "times_bare": statistics.median(own / other for own, other in zip(values, bare, strict=True)),
            "images_per_second": arguments.batch / statistics.median(values),
            "peak_gb": memory_of(name),
        }
        result["rows"][name] = row
        print(
            f"{name:32}{row['seconds']:9.3f}{row['times_bare']:9.3f}{row['images_per_second']:10.2f}{row['peak_gb']:9.2f}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def rows(
    arguments: argparse.Namespace, accelerator: Accelerator, only: str | None = None
) -> dict[str, Callable[[], object]]:
    """What is timed, by name: for each objective its bare networks and its step, plain and compiled."""
    runs = {}
    for objective in arguments.objectives:
        made = {
            f"{objective}, bare, plain": plain_networks,
            f"{objective}, bare": bare_networks,
            f"{objective}, step": training_step,
        }
        if arguments.compile:
            made[f"{objective}, step, compiled"] = compiled_step
        runs |= {name: make(objective, arguments, accelerator) for name, make in made.items() if only in (None, name)}
    return runs


def configuration(objective: str, arguments: argparse.Namespace) -> Config:
    size = {"height": arguments.height, "width": arguments.width}
    model = Model(objective=objective, pretrained=False, pose_size=None, metres_per_unit=None)
    return Config(data=Data(root=".", frames=FRAMES, **size), model=model)


def build(config: Config, device: torch.device) -> FeatDepth:
    torch.manual_seed(0)
    model = FeatDepth(config.model, config.data.frames, config.data.height, config.data.width)
    return model.to(device, memory_format=torch.channels_last).train()


def frames_of(arguments: argparse.Namespace, device: torch.device) -> Tensor:
    """Smooth random frames uint8 `[B, F, 3, H, W]`."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(arguments.batch * len(FRAMES), 3, 12, 40, generator=generator)
    images = functional.interpolate(coarse, (arguments.height, arguments.width), mode="bilinear")
    return (images.unflatten(0, (arguments.batch, len(FRAMES))) * 255).byte().to(device)


def bare_networks(objective: str, arguments: argparse.Namespace, accelerator: Accelerator) -> Callable[[], object]:
    """Forward and backward of the networks that the objective trains, each as often as it has to run."""
    model = build(configuration(objective, arguments), accelerator.device)
    images = frames_of(arguments, accelerator.device).float() / 255
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


def plain_networks(objective: str, arguments: argparse.Namespace, accelerator: Accelerator) -> Callable[[], object]:
    """The same in the plain form."""
    plain = bare_networks(objective, arguments, accelerator)

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
    objective: str,
    arguments: argparse.Namespace,
    accelerator: Accelerator,
    losses_of: Callable = compute_losses,
) -> Callable[[], object]:
    """A step of train.py."""
    config = configuration(objective, arguments)
    device = accelerator.device
    model = accelerator.prepare_model(build(config, device))
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trainable, lr=1e-5, fused=True)
    bad_steps = BadSteps(model, optimizer, config.train.max_bad_steps)
    scale = torch.tensor([[arguments.width], [arguments.height], [1.0]])
    intrinsics = (torch.tensor([[0.58, 0, 0.5], [0, 1.92, 0.5], [0, 0, 1]]) * scale).repeat(arguments.batch, 1, 1)
    batch = {
        "images": frames_of(arguments, device),
        "intrinsics": intrinsics.to(device),
        "jitter": torch.tensor([[1, 1.1, 0.9, 1.1, 0.05]]).repeat(arguments.batch, 1).to(device),
    }

    def run() -> None:
        augmented = augment(batch)
        losses = losses_of(model(augmented), augmented, config)
        propagate(torch.stack(list(losses.values())).sum(0).mean()).backward()
        bad = bad_steps.judge(torch.nn.utils.clip_grad_norm_(trainable, config.optimizer.clip_norm))
        optimizer.step()
        optimizer.zero_grad()
        bad_steps.settle(0, bad)

    return run


def compiled_step(objective: str, arguments: argparse.Namespace, accelerator: Accelerator) -> Callable[[], object]:
    """The same with the objective compiled."""
    return training_step(objective, arguments, accelerator, torch.compile(compute_losses, fullgraph=True))


def interleaved(runs: dict[str, Callable[[], object]], repeat: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of every run in each of `repeat` rounds, after a warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_number in range(WARM_UP + repeat):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if round_number >= WARM_UP:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def memory_of(name: str) -> float:
    """Peak memory in GB of a process that does nothing but this row."""
    command = [sys.executable, *sys.argv, "--only", name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def peak_memory(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    # Not getrusage's figure, which begins with that of the parent process.
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(peak) * 1024 / 1e9


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    return f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
