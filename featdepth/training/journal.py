"""What a run leaves to look at: metrics.jsonl, and lines of sums over all processes."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from featdepth.config import Config, to_dict
from featdepth.console import Display
from featdepth.errors import InputError
from featdepth.files import read_bytes, write_text
from featdepth.metrics.depth import METRICS
from featdepth.parallel.host import peak_memory_gb
from featdepth.training.checkpoint import Progress

SHOWN_SCORES = {"abs_rel", "a1", "metric_abs_rel"}
LARGEST_METRICS = 1 << 30  # bytes


class MetricsFile:
    """`metrics.jsonl`: one JSON object a line, on the disk before the run goes on; written by the main process only."""

    def __init__(self, path: Path, enabled: bool) -> None:
        self.path, self.enabled = path, enabled

    def write(self, values: dict) -> None:
        """Append a line; numbers that are not finite, which JSON has not, become null."""
        if not self.enabled:
            return
        finite = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }
        try:
            # A link in the place of the file could lead anywhere.
            with open(os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o644), "a") as file:
                file.write(json.dumps(finite, allow_nan=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot be written ({error.strerror}); free some space or choose another run.directory"
            ) from error

    def forget_after(self, step: int, validated: bool) -> None:
        """Drop what a run that resumes after `step` writes again: later steps, and unless `validated` its validation.

        A torn last line, the mark of an interruption, is dropped too. InputError for any other line that is not a JSON
        object with a step, and for a file too large to be a record of a run; nothing is changed then.
        """
        if not self.enabled or not self.path.exists():
            return
        kept = []
        lines = read_bytes(self.path, LARGEST_METRICS, "the record of the run").splitlines(keepends=True)
        for number, line in enumerate(lines, start=1):
            try:
                content = json.loads(line)
                at, split = content["step"], content["split"]
                kept_line = at < step or (at == step and (validated or split != "validation"))
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                if number == len(lines) and not line.endswith(b"\n"):
                    continue
                raise InputError(f"{self.path}:{number}: no line of a run's record; remove or repair it") from error
            if kept_line:
                kept.append(line.decode().rstrip("\n") + "\n")
        write_text(self.path, "".join(kept))


class Journal:
    """Where the lines of a run go: `metrics.jsonl`, its trackers and the console."""

    def __init__(self, accelerator: Accelerator, metrics: MetricsFile, display: Display) -> None:
        self.accelerator, self.metrics, self.display = accelerator, metrics, display

    def write(self, split: str, progress: Progress, values: dict[str, float | None], remark: str = "") -> None:
        """A line of the split "train" or "validation"; `remark`: behind it on the console."""
        line = {"split": split, "epoch": progress.epoch, "step": progress.step, **values}
        self.metrics.write(line)
        self.accelerator.log({f"{split}/{key}": value for key, value in values.items()}, step=progress.step)
        self.say(log_line(line) + remark)

    def say(self, text: str) -> None:
        """Print a line, on the main process."""
        if self.accelerator.is_main_process:
            self.display.write(text)


def flat_config(config: Config) -> dict[str, object]:
    """`section.key` -> text or number, as trackers take it."""
    sections = to_dict(config).items()
    flat = {f"{section}.{key}": value for section, values in sections for key, value in values.items()}
    return {key: value if isinstance(value, int | float | str) else str(value) for key, value in flat.items()}


class IntervalLog:
    """Sums since the last log line, kept on the device, so that a step never waits for them.

    The sums of the step in progress are apart until `settle` says whether they count.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.names: list[str] = []  # of the loss terms; the loss itself is their sum
        self.sums: Tensor | None = None  # of the terms, their samples; all samples, replaced ones, waiting, bad steps
        self.window: Tensor | None = None  # the same of the step in progress
        self.started = time.perf_counter()

    def add(self, losses: dict[str, Tensor], replaced: Tensor, waited: float) -> None:
        """One batch: `losses` {name: [B]}, `replaced` [B], seconds that the loop waited for it."""
        self.names = list(losses)
        values = [term.detach().sum() for term in losses.values()]
        count = torch.full_like(values[0], len(replaced))
        others = [count, count, replaced.sum().to(count.dtype), torch.full_like(count, waited), torch.zeros_like(count)]
        sums = torch.stack([*values, *others])
        self.window = sums if self.window is None else self.window + sums

    def settle(self, bad: Tensor) -> None:
        """Close a step; where it is `bad` (bool, on the device), its losses do not count, and it is counted as bad."""
        of_terms = torch.arange(len(self.window), device=self.window.device) <= len(self.names)
        window = torch.where(bad & of_terms, 0, self.window)
        window[-1] = bad
        self.sums = window if self.sums is None else self.sums + window
        self.window = None

    def state(self) -> list[list[float]]:
        """The sums of each process, for a checkpoint. Every process enters."""
        return [] if self.sums is None else self.accelerator.gather(self.sums[None]).tolist()

    def restore(self, state: list[list[float]]) -> None:
        """Continue from the sums of a checkpoint; those of processes that it no longer has go to the main one."""
        rank, count = self.accelerator.process_index, self.accelerator.num_processes
        own = state[rank : rank + 1] + (state[count:] if rank == 0 else [])
        sums = torch.tensor(own).sum(0) if own else torch.zeros(len(state[0])) if state else None
        self.sums = None if sums is None else sums.to(self.accelerator.device)

    def close(self) -> dict[str, float | None]:
        """Sample-weighted means over all processes, and speed; starts the next interval. Every process enters.

        The losses are null where no step of the interval counts; `bad_steps` says how many do not.
        """
        sums = self.accelerator.reduce(self.sums, "sum").tolist()
        elapsed = time.perf_counter() - self.started
        self.sums, self.started = None, time.perf_counter()
        *terms, counted, samples, replaced, waited, bad = sums
        means = {name: value / counted if counted else None for name, value in zip(self.names, terms, strict=True)}
        return {
            "loss": sum(means.values()) if counted else None,
            **means,
            "images_per_second": samples / elapsed,
            "data_wait": waited / (elapsed * self.accelerator.num_processes),
            "replaced": int(replaced),
            "bad_steps": round(bad / self.accelerator.num_processes),
            "memory_gb": peak_memory_gb(self.accelerator.device),
            **({} if self.accelerator.scaler is None else {"loss_scale": self.accelerator.scaler.get_scale()}),
        }


def log_line(values: dict) -> str:
    """A line for the console: numbers with four significant digits, of the depth scores the best known ones only."""
    scores = {*METRICS, *(f"metric_{name}" for name in METRICS)} - SHOWN_SCORES
    shown = {key: value for key, value in values.items() if key not in scores}
    texts = {key: f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in shown.items()}
    return "  ".join(f"{key} {text}" for key, text in texts.items())
