"""What a run says of itself before its first step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator

from featdepth.config import Config
from featdepth.data.dataset import FrameDataset
from featdepth.data.mix import MixedDataset
from featdepth.data.notes import describe_intrinsics, shape_note, unused_settings
from featdepth.models import FeatDepth
from featdepth.parallel.accelerator import compilation, device_name, precision
from featdepth.scale import describe_scale
from featdepth.training.steps import Steps


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
