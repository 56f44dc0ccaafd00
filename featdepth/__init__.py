"""FeatDepth: metric depth and camera motion from video, learned without labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from featdepth.models import FeatDepth

__all__ = ["FeatDepth"]


def __getattr__(name: str) -> object:
    # Loaded on first use: the configuration and the command lines answer without waiting for torch.
    if name == "FeatDepth":
        from featdepth.models import FeatDepth

        return FeatDepth
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
