"""The depth network in eight-bit integers for CPUs: torch's FX graph mode quantisation after training.

Activations are quantised with ranges that calibration images show, weights for each channel. torch calls these tools
deprecated in favour of the package torchao, and has them still.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from featdepth.data.images import load_image
from featdepth.data.listing import NO_IMAGE, list_images
from featdepth.errors import InputError
from featdepth.models import FeatDepth
from featdepth.models.decoders import DepthDecoder, DepthLevel
from featdepth.models.featdepth import normalise

MOST_IMAGES = 32  # for calibration, evenly spaced in the folder; more change the ranges little
# What may stay float, as names of layers: the convolutions that predict disparity, or the whole decoder with them.
KEPT_FLOAT = {"heads": [f"levels.{level}.disparity.1" for level in range(4)], "decoder": ["levels"]}


class PlainDepthNetwork(nn.Module):
    """Encoder and decoder of a depth network, of nothing but layers that can be quantised; shares their weights.

    `DepthDecoder` makes its kernels from its weights as it goes, which is faster in float but no layer to quantise.
    """

    def __init__(self, encoder: nn.Module, decoder: DepthDecoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.levels = nn.ModuleList(map(PlainLevel, decoder.levels))

    def forward(self, image: Tensor) -> Tensor:
        """The finest disparity `[B, 1, H/2, W/2]` in (0, 1) of normalised images `[B, 3, H, W]`."""
        features = self.encoder(image)
        coarser = None
        for number in reversed(range(len(self.levels))):
            coarser = self.levels[number](features[number + 1], coarser)
        return coarser[1]


class PlainLevel(nn.Module):
    """`DepthLevel` with its upsampling, padding and convolutions one by one.

    `join` is a sum of one convolution for each of its inputs: quantised side by side they would share one range, in
    which disparities, far smaller than features, are nothing.
    """

    def __init__(self, level: DepthLevel) -> None:
        super().__init__()
        self.reduce, self.pointwise = level.reduce, level.pooling.pointwise
        self.merge, self.disparity = (
            padded(level.merge.weight, level.merge.bias),
            padded(level.disparity.weight, level.disparity.bias),
        )
        joined, reduced = level.join.weight, level.reduce.out_channels
        self.join_reduced = padded(joined[:, :reduced], level.join.bias)
        if joined.shape[1] > reduced:
            self.join_features, self.join_disparity = padded(joined[:, reduced:-1]), padded(joined[:, -1:])

    def forward(self, feature: Tensor, coarser: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        """As `DepthLevel.forward`."""
        features = self.join_reduced(self.reduce(feature))
        if coarser is not None:
            features = features + self.join_features(doubled(coarser[0])) + self.join_disparity(coarser[1])
        features = functional.leaky_relu(features, 0.01)
        top = features
        for convolution in self.pointwise:
            top = convolution(functional.max_pool2d(top, 5, stride=1, padding=2))
            features = features + top
        features = functional.leaky_relu(self.merge(features), 0.01)
        return features, self.disparity(doubled(features)).sigmoid()


def padded(weight: Tensor, bias: Tensor | None = None) -> nn.Sequential:
    """A reflected 3x3 convolution as two layers: the quantised reference form knows of no padding but zeros."""
    outputs, inputs = weight.shape[:2]
    convolution = nn.Conv2d(inputs, outputs, weight.shape[2:], bias=bias is not None)
    convolution.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        convolution.bias = nn.Parameter(bias.detach().clone())
    return nn.Sequential(nn.ReflectionPad2d(1), convolution)


def doubled(features: Tensor) -> Tensor:
    """`features` at twice their size, each value repeated."""
    return functional.interpolate(features, scale_factor=2.0, mode="nearest")


def load_calibration(folder: Path, model: FeatDepth) -> Tensor:
    """Up to MOST_IMAGES images of `folder` as the network sees them: `[N, 3, H, W]` in [0, 1]. Raises InputError."""
    if not folder.is_dir():
        raise InputError(f"--calibration {folder}: no such folder; give one with images as the model will see them")
    files = list_images(folder)
    if not files:
        raise InputError(f"--calibration {folder}: {NO_IMAGE}; name the folder that holds them")
    chosen = files[:: -(-len(files) // MOST_IMAGES)]
    return torch.stack([load_image(file, (model.height, model.width)) for file in chosen]) / 255


@torch.no_grad()
def quantise(model: FeatDepth, images: Tensor, as_reference: bool, keep_float: str = "heads") -> nn.Module:
    """The depth network of `model` in int8: normalised images `[B, 3, H, W]` -> finest disparity `[B, 1, H/2, W/2]`.

    images: `[N, 3, H, W]` in [0, 1], to learn the ranges of activations from; as_reference: integers simulated by float
    operations between quantise and dequantise, which is what exporters read, instead of torch's own CPU kernels;
    keep_float: a key of KEPT_FLOAT. `model` stays as it is. Raises InputError where this torch has no such tools.
    """
    with quantisation_tools() as (get_default_qconfig_mapping, quantize_fx):
        torch.backends.quantized.engine = engine = engine_here()
        network = PlainDepthNetwork(copy.deepcopy(model.depth_encoder), copy.deepcopy(model.depth_decoder)).eval()
        network = network.to(memory_format=torch.channels_last)
        mapping = get_default_qconfig_mapping(engine)
        for name in KEPT_FLOAT[keep_float]:
            mapping.set_module_name(name, None)
        # torch would round every sigmoid to steps of 1/256, which are coarse for the disparities of what is far.
        mapping.set_object_type("sigmoid", None)
        observed = quantize_fx.prepare_fx(network, mapping, (normalise(images[:1]),))
        for image in images.split(1):
            observed(normalise(image))
        # The public reference form holds quantised tensors, which no exporter takes; this one plain integers.
        convert = quantize_fx._convert_to_reference_decomposed_fx if as_reference else quantize_fx.convert_fx
        return convert(observed).eval()


def engine_here() -> str:
    """Which of torch's integer kernels fit this CPU. Raises InputError where there are none."""
    for engine in ("x86", "qnnpack"):
        if engine in torch.backends.quantized.supported_engines:
            return engine
    raise InputError("--int8: this build of torch has no integer kernels for this CPU; export without --int8")


@contextmanager
def quantisation_tools() -> Iterator[Sequence[object]]:
    """`get_default_qconfig_mapping` and the module `quantize_fx` of torch, without their notes of deprecation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from torch.ao.quantization import get_default_qconfig_mapping, quantize_fx
        except ImportError as error:
            raise InputError(
                f"--int8: torch {torch.__version__} no longer has torch.ao.quantization; use an older torch"
            ) from error
        yield get_default_qconfig_mapping, quantize_fx
