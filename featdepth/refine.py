"""Refinement at test time."""

from __future__ import annotations

from collections.abc import Sequence

from featdepth.config import Config
from featdepth.data.kinds import kind_of
from featdepth.data.splits import is_among, part_drives


def is_transductive(config: Config, recordings: Sequence[str]) -> bool:
    """Whether a training goes on from another model and sees nothing but drives that it is tested on.

    recordings: of the training data. That is the published "online refinement": it sees all test images at once.
    """
    tested = part_drives(config, "test", kind_of(config))
    return config.model.init is not None and all(is_among(name, tested) for name in recordings)
