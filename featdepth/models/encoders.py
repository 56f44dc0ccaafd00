"""ResNet encoders without their classifier, from torchvision, and the ImageNet weights they may start from."""

from __future__ import annotations

import pickle
from pathlib import Path
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor, nn

from featdepth.errors import InputError
from featdepth.models.recompute import Segmented


class ResNetStem(Segmented):
    """The first convolution of a ResNet with its batch norm and ReLU: a feature map of half the image's size."""

    def __init__(self, input_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(input_channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)

    def stem(self, image: Tensor) -> Tensor:
        """First feature map `[B, 64, H/2, W/2]` of an image `[B, C, H, W]`; pixel i is centred on image pixel 2i."""
        return self.segment(self.first_layer, image)

    def first_layer(self, image: Tensor) -> Tensor:
        """What `stem` consists of."""
        return self.relu(self.bn1(self.conv1(image)))

    def forward(self, image: Tensor) -> Tensor:
        return self.stem(image)


class ResNetEncoder(ResNetStem):
    """A ResNet of 18, 34, 50 or 101 layers with five outputs: the stem after its ReLU and layer1 .. layer4.

    layers: which ResNet; input_channels: 3 for an image, 6 for a pair.
    """

    def __init__(self, layers: int, input_channels: int = 3) -> None:
        super().__init__(input_channels)
        resnet = getattr(torchvision.models, f"resnet{layers}")(weights=None)
        self.layers = layers
        self.maxpool = resnet.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        expansion = resnet.fc.in_features // 512
        self.channels = [64, *(width * expansion for width in (64, 128, 256, 512))]

    def forward(self, image: Tensor) -> list[Tensor]:
        """Five features of an image `[B, C, H, W]`, at 1/2, 1/4, 1/8, 1/16 and 1/32 of its size."""
        features = [self.stem(image)]
        for layer in (self.pooled_layer1, self.layer2, self.layer3, self.layer4):
            features.append(self.segment(layer, features[-1]))
        return features

    def pooled_layer1(self, feature: Tensor) -> Tensor:
        """layer1 with the pooling before it."""
        return self.layer1(self.maxpool(feature))


def load_imagenet(encoder: ResNetEncoder, source: bool | str) -> None:
    """Fill `encoder` with ImageNet weights; a first convolution over k images gets 1/k of its weights for each.

    source: True asks torchvision, which downloads the file once into torch's hub folder; a path names torchvision's
    `.pth` file or a folder of such files. Raises InputError when the weights cannot be had.
    """
    from featdepth.models.saved.torch_files import state_of  # only runs that start from a file need the readers

    state = _download_imagenet(encoder.layers) if source is True else _read_imagenet(encoder.layers, Path(str(source)))
    where = "torchvision's download" if source is True else source
    foreign = f"model.pretrained: the weights of {where} are not those of torchvision's ResNet-{encoder.layers}"
    state = state_of(state)
    if state is None:
        raise InputError(foreign)
    state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    images = encoder.conv1.in_channels // 3
    first = state.get("conv1.weight")
    # Any other shape is refused below; repeating it could take any amount of memory.
    if first is not None and list(first.shape) == [64, 3, 7, 7]:
        state["conv1.weight"] = first.repeat(1, images, 1, 1) / images
    try:
        encoder.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(foreign) from error


def _download_imagenet(layers: int) -> dict[str, Tensor]:
    weights = getattr(torchvision.models, f"ResNet{layers}_Weights").IMAGENET1K_V1
    file_name = Path(weights.url).name
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        return weights.get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True)
    except (URLError, OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(
            f"model.pretrained: the ImageNet weights of ResNet-{layers} could not be downloaded or read "
            f"({' '.join(str(error).split())}); put {file_name} into {folder}, or set model.pretrained to that file, "
            "or to false to start from random weights"
        ) from error


def _read_imagenet(layers: int, path: Path) -> dict[str, Tensor]:
    if path.is_dir():
        candidates = sorted(path.glob(f"resnet{layers}*.pth"))
        if not candidates:
            raise InputError(f"model.pretrained: {path} holds no resnet{layers}*.pth; put torchvision's file there")
        path = candidates[0]
    from featdepth.models.saved.torch_files import read_torch_file

    return read_torch_file(path, "model.pretrained")
