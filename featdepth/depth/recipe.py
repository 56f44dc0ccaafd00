"""The training that suits a film and the time there is: networks, size of the images and steps, by measured steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch

import featdepth
from featdepth.config import Config, load_config
from featdepth.config.depth_names import HUGGING_FACE
from featdepth.config.values import override
from featdepth.console import count
from featdepth.data import build_dataset
from featdepth.data.notes import fitting_size
from featdepth.data.sets.clips import SUMMARY, read_record
from featdepth.data.synthetic import available_cores
from featdepth.doctor.cost import load_samples, measure_step, random_model
from featdepth.doctor.initial_motion import frames_of
from featdepth.doctor.survey import Survey
from featdepth.errors import InputError
from featdepth.models import FeatDepth
from featdepth.odometry.aligned_focal import focal_by_alignment
from featdepth.prepare_video.outcome import TRAINED_PIXELS, training_command

REPOSITORY = Path(featdepth.__file__).parents[1]  # where train.py and configs/ are
SMALLEST = 96 * 160  # pixels of an image
ENOUGH_STEPS = 500  # images are as large as allows for so many steps
PLANNED = 0.8  # of the time: for steps and validations; the rest is for starting, and the check at the end
VALIDATED = 0.4  # of a step's time: a batch without gradient
CLOSED = 2.0  # seconds that pictures and models take after each validation
RATE_DROPS = 0.75  # of the steps
FOCAL_PAIRS = 12  # of frames that are to show the focal length
# What of a model's settings makes its networks and their range.
NETWORK_KEYS = ("encoder", "depth", "tune", "depth_layers", "decoder_width", "dropout", "min_depth", "max_depth")


def recipe(frames: Path, run: Path, base: str | None, minutes: float, overrides: Sequence[str]) -> Config:
    """The configuration of a training of `minutes` in the folder `run` on the prepared `frames`.

    base: the model to adapt, a directory of ours or hf:NAME; None: from the start of configs/video.yaml; overrides:
    `section.key=value`, which count more than anything decided here. Raises InputError for what cannot be trained.
    """
    video = REPOSITORY / "configs" / "video.yaml"
    if not video.is_file():
        raise InputError(f"{video}: not there; run this from a copy of the repository")
    words = [each for each in training_command(frames, read_record(frames / SUMMARY)) if "=" in each]
    # Alignment finds the motion from the first step on, where a pose network would take most of the time to learn it.
    words += [override("run.directory", run), "run.name=film", "model.motion=aligned", "train.log_every=20"]
    model = open_base(base)
    if model is None and base is not None:  # of transformers, see docs/large_models.md
        words += [override("model.depth", base), "model.pretrained=false", "model.tune=lora:8", "loss.prior=0.1"]
    if model is not None:
        words += [f"model.{key}={value_of(getattr(model.settings, key))}" for key in NETWORK_KEYS]
        words += [override("model.init", base), "model.pretrained=false"]
    config = load_config(video, [*words, *overrides])
    if model is not None and config.model.intrinsics == "learned" and config.data.field_of_view is not None:
        degrees = field_of_view_by(model, config)
        if degrees is not None:
            print(f"the frames fit best with a field of view of {degrees:.1f} degrees by the depth of {base}")
            words.append(f"data.field_of_view={degrees:.1f}")
    samples = len(build_dataset(config, "train"))
    words += [f"train.batch_size={min(config.train.batch_size, samples)}", f"data.workers={min(4, available_cores())}"]
    config = load_config(video, [*words, *overrides])
    seconds = PLANNED * 60 * minutes
    if not any(each.startswith(("data.height", "data.width")) for each in overrides):
        most = TRAINED_PIXELS if model is None else model.height * model.width
        config = at_size(config, min(SMALLEST, most))
        pixels = SMALLEST * seconds / ENOUGH_STEPS / step_seconds(config)
        config = at_size(config, min(most, max(SMALLEST, pixels)))
    return timed(config, seconds, samples)


def open_base(base: str | None) -> FeatDepth | None:
    """The model of ours to adapt; None: it is none of ours. Raises InputError where it is no model."""
    if base is None or base.startswith(HUGGING_FACE):
        return None
    model = FeatDepth.from_pretrained(base)
    if not model.has_depth:
        raise InputError(f"--base {base}: objective {model.settings.objective} predicts no depth")
    return model


def value_of(setting: object) -> str:
    return "null" if setting is None else str(setting)


def field_of_view_by(model: FeatDepth, config: Config) -> float | None:
    """Degrees under which frames fit best by the depth of the model to adapt; None where they do not show it."""
    survey = Survey(config, FOCAL_PAIRS)
    pairs = [pair for target in survey.targets if (pair := frames_of(survey, target, -1)) is not None]
    found = focal_by_alignment(model, *zip(*pairs, strict=True), survey.size) if pairs else None
    return None if found is None else 2 * math.degrees(math.atan(0.5 / found.widths))


def at_size(config: Config, pixels: float) -> Config:
    """The configuration with images of the same shape and about as many pixels."""
    config.data.height, config.data.width = fitting_size((config.data.height, config.data.width), round(pixels))
    return config


def step_seconds(config: Config) -> float:
    """Seconds of a training step on this machine."""
    dataset = build_dataset(config, "train")
    samples, _ = load_samples(dataset, config.train.batch_size)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return measure_step(random_model(config, dataset), samples, config, device)[0]


def timed(config: Config, seconds: float, samples: int) -> Config:
    """The configuration with as many steps as fit into `seconds`, the last quarter of them at a lower rate."""
    one, batch = step_seconds(config), config.train.batch_size
    steps_of_epoch = samples // batch
    validation = -(-len(build_dataset(config, "validation")) // batch) * VALIDATED * one + CLOSED
    steps = max(1, int(seconds / (one + validation / steps_of_epoch)))
    epochs = -(-steps // steps_of_epoch)
    config.train.epochs, config.train.max_steps = epochs, steps
    config.schedule.milestones = [round(RATE_DROPS * steps / steps_of_epoch, 3)]
    config.schedule.warmup_steps = steps // 10
    images = f"{count(batch, 'image')} of {config.data.width}x{config.data.height}"
    print(f"a step of {images} takes {one:.2f} s: {count(steps, 'step')} in {count(epochs, 'epoch')}")
    return config
