"""ResNet encoders without their classifier, from torchvision."""

from __future__ import annotations

import torchvision
from torch import Tensor, nn

from featdepth.models.recompute import Segmented

# What images in [0, 1] are normalised with for the depth and pose encoders; the feature encoder sees them as they are.
IMAGE_MEAN, IMAGE_DEVIATION = 0.45, 0.225


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
