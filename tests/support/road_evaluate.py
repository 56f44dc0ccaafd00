"""evaluate.py of a model that sees nothing but a flat road and, far behind it, a wall: for tests of motion.

python tests/support/road_evaluate.py ARGUMENTS OF evaluate.py
"""

from __future__ import annotations

import torch
from torch import Tensor

import evaluate
from featdepth.errors import run_program
from featdepth.models import FeatDepth

HORIZON, FARTHEST, NEAREST = 0.45, 50.0, 11.0  # height in the picture, metres there and at the picture's bottom


def road_disparity(model: FeatDepth, images: Tensor) -> Tensor:
    """What `FeatDepth.predict_disparity` says of any images."""
    rows = torch.linspace(0, 1, images.shape[-2], device=images.device)
    share = ((rows - HORIZON) / (1 - HORIZON)).clamp(min=0)
    metres = 1 / torch.lerp(torch.full_like(rows, 1 / FARTHEST), torch.full_like(rows, 1 / NEAREST), share)
    disparity = model.to_disparity(metres / model.metres)
    return disparity[:, None].expand(len(images), 1, -1, images.shape[-1])


if __name__ == "__main__":
    FeatDepth.predict_disparity = road_disparity
    run_program(evaluate.main)
