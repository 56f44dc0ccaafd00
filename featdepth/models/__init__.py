"""Networks: encoders, decoders, and `FeatDepth`, which joins them."""

from featdepth.models.build import build_model
from featdepth.models.featdepth import FeatDepth, Prediction

__all__ = ["FeatDepth", "Prediction", "build_model"]
