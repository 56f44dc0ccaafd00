"""An ONNX file of the depth network in eight-bit integers for CPUs, by onnxruntime's quantisation after training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from featdepth.data.images import load_image
from featdepth.data.listing import NO_IMAGE, list_images
from featdepth.errors import InputError

MOST_IMAGES = 32  # for calibration, evenly spaced in the folder; more change the ranges little
# What may stay float: what predicts disparity and doubles features in size, which the file holds as transposed
# convolutions, or the whole decoder.
KEPT_FLOAT = ("heads", "decoder")


class CalibrationImages:
    """A `CalibrationDataReader` of images `[N, 3, H, W]` in [0, 1]: one after the other, then None."""

    def __init__(self, images: Tensor) -> None:
        self.images = iter(images.split(1))

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self.images, None)
        return None if image is None else {"image": image.numpy()}


def load_calibration(folder: Path, size: tuple[int, int]) -> Tensor:
    """Up to MOST_IMAGES images of `folder` at `size` (height, width): `[N, 3, H, W]` in [0, 1]. Raises InputError."""
    if not folder.is_dir():
        raise InputError(f"--calibration {folder}: no such folder; give one with images as the model will see them")
    files = list_images(folder)
    if not files:
        raise InputError(f"--calibration {folder}: {NO_IMAGE}; name the folder that holds them")
    chosen = files[:: -(-len(files) // MOST_IMAGES)]
    return torch.stack([load_image(file, size) for file in chosen]) / 255


def quantise(path: Path, images: Tensor, keep_float: str = "heads") -> None:
    """Turn the convolutions of the ONNX file at `path` into integers, those of `keep_float` (of KEPT_FLOAT) excepted.

    images: `[N, 3, H, W]` in [0, 1], to learn the ranges of activations from; each channel of weights has its own.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_static

    content = onnx.load(path)
    of_decoder = [node.name for node in content.graph.node if any(".decoder." in name for name in node.input)]
    quantize_static(
        content,
        path,
        CalibrationImages(images),
        op_types_to_quantize=["Conv"],
        nodes_to_exclude=of_decoder if keep_float == "decoder" else [],
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=True,  # weights of 7 bits: CPUs without VNNI saturate where products of 8 bits are summed
    )
