"""The camera's way through a sequence by direct alignment with the model's own depth: see `featdepth.alignment`.

Every pair of neighbouring frames is aligned forwards and backwards, each with the depth of its own target. The two
motions have errors of their own: where they agree their mean is better than either, and where they do not, neither is
believed. Such a pair is aligned again, from the pose network's motion and from the motion before it. Where that does
not help either, one of these two stands in, and the result says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from featdepth.alignment import align
from featdepth.geometry import correspondences, invert_pose, pose_from_vector, resize_intrinsics, scale_translation
from featdepth.models import FeatDepth
from featdepth.odometry.egomotion import LARGEST_BATCH, as_tensor, seen_frame

THOROUGH = (10, 10)  # iterations, see `featdepth.alignment.ITERATIONS`
LARGEST_GAP = 1.0  # pixels at the model's size, in the mean over the picture, between both ways


class AlignedMotions(NamedTuple):
    """Motions between N neighbouring frames."""

    motions: np.ndarray  # later_from_earlier float64 [N-1, 4, 4], in the unit of `featdepth.odometry.egomotion`
    is_aligned: np.ndarray  # bool [N-1]; False: forwards and backwards do not agree, and another motion stands in


class Pairs(NamedTuple):
    """Pairs of neighbouring frames of one camera at the model's size, on its device."""

    earlier: Tensor  # [B, 3, H, W] in [0, 1]
    later: Tensor
    earlier_depth: Tensor  # [B, 1, H, W], network units
    later_depth: Tensor
    intrinsics: Tensor  # [B, 3, 3]

    def of(self, places: Tensor) -> Pairs:
        """Those at `places`, a bool `[B]`."""
        return Pairs(*(values[places] for values in self))


def align_motions(
    model: FeatDepth,
    frames: Iterable[np.ndarray | Tensor],
    intrinsics: np.ndarray | Tensor,
    batch_size: int = LARGEST_BATCH,
) -> AlignedMotions:
    """Motions between each two neighbours of `frames`, which are as for `predict_motions`, one size for all.

    intrinsics: of the camera, 3x3, pixels of the frames as they are given. A model without a pose network will do.
    Raises ValueError for anything that is no frame, or no depth.
    """
    motions, is_aligned, waiting, previous = [np.empty((0, 4, 4))], [np.empty(0, dtype=bool)], [], None
    for each in batches(frames, batch_size):
        if not waiting:
            size, device = as_tensor(each[0]).shape[-2:], next(model.parameters()).device
            scaled = resize_intrinsics(torch.as_tensor(intrinsics), size, (model.height, model.width))
            scaled = scaled.to(device, torch.float32)
        waiting = waiting[-1:] + [seen_frame(model, frame) for frame in each]
        if len(waiting) < 2:
            continue
        images = torch.stack(waiting)
        depth = model.to_depth(model.predict_disparity(images))
        found, agree = align_neighbours(model, neighbours(images, depth, scaled.expand(len(images), 3, 3)), previous)
        previous = found[-1:]
        motions.append(scale_translation(found, model.metres).cpu().double().numpy())
        is_aligned.append(agree.cpu().numpy())
    return AlignedMotions(np.concatenate(motions), np.concatenate(is_aligned))


def batches(frames: Iterable[np.ndarray | Tensor], size: int) -> Iterable[list[np.ndarray | Tensor]]:
    """`size` frames at a time, in order; the last batch may have fewer."""
    iterator = iter(frames)
    while batch := list(islice(iterator, size)):
        yield batch


def neighbours(images: Tensor, depth: Tensor, intrinsics: Tensor) -> Pairs:
    """The pairs of N frames in their order: images `[N, 3, H, W]`, depth `[N, 1, H, W]`, intrinsics `[N, 3, 3]`."""
    return Pairs(images[:-1], images[1:], depth[:-1], depth[1:], (intrinsics[:-1] + intrinsics[1:]) / 2)


