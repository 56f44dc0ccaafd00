"""Pictures of what a model sees and predicts, for the run's `images/`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from featdepth.config import Config
from featdepth.data import augment
from featdepth.drawing import ERROR_COLOURS, colour, colour_disparity, picture, save_picture
from featdepth.models import FeatDepth, Prediction
from featdepth.objective import explain_photometric

PANEL_ERROR_MAX = 0.4  # photometric error shown in the brightest colour


def panel(prediction: Prediction, batch: dict[str, Tensor], config: Config) -> Image.Image:
    """One row per sample: frames, then disparity, reconstruction, error and automask (or the autoencoder's output)."""
    images = batch["images"]
    size = images.shape[-2:]
    columns = [[picture(frame) for frame in images[:, position]] for position in range(images.shape[1])]
    if prediction.reconstructions:
        columns.append([picture(image) for image in prediction.reconstructions[0]])
    if prediction.disparities:
        explained = explain_photometric(prediction, batch, config)
        columns.append([colour_disparity(disparity, size) for disparity in prediction.disparities[0]])
        columns.append([picture(image) for image in explained.reconstruction])
        columns.append([colour(error[0] / PANEL_ERROR_MAX, ERROR_COLOURS) for error in explained.error])
        columns.append([picture(mask.expand(3, -1, -1)) for mask in explained.moving])
    rows = [np.concatenate(row, axis=1) for row in zip(*columns, strict=True)]
    return Image.fromarray(np.concatenate(rows, axis=0))


@torch.no_grad()
def draw_panel(model: FeatDepth, dataset: Dataset, config: Config, device: torch.device, path: Path) -> None:
    """A picture at `path` of `train.panel_samples` samples, evenly spaced over `dataset`; none where that is 0."""
    count = min(config.train.panel_samples, len(dataset))
    if count == 0:
        return
    samples = [dataset[index * len(dataset) // count] for index in range(count)]
    batch = augment({key: value.to(device) for key, value in default_collate(samples).items()})
    model.eval()
    save_picture(panel(model(batch), batch, config), path)
    model.train()
