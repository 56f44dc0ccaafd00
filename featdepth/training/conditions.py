"""What a run is made with, and what it means when a resumed run is made with something else."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence

import torch
from accelerate import Accelerator

from featdepth.config import Config, Schedule, to_dict
from featdepth.config.reading import SHARED_KEYS, mixed_configs
from featdepth.config.values import shown
from featdepth.models.saved.provenance import versions
from featdepth.parallel.accelerator import compilation

# What may change freely: it has no part in the values that the run computes. Lists of samples are compared by content.
FREE = {
    *("data.root", "data.split", "data.train_files", "data.val_files", "data.test_files"),
    *("data.workers", "data.cache", "data.cache_gb", "data.ground_truth_cache"),
    *("data.skip_bad_frames", "data.allow_leakage"),
    *("data.min_distance", "data.min_motion", "data.mix"),
    *("train.epochs", "train.max_steps", "train.log_every", "train.checkpoint_every", "train.keep_checkpoints"),
    *("train.panel_samples", "train.max_bad_steps", "train.timeout"),
    "train.gradient_checkpointing",
}
FREE_SECTIONS = ("run.", "evaluate.")
# What changes values without making another run, and how.
NOTED = {
    "versions": "rounding may differ",
    "threads": "rounding may differ",
    "compilation": "rounding and dropout may differ",
    "warm-up": "as long as a part of the run, whose length has changed; its learning rates differ",
}

# What does not make another configuration, beside what only rounding notices.
NO_CONFIGURATION = {*NOTED, "train.seed", "device", "validation samples"}

OTHER_STEPS = "each step is made of other samples"
OTHER_NETWORKS = "these are not the networks that were trained"
MEANINGS = (  # the first prefix counts
    ("processes", OTHER_STEPS),
    ("train.batch_size", OTHER_STEPS),
    ("train.accumulate", OTHER_STEPS),
    ("train.seed", "another order, augmentation and dropout"),
    ("training samples", "the list of samples has changed, and so does their order"),
    ("validation samples", "validation losses before and after cannot be compared"),
    ("device", "sums are rounded differently"),
    ("precision", "the networks round differently"),
    ("model.pretrained", "no effect, the weights are the checkpoint's"),
    ("model.init", "no effect, the weights are the checkpoint's"),
    ("model.feature_encoder", "no effect, the weights are the checkpoint's"),
    ("model.", OTHER_NETWORKS),
    ("data.field_of_view", "other intrinsics"),
    ("data.", "the networks see other images"),
    ("loss.", "another objective from here on"),
    ("optimizer.", "other steps from here on"),
    ("schedule.", "other learning rates from here on"),
)
SHORTEST_RUN = 3  # warm-ups that fit into a run


def conditions_of(
    accelerator: Accelerator, config: Config, training: Sequence[object], validation: Sequence[object], batches: int
) -> dict[str, object]:
    """All that the values of a run depend on, flat and ready for JSON.

    training, validation: their samples; batches: of an epoch of training, on each process.
    """
    steps_per_epoch = math.ceil(batches / config.train.accumulate)
    flat = {f"{section}.{key}": value for section, keys in to_dict(config).items() for key, value in keys.items()}
    mixed = {
        f"data.mix {number}: {key}": value
        for number, other in enumerate(mixed_configs(config), start=1)
        for key, value in to_dict(other)["data"].items()
        if f"data.{key}" not in FREE and key not in SHARED_KEYS
    }
    return {
        "processes": accelerator.num_processes,
        "device": accelerator.device.type,
        "precision": accelerator.mixed_precision,
        "compilation": compilation(accelerator),
        "training samples": fingerprint(training),
        "validation samples": fingerprint(validation),
        "versions": versions()[-1],
        "threads": torch.get_num_threads(),
        **{key: value for key, value in flat.items() if key not in FREE and not key.startswith(FREE_SECTIONS)},
        **mixed,
        "warm-up": fitted(config.schedule, config.train.epochs, steps_per_epoch).warmup_steps,
    }


def fitted(schedule: Schedule, epochs: int, steps_per_epoch: int) -> Schedule:
    """The schedule of a run of so many `epochs`: its warm-up is cut where it would be more than a third of the run.

    It depends on the whole length that is configured, not on `train.max_steps`, at which a run may stop and go on
    later: both parts then have the rates of one. No published length is so short.
    """
    most = epochs * steps_per_epoch // SHORTEST_RUN
    return dataclasses.replace(schedule, warmup_steps=min(schedule.warmup_steps, most))


def fingerprint(samples: Sequence[object]) -> str:
    """A short text that tells one list of samples from another."""
    digest = hashlib.sha256("\n".join(map(str, samples)).encode()).hexdigest()
    return f"{len(samples)} ({digest[:8]})"


def configuration_digest(conditions: dict[str, object], config: Config) -> str:
    """A short text that runs have in common which differ in nothing but their seed.

    conditions: of the run; its length counts too, which a resumed run may change.
    """
    kept = {key: value for key, value in conditions.items() if key not in NO_CONFIGURATION}
    kept |= {"train.epochs": config.train.epochs, "train.max_steps": config.train.max_steps}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def differences(saved: dict[str, object], now: dict[str, object]) -> tuple[list[str], list[str]]:
    """What has changed: in words, with what it means; first what makes another run, then what only rounding notices."""
    changes, notes = [], []
    # What there was no key for when a checkpoint was saved was as the key's default has it.
    saved = {key: value for key, value in default_conditions().items() if key in now} | saved
    for key in now.keys() | saved.keys():
        if key == "warm-up" and key not in saved:
            continue  # a checkpoint of the time when it was no part of the run's length
        if saved.get(key) != now.get(key):
            text = f"{shown(key)} was {shown(saved.get(key))}, is {shown(now.get(key))}"
            if key in NOTED:
                notes.append(f"{text} ({NOTED[key]})")
            else:
                changes.append(f"{text} ({meaning(key)})")
    return sorted(changes), sorted(notes)


def default_conditions() -> dict[str, object]:
    """Those of the model and the loss that a configuration has where it says nothing."""
    defaults = to_dict(Config())
    return {f"{section}.{key}": value for section in ("model", "loss") for key, value in defaults[section].items()}


def meaning(key: str) -> str:
    return next((text for prefix, text in MEANINGS if key.startswith(prefix)), "it may compute other values")


def same_place(batch: int, saved: dict[str, object], now: dict[str, object]) -> int:
    """The batch of the epoch, at the start of a step, before which about as many samples have been seen."""
    seen = batch * samples_per_batch(saved)
    accumulate = now["train.accumulate"]
    return seen // samples_per_batch(now) // accumulate * accumulate


def samples_per_batch(conditions: dict[str, object]) -> int:
    """Samples that all processes together consume at a time."""
    return conditions["processes"] * conditions["train.batch_size"]
