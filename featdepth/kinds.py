"""The kinds of data, told once each: what reads them, what they offer to choose from, how the field scores them.

A new one is an entry here and a module with its class, a `featdepth.data.dataset.FrameDataset`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from featdepth.errors import InputError

if TYPE_CHECKING:
    from featdepth.config.keys import Config

CITYSCAPES_CUT = [0.0, 0.25, 0.0, 0.0]  # the `data.crop` that the crop of Cityscapes is measured in


class Protocol(NamedTuple):
    """Which pixels of a ground truth are compared, and with what."""

    crop: str  # "garg", "cityscapes", "nyu" or "none"
    cap: float | None  # metres: truth beyond it is ignored; None: all of it is compared
    clamp: float  # metres: predictions beyond it are taken for it


class Licence(NamedTuple):
    """Whose data they are and what the publisher allows, as far as it bears on a model."""

    name: str
    terms: str


class Kind(NamedTuple):
    """All that differs between kinds of data and can be told without reading any."""

    reader: str  # module and class
    licence: Licence
    protocols: dict[str, Protocol]  # values of `evaluate.protocol`
    splits: tuple[str, ...] = ("time",)  # built in, values of `data.split`
    has_stereo: bool = False  # there can be a second camera


KITTI = Licence("KITTI", "CC BY-NC-SA 3.0: not for commercial use")
ROOM = {"own": Protocol("none", 10.0, 10.0)}
STREET = {"own": Protocol("none", 80.0, 80.0)}

KINDS = {  # by their names in `data.kind`
    "kitti_raw": Kind(
        "featdepth.data.kitti.raw:KittiRaw",
        KITTI,
        # The improved ground truth is scored wherever there is some; predictions are clamped all the same.
        {"eigen": Protocol("garg", 80.0, 80.0), "eigen_improved": Protocol("none", None, 80.0)},
        ("eigen",),
        has_stereo=True,
    ),
    "kitti_odometry": Kind(
        "featdepth.data.kitti.odometry:KittiOdometry", KITTI, STREET, ("official", "time"), has_stereo=True
    ),
    "cityscapes": Kind(
        "featdepth.data.sets.cityscapes:Cityscapes",
        Licence("Cityscapes", "terms of its own: not for commercial use"),
        {"own": Protocol("cityscapes", 80.0, 80.0)},
        ("official", "time"),
        has_stereo=True,
    ),
    "euroc": Kind(
        "featdepth.data.sets.euroc:Euroc",
        Licence("EuRoC MAV", "see its page"),
        {"own": Protocol("none", 20.0, 20.0)},
        ("official", "time"),
        has_stereo=True,
    ),
    "eth3d": Kind(
        "featdepth.data.sets.eth3d:Eth3d", Licence("ETH3D", "CC BY-NC-SA 4.0: not for commercial use"), STREET
    ),
    "tum_rgbd": Kind("featdepth.data.sets.tum_rgbd:TumRgbd", Licence("TUM RGB-D", "CC BY 4.0"), ROOM),
    "seven_scenes": Kind(
        "featdepth.data.sets.seven_scenes:SevenScenes",
        Licence("7-Scenes", "terms of its own: not for commercial use"),
        ROOM,
        ("official", "time"),
    ),
    "make3d": Kind(
        "featdepth.data.sets.make3d:Make3d",
        Licence("Make3D", "see its page"),
        {"own": Protocol("none", 70.0, 70.0)},
        ("official",),
    ),
    "nyu_depth": Kind(
        "featdepth.data.sets.nyu_depth:NyuDepth",
        Licence("NYU Depth V2", "see its page"),
        {"own": Protocol("nyu", 10.0, 10.0)},
        ("official",),
    ),
    "video": Kind(
        "featdepth.data.sets.video:Video", Licence("video of its makers", "up to them"), STREET, has_stereo=True
    ),
}
LICENCES = {name: kind.licence for name, kind in KINDS.items()}
# In the layout of KITTI raw, and told from it by its days.
LICENCES["synthetic"] = Licence("the synthetic street of featdepth", "made by the program itself, no restriction")

BUILT_IN_SPLITS = {split for kind in KINDS.values() for split in kind.splits}
PROTOCOLS = tuple(dict.fromkeys(name for kind in KINDS.values() for name in kind.protocols))


def dataset_class(name: str) -> type:
    """The subclass of FrameDataset that reads a kind, imported when it is asked for: training loads one, not all.

    Raises InputError for a name that no kind has.
    """
    if name not in KINDS:
        raise InputError(f"data.kind: {name!r} is unknown; there are {', '.join(KINDS)}")
    module, reader = KINDS[name].reader.split(":")
    return getattr(importlib.import_module(module), reader)


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
