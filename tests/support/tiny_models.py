"""Small configurations, batches and models for tests: ResNet-18, 64x96 images, a decoder of 16 channels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from featdepth.config import Config, Data, Loss, Model
from featdepth.models import FeatDepth

HEIGHT, WIDTH = 64, 96
OBJECTIVES = ("photometric", "autoencoder", "feature_metric", "joint")
STEREO_METRES = 0.54


def tiny_config(objective: str, frames: list[int | str] | None = None, **settings: Any) -> Config:
    """A configuration of `objective`; `settings` are keys of the model or the loss section."""
    frames = [0, -1, 1, "s"] if frames is None else frames
    loss = {key: value for key, value in settings.items() if key in Loss.__dataclass_fields__}
    model = {
        "depth_layers": 18,
        "pose_layers": 18,
        "feature_layers": 18,
        "decoder_width": 16,
        "pose_size": [HEIGHT, WIDTH],
        "pretrained": False,
        "metres_per_unit": 5.4,
    }
    model |= {key: value for key, value in settings.items() if key not in loss}
    return Config(
        data=Data(root=".", frames=frames, height=HEIGHT, width=WIDTH),
        model=Model(objective=objective, **model),
        loss=Loss(**loss),
    )


def tiny_model(config: Config, seed: int = 0) -> FeatDepth:
    """The networks of `config` with random weights, without dropout, in training mode."""
    torch.manual_seed(seed)
    model = FeatDepth(config.model, config.data.frames, config.data.height, config.data.width)
    if model.has_depth:
        model.depth_decoder.dropout.p = 0.0
    return model


def tiny_batch(config: Config, size: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """A batch as `augment` gives it: smooth random images, KITTI-like intrinsics, a rectified stereo pair."""
    generator = torch.Generator().manual_seed(seed)
    frames = config.data.frames
    coarse = torch.rand(size * len(frames), 3, 8, 12, generator=generator)
    images = torch.nn.functional.interpolate(coarse, (HEIGHT, WIDTH), mode="bilinear", align_corners=False)
    images = images.unflatten(0, (size, len(frames)))
    batch = {"images": images, "augmented": images.clone(), "intrinsics": tiny_intrinsics(size)}
    if "s" in frames:
        batch["stereo_pose"] = torch.eye(4).repeat(size, 1, 1)
        batch["stereo_pose"][:, 0, 3] = -STEREO_METRES
    return batch


def tiny_intrinsics(size: int) -> Tensor:
    """`[size, 3, 3]`, each sample's principal point a little different."""
    intrinsics = torch.tensor([[58.0, 0.0, 46.2], [0.0, 61.0, 33.1], [0.0, 0.0, 1.0]]).repeat(size, 1, 1)
    intrinsics[:, 0, 2] += 0.7 * torch.arange(size)
    return intrinsics


class KnownDepth(FeatDepth):
    """Says the true depth of the frames that it knows, and that all others are a wall."""

    def know(self, frames: Tensor, depth: Tensor) -> None:
        """frames: `[N, 3, H, W]` in [0, 1]; depth: `[N, 1, H, W]`, metres."""
        self.known = (frames, depth / self.settings.metres_per_unit)

    def predict_disparity(self, images: Tensor) -> Tensor:
        frames, depth = self.known
        differences = (images[:, None] - frames).abs().flatten(2).mean(2)
        depth = torch.where((differences.amin(1) < 0.05)[:, None, None, None], depth[differences.argmin(1)], 10.0)
        return self.to_disparity(depth).clamp(0, 1)
