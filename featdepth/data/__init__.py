"""From files to batches: datasets, splits, ground truth and the augmentation of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from featdepth.data.augment import augment
from featdepth.data.dataset import FrameDataset
from featdepth.data.kitti_raw import KittiRaw
from featdepth.data.splits import check_leakage, leaked_drives
from featdepth.errors import InputError

if TYPE_CHECKING:
    from featdepth.config import Config

__all__ = ["augment", "build_dataset", "check_leakage", "leaked_drives"]

DATASETS: dict[str, type[FrameDataset]] = {"kitti_raw": KittiRaw}


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
    if config.data.kind not in DATASETS:
        raise InputError(f"data.kind: {config.data.kind!r} is unknown; there is {', '.join(DATASETS)}")
    return DATASETS[config.data.kind](config, part, with_depth, frames, require_depth)
