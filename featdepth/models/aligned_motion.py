"""Motion by alignment in training, in place of a pose network or as its teacher: `model.motion` aligned and taught.

Pictures are aligned with the network's own depth, anew in every step and from the identity, so that nothing has to be
kept between steps. No gradient goes through the alignment: where a motion fits best, the loss does not change with it
to first order, so that the gradient of depth at a fixed motion is the right one.

What is not fixed is the unit of the motion, which is that of the depth. A neighbour in time fits alike at any scale of
depth, so translations follow it: such a source says nothing of the scale, and what a stereo frame or a known distance
says of it goes to the depth.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from featdepth.alignment import Alignment, align
from featdepth.config import Config
from featdepth.geometry import scale_translation
from featdepth.losses import per_sample_mean
from featdepth.scale import scale_of_training

SCALE_WEIGHT = 0.01  # of the term that holds depth where nothing else says how large it is


def align_sources(depth: Tensor, images: Tensor, intrinsics: Tensor, sources: Sequence[int | str]) -> Alignment:
    """The alignment, `[B, T, ...]`, of the T sources in time.

    depth: of the target `[B, 1, h, w]`, of any size; images: `[B, F, 3, H, W]`, the target and `sources`, which have
    the names that `FeatDepth.poses` gives them; intrinsics: of the images `[B, 3, 3]`.
    """
    target, *others = images.mean(2, keepdim=True).unbind(1)
    others = [image for image, frame in zip(others, sources, strict=True) if frame != "s"]
    depth = functional.interpolate(depth.detach(), target.shape[-2:], mode="bilinear", align_corners=False)
    shared = [each.repeat(len(others), *[1] * (each.ndim - 1)) for each in (target, depth, intrinsics.detach())]
    found = align(shared[0], torch.cat(others), *shared[1:])
    return Alignment(*(torch.stack(each.chunk(len(others)), dim=1) for each in found))


def aligned_poses(alignment: Alignment, depth: Tensor, poses: Tensor, sources: Sequence[int | str]) -> Tensor:
    """`poses` `[B, F-1, 4, 4]` with those of the sources in time by their `alignment`.

    depth: as for `align_sources`; its scale is all that the poses have a gradient to. Where no motion is known the pose
    stays as it is, the identity: such a source looks the same at any depth, and teaches nothing.
    """
    log_scale = per_sample_mean(depth.log())
    factor = (log_scale - log_scale.detach()).exp()  # 1, with the gradient of the scale
    motions = zip(alignment.pose.unbind(1), alignment.is_known.unbind(1), strict=True)
    joined = []
    for pose, frame in zip(poses.unbind(1), sources, strict=True):
        if frame != "s":
            motion, is_known = next(motions)
            pose = torch.where(is_known[:, None, None], scale_translation(motion, factor[:, None]), pose)
        joined.append(pose)
    return torch.stack(joined, dim=1)


def alignment_terms(
    alignment: Alignment, poses: Tensor, depth: Tensor, size: tuple[int, int], config: Config
) -> dict[str, Tensor]:
    """Terms of the objective `{name: [1, B]}` that alignment brings.

    poses: of all sources `[B, F-1, 4, 4]`; depth: the finest `[B, 1, h, w]`, network units; size: of the images.
    """
    terms = {}
    if config.model.motion == "taught":
        sources = zip(poses.unbind(1), config.data.frames[1:], strict=True)
        own = torch.stack([pose for pose, frame in sources if frame != "s"], dim=1)
        errors = motion_error(own, alignment.pose, alignment.information / (size[0] * size[1]))
        terms["alignment"] = config.loss.alignment * torch.where(alignment.is_known, errors, 0.0).mean(1)[None]
    if scale_of_training(config) is None:
        # Of one camera without distances: depth stays around one network unit. A pose network that is taught follows
        # the depth, as depth follows its motion.
        terms["scale"] = SCALE_WEIGHT * per_sample_mean(depth.log()).square()[None]
    return terms


def motion_error(pose: Tensor, aligned: Tensor, information: Tensor) -> Tensor:
    """How far poses `[..., 4, 4]` are from aligned ones, in the metric of the latter's `information` `[..., 6, 6]`.

    sqrt(1 + x^T I x) - 1, with x the increment (rotation vector, translation) on the left of `aligned` that gives
    `pose`. With the information of one pixel in the mean, a motion that changes pixels by the standard deviation of
    their residuals has an error of 0.4. Large errors count by their size and not by their square: the first, random
    poses do not outweigh everything else.
    """
    turn = pose[..., :3, :3] @ aligned[..., :3, :3].transpose(-1, -2)
    axis = torch.stack([turn[..., i, j] - turn[..., j, i] for i, j in ((2, 1), (0, 2), (1, 0))], dim=-1) / 2
    increment = torch.cat([axis, pose[..., :3, 3] - (turn @ aligned[..., :3, 3:])[..., 0]], dim=-1)
    squared = (increment[..., None, :] @ information @ increment[..., None])[..., 0, 0]
    return (1 + squared.clamp(min=0)).sqrt() - 1
