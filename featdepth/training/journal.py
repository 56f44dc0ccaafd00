"""What a run says and writes down: its header, then lines on the console and in metrics.jsonl."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate import Accelerator

from featdepth.config import Config, to_dict
from featdepth.console import Display
from featdepth.data.dataset import FrameDataset
from featdepth.data.notes import describe_intrinsics, shape_note, unused_settings
from featdepth.errors import InputError
from featdepth.files import read_bytes, write_text
from featdepth.metrics.depth import METRICS
from featdepth.models import FeatDepth
from featdepth.parallel.accelerator import compilation, device_name, precision
from featdepth.scale import describe_scale
from featdepth.training.checkpoint import Progress
from featdepth.training.steps import Steps

if TYPE_CHECKING:
    from featdepth.data.mix import MixedDataset

SHOWN_SCORES = {"abs_rel", "a1", "metric_abs_rel"}
LARGEST_METRICS = 1 << 30  # bytes


def print_header(
    accelerator: Accelerator,
    config: Config,
    model: FeatDepth,
    training: FrameDataset | MixedDataset,
    validation: FrameDataset,
    steps: Steps,
    resumed: Path | None,
    contaminated: Sequence[str],
) -> None:
    """Devices, model, data and schedule, and what in them may not be meant so.

    resumed: the checkpoint that it goes on from; contaminated: drives that it shares with other parts of its split.
    """
    continued = f", continued from {resumed}" if resumed else ""
    learned = sum(each.numel() for each in model.parameters() if each.requires_grad)
    accelerator.print(
        f"run        {Path(config.run.directory)}{continued}\n"
        f"devices    {accelerator.num_processes} x {device_name(accelerator)}, "
        f"precision {precision(accelerator)}, compilation {compilation(accelerator)}\n"
        f"objective  {config.model.objective}, {learned:,} parameters to learn\n"
        f"depth      {describe_scale(model.scale_source) if model.has_depth else 'none'}\n"
        f"intrinsics {describe_intrinsics(training.members, bool(model.camera_names))}\n"
        f"training   {training.describe()}\n"
        f"validation {validation.describe()}\n"
        f"schedule   {steps.describe()}"
    )
    squeezed = shape_note(training, (config.data.height, config.data.width))
    for note in filter(None, (squeezed, *unused_settings(training.members), *steps.notes())):
        accelerator.print(f"note       {note}")
    if contaminated:
        accelerator.print(f"CONTAMINATED: trained on drives of another part of the split: {', '.join(contaminated)}")


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


def log_line(values: dict) -> str:
    """A line for the console: numbers with four significant digits, of the depth scores the best known ones only."""
    scores = {*METRICS, *(f"metric_{name}" for name in METRICS)} - SHOWN_SCORES
    shown = {key: value for key, value in values.items() if key not in scores}
    texts = {key: f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in shown.items()}
    return "  ".join(f"{key} {text}" for key, text in texts.items())
