"""A small ResNet in place of ResNet-18, for the subject of a test is seldom the network. The other depths stay."""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

ENCODERS = "featdepth.models.encoders"
WIDTHS = (16, 16, 32, 32)  # of layer1 .. layer4, each of one block; the stem has its 64 channels


class AtItsImport(MetaPathFinder):
    """Has the module `ENCODERS` shrunk as soon as it has been imported."""

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        if name != ENCODERS:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_shrink(module: ModuleType) -> None:
            execute(module)
            shrink(module)

        spec.loader.exec_module = execute_and_shrink
        return spec


def shrink(encoders: ModuleType) -> None:
    """From now on torchvision.models.resnet18, and with it ResNetEncoder(18), has few blocks and channels."""
    import torch
    import torchvision
    from torch import nn
    from torchvision.models.resnet import BasicBlock, ResNet

    class SmallResNet(ResNet):
        def __init__(self) -> None:
            with torch.device("meta"):  # to be replaced
                super().__init__(BasicBlock, [1, 1, 1, 1])
            self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(64)
            self.inplanes = 64
            for level, width in enumerate(WIDTHS, start=1):
                setattr(self, f"layer{level}", self._make_layer(BasicBlock, width, 1, stride=1 if level == 1 else 2))
            for each in self.modules():
                if isinstance(each, nn.Conv2d):
                    nn.init.kaiming_normal_(each.weight, mode="fan_out", nonlinearity="relu")
            self.fc = nn.Linear(WIDTHS[-1], 1000)

    def small_resnet18(*, weights: Any = None) -> SmallResNet:
        return SmallResNet()

    whole_init = encoders.ResNetEncoder.__init__

    def small_init(self: nn.Module, layers: int, input_channels: int = 3) -> None:
        whole_init(self, layers, input_channels)
        if torchvision.models.resnet18 is small_resnet18 and layers == 18:
            self.channels = [64, *WIDTHS]

    torchvision.models.resnet18 = small_resnet18
    encoders.ResNetEncoder.__init__ = small_init


sys.meta_path.insert(0, AtItsImport())
