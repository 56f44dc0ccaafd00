"""From frames to depth: the network on the device, and its disparity at the size of a frame."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from featdepth.evaluation.refinement import Refiner
from featdepth.geometry import scale_translation
from featdepth.models import FeatDepth
from featdepth.odometry.aligned import align_neighbours, neighbours
from featdepth.odometry.egomotion import chain_motions
from featdepth.scale import Scale

# How the motion from one frame to the next was found.
BY_ALIGNMENT, BY_POSE_NETWORK, BY_REPETITION = "alignment", "the pose network's", "the motion before it"


class Predicted(NamedTuple):
    """What is known of a frame."""

    disparity: Tensor  # sigmoid, float32 [1, h, w], on the CPU
    # world_from_camera 4x4 in the unit of the depth, the world is the first camera; None: was not asked for
    pose: np.ndarray | None = None
    motion: str | None = None  # how the motion to this frame was found; None: it is the first


class Seen(NamedTuple):
    """B frames as the networks see them, on their device."""

    images: Tensor  # [B, 3, H, W] in [0, 1]
    depth: Tensor  # [B, 1, H, W], network units
    intrinsics: Tensor  # [B, 3, 3]; NaN: unknown


class Launch(NamedTuple):
    """How the launcher asks for networks to be run."""

    compiled: Callable[[Callable], Callable]  # a function as its compiler makes it
    autocast: Callable[[], AbstractContextManager]  # a context that computes in its precision


class Networks:
    """The networks on the frames of one source, on the device of the model."""

    def __init__(self, launch: Launch, model: FeatDepth, with_poses: bool = False) -> None:
        """with_poses: follow the camera, by alignment (see `featdepth.odometry.aligned`) as far as it can be had."""
        self.launch, self.model = launch, model
        self.depth = launch.compiled(model.depth)
        self.with_poses = with_poses
        self.last: Seen | None = None  # the frame before
        self.pose = np.eye(4)  # world_from_camera of it
        self.motion: Tensor | None = None  # to it [1, 4, 4]

    def predict(self, images: Tensor, intrinsics: np.ndarray | None = None) -> Iterator[Predicted]:
        """What is known of each of the next `images` uint8 `[B, 3, H, W]`.

        intrinsics: `[B, 3, 3]` in pixels of these images, NaN where unknown; None: nothing has a use for them.
        """
        return self.run(self.on_device(images), intrinsics)

    def on_device(self, images: Tensor) -> Tensor:
        """uint8 images as floats in [0, 1] on the device of the model."""
        return images.to(next(self.model.parameters()).device, non_blocking=True).float() / 255

    @torch.inference_mode()
    def run(self, images: Tensor, intrinsics: np.ndarray | None) -> Iterator[Predicted]:
        """The same of images `[B, 3, H, W]` in [0, 1]."""
        with self.launch.autocast():
            disparities = self.depth(images)[0]
        disparities = disparities.float()
        if not self.with_poses:
            return map(Predicted, disparities.cpu())
        # Outside of autocast: a motion is a matter of fractions of a pixel.
        full_size = functional.interpolate(disparities, images.shape[-2:], mode="bilinear", align_corners=False)
        matrices = torch.from_numpy(intrinsics).to(images)
        poses, motions = self.follow(Seen(images, self.model.to_depth(full_size), matrices))
        return map(Predicted, disparities.cpu(), poses, motions)

    def follow(self, seen: Seen) -> tuple[np.ndarray, list[str | None]]:
        """world_from_camera `[B, 4, 4]` of the next frames, and how the motion to each was found."""
        is_first = self.last is None
        seen = seen if is_first else Seen(*map(torch.cat, zip(self.last, seen, strict=True)))
        self.last, how = Seen(*(values[-1:] for values in seen)), []
        if len(seen.images) > 1:
            motions, is_aligned = align_neighbours(self.model, neighbours(*seen), self.motion)
            self.motion, stand_in = motions[-1:], BY_POSE_NETWORK if self.model.has_motion else BY_REPETITION
            how = [BY_ALIGNMENT if aligned else stand_in for aligned in is_aligned.tolist()]
            motions = scale_translation(motions, self.model.metres).cpu().numpy()
        else:
            motions = np.empty((0, 4, 4))
        poses = self.pose @ chain_motions(motions)
        self.pose = poses[-1]
        return (poses, [None, *how]) if is_first else (poses[1:], how)


class RefinedNetworks(Networks):
    """Networks that learn from the frames that have passed: see `featdepth.evaluation.refinement`."""

    def __init__(self, launch: Launch, model: FeatDepth, steps: int, with_poses: bool = False) -> None:
        """steps: of gradient descent for each frame."""
        self.refiner = Refiner(model, steps)
        super().__init__(launch, self.refiner.model, with_poses)
        self.passed: tuple[Tensor, Tensor] | None = None  # image and intrinsics of the frame before

    def predict(self, images: Tensor, intrinsics: np.ndarray | None = None) -> Iterator[Predicted]:
        predicted: list[Predicted] = []
        for image, matrix in zip(self.on_device(images), intrinsics, strict=True):
            if self.passed is not None:
                self.refiner.learn(*self.passed)
            predicted += self.run(image[None], matrix[None])
            self.passed = image, torch.from_numpy(matrix).float()
        return iter(predicted)


@torch.no_grad()
def depth_at(model: FeatDepth, disparity: Tensor, size: tuple[int, int], scale: Scale) -> np.ndarray:
    """Depth float32 `[h, w]` at `size` (height, width) of a disparity `[1, h', w']`, as `FeatDepth.predict_depth`.

    Metres where the scale is known, else units of the network.
    """
    resized = functional.interpolate(disparity[None], size, mode="bilinear", align_corners=False)[0, 0]
    return (model.to_depth(resized) * scale.factor).numpy()
