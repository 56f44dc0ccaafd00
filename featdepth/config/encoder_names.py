"""Which encoders `model.encoder` may name."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from featdepth.config.keys import Model
from featdepth.config.values import shown

TIMM = "timm:"
# Names of torchvision begin so whose maps do not halve, or which take one size of image alone.
WITHOUT_MAPS = ("alexnet", "googlenet", "inception", "maxvit", "squeezenet", "vit_")


def check_encoder(model: Model) -> Iterator[tuple[str, str]]:
    """(key, what is wrong with it) where `model.encoder` is no network that can be had, or not the only one named."""
    name = model.encoder
    if model.objective == "autoencoder":
        yield "model.encoder", "has no use in model.objective autoencoder, which has feature_layers; set it to null"
    if name.startswith(TIMM):
        try:
            import timm
        except ImportError:
            yield "model.encoder", f"is {shown(name)}, which needs timm (pip install timm)"
            return
        # A name alone, or with the tag of weights, as in convnext_atto.d2_in1k.
        architectures = known = [*timm.list_models(), *timm.list_pretrained()]
        called = name.removeprefix(TIMM)
    else:
        import torchvision

        architectures = torchvision.models.list_models(module=torchvision.models)
        known, called = [each for each in architectures if not each.startswith(WITHOUT_MAPS)], name
    if called in architectures and called not in known:
        yield "model.encoder", f"is {called}, which has no maps at 1/4, 1/8, 1/16 and 1/32 of images of any size"
    elif called not in known:
        nearest = difflib.get_close_matches(called[:80], known, n=1, cutoff=0.0)[0]
        prefix = TIMM if name.startswith(TIMM) else ""
        yield (
            "model.encoder",
            f"is {shown(name)}, which {'timm' if prefix else 'torchvision'} does not have; did you mean "
            f"{prefix}{nearest}?",
        )
    elif model.depth_layers is not None and name != f"resnet{model.depth_layers}":
        yield "model.encoder", f"is {name}, but model.depth_layers is {model.depth_layers}; set one of them to null"
