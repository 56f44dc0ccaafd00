"""Depth encoders of other families than our ResNets: those of torchvision, or of timm, that give maps at four sizes."""

from __future__ import annotations

import logging
import re
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights

from featdepth.config.encoder_names import TIMM
from featdepth.errors import InputError
from featdepth.files import read_safetensors
from featdepth.models.encoders import IMAGE_DEVIATION, IMAGE_MEAN
from featdepth.models.imagenet import download_weights, find_weights
from featdepth.models.recompute import Segmented
from featdepth.models.saved.storage import LARGEST_WEIGHTS
from featdepth.models.saved.torch_files import read_torch_file, state_of

STRIDES = (4, 8, 16, 32)  # of the maps that the depth decoder takes
PROBE = (64, 96)  # pixels, height and width of the image that a network's maps are measured with
HEADS = ("avgpool", "flatten", "classifier", "fc", "head")  # torchvision's names of what follows the maps
CHAINS = ("features", "layers", "trunk_output")  # and of parts whose layers are taken one by one
TIMM_DEFAULTS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}  # of networks that have none of their own
# As the files of torchvision's DenseNets name what its code calls norm1, relu1, conv1.
DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")


class Backbone(Segmented):
    """Maps at 1/4, 1/8, 1/16 and 1/32 of the size of an image `[B, 3, H, W]`, H and W multiples of 32.

    It takes images as our ResNets do, and normalises them with the mean and deviation that its weights expect.
    """

    def __init__(self, mean: Sequence[float], deviation: Sequence[float]) -> None:
        super().__init__()
        means, deviations = torch.tensor(mean)[:, None, None], torch.tensor(deviation)[:, None, None]
        self.register_buffer("gain", IMAGE_DEVIATION / deviations)
        self.register_buffer("offset", (IMAGE_MEAN - means) / deviations)
        self.channels: list[int] = []
        self.channels_last: list[bool] = []  # which maps come as `[B, h, w, C]`

    def forward(self, image: Tensor) -> list[Tensor]:
        """Four maps `[B, C, h, w]`, finest first."""
        maps = self.maps(image * self.gain + self.offset)
        return [
            each.permute(0, 3, 1, 2) if is_last else each
            for each, is_last in zip(maps, self.channels_last, strict=True)
        ]

    def maps(self, image: Tensor) -> list[Tensor]:
        """The four maps as the network has them."""
        raise NotImplementedError

    def load_weights(self, source: bool | str) -> None:
        """Start from ImageNet weights: True: downloaded, a path: a file or a folder of files. Raises InputError."""
        raise NotImplementedError


class TorchvisionBackbone(Backbone):
    """A classifier of torchvision up to its last map, in four stages; a widening of that map alone is left out too."""

    def __init__(self, name: str) -> None:
        weights = get_model_weights(name).DEFAULT.transforms()
        super().__init__(weights.mean, weights.std)
        self.name = name
        self.stages, layouts = cut(torchvision_network(name), name)
        self.channels = [channels for _, channels, _ in layouts]
        self.channels_last = [is_last for _, _, is_last in layouts]

    def maps(self, image: Tensor) -> list[Tensor]:
        maps = [image]
        for stage in self.stages:
            maps.append(self.segment(stage, maps[-1]))
        return maps[1:]

    def load_weights(self, source: bool | str) -> None:
        known = get_model_weights(self.name)
        if source is True:
            state = state_of(download_weights(known.DEFAULT, self.name))
        else:
            path = find_weights(self.name, Path(source), [Path(each.url).name for each in known])
            state = state_of(read_torch_file(path, "model.pretrained"))
        foreign = f"model.pretrained: the weights of {source} are not those of torchvision's {self.name}"
        if state is None:
            raise InputError(foreign)
        state = {DENSENET.sub(r"\1\2", key): value for key, value in state.items() if key.split(".")[0] not in HEADS}
        state = OrderedDict(state)
        state._metadata = {"": {"version": 2}}  # an MNASNet asks for it; all others find how old they are themselves
        network = torchvision_network(self.name)
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            raise InputError(foreign) from error
        self.stages.load_state_dict(cut(network, self.name)[0].state_dict())


