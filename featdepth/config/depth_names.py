"""What `model.depth` and `model.tune` may say."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator

from featdepth.config.keys import Config
from featdepth.config.values import shown

HUGGING_FACE = "hf:"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
NEEDED = "which needs transformers (pip install transformers)"
TUNE = re.compile(r"(all|head)|(last|lora):([1-9]\d{0,2})")


def split_tune(tune: str) -> tuple[str, int]:
    """`lora:8` as `("lora", 8)`; what has no number gets 0."""
    kind, _, number = tune.partition(":")
    return kind, int(number or 0)


def check_depth(config: Config, check_files: bool) -> Iterator[tuple[str, str]]:
    """(key, what is wrong with it) where `model.depth` can be no large model, or other keys do not go with it."""
    model = config.model
    name = model.depth.removeprefix(HUGGING_FACE)
    if not model.depth.startswith(HUGGING_FACE) or not name:
        yield "model.depth", f"is {shown(model.depth)}, expected hf:ORG/NAME or hf:DIRECTORY, or null"
    elif importlib.util.find_spec("transformers") is None:
        yield "model.depth", f"is {shown(model.depth)}, {NEEDED}"
    elif check_files and not os.path.isdir(name) and HUB_NAME.fullmatch(name) is None:
        yield "model.depth", f"is {shown(model.depth)}: no such folder, and no name on the hub, as in hf:ORG/NAME"
    if model.objective == "autoencoder":
        yield "model.depth", "has no use in model.objective autoencoder; set it to null"
    if model.encoder is not None:
        yield "model.encoder", f"is {shown(model.encoder)}, but model.depth is {shown(model.depth)}; set one to null"
    if TUNE.fullmatch(model.tune) is None:
        yield "model.tune", f"is {shown(model.tune)}, expected all, head, last:N (layers) or lora:R (rank)"
    if config.loss.pyramid:
        yield "loss.pyramid", "is true, but a large model (model.depth) gives depth of one scale; set it to false"
