"""What a run says of its data: where intrinsics come from, settings without use, images that are squeezed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from featdepth.config.checks import SMALLEST_SIDE, STRIDE
from featdepth.console import count
from featdepth.data.dataset import FrameDataset
from featdepth.data.samples import Sample

if TYPE_CHECKING:
    from featdepth.data.mix import MixedDataset

MOST_SQUEEZED = 1.25  # ratio of two aspect ratios: beyond it pictures are noticeably squeezed


def describe_intrinsics(members: Sequence[FrameDataset], learned: bool) -> str:
    """Lines for a run's header, one for each of the data sets; learned: whether they are only where learning starts."""
    return "\n           ".join(describe_member(member, learned) for member in members)


def describe_member(member: FrameDataset, learned: bool) -> str:
    """The intrinsics of one data set's training samples: where they come from, and their values in pixels."""
    values = torch.stack(list(member.intrinsics.values()))
    height, width = member.size
    if member.config.intrinsics == "fixed":
        source = "fixed, of the published code (data.intrinsics)"
    elif member.guesses_intrinsics:
        source = f"data.field_of_view of {member.config.field_of_view:g} degrees"
    else:
        most = sources_of(member).most_common(3)
        source = ", ".join(f"{name} of {count(drives, 'drive')}" for name, drives in most)
    how = "learned, from a start of" if learned else "given," if member.config.intrinsics != "fixed" else ""
    different = len({tuple(each.flatten().tolist()) for each in values})
    cameras = "" if different == 1 else f"{different} cameras, "
    places = {"fx": (0, 0), "fy": (1, 1), "cx": (0, 2), "cy": (1, 2)}
    numbers = " ".join(f"{name} {span(values[:, row, column])}" for name, (row, column) in places.items())
    return f"{how} {source}: {cameras}{numbers} at {width}x{height}".strip()


def sources_of(member: FrameDataset) -> Counter[str]:
    """Where the intrinsics of a data set's drives come from, in words, and of how many drives."""
    return Counter(map(member.intrinsics_source, first_samples(member)))


def first_samples(member: FrameDataset) -> list[Sample]:
    """The first sample of each drive."""
    return list({sample.drive: sample for sample in reversed(member.samples)}.values())


def span(values: torch.Tensor) -> str:
    """Values `[N]` as one number where they agree to a tenth, or as the smallest and the largest."""
    low, high = f"{values.min():.1f}", f"{values.max():.1f}"
    return low if low == high else f"{low} to {high}"


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
    return any(map(member.assumes_intrinsics, first_samples(member)))


def shape_note(data: FrameDataset | MixedDataset, size: tuple[int, int]) -> str | None:
    """A note where images of the data are squeezed to be trained at `size` (height, width); None: they are not."""
    shapes = [member.shown_size(camera) for member in data.members for camera in member.native_sizes]
    worst = max(shapes, key=lambda shape: squeezed(shape, size))
    if squeezed(worst, size) <= MOST_SQUEEZED:
        return None
    height, width = fitting_size(worst, size[0] * size[1])
    return (
        f"images of {worst[1]} x {worst[0]} pixels are squeezed by a factor of {squeezed(worst, size):.2f} to "
        f"{size[1]} x {size[0]}; data.height={height} data.width={width} would keep their shape"
    )


def squeezed(size: tuple[int, int], other: tuple[int, int]) -> float:
    """By how much, at least 1, resizing from one size (height, width) to another changes the aspect ratio."""
    ratio = (size[1] / size[0]) / (other[1] / other[0])
    return max(ratio, 1 / ratio)


def fitting_size(size: tuple[int, int], pixels: int) -> tuple[int, int]:
    """Height and width in multiples of 32 with the shape of `size` (height, width) and about as many `pixels`."""

    def misfit(height: int, width: int) -> float:
        return math.log(squeezed(size, (height, width))) + abs(math.log(height * width / pixels)) / 2

    sides = range(SMALLEST_SIDE, max(SMALLEST_SIDE + 1, 4 * math.isqrt(pixels)), STRIDE)
    return min(((height, width) for height in sides for width in sides), key=lambda each: misfit(*each))
