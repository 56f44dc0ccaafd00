"""From files to batches: datasets, splits, ground truth and the augmentation of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from featdepth.console import count
from featdepth.data.augment import augment
from featdepth.data.dataset import FrameDataset
from featdepth.data.splits import check_leakage, leaked_drives
from featdepth.errors import InputError
from featdepth.kinds import dataset_class

if TYPE_CHECKING:
    from featdepth.config import Config
    from featdepth.data.mix import MixedDataset

__all__ = ["augment", "build_dataset", "check_leakage", "leaked_drives"]


def build_dataset(
    config: Config,
    part: str,
    with_depth: bool | None = None,
    frames: Sequence[int | str] | None = None,
    require_depth: bool = False,
) -> FrameDataset | MixedDataset:
    """The dataset of one part ("train", "validation" or "test") as the configuration describes it.

    with_depth: samples have `depth` and `depth_size`; by default those of validation and test, when any has ground
    truth. frames: take the place of `data.frames`, as in [0] for an evaluation; then nothing is mixed in.
    require_depth: leave out samples without ground truth and count them. Raises InputError for everything wrong with
    the data that can be seen without decoding it, for a part without samples, and for a training part that shares
    drives with another part, or has no distances for `loss.velocity`.

    Where intrinsics are learned, samples of the training part have `camera`, their place among its own cameras, which
    `build_model` learns; other parts have it after `number_cameras` with the names of a model's cameras.
    """
    if part == "train":
        check_leakage(config)
    dataset = dataset_class(config.data.kind)(config, part, with_depth, frames, require_depth)
    if part == "train" and frames is None and (config.data.mix or config.data.drive_balance):
        from featdepth.data.mix import mix  # most runs have one data set, and its drives as often as they come

        dataset = mix(config, dataset)
    if part == "train" and frames is None and config.loss.velocity > 0 and dataset.known_distances == 0:
        raise InputError(
            f"loss.velocity is {config.loss.velocity}, but none of {count(len(dataset), 'training sample')} knows how "
            "far the camera moved; docs/scale.md says where each kind of data has it"
        )
    if part == "train" and config.model.intrinsics == "learned":
        dataset.number_cameras(list(dataset.start_intrinsics()))
    return dataset
