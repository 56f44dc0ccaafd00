"""What a training says about its cameras: where their intrinsics come from, and what they are at its size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from featdepth.wording import count

if TYPE_CHECKING:
    from featdepth.data.dataset import FrameDataset


def describe_intrinsics(members: Sequence[FrameDataset], learned: bool) -> str:
    """Lines for a run's header, one for each of the data sets; learned: whether they are only where learning starts."""
    return "\n           ".join(describe_member(member, learned) for member in members)


def describe_member(member: FrameDataset, learned: bool) -> str:
    """The intrinsics of one data set's training samples: how they are had, from what, and their values in pixels."""
    values = torch.stack(list(member.intrinsics.values()))
    height, width = member.size
    if member.config.intrinsics == "fixed":
        source = "fixed, of the published code (data.intrinsics)"
    elif member.guesses_intrinsics:
        source = f"data.field_of_view of {member.config.field_of_view:g} degrees"
    else:
        first = {sample.drive: sample for sample in reversed(member.samples)}
        sources = Counter(member.intrinsics_source(sample) for sample in first.values())
        source = ", ".join(f"{name} of {count(drives, 'drive')}" for name, drives in sources.most_common(3))
    how = "learned, from a start of" if learned else "given," if member.config.intrinsics != "fixed" else ""
    different = len({tuple(each.flatten().tolist()) for each in values})
    cameras = "" if different == 1 else f"{different} cameras, "
    places = {"fx": (0, 0), "fy": (1, 1), "cx": (0, 2), "cy": (1, 2)}
    numbers = " ".join(f"{name} {span(values[:, row, column])}" for name, (row, column) in places.items())
    return f"{how} {source}: {cameras}{numbers} at {width}x{height}".strip()


def span(values: torch.Tensor) -> str:
    """Values `[N]` as one number where they agree to a tenth, or as the smallest and the largest."""
    low, high = f"{values.min():.1f}", f"{values.max():.1f}"
    return low if low == high else f"{low} to {high}"
