"""Pictures of single test images: what the model saw, its depth, and how far that is from the ground truth."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import default_collate

from featdepth.config import Config
from featdepth.data import augment
from featdepth.drawing import ERROR_COLOURS, colour, colour_disparity, jpeg_address, paint_dots, picture
from featdepth.evaluation.scoring import Scores
from featdepth.kinds import protocol_of
from featdepth.metrics.depth import evaluation_mask, median, resize_map
from featdepth.models import FeatDepth
from featdepth.training.validation import predict_disparity

WIDTH = 256  # pixels of one picture, or the model's width where that is less
LARGEST_ERROR = 0.5  # relative error of depth in the brightest colour
QUALITY = 80  # of the JPEG


@torch.no_grad()
def draw_extremes(scores: Scores, card: dict) -> dict[str, str]:
    """A picture, as a data URI, of each of the card's worst and best images, by its name."""
    model, dataset, config = scores.subject.model, scores.subject.dataset, scores.subject.config
    model.eval()
    numbers = {str(sample): index for index, sample in enumerate(dataset.samples)}
    names = [entry["image"] for part in ("worst", "best") for entry in card["extremes"][part]]
    unit = scores.metres_per_unit
    return {name: jpeg_address(draw(model, dataset[numbers[name]], config, unit), QUALITY) for name in names}


def draw(model: FeatDepth, sample: dict[str, Tensor], config: Config, metres_per_unit: float | None) -> np.ndarray:
    """uint8 `[h, 3 w, 3]`: the image, its disparity (near is bright), and the errors of depth if they are known.

    metres_per_unit: None scales depth by its median.
    """
    device = next(model.parameters()).device
    batch = augment({key: value.to(device) for key, value in default_collate([sample]).items()})
    disparity = predict_disparity(model, batch, config)[0]
    height, width = batch["images"].shape[-2:]
    size = round(height * min(WIDTH, width) / width), min(WIDTH, width)
    image = functional.interpolate(batch["images"][:, 0], size, mode="bilinear", antialias=True)[0]
    strip = [picture(image), colour_disparity(disparity, size)]
    if "depth" in batch:
        truth = batch["depth"][0, : batch["depth_size"][0, 0], : batch["depth_size"][0, 1]].cpu()
        inverse = 1 / (model.to_depth(disparity)[0] * (metres_per_unit or 1.0)).cpu()
        strip.append(paint_errors(strip[0], inverse, truth, metres_per_unit is None, config))
    return np.concatenate(strip, axis=1)


def paint_errors(
    image: np.ndarray, inverse_depth: Tensor, truth: Tensor, median_scaled: bool, config: Config
) -> np.ndarray:
    """uint8 `[h, w, 3]`: the darkened `image` under the relative errors of `inverse_depth` where they are known."""
    painted = image // 3
    protocol = protocol_of(config)
    mask = evaluation_mask(truth, protocol.crop, protocol.cap)
    if not mask.any():
        return painted
    true = truth[mask]
    predicted = 1 / resize_map(inverse_depth, tuple(truth.shape))[mask]
    if median_scaled:
        predicted = predicted * median(true) / median(predicted)
    errors = (predicted.clamp(max=protocol.clamp) - true).abs() / true
    dots = colour((errors / LARGEST_ERROR).nan_to_num(1.0)[None], ERROR_COLOURS)[0]
    order = errors.argsort().numpy()  # large ones last, on top
    places = mask.nonzero().numpy() * (np.array(image.shape[:2]) / np.array(truth.shape))
    paint_dots(painted, places.astype(int)[order], dots[order])
    return painted
