"""What a run left behind, and how two runs differ."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from accelerate.utils import load
from safetensors.torch import load_file

from featdepth.training.checkpoint import checkpoints

# What depends on the machine and its load, not on the run.
TIMING = ("images_per_second", "data_wait", "memory_gb")


def read_metrics(directory: Path) -> list[dict]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def values_of(directory: Path) -> list[dict]:
    """The lines of metrics.jsonl without what depends on the machine."""
    return [{name: value for name, value in line.items() if name not in TIMING} for line in read_metrics(directory)]


def weights(directory: Path, name: str = "model_last") -> dict[str, torch.Tensor]:
    """The tensors of a model that a run saved."""
    return load_file(directory / name / "model.safetensors")


def differences(one: Path, other: Path) -> list[str]:
    """What is not the same, bit for bit, in two runs: metrics, weights, optimizer state."""
    problems = []
    if values_of(one) != values_of(other):
        problems.append("metrics.jsonl differs")
    for name in ("model", "model_last"):
        problems += unequal(weights(one, name), weights(other, name), name)
    last = [checkpoints(run / "checkpoints")[-1] for run in (one, other)]
    if last[0].name != last[1].name:
        problems.append(f"the last checkpoints are {last[0].name} and {last[1].name}")
    states = [load(path / "optimizer.bin")["state"] for path in last]
    moments = [{f"{key}.{name}": each for key in state for name, each in state[key].items()} for state in states]
    return problems + unequal(*moments, "optimizer")


def unequal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], name: str) -> list[str]:
    """The tensors that differ in any bit."""
    if one.keys() != other.keys():
        return [f"{name}: other tensors"]
    return [f"{name}: {key} differs" for key in one if not torch.equal(one[key], other[key])]


def interrupted_copy(directory: Path, target: Path, step: int) -> Path:
    """The run as it would be found if it had been killed some time after the checkpoint of `step`."""
    later = [path.name for path in checkpoints(directory / "checkpoints") if path.name != f"step_{step}"]
    shutil.copytree(directory, target, ignore=shutil.ignore_patterns(*later))
    with (target / "metrics.jsonl").open("a") as file:
        file.write('{"split": "train", "epo')  # torn line
    (target / "checkpoints" / f".step_{step + 1}.writing").mkdir()  # unfinished checkpoint
    return target
