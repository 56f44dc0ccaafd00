"""From frames to depth: the network on the device, and its disparity at the size of a frame."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from featdepth.evaluation.refinement import Refiner
from featdepth.models import FeatDepth
from featdepth.odometry.egomotion import chain_motions, motions_between
from featdepth.scale import Scale


class Predicted(NamedTuple):
    """What the networks say of a frame."""

    disparity: Tensor  # sigmoid, float32 [1, h, w], on the CPU
    pose: np.ndarray | None  # world_from_camera 4x4 in the unit of the depth, the world is the first camera; or unknown


class Launch(NamedTuple):
    """How the launcher asks for networks to be run."""

    compiled: Callable[[Callable], Callable]  # a function as its compiler makes it
    autocast: Callable[[], AbstractContextManager]  # a context that computes in its precision


class Networks:
    """The networks on the frames of one source, on the device of the model."""

    def __init__(self, launch: Launch, model: FeatDepth, with_poses: bool = False) -> None:
        """with_poses: follow the camera, where the model has learned motion."""
        self.launch, self.model = launch, model
        self.depth = launch.compiled(model.depth)
        self.with_poses = with_poses and model.has_motion
        self.last: Tensor | None = None  # image [1, 3, H, W]
        self.pose = np.eye(4)  # world_from_camera of it

    def predict(self, images: Tensor, intrinsics: Sequence[np.ndarray] = ()) -> Iterator[Predicted]:
        """What the networks say of each of the next `images` uint8 `[B, 3, H, W]`.

        intrinsics: of each 3x3, in pixels of these images, where the networks learn from them.
        """
        return self.run(self.on_device(images))

    def on_device(self, images: Tensor) -> Tensor:
        """uint8 images as floats in [0, 1] on the device of the model."""
        return images.to(next(self.model.parameters()).device, non_blocking=True).float() / 255

    @torch.inference_mode()
    def run(self, images: Tensor) -> Iterator[Predicted]:
        """The same of images `[B, 3, H, W]` in [0, 1]."""
        with self.launch.autocast():
            disparities = self.depth(images)[0]
            poses = self.follow(images) if self.with_poses else [None] * len(images)
        return map(Predicted, disparities.float().cpu(), poses)

    def follow(self, images: Tensor) -> np.ndarray:
        """world_from_camera `[B, 4, 4]` of the next `images` `[B, 3, H, W]` in [0, 1]."""
        is_first = self.last is None
        images = images if is_first else torch.cat([self.last, images])
        motions = motions_between(self.model, images[:-1], images[1:]) if len(images) > 1 else np.empty((0, 4, 4))
        poses = self.pose @ chain_motions(motions)
        self.last, self.pose = images[-1:], poses[-1]
        return poses if is_first else poses[1:]


class RefinedNetworks(Networks):
    """Networks that learn from the frames that have passed: see `featdepth.evaluation.refinement`."""

    def __init__(self, launch: Launch, model: FeatDepth, steps: int, with_poses: bool = False) -> None:
        """steps: of gradient descent for each frame."""
        self.refiner = Refiner(model, steps)
        super().__init__(launch, self.refiner.model, with_poses)
        self.passed: tuple[Tensor, Tensor] | None = None  # image and intrinsics of the frame before

    def predict(self, images: Tensor, intrinsics: Sequence[np.ndarray] = ()) -> Iterator[Predicted]:
        predicted: list[Predicted] = []
        for image, matrix in zip(self.on_device(images), intrinsics, strict=True):
            if self.passed is not None:
                self.refiner.learn(*self.passed)
            predicted += self.run(image[None])
            self.passed = image, torch.from_numpy(matrix).float()
        return iter(predicted)


@torch.no_grad()
def depth_at(model: FeatDepth, disparity: Tensor, size: tuple[int, int], scale: Scale) -> np.ndarray:
    """Depth float32 `[h, w]` at `size` (height, width) of a disparity `[1, h', w']`, as `FeatDepth.predict_depth`.

    Metres where the scale is known, else units of the network.
    """
    resized = functional.interpolate(disparity[None], size, mode="bilinear", align_corners=False)[0, 0]
    return (model.to_depth(resized) * scale.factor).numpy()
