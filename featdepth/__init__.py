"""FeatDepth: metric depth and camera motion from video, learned without labels."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from featdepth.errors import end_at_interrupt

if TYPE_CHECKING:
    from featdepth.models import FeatDepth

__all__ = ["FeatDepth"]

# `python -m featdepth.predict`: "-m" stands there until Python has found the module, whose imports take seconds.
if sys.argv[:1] == ["-m"] and any(word.startswith("featdepth.") for word in sys.orig_argv):
    end_at_interrupt()


def __getattr__(name: str) -> object:
    # Loaded on first use: the configuration and the command lines answer without waiting for torch.
    if name == "FeatDepth":
        from featdepth.models import FeatDepth

        return FeatDepth
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
