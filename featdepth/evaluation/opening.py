"""Opens the data of an evaluation: what is scored, in each of its modes, and what it is compared with."""

from __future__ import annotations

from featdepth.config import Config
from featdepth.console import first_names
from featdepth.data import build_dataset
from featdepth.data.dataset import FrameDataset, NoGroundTruth
from featdepth.data.samples import STEREO, Sample
from featdepth.errors import InputError
from featdepth.models import FeatDepth


def open_test_data(config: Config) -> tuple[FrameDataset, str | None]:
    """The test images with ground truth, and None; where none has any, all with their sources, and what is missing."""
    try:
        return build_dataset(config, "test", frames=[0], require_depth=True), None
    except NoGroundTruth as missing:
        return build_dataset(config, "test", with_depth=False), str(missing)


def open_training_depth(config: Config) -> tuple[FrameDataset | None, str | None]:
    """The training images with ground truth, and None; None where they are not here, and why not."""
    try:
        return build_dataset(config, "train", with_depth=True, frames=[0], require_depth=True), None
    except InputError as missing:
        return None, str(missing)


def open_refinement_data(config: Config, model: FeatDepth) -> FrameDataset:
    """The test images to refine with: of both cameras, where the configuration has them and the model metres."""
    with_stereo = STEREO in config.data.frames and model.scale_source is not None
    return build_dataset(config, "test", frames=[0, STEREO] if with_stereo else [0], require_depth=True)


def open_sequences(config: Config) -> FrameDataset:
    """The test sequences as pairs of consecutive frames (earlier, later), in order.

    Raises InputError where there are no test frames, or none of them has a pose.
    """
    dataset = build_dataset(config, "test", with_depth=False, frames=[0, 1])
    drives = dataset.drives
    dataset.samples = [pair for drive in drives for pair in known_pairs(dataset, drive)]
    dataset.drives = sorted({sample.drive for sample in dataset.samples})
    dataset.left_out = 0  # a drive's last frame is the earlier one of no pair
    if not dataset.samples:
        raise InputError(
            f"test: no true poses of two consecutive frames of {first_names(drives, 5)} below "
            f"{config.data.root}, so there is no odometry to score; docs/data says where "
            f"data.kind {config.data.kind} has them"
        )
    dataset.prepare_cameras()  # lists may have named the other side only
    return dataset


def known_pairs(dataset: FrameDataset, drive: str) -> list[Sample]:
    """The earlier frame of each pair of consecutive frames of a drive with images and poses, in order.

    They span what the drive's samples span with their neighbours, which belong to the same part of the data.
    """
    targets = [sample.frame for sample in dataset.samples if sample.drive == drive]
    offsets = [offset for offset in dataset.config.frames if offset != STEREO]
    poses = dataset.poses(drive)
    span = range(min(targets) + min(offsets), max(targets) + max(*offsets, 1))
    pairs = [Sample(drive, frame, "l") for frame in span if frame in poses and frame + 1 in poses]
    return [pair for pair in pairs if dataset.image_path(pair, 0) and dataset.image_path(pair, 1)]
