"""Pictures of what a model sees and predicts, for the run's `images/`."""

from __future__ import annotations

import numpy as np
from PIL import Image
from torch import Tensor

from featdepth.config import Config
from featdepth.drawing import ERROR_COLOURS, colour, colour_disparity, picture
from featdepth.models import Prediction
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
