"""What sits on the encoders: depth decoder with chained residual pooling, pose decoder, autoencoder's decoder."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional

from featdepth.models.recompute import Segmented

POSE_SCALE = 0.01  # the pose network starts near "no motion"
AUTOENCODER_WIDTHS = (16, 32, 64, 128, 256)  # of levels 1 .. 5


def in_float32(convolve: Callable[..., Tensor], features: Tensor, convolution: nn.Conv2d) -> Tensor:
    """`convolve(features, weight, bias)` with those of `convolution`, in float32 where half precision is used.

    For last layers, which have few channels: in bfloat16 their output, and all that is made of it, has three digits.
    """
    with without_autocast(features.device):
        return convolve(*map(at_least_float32, (features, convolution.weight, convolution.bias)))


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Operations on `device` run in the precision of their inputs meanwhile."""
    # What has no memory has no autocast either.
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def at_least_float32(tensor: Tensor) -> Tensor:
    """`tensor`, converted where it has half precision."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def reflected_convolution(input_channels: int, output_channels: int) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size and pads by reflection."""
    return nn.Conv2d(input_channels, output_channels, 3, padding=1, padding_mode="reflect")


def convolve_upsampled(features: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The reflected 3x3 convolution `weight` `[O, C, 3, 3]` of `features` `[B, C, h, w]` at twice their size.

    `[B, O, 2h, 2w]`, as if `features` had been repeated (nearest neighbour) before: each output pixel sees but 2x2
    different ones, which is a transposed convolution of stride 2 with 16 taps instead of 36, and no larger map is
    ever made. Reflecting the repeated map at its border is repeating the border of the map itself.
    """
    flipped = functional.pad(weight.flip(2, 3), (1, 1, 1, 1))
    rows = flipped[:, :, 1:] + flipped[:, :, :-1]
    taps = rows[..., 1:] + rows[..., :-1]
    return functional.conv_transpose2d(repeat_border(features), taps.transpose(0, 1), bias, stride=2, padding=3)


def repeat_border(features: Tensor) -> Tensor:
    """`features` `[B, C, h, w]` with one pixel more on each side, the nearest one: `[B, C, h + 2, w + 2]`."""
    if not torch.compiler.is_compiling():
        return functional.pad(features, (1, 1, 1, 1), mode="replicate")
    # torch 2.15 compiles the gradient of that padding wrongly for CPUs; of these pieces it makes a single kernel.
    rows = torch.cat([features[..., :1, :], features, features[..., -1:, :]], dim=-2)
    return torch.cat([rows[..., :1], rows, rows[..., -1:]], dim=-1)


def convolve_reflected(features: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """What `reflected_convolution` does, with these weights."""
    return functional.conv2d(functional.pad(features, (1, 1, 1, 1), mode="reflect"), weight, bias)


class ChainedResidualPooling(nn.Module):
    """Four rounds of 5x5 max pooling and a pointwise convolution, each added to the input (context at all sizes)."""

    def __init__(self, width: int, rounds: int = 4) -> None:
        super().__init__()
        self.pointwise = nn.ModuleList(nn.Conv2d(width, width, 1, bias=False) for _ in range(rounds))

    def forward(self, features: Tensor) -> Tensor:
        top = features
        for convolution in self.pointwise:
            top = convolution(functional.max_pool2d(top, 5, stride=1, padding=2))
            features = features + top
        return features


class DepthLevel(nn.Module):
    """One level of the depth decoder: joins what comes from the encoder and from the coarser level, and refines it.

    encoder_channels: of the encoder's feature; reduced: what it is reduced to; coarser: channels from the level below.
    """

    def __init__(self, encoder_channels: int, reduced: int, coarser: int, width: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(encoder_channels, reduced, 1, bias=False)
        self.join = reflected_convolution(reduced + coarser, width)
        self.pooling = ChainedResidualPooling(width)
        self.merge = reflected_convolution(width, width)
        self.disparity = reflected_convolution(width, 1)

    def forward(self, feature: Tensor, coarser: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        """Features `[B, width, h, w]` and disparity `[B, 1, 2h, 2w]` in (0, 1) of a feature map `[B, C, h, w]`.

        coarser: the same of the level below, whose features are to be doubled in size; None at the lowest.
        """
        features = functional.leaky_relu(self.joined(self.reduce(feature), coarser), 0.01)
        features = functional.leaky_relu(self.merge(self.pooling(features)), 0.01)
        disparity = in_float32(convolve_upsampled, features, self.disparity)
        return features, disparity.float().sigmoid()

    def joined(self, reduced: Tensor, coarser: tuple[Tensor, Tensor] | None) -> Tensor:
        """`join` of the reduced feature, the coarser level's features at twice their size, and its disparity."""
        if coarser is None:
            return self.join(reduced)
        features, disparity = coarser
        of_reduced, of_features, of_disparity = self.join.weight.split([reduced.shape[1], features.shape[1], 1], dim=1)
        fine = torch.cat([reduced, disparity.to(reduced.dtype)], dim=1)
        fine = convolve_reflected(fine, torch.cat([of_reduced, of_disparity], dim=1), self.join.bias)
        return fine + convolve_upsampled(features, of_features)


class DepthDecoder(Segmented):
    """Disparity at four scales, 1/2 to 1/16 of the image's size, from the encoder's last four maps (Sec. 3.4).

    encoder_channels: of the encoder's maps, of which the last four are at 1/4 to 1/32 of the size;
    width: channels of the decoder (256 in the paper); dropout: probability for the two deepest of them on entry.
    """

    def __init__(self, encoder_channels: list[int], width: int = 256, dropout: float = 0.5) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.levels = nn.ModuleList(
            DepthLevel(
                encoder_channels[level - 5],
                reduced=2 * width if level == 4 else width,
                coarser=0 if level == 4 else width + 1,
                width=width,
            )
            for level in (1, 2, 3, 4)
        )

    def start_from(self, disparity: float) -> None:
        """Let an untrained decoder say about this disparity (in (0, 1)) of everything."""
        for level in self.levels:
            nn.init.constant_(level.disparity.bias, math.log(disparity / (1 - disparity)))

    def forward(self, features: list[Tensor]) -> tuple[Tensor, ...]:
        """Disparities `[B, 1, H/2, W/2]` .. `[B, 1, H/16, W/16]` in (0, 1), finest first."""
        fine, middle, coarse, coarsest = features[-4:]
        entries = [fine, middle, self.dropout(coarse), self.dropout(coarsest)]
        disparities: list[Tensor] = []
        coarser = None
        for level, entry in zip(reversed(self.levels), reversed(entries), strict=True):
            coarser = self.segment(level, entry, coarser)
            disparities.insert(0, coarser[1])
        return tuple(disparities)


class PoseDecoder(nn.Module):
    """Rotation vector (radians) and translation (network units) of an image pair, from the encoder's last feature.

    start: "published" is torch's own start of convolutions, as the published implementation has it. Three layers with
    ReLU leave a tenth of what tells two pairs apart: training begins with one motion for all pairs, and a short one may
    not leave that. "he" keeps its size (He et al., ICCV 2015). Adam then changes motions by some ten times as much in a
    step, which wants a low learning rate where depth starts from nothing.
    """

    def __init__(self, encoder_channels: list[int], start: str = "published", width: int = 256) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(encoder_channels[-1], width, 1)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.conv3 = nn.Conv2d(width, 6, 1)
        if start == "he":
            for layer in (self.reduce, self.conv1, self.conv2):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    def forward(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Axis-angle `[B, 3]` and translation `[B, 3]`, float32."""
        hidden = functional.relu(self.reduce(features[-1]))
        hidden = functional.relu(self.conv1(hidden))
        hidden = functional.relu(self.conv2(hidden))
        motion = POSE_SCALE * in_float32(functional.conv2d, hidden, self.conv3).float().mean((2, 3))
        return motion[:, :3], motion[:, 3:]


class FeatureDecoder(Segmented):
    """Reconstructs the image from the feature encoder's last map alone, without skips, at four scales (Sec. 3.3)."""

    def __init__(self, encoder_channels: list[int]) -> None:
        super().__init__()
        inputs = (*AUTOENCODER_WIDTHS[1:], encoder_channels[-1])
        self.enter = nn.ModuleList(map(reflected_convolution, inputs, AUTOENCODER_WIDTHS))
        self.refine = nn.ModuleList(map(reflected_convolution, AUTOENCODER_WIDTHS, AUTOENCODER_WIDTHS))
        self.image = nn.ModuleList(reflected_convolution(width, 3) for width in AUTOENCODER_WIDTHS[:4])

    def forward(self, features: list[Tensor]) -> tuple[Tensor, ...]:
        """Reconstructions `[B, 3, H, W]` .. `[B, 3, H/8, W/8]` in (0, 1), finest first."""
        hidden, images = features[-1], []
        for level in reversed(range(len(self.enter))):
            hidden, image = self.segment(self.decode_level, level, hidden)
            if image is not None:
                images.insert(0, image)
        return tuple(images)

    def decode_level(self, level: int, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features at twice the size of `hidden` `[B, C, h, w]`, and the image there where the level has one."""
        hidden = functional.elu(self.enter[level](hidden))
        hidden = functional.elu(convolve_upsampled(hidden, self.refine[level].weight, self.refine[level].bias))
        if level >= len(self.image):
            return hidden, None
        return hidden, in_float32(convolve_reflected, hidden, self.image[level]).float().sigmoid()
