"""What a configuration must satisfy beyond the types of its keys: choices, ranges, combinations, files that exist."""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Iterator
from itertools import pairwise

from featdepth.config.keys import LAYERS, Config
from featdepth.config.values import shown
from featdepth.console import count
from featdepth.errors import InputError
from featdepth.kinds import BUILT_IN_SPLITS, CITYSCAPES_CUT, KINDS, PROTOCOLS
from featdepth.scale import scale_of_training

COMMAND_LINE = "command line"
STRIDE = 32  # of the deepest feature map
SMALLEST_SIDE = 2 * STRIDE  # pixels: reflection padding of the deepest feature map needs two of its own
LARGEST_SIDE = 16384  # pixels; this and the next two keep absurd numbers from demanding all memory
WIDEST_DECODER = 4096  # channels
MOST_FRAMES = 64
TRACKERS = ("tensorboard", "wandb", "comet_ml", "aim", "mlflow", "clearml", "dvclive", "swanlab", "trackio")

CHOICES = {
    "data.kind": tuple(KINDS),
    "data.intrinsics": ("calibration", "fixed"),
    "model.intrinsics": ("given", "learned"),
    "model.motion": ("network", "aligned", "taught"),
    "model.objective": ("photometric", "autoencoder", "feature_metric", "joint"),
    "model.depth_layers": LAYERS,
    "model.pose_layers": LAYERS,
    "model.feature_layers": LAYERS,
    "model.pose_start": ("published", "he"),
    "data.prior_kind": ("depth", "disparity"),
    "evaluate.protocol": PROTOCOLS,
    "evaluate.crop": ("garg", "cityscapes", "nyu", "none"),
}
POSITIVE = (
    "data.cache_gb",
    "data.min_distance",
    "data.min_motion",
    "model.decoder_width",
    "model.min_depth",
    "model.metres_per_unit",
    "optimizer.lr",
    "optimizer.clip_norm",
    "schedule.gamma",
    "train.epochs",
    "train.batch_size",
    "train.accumulate",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.max_bad_steps",
    "train.timeout",
    "evaluate.cap",
    "evaluate.camera_height",
    "evaluate.batch_size",
)
NOT_NEGATIVE = (
    "data.workers",
    "loss.identity_noise",
    "loss.smoothness",
    "loss.feature_metric",
    "loss.discriminative",
    "loss.convergent",
    "loss.alignment",
    "loss.prior",
    "loss.velocity",
    "optimizer.weight_decay",
    "schedule.warmup_steps",
    "train.max_steps",
    "train.seed",
    "train.panel_samples",
)
PROBABILITIES = ("data.flip", "data.colour_jitter")

Problems = Iterator[tuple[str, str]]  # (key, what is wrong with it)


def check_config(
    config: Config,
    source: str,
    check_files: bool = True,
    training: bool = True,
    overridden: Collection[str] = (),
) -> None:
    """Raise InputError, one line that names `source` and key, for the first thing that cannot work.

    `check_files` includes what must exist on disk, `training` what only training needs of it; problems of the keys in
    `overridden` are reported as the command line's.
    """
    for key, problem in problems(config, check_files, training):
        raise InputError(f"{COMMAND_LINE if key in overridden else source}: {key} {problem}")


def problems(config: Config, check_files: bool, training: bool) -> Problems:
    """Everything that is wrong with `config`: values by themselves first, then combinations, then files."""
    yield from check_choices(config)
    yield from check_ranges(config)
    yield from check_run(config)
    yield from check_kind(config)
    yield from check_frames(config)
    yield from check_mix(config)
    yield from check_scale(config, training)
    yield from check_prior(config, training)
    yield from check_sizes(config)
    yield from check_model(config, check_files, training)
    yield from check_schedule(config)
    if check_files:
        yield from check_data_files(config)
    if check_files and training:
        yield from check_training_files(config)
        yield from check_model_files(config)


def value_of(config: Config, name: str) -> object:
    section, key = name.split(".")
    return getattr(getattr(config, section), key)


def check_choices(config: Config) -> Problems:
    for name, choices in CHOICES.items():
        value = value_of(config, name)
        if value is not None and value not in choices:
            yield name, f"is {shown(value)}, expected {one_of(value, choices)}"


def one_of(value: object, choices: Collection[object]) -> str:
    """The choices in words, led by the one that was probably meant."""
    nearest = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1)
    return (
        ("one of " if len(choices) > 1 else "")
        + ", ".join(map(str, choices))
        + "".join(f"; did you mean {name}?" for name in nearest)
    )


