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
from featdepth.geometry import scale_translation
from featdepth.models.featdepth import Prediction


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


def aligned_poses(prediction: Prediction, depth: Tensor, sources: Sequence[int | str]) -> Prediction:
    """`prediction` with the motion of its alignment as the poses of the sources in time.

    depth: as for `align_sources`; its scale is all that the poses have a gradient to. Where no motion is known the pose
    stays as it is, the identity: such a source looks the same at any depth, and teaches nothing.
    """
    log_scale = depth.log().mean((1, 2, 3))
    factor = (log_scale - log_scale.detach()).exp()  # 1, with the gradient of the scale
    alignment = prediction.alignment
    motions = zip(alignment.pose.unbind(1), alignment.is_known.unbind(1), strict=True)
    poses = []
    for pose, frame in zip(prediction.poses.unbind(1), sources, strict=True):
        if frame != "s":
            motion, is_known = next(motions)
            pose = torch.where(is_known[:, None, None], scale_translation(motion, factor[:, None]), pose)
        poses.append(pose)
    return prediction._replace(poses=torch.stack(poses, dim=1))
