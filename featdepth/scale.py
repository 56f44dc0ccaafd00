"""Where a model's metres come from: what ties its unit of length to the world."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from featdepth.config.keys import Config

BASELINE = "stereo baseline"
SPEED = "known speed"
INHERITED = ", of the initial model"  # behind the initial model's own source
GIVEN = "given, source unknown"
CAMERA_HEIGHT = "the camera's height"  # at evaluation and prediction
METRES, RELATIVE = "metres", "relative"  # what depths and positions may be measured in


class Scale(NamedTuple):
    """What the depth of a prediction is measured in."""

    metres_per_unit: float | None  # metres in a unit of the network; None: unknown, depth is relative
    source: str | None  # where the metres come from
    found: str = ""  # how, and how surely, in words; empty: as the source says

    @property
    def factor(self) -> float:
        """What depths and positions in units of the network are multiplied by."""
        return self.metres_per_unit or 1.0


def scale_of_training(config: Config) -> str | None:
    """What in a training with `config` knows metres; None: nothing, it can only keep those of `model.init`."""
    sources = {BASELINE: "s" in config.data.frames, SPEED: config.loss.velocity > 0}
    return " and ".join(source for source, is_used in sources.items() if is_used) or None


def describe_scale(source: str | None) -> str:
    """The unit of a model's depth in words; `source`: where its metres come from, None: it has none."""
    return "up to scale" if source is None else f"metres ({source})"


def unit_of(source: str | None) -> str:
    """METRES or RELATIVE: the unit of what a model predicts; `source`: as for `describe_scale`."""
    return RELATIVE if source is None else METRES
