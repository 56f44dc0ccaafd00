"""From frames to depth: the network on the device, and its disparity at the size of a frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional

from featdepth.egomotion import chain_motions, motions_between
from featdepth.models import FeatDepth

DepthNetwork = Callable[[Tensor], Sequence[Tensor]]  # `FeatDepth.depth`, or that compiled


@torch.inference_mode()
def predict_disparities(accelerator: Accelerator, network: DepthNetwork, images: Tensor) -> Tensor:
    """Sigmoid disparities `[B, 1, h, w]` float32, on the CPU, of `images` `[B, 3, H, W]` in [0, 1] on the device.

    In the precision that the launcher asks for.
    """
    with accelerator.autocast():
        disparity = network(images)[0]
    return disparity.float().cpu()


class Way:
    """Follows the camera through a clip: poses in the unit of the depth, in the axes of the first camera."""

    def __init__(self, accelerator: Accelerator, model: FeatDepth) -> None:
        self.accelerator, self.model = accelerator, model
        self.last: Tensor | None = None  # image [1, 3, H, W]
        self.pose = np.eye(4)  # world_from_camera of it

    def follow(self, images: Tensor) -> np.ndarray:
        """world_from_camera `[B, 4, 4]` of the next `images` `[B, 3, H, W]` in [0, 1]."""
        is_first = self.last is None
        images = images if is_first else torch.cat([self.last, images])
        motions = np.empty((0, 4, 4))
        if len(images) > 1:
            with self.accelerator.autocast():
                motions = motions_between(self.model, images[:-1], images[1:])
        poses = self.pose @ chain_motions(motions)
        self.last, self.pose = images[-1:], poses[-1]
        return poses if is_first else poses[1:]


def on_device(accelerator: Accelerator, images: Tensor) -> Tensor:
    """uint8 images `[B, 3, H, W]` as floats in [0, 1] on the device of this process."""
    return images.to(accelerator.device, non_blocking=True).float() / 255


@torch.no_grad()
def depth_at(model: FeatDepth, disparity: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Depth float32 `[h, w]` at `size` (height, width) of a disparity `[1, h', w']`, as `FeatDepth.predict_depth`.

    Metres where the model's scale is known, else units of the network.
    """
    resized = functional.interpolate(disparity[None], size, mode="bilinear", align_corners=False)[0, 0]
    return (model.to_depth(resized) * (model.settings.metres_per_unit or 1.0)).numpy()
