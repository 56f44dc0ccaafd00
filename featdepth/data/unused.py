"""Settings that a data set has no use for, said rather than passed over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from featdepth.data.intrinsics_source import FIELD_OF_VIEW, sources_of

if TYPE_CHECKING:
    from featdepth.data.dataset import FrameDataset


def unused_settings(members: Sequence[FrameDataset]) -> list[str]:
    """A line for each setting that was made and changes nothing about these data sets."""
    notes = []
    for member in members:
        data = member.config
        if data.field_of_view is not None and not starts_from_angle(member):
            known = "data.intrinsics fixed" if data.intrinsics == "fixed" else ", ".join(sources_of(member))
            notes.append(
                f"data.field_of_view {data.field_of_view:g} is not used: {known} gives the intrinsics; set it to null, "
                "or model.intrinsics=learned to learn them from that angle on"
            )
        if data.ground_truth_cache is not None and not member.makes_ground_truth:
            notes.append(f"data.ground_truth_cache is not used: data.kind {data.kind} makes no depth maps from scans")
    return list(dict.fromkeys(notes))


def starts_from_angle(member: FrameDataset) -> bool:
    """Whether the intrinsics of any drive come from `data.field_of_view`, to be learned or as they are."""
    if member.guesses_intrinsics or member.config.intrinsics == "fixed":
        return member.guesses_intrinsics
    return any(source.startswith(FIELD_OF_VIEW) for source in sources_of(member))
