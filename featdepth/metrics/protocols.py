"""How the field scores depth on each data set: the part of the image, how far truth and predictions may reach.

`evaluate.crop` and `evaluate.cap` are null by default, which is what is written here; a value takes its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from featdepth.config import Config

CITYSCAPES_CUT = [0.0, 0.25, 0.0, 0.0]  # the `data.crop` that the crop of Cityscapes is measured in


class Protocol(NamedTuple):
    """Which pixels of a ground truth are compared, and with what."""

    crop: str  # "garg", "cityscapes" or "none"
    cap: float | None  # metres: truth beyond it is ignored; None: all of it is compared
    clamp: float  # metres: predictions beyond it are taken for it


KITTI = {
    "eigen": Protocol("garg", 80.0, 80.0),
    # The improved ground truth is scored wherever there is some; predictions are clamped all the same.
    "eigen_improved": Protocol("none", None, 80.0),
}
OWN = {  # by `data.kind`; of all others STREETS
    "cityscapes": Protocol("cityscapes", 80.0, 80.0),
    "euroc": Protocol("none", 20.0, 20.0),
    "seven_scenes": Protocol("none", 10.0, 10.0),
    "tum_rgbd": Protocol("none", 10.0, 10.0),
}
STREETS = Protocol("none", 80.0, 80.0)


def protocol_of(config: Config) -> Protocol:
    """What the configuration's predictions are scored by: its protocol's own, but for what `evaluate` sets."""
    evaluate, data = config.evaluate, config.data
    crop, cap, clamp = KITTI.get(evaluate.protocol) or OWN.get(data.kind, STREETS)
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