@torch.no_grad()
def align_neighbours(model: FeatDepth, pairs: Pairs, previous: Tensor | None) -> tuple[Tensor, Tensor]:
    """later_from_earlier `[N-1, 4, 4]` (network units) of the pairs of N frames, and which of them are aligned.

    Pairs whose intrinsics are NaN are not tried. previous: the motion `[1, 4, 4]` before the first, if there is one.
    """
    is_known = pairs.intrinsics.isfinite().flatten(1).all(1)
    identity = torch.eye(4, device=is_known.device).repeat(len(is_known), 1, 1)
    motions, is_settled = align_again(pairs, identity, identity, ~is_known)
    if (is_settled & is_known).all():
        return motions, is_settled
    guesses = [model.motion(pairs.earlier, pairs.later).float()] if model.has_motion else []
    guesses.append(constant_velocity(motions, is_settled & is_known, previous))
    for guess in guesses:
        motions, is_settled = align_again(pairs, guess, motions, is_settled)
    is_aligned = is_settled & is_known
    return torch.where(is_aligned[:, None, None], motions, guesses[0]), is_aligned


def see_pairs(model: FeatDepth, earlier: Tensor, later: Tensor, intrinsics: Tensor) -> Pairs:
    """Pairs of images `[B, 3, H, W]` in [0, 1] of the model's size, with its depth; intrinsics: `[B, 3, 3]`."""
    depth = model.to_depth(model.predict_disparity(torch.cat([earlier, later])))
    return Pairs(earlier, later, *depth.chunk(2), intrinsics)


def align_again(pairs: Pairs, start: Tensor, motions: Tensor, is_aligned: Tensor) -> tuple[Tensor, Tensor]:
    """`motions` `[B, 4, 4]` and which of them are aligned `[B]`, after a try from `start` for those that are not."""
    lost = ~is_aligned
    if not lost.any():
        return motions, is_aligned
    again, agree = align_both_ways(pairs.of(lost), start[lost])
    motions, is_aligned = motions.clone(), is_aligned.clone()
    motions[lost] = torch.where(agree[:, None, None], again, motions[lost])
    is_aligned[lost] = agree
    return motions, is_aligned


def constant_velocity(motions: Tensor, is_aligned: Tensor, previous: Tensor | None) -> Tensor:
    """For each pair the last aligned motion before it, `previous` or the identity where there is none."""
    last = torch.eye(4, device=motions.device)[None] if previous is None else previous
    guesses = []
    for place, agrees in enumerate(is_aligned.tolist()):
        guesses.append(last)
        last = motions[place : place + 1] if agrees else last
    return torch.cat(guesses)


def align_both_ways(pairs: Pairs, start: Tensor | None) -> tuple[Tensor, Tensor]:
    """The mean of the motions forwards and backwards `[B, 4, 4]`, later_from_earlier, and whether they agree `[B]`."""
    earlier, later = pairs.earlier.mean(1, keepdim=True), pairs.later.mean(1, keepdim=True)
    found = align(
        torch.cat([earlier, later]),
        torch.cat([later, earlier]),
        torch.cat([pairs.earlier_depth, pairs.later_depth]),
        torch.cat([pairs.intrinsics, pairs.intrinsics]),
        None if start is None else torch.cat([start, invert_pose(start)]),
        iterations=THOROUGH,
    )
    (forwards, backwards), (is_known, also_known) = found.pose.chunk(2), found.is_known.chunk(2)
    backwards = invert_pose(backwards)
    ways = [correspondences(pairs.earlier_depth, pairs.intrinsics, pose) for pose in (forwards, backwards)]
    gap = (ways[0] - ways[1]).norm(dim=1).flatten(1).mean(1)
    return halfway(forwards, backwards), is_known & also_known & (gap < LARGEST_GAP)


def halfway(first: Tensor, second: Tensor) -> Tensor:
    """The pose in the middle of two `[B, 4, 4]` that are turned by little against each other."""
    turn = first[:, :3, :3].transpose(1, 2) @ second[:, :3, :3]
    axis = (turn[:, [2, 0, 1], [1, 2, 0]] - turn[:, [1, 2, 0], [2, 0, 1]]) / 2
    middle = first @ pose_from_vector(axis / 2, torch.zeros_like(axis))
    middle[:, :3, 3] = (first[:, :3, 3] + second[:, :3, 3]) / 2
    return middle
