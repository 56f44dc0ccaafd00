"""The configuration: what can be set, its defaults and units, and how YAML and the command line become a `Config`.

A configuration is YAML with the sections below; `section.key=value` on the command line overrides it. Reading is
strict: an unknown key, a wrong type or an impossible combination ends in an `InputError` that names the key, before any
work starts.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import yaml

from featdepth.config_checks import CHOICES, COMMAND_LINE, check_config
from featdepth.config_values import Dumper, convert, describe, parse_yaml, shown
from featdepth.errors import InputError
from featdepth.files import read_text, write_text

LARGEST_CONFIG = 1 << 16  # bytes; a configuration has 4 kB, and YAML takes a second for ten times as much


@dataclass
class Run:
    name: str = "run"  # a plain file name
    directory: str | None = None  # everything the run writes; null: runs/<name>
    trackers: list[str] = field(default_factory=list)  # e.g. [tensorboard]; metrics.jsonl is always written

    def __post_init__(self) -> None:
        if self.directory is None:
            self.directory = f"runs/{self.name}"


@dataclass
class Data:
    kind: str = "kitti_raw"  # layout of the folder below `root`
    root: str = ""  # folder of the data set; has to be set
    split: str = "eigen"  # built in ("eigen", "official", "time"), or a folder with train_, val_ and test_files.txt
    train_files: str | None = None  # list file that takes the place of the split's training list
    val_files: str | None = None  # the same for validation
    test_files: str | None = None  # the same for test
    frames: list[int | str] = field(default_factory=lambda: [0, -1, 1, "s"])  # target 0, then sources; s: other camera
    height: int = 320  # pixels, multiple of 32: images are resized to height x width
    width: int = 1024  # pixels, multiple of 32
    crop: list[float] = field(default_factory=lambda: [0.0] * 4)  # parts cut off before: top, bottom, left, right
    field_of_view: float | None = None  # degrees, horizontal, of cameras whose intrinsics nothing else tells
    intrinsics: str = "calibration"  # "calibration": each drive's own; "fixed": one normalised K for everything
    flip: float = 0.5  # probability of mirroring a training sample
    colour_jitter: float = 0.5  # probability of colour jitter of a training sample
    workers: int = 4  # loader processes of each training process
    cache: str | None = None  # folder that keeps decoded frames (featdepth.data.cache); null: decode each time
    cache_gb: float | None = None  # GB at which nothing more is added to it; null: what leaves 1 GB of the disk free
    min_distance: float | None = (
        None  # metres to each neighbour in time: what moves less is neither trained nor validated on
    )
    min_motion: float | None = None  # the same in pixels at `width`, from the pictures (featdepth.data.motion)
    mix: list[str] = field(default_factory=list)  # configuration files whose data train along (featdepth.data.mix)
    mix_weights: list[float] | None = None  # how often own data and each of `mix` are drawn; null: by their samples
    drive_balance: float = 0.0  # 0: all samples of a data set are drawn alike, 1: all drives, whatever their length
    ground_truth_cache: str | None = None  # folder for depth maps made from scans; null: chosen by the data set
    skip_bad_frames: bool = False  # replace unreadable samples and count them, instead of stopping
    allow_leakage: bool = False  # train on test drives; marks model and results CONTAMINATED


@dataclass
class Model:
    objective: str = "feature_metric"  # photometric | autoencoder | feature_metric | joint
    depth_layers: int = 50  # ResNet of the depth network: 18, 34, 50 or 101
    pose_layers: int = 18  # ResNet of the pose network
    feature_layers: int = 50  # ResNet of the feature autoencoder
    decoder_width: int = 256  # channels of the depth decoder
    dropout: float = 0.5  # probability, on the two deepest features of the depth decoder
    pretrained: bool | str = True  # encoders start from: true: ImageNet, false: random, text: weight file or folder
    feature_encoder: str | None = None  # model directory of stage 1 (objective autoencoder)
    pose_size: list[int] | None = field(default_factory=lambda: [192, 640])  # pixels [height, width]; null: as trained
    pose_start: str = "published"  # of a new pose decoder: published, or he, which learns motion some ten times faster
    init: str | None = None  # model directory to fine-tune
    intrinsics: str = "given"  # given: those of the data; learned: from data.field_of_view, or those of the data, on
    square_pixels: bool = True  # learned intrinsics have one focal length; false: one for each direction
    min_depth: float = 0.1  # network units
    max_depth: float = 100.0  # network units
    initial_depth: float | None = None  # network units, of everything before training; null: twice min_depth
    metres_per_unit: float | None = 36.0  # metres in one network unit, where training has some; null: up to scale


@dataclass
class Loss:
    pyramid: bool = False  # compare coarse scales of depth on images as small, which helps where frames turn a lot
    automask: bool = False  # ignore pixels that the unwarped sources explain better
    identity_noise: float = 0.0  # standard deviation of the noise that breaks ties of the automask
    normalise_disparity: bool = False  # smoothness of disparity divided by its mean
    smoothness: float = 1e-3  # weight of the disparity's first- and second-order smoothness
    feature_metric: float = 1e-3  # weight of the feature-metric term
    discriminative: float = 1e-3  # weight that rewards first-order gradients of the features
    convergent: float = 1e-3  # weight that penalises second-order gradients of the features
    velocity: float = 0.0  # weight of the relative error of the distance that the camera moved; 0: distances not used


@dataclass
class Optimizer:
    lr: float = 1e-4  # learning rate after warm-up
    weight_decay: float = 0.0  # of Adam
    clip_norm: float | None = 35.0  # largest L2 norm of the gradient; null: no clipping


@dataclass
class Schedule:
    warmup_steps: int = 500  # optimizer steps of linear warm-up
    warmup_ratio: float = 0.3333  # first learning rate as a part of the full one
    milestones: list[int] = field(default_factory=lambda: [20, 30])  # epochs after which the rate drops
    gamma: float = 0.5  # factor at each milestone


@dataclass
class Train:
    epochs: int = 40
    max_steps: int | None = None  # optimizer steps at which to stop; 0: validate once and end
    batch_size: int = 2  # samples per process and forward pass
    accumulate: int = 1  # forward passes per optimizer step
    seed: int = 0
    log_every: int = 50  # optimizer steps
    checkpoint_every: int = 1000  # optimizer steps
    keep_checkpoints: int = 3  # newest checkpoints that are kept
    max_bad_steps: int = 20  # steps in a row whose loss or gradient is not finite: at so many the run ends
    timeout: int = 600  # seconds that a process waits for the others before it gives up
    sync_batch_norm: bool = True  # batch statistics over all processes
    gradient_checkpointing: bool = False  # less memory for more time: backward recomputes activations; same values
    panel_samples: int = 4  # validation samples shown in images/


@dataclass
class Evaluate:
    protocol: str = "eigen"  # "eigen": raw LiDAR; "eigen_improved": proj_depth/groundtruth; "own": other data sets'
    crop: str | None = None  # "garg", "cityscapes" or "none"; null: what the field does (featdepth.metrics.protocols)
    cap: float | None = None  # metres: truth beyond it is ignored, predictions are clamped to it; null: as the field
    flip: bool = False  # average with the prediction of the mirrored image
    camera_height: float | None = None  # metres above the ground: scale from it; null: the model's own
    batch_size: int = 8  # images per process


@dataclass
class Config:
    run: Run = field(default_factory=Run)
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    loss: Loss = field(default_factory=Loss)
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    train: Train = field(default_factory=Train)
    evaluate: Evaluate = field(default_factory=Evaluate)


SECTIONS: dict[str, type] = get_type_hints(Config)
TYPES: dict[str, Any] = {
    f"{section}.{key}": hint for section, cls in SECTIONS.items() for key, hint in get_type_hints(cls).items()
}
PATHS = {
    "run.directory",
    "data.root",
    "data.split",
    "data.train_files",
    "data.val_files",
    "data.test_files",
    "data.cache",
    "data.ground_truth_cache",
    "data.mix",
    "model.pretrained",
    "model.feature_encoder",
    "model.init",
}  # `~` in these is the home directory: shells do not expand it in key=value


def load_config(
    path: str | Path, overrides: Sequence[str] = (), check_files: bool = True, training: bool = True
) -> Config:
    """Read the YAML file `path`, apply the `section.key=value` overrides in order, and check the result.

    `check_files` also demands that the files and folders it names exist; `training=False` leaves out those that only
    training needs (an evaluation takes its model from a checkpoint). Raises InputError, one line, for anything wrong.
    """
    source = str(path)
    if not os.path.exists(path):
        raise InputError(f"{source}: no such configuration file")
    if os.path.isdir(path):
        raise InputError(f"{source}: cannot read the configuration: Is a directory")
    try:
        text = read_text(path, LARGEST_CONFIG, "the configuration", errors="strict")
    except UnicodeDecodeError:
        raise InputError(f"{source}: not a text file in UTF-8") from None
    values = flatten(parse_yaml(text, source), source)
    overridden = dict(parse_override(override) for override in overrides)
    config = build(values | overridden)
    check_config(config, source, check_files, training, overridden)
    return config


def from_dict(values: Mapping[str, Any], source: str) -> Config:
    """The configuration in a nested dict such as `to_dict` gives; `source` (a file) is named in errors."""
    return build(flatten(values, source))


def to_dict(config: Config) -> dict[str, dict[str, Any]]:
    """Nested dict of plain values, ready for YAML or JSON."""
    return dataclasses.asdict(config)


def save_config(config: Config, path: str | Path, header_comment: str = "") -> None:
    """Write `config` as YAML that `load_config` reads, atomically; `header_comment` goes above it, line by line."""
    header = "".join(f"# {line}".rstrip() + "\n" for line in header_comment.splitlines())
    text = header + yaml.dump(to_dict(config), Dumper=Dumper, sort_keys=False, default_flow_style=None, width=120)
    write_text(path, text)


def flatten(values: Any, source: str) -> dict[str, Any]:
    """{section: {key: value}} -> {"section.key": value of the declared type}; raises InputError naming the key."""
    if not isinstance(values, Mapping):
        raise InputError(f"{source}: expected the sections {', '.join(SECTIONS)}, found {shown(values)}")
    flat: dict[str, Any] = {}
    for section, keys in values.items():
        if section not in SECTIONS:
            raise unknown_key(shown(section), source)
        if keys is None:  # a section whose keys are all commented out
            continue
        if not isinstance(keys, Mapping):
            raise InputError(f"{source}: '{section}' is a section of keys, found {shown(keys)}")
        for key, value in keys.items():
            name = f"{section}.{shown(key)}"
            flat[name] = typed(name, value, source)
    return flat


# Lists of a fixed length, as they are written.
FIXED_LISTS = {
    "data.crop": "four parts, as in [0.25, 0.0, 0.0, 0.0]: top, bottom, left, right",
    "model.pose_size": "two sides, as in [192, 640]: height, width",
}


def typed(name: str, value: Any, source: str) -> Any:
    """`value` as the type that the key `name` ("section.key") declares; raises InputError when it cannot be that."""
    if name not in TYPES:
        raise unknown_key(name, source)
    if isinstance(value, str) and value in CHOICES.get(name, ()):
        return value  # also "none", which is null elsewhere
    try:
        value = convert(value, TYPES[name])
    except ValueError as error:
        advice = f"; write {FIXED_LISTS[name]}" if name in FIXED_LISTS and not isinstance(value, list) else error
        message = f"{source}: {name} is {shown(value)}, expected {describe(TYPES[name])}{advice}"
        raise InputError(message) from None
    if name not in PATHS or not isinstance(value, str | list):
        return value
    paths = value if isinstance(value, list) else [value]
    if any("\0" in path for path in paths):
        raise InputError(f"{source}: {name} is {shown(value)}, which no path can be")
    expanded = [os.path.expanduser(path) for path in paths]
    return expanded if isinstance(value, list) else expanded[0]


def build(flat: Mapping[str, Any]) -> Config:
    """{"section.key": value} -> Config; what is absent keeps its default."""
    sections: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for name, value in flat.items():
        section, key = name.split(".")
        sections[section][key] = value
    return Config(**{section: cls(**sections[section]) for section, cls in SECTIONS.items()})


def parse_override(override: str) -> tuple[str, Any]:
    """`section.key=value`, the value in YAML, split at the first `=` -> (section.key, typed value)."""
    name, equals, text = override.partition("=")
    name = name.strip()
    if not equals:
        raise InputError(
            f"{COMMAND_LINE}: '{shown(override)}' is not of the form section.key=value, as in train.batch_size=4"
        )
    if name not in TYPES:
        raise unknown_key(shown(name), COMMAND_LINE)
    return name, typed(name, parse_yaml(text, f"{COMMAND_LINE}: {name}"), COMMAND_LINE)


def unknown_key(name: str, source: str) -> InputError:
    """The error for a key that does not exist, with the nearest that does."""
    section, _, key = name.partition(".")
    if name in SECTIONS:
        keys = ", ".join(known for known in TYPES if known.startswith(f"{name}."))
        return InputError(f"{source}: '{name}' is a section, set one of its keys: {keys}")
    same_key = [known for known in TYPES if known.split(".")[1] == (key or section)]
    candidates = list(TYPES) if key else [*SECTIONS, *TYPES]
    nearest = same_key or difflib.get_close_matches(name, candidates, n=1)
    if nearest:
        return InputError(f"{source}: unknown key '{name}'; did you mean '{nearest[0]}'?")
    known = [each for each in TYPES if each.startswith(f"{section}.")] or list(SECTIONS)
    return InputError(f"{source}: unknown key '{name}'; there are {', '.join(known)}")


class Parser(argparse.ArgumentParser):
    """Reports bad usage in one line, as all other bad input."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{COMMAND_LINE}: {message} (see --help)")


def parse_arguments(
    argv: Sequence[str] | None, description: str, extra: Callable[[argparse.ArgumentParser], None] | None = None
) -> argparse.Namespace:
    """The command line that the programs share: `--config FILE`, `key=value` anywhere, and what `extra(parser)` adds.

    `argv=None` takes it from sys.argv. Returns a namespace with `config` (path), `overrides` (list of `key=value`) and
    the options of `extra`; then call `load_config(arguments.config, arguments.overrides)`. Raises InputError.
    """
    parser = Parser(description=description, allow_abbrev=False)
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML file, see configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a key, e.g. train.batch_size=4")
    if extra is not None:
        extra(parser)
    return parser.parse_intermixed_args(argv)
