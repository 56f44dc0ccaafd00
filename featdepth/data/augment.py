"""Flip and colour jitter of a whole batch, on its device.

Brightness, contrast, saturation and hue, in this order, are each an affine map of a pixel's colour, and so is their
chain: one 3x3 matrix and one offset for a sample, the same for all of its frames. Hue turns the chroma plane of YIQ,
which keeps luma. Values are clamped to [0, 1] once, at the end.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from featdepth.geometry import flip_intrinsics

YIQ_FROM_RGB = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))  # luma, chroma plane
QUARTER_TURN = ((0.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, -1.0, 0.0))  # of the chroma plane, from red towards yellow


def colour_maps() -> Tensor:
    """Maps of RGB `[3, 3, 3]`: the identity, to chroma (the colour less its luma), to chroma turned by 90 degrees."""
    yiq_from_rgb = torch.tensor(YIQ_FROM_RGB, dtype=torch.float64)
    identity = torch.eye(3, dtype=torch.float64)
    turn = torch.tensor(QUARTER_TURN, dtype=torch.float64)
    return torch.stack([identity, identity - yiq_from_rgb[0], torch.linalg.solve(yiq_from_rgb, turn @ yiq_from_rgb)])


# As numbers of float32, by row: a tensor would have to be copied to the device of each batch.
IDENTITY, CHROMA, TURNED_CHROMA = colour_maps().float().tolist()
LUMA = (colour_maps().float()[0] - colour_maps().float()[1])[0].tolist()


def augment(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch with its samples' `jitter` applied: what training and validation feed to the model.

    `images` `[B, F, 3, H, W]` become float32 in [0, 1] (uint8 / 255; floats keep their values), mirrored where the flip
    is 1, as is `prior`; `augmented` are the same with colour jitter; `intrinsics` and `stereo_pose` are those of the
    mirrored cameras.
    `depth` is never mirrored: it comes with validation and test samples, whose jitter is the identity. The given batch
    is left as it was.
    """
    images, jitter = batch["images"], batch["jitter"]
    flip = jitter[:, 0] > 0.5
    images = torch.where(flip[:, None, None, None, None], images.flip(-1), images)
    if not images.is_floating_point():
        images = images.float() / 255
    intrinsics = batch["intrinsics"]
    mirrored = flip_intrinsics(intrinsics, images.shape[-1])
    result = {**batch, "images": images, "augmented": jitter_colour(images, jitter[:, 1:])}
    result["intrinsics"] = torch.where(flip[:, None, None], mirrored, intrinsics)
    if "prior" in batch:
        result["prior"] = torch.where(flip[:, None, None, None], batch["prior"].flip(-1), batch["prior"])
    if "stereo_pose" in batch:
        pose = batch["stereo_pose"]
        result["stereo_pose"] = torch.where(flip[:, None, None], mirror_pose(pose), pose)
    return result


def mirror_pose(pose: Tensor) -> Tensor:
    """The rigid transform `[..., 4, 4]` between cameras whose images were mirrored: x changes sign on both sides."""
    mirror = torch.ones_like(pose)
    mirror[..., 0, 1:] = -1
    mirror[..., 1:, 0] = -1
    return pose * mirror


def jitter_colour(images: Tensor, jitter: Tensor) -> Tensor:
    """Images float `[B, F, 3, H, W]` in [0, 1] after brightness, contrast, saturation (factors) and hue `[B, 4]`.

    hue is in turns of the colour circle. Contrast is measured from the sample's mean luma, over all its frames.
    """
    brightness, contrast, saturation, hue = jitter.to(images.dtype).unbind(1)
    angle = 2 * math.pi * hue
    # Written as a change of the identity, which makes it exactly the identity for saturation 1 and hue 0.
    kept, turned = saturation * angle.cos() - 1, saturation * angle.sin()
    rows = zip(IDENTITY, CHROMA, TURNED_CHROMA, strict=True)
    entries = [one + kept * chroma + turned * turn for row in rows for one, chroma, turn in zip(*row, strict=True)]
    colour = (brightness * contrast)[:, None, None] * torch.stack(entries, dim=1).unflatten(1, (3, 3))
    red, green, blue = images.mean(dim=(1, 3, 4)).unbind(1)
    mean_luma = red * LUMA[0] + green * LUMA[1] + blue * LUMA[2]
    augmented = ((1 - contrast) * brightness * mean_luma)[:, None, None, None, None]
    # Written out by input channel: a matrix product would run in reduced precision where TF32 is allowed.
    for channel in range(3):
        factors = colour[:, None, :, channel, None, None]
        augmented = torch.addcmul(augmented, images[:, :, channel : channel + 1], factors)
    return augmented.clamp(0, 1)
