"""The ImageNet weights that encoders may start from: downloaded, or from a file."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor
from torchvision.models import WeightsEnum

from featdepth.errors import InputError
from featdepth.models.encoders import ResNetEncoder
from featdepth.models.saved.torch_files import read_torch_file, state_of


def load_imagenet(encoder: ResNetEncoder, source: bool | str) -> None:
    """Fill `encoder` with ImageNet weights; a first convolution over k images gets 1/k of its weights for each.

    source: True asks torchvision, which downloads the file once into torch's hub folder; a path names torchvision's
    `.pth` file or a folder of such files. Raises InputError when the weights cannot be had.
    """
    name = f"resnet{encoder.layers}"
    if source is True:
        state = download_weights(getattr(torchvision.models, f"ResNet{encoder.layers}_Weights").IMAGENET1K_V1, name)
    else:
        state = read_torch_file(find_weights(name, Path(source)), "model.pretrained")
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


def download_weights(weights: WeightsEnum, name: str) -> dict[str, Tensor]:
    """torchvision's `weights` of the network `name`, downloaded once into torch's hub folder. Raises InputError."""
    file_name = Path(weights.url).name
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        return weights.get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True)
    except (URLError, OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(
            f"model.pretrained: the ImageNet weights of {name} could not be downloaded or read "
            f"({' '.join(str(error).split())}); put {file_name} into {folder}, or set model.pretrained to that file, "
            "or to false to start from random weights"
        ) from error


def find_weights(name: str, path: Path, known: Sequence[str] = ()) -> Path:
    """The weights of the network `name`: the file `path`, or the one in that folder: one of `known`, or so called."""
    if not path.is_dir():
        return path
    called = [each for each in sorted(path.glob(f"{name}*")) if each.suffix in (".pth", ".safetensors")]
    for candidate in (*(path / each for each in known), *called):
        if candidate.exists():
            return candidate
    raise InputError(f"model.pretrained: {path} holds no file {name}*.pth or .safetensors; put its weights there")