class TimmBackbone(Backbone):
    """A network of timm, which cuts off what is behind the last map itself; one segment."""

    def __init__(self, name: str) -> None:
        network = timm_network(name)
        mean, deviation = (network.pretrained_cfg.get(key, default) for key, default in TIMM_DEFAULTS.items())
        super().__init__(mean, deviation)
        self.name, self.network = name, network
        layouts = [layout(each) for each in measured(network)]
        strides = [each and each[0] for each in layouts]
        if [each for each in strides if each] != list(STRIDES) or strides[-1] != STRIDES[-1]:
            raise without_maps(f"{TIMM}{name}")
        self.places = [strides.index(stride) for stride in STRIDES]
        self.channels = [layouts[place][1] for place in self.places]
        self.channels_last = [layouts[place][2] for place in self.places]

    def maps(self, image: Tensor) -> list[Tensor]:
        maps = self.segment(self.network, image)
        return [maps[place] for place in self.places]

    def load_weights(self, source: bool | str) -> None:
        overlay = None
        if source is not True:
            architecture = self.name.split(".")[0]
            overlay = {"state_dict": read_weights(find_weights(architecture, Path(source)))}
            reason = f"the weights of {source} are not those of {TIMM}{self.name}"
        else:
            reason = f"the weights of {TIMM}{self.name} could not be had; set it to their file, or to false"
        # timm makes them fit in its own ways, which raise anything, and lets pass what does not fit a network without
        # its classifier: the whole one comes first, and what timm says of the classifier's weights is no news.
        logging.getLogger("timm").setLevel(logging.ERROR)
        try:
            if overlay is not None:
                timm_network(self.name, features_only=False, pretrained=True, pretrained_cfg_overlay=overlay)
            network = timm_network(self.name, pretrained=True, pretrained_cfg_overlay=overlay)
        except Exception as error:
            raise InputError(f"model.pretrained: {reason} ({' '.join(str(error).split())[:200]})") from error
        self.network.load_state_dict(network.state_dict())


def make_backbone(name: str) -> Backbone:
    """The encoder `name` of torchvision, or `timm:NAME`, with random weights, in training mode. Raises InputError."""
    return TimmBackbone(name.removeprefix(TIMM)) if name.startswith(TIMM) else TorchvisionBackbone(name)


def torchvision_network(name: str) -> nn.Module:
    """The classifier `name` without its head, with random weights, on the default device."""
    device = torch.get_default_device()
    # A RegNet computes its widths with tensors, which must have values.
    with torch.device("cpu" if name.startswith("regnet") else device):
        network = get_model(name, weights=None)
    for head in HEADS:
        if hasattr(network, head):
            delattr(network, head)
    return network.to(device)


def timm_network(name: str, features_only: bool = True, **options: object) -> nn.Module:
    """timm's network `name` with all its maps, on the default device. Raises InputError for one of a single size."""
    from timm import create_model
    from timm.models import get_pretrained_cfg

    known = get_pretrained_cfg(name)
    if known is not None and known.fixed_input_size:
        raise InputError(f"model.encoder is {TIMM}{name}, which takes images of one size alone, {known.input_size[1:]}")
    device = torch.get_default_device()
    with torch.device("cpu"):
        return create_model(name, features_only=features_only, **options).to(device)


def layout(features: Tensor) -> tuple[int, int, bool] | None:
    """Stride, channels and whether these come last, of a map of the probe; None where it is no map for the decoder."""
    for stride in STRIDES:
        size = PROBE[0] // stride, PROBE[1] // stride
        if tuple(features.shape[2:]) == size:
            return stride, features.shape[1], False
        if tuple(features.shape[1:3]) == size:
            return stride, features.shape[3], True
    return None


def measured(network: nn.Module) -> list[Tensor]:
    """What `network`, a sequence of layers or one that gives all its maps, makes of the probe; nothing is drawn."""
    network.eval()
    image = torch.zeros(1, 3, *PROBE)
    with torch.no_grad():
        if isinstance(network, nn.ModuleList):
            maps = [image]
            for layer in network:
                maps.append(layer(maps[-1]))
            maps = maps[1:]
        else:
            maps = network(image)
    network.train()
    return maps


def cut(network: nn.Module, name: str) -> tuple[nn.ModuleList, list[tuple[int, int, bool]]]:
    """The layers of a network in four stages, each up to the last map of its stride, and the layouts of these maps."""
    layers = []
    for part, child in network.named_children():
        layers += child if part in CHAINS else [child]
    last = layers[-1]
    if isinstance(last, nn.Sequential) and isinstance(last[0], nn.Conv2d) and last[0].kernel_size == (1, 1):
        layers.pop()  # for the classifier
    layouts = list(map(layout, measured(nn.ModuleList(layers))))
    ends = {each[0]: end for end, each in enumerate(layouts, start=1) if each is not None}
    if tuple(ends) != STRIDES or ends[STRIDES[-1]] != len(layers):
        raise without_maps(name)
    bounds = [0, *ends.values()]
    stages = [nn.Sequential(*layers[start:end]) for start, end in pairwise(bounds)]
    return nn.ModuleList(stages), [layouts[end - 1] for end in bounds[1:]]


def without_maps(name: str) -> InputError:
    """The error for a network that has not the maps that the decoder needs."""
    return InputError(f"model.encoder is {name}, which gives no maps at 1/4, 1/8, 1/16 and 1/32 of the image's size")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a file in safetensors, or of `torch.save`, by name. Raises InputError."""
    if path.suffix != ".safetensors":
        state = state_of(read_torch_file(path, "model.pretrained"))
        if state is None:
            raise InputError(f"model.pretrained: {path} holds no tensors by name")
        return state
    try:
        return load(read_safetensors(path, LARGEST_WEIGHTS, "the weights"))
    except (SafetensorError, KeyError) as error:
        raise InputError(f"model.pretrained: {path} is damaged or no safetensors file") from error