def check_ranges(config: Config) -> Problems:
    for name in POSITIVE:
        value = value_of(config, name)
        if value is not None and value <= 0:
            yield name, f"is {shown(value)}, it must be above 0"
    for name in NOT_NEGATIVE:
        value = value_of(config, name)
        if value is not None and value < 0:
            yield name, f"is {shown(value)}, it must not be negative"
    for name in PROBABILITIES:
        if not 0 <= value_of(config, name) <= 1:
            yield name, f"is {value_of(config, name)}, a probability lies between 0 and 1"
    if not 0 <= config.model.dropout < 1:
        yield "model.dropout", f"is {config.model.dropout}, it must be at least 0 and below 1"
    if config.train.seed >= 2**32:
        yield "train.seed", f"is {shown(config.train.seed)}, it must be below 2**32"
    if config.data.field_of_view is not None and not 1 <= config.data.field_of_view <= 170:
        yield "data.field_of_view", f"is {config.data.field_of_view}, it must be from 1 to 170 degrees"
    if config.model.decoder_width > WIDEST_DECODER:
        yield "model.decoder_width", f"is {shown(config.model.decoder_width)}, it must be at most {WIDEST_DECODER}"


def check_run(config: Config) -> Problems:
    name = config.run.name
    if not name.strip() or not name.isprintable() or name in (".", "..") or "/" in name or "\\" in name:
        yield "run.name", f"is {shown(name)}, it must be a plain file name; run.directory says where the run goes"
    if not config.run.directory:
        yield "run.directory", "is empty; write null for runs/<name>"
    if config.data.cache == "":
        yield "data.cache", "is empty; write null for no cache"
    if config.data.cache is None and config.data.cache_gb is not None:
        yield "data.cache_gb", "is set without data.cache, the folder that it limits"
    for tracker in config.run.trackers:
        if tracker not in TRACKERS:
            yield "run.trackers", f"has {shown(tracker)}, expected {one_of(tracker, TRACKERS)}"


def check_kind(config: Config) -> Problems:
    """What depends on the kind of data."""
    data, protocol = config.data, config.evaluate.protocol
    kind = KINDS[data.kind]
    if data.split in BUILT_IN_SPLITS and data.split not in kind.splits:
        names = ", ".join(kind.splits)
        yield "data.split", f"is {data.split}, but data.kind {data.kind} has {names}, or a folder with list files"
    if data.split == "time" and any((data.train_files, data.val_files, data.test_files)):
        yield "data.split", "is time, which divides all drives; it does not go with list files"
    if protocol not in kind.protocols:
        expected = one_of(protocol, kind.protocols)
        yield "evaluate.protocol", f"is {protocol}, but the ground truth of data.kind {data.kind} is {expected}"
    if config.evaluate.crop == "cityscapes" and data.crop != CITYSCAPES_CUT:
        yield "evaluate.crop", f"is cityscapes, which is made for data.crop {CITYSCAPES_CUT}, not {shown(data.crop)}"
    if len(data.crop) != 4:
        yield "data.crop", f"is {shown(data.crop)}, expected four parts: top, bottom, left, right"
    elif min(data.crop) < 0 or data.crop[0] + data.crop[1] > 0.9 or data.crop[2] + data.crop[3] > 0.9:
        yield "data.crop", f"is {shown(data.crop)}, it must leave at least a tenth of the height and of the width"


def check_frames(config: Config) -> Problems:
    frames = config.data.frames
    written = shown(frames)
    for frame in frames:
        if isinstance(frame, str) and frame != "s":
            yield (
                "data.frames",
                f"is {written}: '{shown(frame)}' is no frame; there are whole numbers and s (the other camera)",
            )
    if not frames or frames[0] != 0:
        yield "data.frames", f"is {written}, it must start with the target frame 0"
    if len(set(frames)) < len(frames):
        yield "data.frames", f"is {written}, a frame is given twice"
    if len(frames) > MOST_FRAMES:
        yield "data.frames", f"has {len(frames)} frames, it must have at most {MOST_FRAMES}"
    if len(frames) < 2 and config.model.objective != "autoencoder":
        yield "data.frames", f"is {written}, model.objective {config.model.objective} needs a source, as in [0, -1, 1]"
    if "s" in frames and not KINDS[config.data.kind].has_stereo:
        yield "data.frames", f"is {written}, but data.kind {config.data.kind} has one camera; leave out s"


