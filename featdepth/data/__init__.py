"""From files to batches: datasets, splits, ground truth and the augmentation of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from featdepth.data import splits
from featdepth.data.augment import augment
from featdepth.data.dataset import FrameDataset
from featdepth.data.kinds import kind_of

if TYPE_CHECKING:
    from featdepth.config import Config

__all__ = ["augment", "build_dataset", "check_leakage", "leaked_drives"]


def build_dataset(
    config: Config,
    part: str,
    with_depth: bool | None = None,
    frames: Sequence[int | str] | None = None,
    require_depth: bool = False,
) -> FrameDataset:
    """The dataset of one part ("train", "validation" or "test") as the configuration describes it.

    with_depth: samples have `depth` and `depth_size`; by default those of validation and test, when any has ground
    truth. frames: take the place of `data.frames`, as in [0] for an evaluation. require_depth: leave out samples
    without ground truth and count them. Raises InputError for everything wrong with the data that can be seen without
    decoding it, for a part without samples, and for a training part that shares drives with another part.
    """
    if part == "train":
        check_leakage(config)
    return kind_of(config)(config, part, with_depth, frames, require_depth)


def leaked_drives(config: Config) -> list[str]:
    """Names of the drives that more than one of training, validation and test have, sorted; empty for a clean split."""
    return splits.leaked_drives(config, kind_of(config))


def check_leakage(config: Config) -> list[str]:
    """The drives that the split's parts share; InputError, naming them, unless `data.allow_leakage`."""
    return splits.check_leakage(config, kind_of(config))
