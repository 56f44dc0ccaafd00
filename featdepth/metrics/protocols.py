"""How the field scores depth on each data set: the part of the image, how far truth and predictions may reach.

`evaluate.crop` and `evaluate.cap` are null by default, which is what `featdepth.kinds` has; a value takes its place.
"""

from __future__ import annotations

from collections.abc import Mapping

from featdepth.config.keys import Config
from featdepth.kinds import CITYSCAPES_CUT, KINDS, Protocol


def protocol_of(config: Config) -> Protocol:
    """What the configuration's predictions are scored by: its protocol's own, but for what `evaluate` sets."""
    evaluate, data = config.evaluate, config.data
    crop, cap, clamp = KINDS[data.kind].protocols[evaluate.protocol]
    if crop == "cityscapes" and data.crop != CITYSCAPES_CUT:
        crop = "none"  # it is made for images without their lower quarter
    if evaluate.crop is not None:
        crop = evaluate.crop
    if evaluate.cap is not None:
        cap = clamp = evaluate.cap
    return Protocol(crop, cap, clamp)


def describe_protocol(values: Mapping) -> str:
    """`crop`, `cap` and `clamp` (metres, None: there is none) in words, as in "crop garg, cap 80 m"."""
    crop, cap, clamp = f"crop {values['crop']}", values["cap"], values.get("clamp", values["cap"])
    if cap == clamp:
        return f"{crop}, cap {cap:g} m"
    truth = "no cap" if cap is None else f"cap {cap:g} m"
    return f"{crop}, {truth} of the truth, predictions up to {clamp:g} m"