def check_scale(config: Config, training: bool) -> Problems:
    """Metres need a source, and a source of metres needs a unit."""
    frames, unit, weight = config.data.frames, config.model.metres_per_unit, config.loss.velocity
    has_motion = config.model.objective != "autoencoder" and any(frame != "s" for frame in frames[1:])
    if weight > 0 and not has_motion:
        objective = config.model.objective
        yield "loss.velocity", f"is {weight}, but objective {objective} with data.frames {shown(frames)} has no motion"
    if config.model.objective == "autoencoder":
        return
    if unit is None and "s" in frames:
        yield "model.metres_per_unit", "is null, but the stereo frame s of data.frames needs it; KITTI: 36.0"
    if unit is None and weight > 0:
        yield "model.metres_per_unit", "is null, but the distances of loss.velocity need it; streets: 36.0"
    if training and unit is not None and scale_of_training(config) is None and config.model.init is None:
        yield (
            "model.metres_per_unit",
            f"is {unit}, but nothing in this training knows metres; set it to null for depth up to scale, or add the "
            "stereo frame s to data.frames, or set loss.velocity",
        )


def check_prior(config: Config, training: bool) -> Problems:
    """A prior needs its weight, and the other way round."""
    weight, folder = config.loss.prior, config.data.prior
    if weight > 0 and config.model.objective == "autoencoder":
        yield "loss.prior", f"is {weight}, but objective autoencoder has no depth; set it to 0"
    if training and weight > 0 and config.model.depth is None and folder is None and not config.data.mix:
        yield "loss.prior", f"is {weight}, but there is no prior: set data.prior, a folder of maps, or model.depth"
    if folder is not None and config.data.prior_kind is None:
        yield "data.prior_kind", "is null; say what the maps of data.prior are, depth or disparity"
    if training and folder is not None and weight == 0:
        yield "data.prior", f"is {shown(folder)}, but loss.prior is 0; set it above 0, as in loss.prior=0.1"


def check_mix(config: Config) -> Problems:
    data, weights = config.data, config.data.mix_weights
    if weights is not None and (len(weights) != 1 + len(data.mix) or min(weights) <= 0):
        expected = f"{count(1 + len(data.mix), 'number')} above 0: for the own data and for each of data.mix"
        yield "data.mix_weights", f"is {shown(weights)}, expected {expected}"
    if not 0 <= data.drive_balance <= 1:
        yield "data.drive_balance", f"is {data.drive_balance}, it lies between 0 (by samples) and 1 (by drives)"


def check_sizes(config: Config) -> Problems:
    for key in ("height", "width"):
        yield from check_side(f"data.{key}", getattr(config.data, key), SMALLEST_SIDE)
    size = config.model.pose_size
    if size is not None and len(size) != 2:
        yield "model.pose_size", f"is {shown(size)}, expected [height, width] or null"
    for side in size or []:
        yield from check_side("model.pose_size", side, STRIDE)


