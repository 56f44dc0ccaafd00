"""What training will take on this machine: one step is done and measured."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator

import torch
from torch.utils.data import default_collate

from featdepth.config import Config
from featdepth.console import count
from featdepth.data import augment
from featdepth.data.dataset import FrameDataset
from featdepth.doctor.findings import Finding, ok, problem, skipped, warning
from featdepth.doctor.survey import Survey
from featdepth.errors import InputError
from featdepth.models import FeatDepth, build_model
from featdepth.objective import compute_losses
from featdepth.parallel.host import peak_memory_gb

CHECK = "cost"
LONGEST = 20.0  # seconds that a step of the whole batch may take here; else it is estimated from one sample
NEARLY_ALL = 0.95  # of a GPU's memory


def check_cost(survey: Survey) -> Iterator[Finding]:
    """Seconds of a step and hours of the training, memory, and whether loading keeps up."""
    config, dataset = survey.config, survey.train
    dataset.size = (config.data.height, config.data.width)
    dataset.prepare_cameras()
    try:
        samples, loading = load_samples(dataset, config.train.batch_size)
    except InputError as error:
        yield skipped(CHECK, f"a sample cannot be loaded: {error}")
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        seconds, note = measure_step(random_model(config, dataset), samples, config, device)
    except torch.OutOfMemoryError:
        advice = "lower train.batch_size or the size, or set train.gradient_checkpointing=true"
        what = f"a step of {count(config.train.batch_size, 'sample')} does not fit into the memory of {device}"
        yield problem(CHECK, "out_of_memory", what, "a step that fits", advice)
        return
    yield cost_finding(config, len(dataset), device, seconds, note, loading)


def load_samples(dataset: FrameDataset, count: int) -> tuple[list[dict[str, torch.Tensor]], float]:
    """The first samples of training, and seconds that one takes to load without the cache."""
    started = time.perf_counter()
    samples = [dataset[index % len(dataset)] for index in range(count)]
    return samples, (time.perf_counter() - started) / count


def measure_step(
    model: FeatDepth, samples: list[dict[str, torch.Tensor]], config: Config, device: torch.device
) -> tuple[float, str]:
    """Seconds of a training step, and how they were found: measured, or estimated where that would take long."""
    model = model.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam([parameter for parameter in model.parameters() if parameter.requires_grad])
    one = step(model, optimizer, samples[:1], config, device)
    if one < LONGEST:  # the first is slower: memory is fetched, algorithms are chosen
        one = step(model, optimizer, samples[:1], config, device)
    if one * len(samples) > LONGEST:
        return one * len(samples), "estimated from one sample"
    if len(samples) == 1:
        return one, "measured"
    step(model, optimizer, samples, config, device)
    return step(model, optimizer, samples, config, device), "measured"


def random_model(config: Config, dataset: FrameDataset) -> FeatDepth:
    """The configured networks with random weights: nothing is downloaded, and no earlier stage is needed."""
    config = copy.deepcopy(config)
    config.model.pretrained, config.model.init, config.model.feature_encoder = False, None, None
    return build_model(config, dataset.start_intrinsics() if config.model.intrinsics == "learned" else None)


def step(
    model: FeatDepth,
    optimizer: torch.optim.Optimizer,
    samples: list[dict[str, torch.Tensor]],
    config: Config,
    device: torch.device,
) -> float:
    """Seconds of one step of training."""
    started = time.perf_counter()
    batch = augment({key: value.to(device) for key, value in default_collate(samples).items()})
    losses = compute_losses(model(batch), batch, config)
    sum(losses.values()).mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def cost_finding(
    config: Config, samples: int, device: torch.device, seconds: float, note: str, loading: float
) -> Finding:
    """Time and memory in words."""
    batch = config.train.batch_size
    epoch = samples // batch * seconds
    memory = peak_memory_gb(device)
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU, {count(torch.get_num_threads(), 'thread')}"
    )
    text = (
        f"a step of {count(batch, 'sample')} takes {seconds:.2f} s ({note}, {name}), an epoch {duration(epoch)}, "
        f"{count(config.train.epochs, 'epoch')} {duration(config.train.epochs * epoch)}; memory {memory:.1f} GB"
    )
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory / 1e9
        text += f" of {total:.0f}"
        if memory > NEARLY_ALL * total:
            advice = "lower train.batch_size, or set train.gradient_checkpointing=true"
            return warning(CHECK, "little_memory", text, f"at most {NEARLY_ALL:.0%}", advice)
    workers = max(config.data.workers, 1)
    return ok(CHECK, f"{text}; loading takes {loading * batch / workers:.2f} s of {count(workers, 'worker')} a step")


def duration(seconds: float) -> str:
    """Seconds, minutes or hours in words."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
