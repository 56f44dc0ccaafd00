"""Who is tested on what: a model, the data as it sees them, and whether it has seen them before."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from featdepth.config import Config
from featdepth.data.dataset import FrameDataset
from featdepth.data.notes import unused_settings
from featdepth.data.splits import seen_again
from featdepth.errors import InputError
from featdepth.evaluation.opening import open_sequences, open_test_data
from featdepth.models import FeatDepth
from featdepth.models.saved.provenance import versions
from featdepth.parallel.loaders import check_shared_memory, sample_bytes
from featdepth.scale import describe_scale


class Leakage(NamedTuple):
    """What a model's own record says about the drives that it is tested on."""

    training_drives: int | None  # how many drives its record names; None: it names none
    shared: list[str]  # test drives that it was trained on
    admitted: list[str]  # drives that its training shared with another part of its split

    @property
    def contaminated(self) -> list[str]:
        """All drives that it should not have seen, sorted."""
        return sorted({*self.shared, *self.admitted})

    def describe(self) -> dict:
        return {**self._asdict(), "contaminated": self.contaminated}


class Subject(NamedTuple):
    """A model and the data that it is tested on, at its own size of images."""

    checkpoint: str
    model: FeatDepth
    config: Config
    loader: DataLoader
    missing: str | None  # what ground truth there is not, in words; None: there is some
    leakage: Leakage

    @property
    def dataset(self) -> FrameDataset:
        return self.loader.dataset

    def about(self) -> dict:
        """What metrics.json says of the model, beside its scores."""
        return {
            "checkpoint": self.checkpoint,
            "scale_source": self.model.scale_source,
            "contaminated": self.leakage.contaminated,
            "versions": versions(),
        }


def open_subject(accelerator: Accelerator, checkpoint: str, config: Config, odometry: bool = False) -> Subject:
    """Load a model and the test data as it sees them, for depth or for `odometry`, and print what they are.

    Raises InputError for a model without depth, and for one that was trained on what it is tested on unless
    `data.allow_leakage`.
    """
    model = FeatDepth.from_pretrained(checkpoint)
    if not model.has_depth:
        raise InputError(f"{checkpoint}: objective {model.settings.objective} predicts no depth")
    model = model.to(accelerator.device, memory_format=torch.channels_last)
    # The model decides on the size of its images.
    config = copy.deepcopy(config)
    config.data.height, config.data.width = model.height, model.width
    dataset, missing = (open_sequences(config), None) if odometry else open_test_data(config)
    leakage = find_leakage(model, dataset.recordings())
    if leakage.shared and not config.data.allow_leakage:
        raise InputError(
            f"{checkpoint}: the model was trained on test drives ({', '.join(leakage.shared)}); its scores would mean "
            "nothing, data.allow_leakage=true prints them marked CONTAMINATED"
        )
    accelerator.print(
        f"model      {checkpoint}, {model.settings.objective}, {model.height}x{model.width}\n"
        f"depth      {describe_scale(model.scale_source)}\n"
        f"devices    {accelerator.num_processes} x {accelerator.device}\n"
        f"test       {dataset.describe()}"
    )
    for note in unused_settings(dataset.members):
        accelerator.print(f"note       {note}")
    batch_bytes = config.evaluate.batch_size * sample_bytes(dataset)
    batches = -(-len(dataset) // config.evaluate.batch_size)
    check_shared_memory(accelerator, "test", batch_bytes, batches, config.data.workers)
    loader = accelerator.prepare(DataLoader(dataset, config.evaluate.batch_size, num_workers=config.data.workers))
    return Subject(str(checkpoint), model, config, loader, missing, leakage)


def find_leakage(model: FeatDepth, tested: Sequence[str]) -> Leakage:
    """Compare the recordings `tested` with those in the model's training record."""
    seen, admitted = model.provenance.drives or [], sorted(model.provenance.contaminated or ())
    return Leakage(len(seen) or None, seen_again(seen, tested), admitted)