def check_side(name: str, side: int, smallest: int) -> Problems:
    """A side of an image in pixels must be a multiple of the deepest stride, within limits."""
    if side > LARGEST_SIDE:
        yield name, f"has {shown(side)} pixels, it must be at most {LARGEST_SIDE}"
    below = max(side // STRIDE * STRIDE, smallest)
    above = max(below + STRIDE, smallest)
    if side < smallest:
        yield name, f"has {count(side, 'pixel')}, it must be a multiple of {STRIDE} and at least {smallest}"
    elif side % STRIDE:
        yield name, f"has {side} pixels, it must be a multiple of {STRIDE}: {below} or {above}"


def check_model(config: Config, check_files: bool, training: bool) -> Problems:
    model = config.model
    if model.min_depth >= model.max_depth:
        yield "model.min_depth", f"is {model.min_depth}, it must be below model.max_depth ({model.max_depth})"
    elif model.initial_depth is not None and not model.min_depth < model.initial_depth < model.max_depth:
        between = f"model.min_depth ({model.min_depth}) and model.max_depth ({model.max_depth})"
        yield "model.initial_depth", f"is {model.initial_depth}, it must lie between {between}"
    if training and model.objective == "feature_metric" and not model.feature_encoder:
        yield (
            "model.objective",
            "is feature_metric, which needs model.feature_encoder: the model directory of an autoencoder run",
        )
    if model.objective in ("photometric", "autoencoder") and model.feature_encoder is not None:
        yield "model.feature_encoder", f"has no use in model.objective {model.objective}; set it to null"
    if model.motion != "network":
        yield from check_alignment(config, training)
    if model.intrinsics == "learned":
        yield from check_learned_intrinsics(config)
    if model.encoder is not None:
        from featdepth.config.encoder_names import check_encoder  # which asks torchvision

        yield from check_encoder(model)
    if model.depth is not None:
        from featdepth.config.depth_names import check_depth  # most models have none

        yield from check_depth(config, check_files and training)
    if model.pretrained == "":
        yield "model.pretrained", "is empty, expected true, false or a weight file"


def check_alignment(config: Config, training: bool) -> Problems:
    model, frames = config.model, config.data.frames
    if model.objective == "autoencoder":
        yield "model.motion", f"is {model.motion}, which has no use in model.objective autoencoder; set it to network"
    elif not any(frame not in (0, "s") for frame in frames):
        yield "model.motion", f"is {model.motion}, of frames of other moments; data.frames {shown(frames)} has none"
    if training and model.motion == "taught" and config.loss.alignment == 0:
        yield "loss.alignment", "is 0, which teaches nothing; set it above 0, or model.motion to network"
    no_metres = model.metres_per_unit is not None and scale_of_training(config) is None
    if training and no_metres:
        yield (
            "model.motion",
            f"is {model.motion}, which cannot keep the metres of model.init where nothing in training knows any; set "
            "model.metres_per_unit to null, or train with the stereo frame s or loss.velocity",
        )


def check_learned_intrinsics(config: Config) -> Problems:
    if config.model.objective == "autoencoder":
        yield "model.intrinsics", "is learned, which has no use in model.objective autoencoder; set it to given"
    elif not any(frame not in (0, "s") for frame in config.data.frames):
        frames = shown(config.data.frames)
        yield "model.intrinsics", f"is learned, from frames of other moments; data.frames {frames} has none"
    if config.data.field_of_view is not None and config.data.intrinsics == "fixed":
        yield "data.field_of_view", "is set, and data.intrinsics fixed too; learned intrinsics start from one of them"


def check_schedule(config: Config) -> Problems:
    schedule = config.schedule
    if not 0 < schedule.warmup_ratio <= 1:
        yield "schedule.warmup_ratio", f"is {schedule.warmup_ratio}, it must be above 0 and at most 1"
    steps = [0, *schedule.milestones]
    if any(later <= earlier for earlier, later in pairwise(steps)):
        yield "schedule.milestones", f"is {shown(schedule.milestones)}, epochs must be above 0 and increase"


def check_data_files(config: Config) -> Problems:
    data = config.data
    if not data.root:
        yield "data.root", "is not set: the folder of the data set, as in data.root=/data/kitti_raw"
    elif not os.path.isdir(data.root):
        yield "data.root", f"is {shown(data.root)}: no such folder; set it to the folder of the data set"
    if data.cache is not None and os.path.exists(data.cache) and not os.path.isdir(data.cache):
        yield "data.cache", f"is {shown(data.cache)}, which is no folder"
    if data.split not in BUILT_IN_SPLITS and not os.path.isdir(data.split):
        built_in = " nor ".join(KINDS[data.kind].splits)
        yield "data.split", f"is {shown(data.split)}, neither {built_in} nor a folder with list files"
    for key in ("train_files", "val_files", "test_files"):
        path = getattr(data, key)
        if path is not None and not os.path.isfile(path):
            yield f"data.{key}", f"is {shown(path)}: no such file"


def check_training_files(config: Config) -> Problems:
    for path in config.data.mix:
        if not os.path.isfile(path):
            yield "data.mix", f"names {shown(path)}: no such configuration file"
    if config.data.prior is not None and not os.path.isdir(config.data.prior):
        yield "data.prior", f"is {shown(config.data.prior)}: no such folder; python -m featdepth.prior writes one"


def check_model_files(config: Config) -> Problems:
    model = config.model
    if model.feature_encoder is not None and not os.path.isdir(model.feature_encoder):
        yield (
            "model.feature_encoder",
            f"is {shown(model.feature_encoder)}: no such folder; train stage 1 first (model.objective autoencoder)",
        )
    if model.init is not None and not os.path.isdir(model.init):
        yield "model.init", f"is {shown(model.init)}: no such folder; expected a model directory"
    if isinstance(model.pretrained, str) and not os.path.exists(model.pretrained):
        yield (
            "model.pretrained",
            f"is {shown(model.pretrained)}: no such file or folder; expected true, false or torchvision's weights",
        )
