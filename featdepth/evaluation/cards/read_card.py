"""Reading `card.json`, which may come from anywhere: nothing in it is believed before it is checked."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import NamedTuple

from featdepth.config.values import shown
from featdepth.errors import InputError
from featdepth.evaluation.cards.content import FLIPS, FORMAT, MODEL_SCALES
from featdepth.files import read_json
from featdepth.metrics.depth import METRICS

CARD_FILE = "card.json"
LARGEST_CARD = 16 << 20  # bytes; one of 697 images and 80 training drives has 40 kB
DIGEST = re.compile(r"[0-9a-f]{16,64}")


class Score(NamedTuple):
    """A mean over images, and its 95 % interval over drives; None: there is none."""

    mean: float | None
    drives: tuple[float, float] | None


class Card(NamedTuple):
    """What a comparison needs of a card. All text is printable and short."""

    path: str
    checkpoint: str
    contaminated: bool
    leakage_known: bool  # whether the model has a record of its training drives
    seed: int | None  # of the training; None: unknown
    configuration: str | None  # of the training but for its seed; None: unknown
    protocol: dict[str, str]  # what has to be the same in cards that are compared
    images: int
    drives: int
    scores: dict[tuple[str, str], dict[str, Score] | None]  # {metric: score} by scale and flip; None: no known scale


def read_card(path: str | Path) -> Card:
    """The card of an evaluation: `card.json`, or the folder that it lies in.

    Raises InputError, naming the file and the entry, for one that is missing, damaged, of another format or without
    depth scores.
    """
    path = Path(path)
    if path.is_dir():
        path = path / CARD_FILE
    try:
        content = read_json(path, LARGEST_CARD, "the card", parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({shown(str(error))}); evaluate again") from error
    entries = Entries(path, content)
    version, kind = entries.get("format", int), entries.get("kind", str)
    if version != FORMAT:
        raise InputError(f"{path}: card format {version}, this version reads format {FORMAT}; evaluate again")
    if kind != "depth":
        raise InputError(f"{path}: a card of kind {shown(kind)}, which has no depth scores to compare")
    model, test, leakage = (entries.section(name) for name in ("model", "test", "leakage"))
    scores = entries.section("scores")
    return Card(
        path=str(path),
        checkpoint=shown(model.get("checkpoint", str)),
        contaminated=bool(entries.get("contaminated", list)),
        leakage_known=leakage.get("training_drives", int, optional=True) is not None,
        seed=model.get("seed", int, optional=True),
        configuration=model.get("configuration", str, optional=True, pattern=DIGEST),
        protocol=read_protocol(test),
        images=test.get("images", int),
        drives=test.get("drives", int),
        scores={(scale, flip): read_scores(scores.section(scale), flip) for scale in MODEL_SCALES for flip in FLIPS},
    )


def refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


class Entries:
    """The entries of a JSON object, each asked for with its type."""

    def __init__(self, path: Path, content: object, place: str = "") -> None:
        self.path, self.content, self.place = path, content, place
        if not isinstance(content, dict):
            raise InputError(f"{path}: {place.rstrip('.') or 'the card'} is not a JSON object; evaluate again")

    def get(self, name: str, kind: type, optional: bool = False, pattern: re.Pattern[str] | None = None):
        """The entry `name`, which has to be of type `kind`; None where it is null or absent and `optional`.

        pattern: of a text. Raises InputError.
        """
        value = self.content.get(name)
        if value is None and optional:
            return None
        if kind is float and type(value) is int:
            value = float(value) if abs(value) < 1e300 else math.inf
        is_fit = type(value) is kind and (kind is not float or math.isfinite(value))
        if not is_fit or (pattern is not None and not pattern.fullmatch(value)):
            raise InputError(f"{self.path}: {self.place}{name} is {shown(value)}, which no card has; evaluate again")
        return value

    def section(self, name: str) -> Entries:
        return Entries(self.path, self.content.get(name), f"{self.place}{name}.")


def read_protocol(test: Entries) -> dict[str, str]:
    """What cards must agree on, in words by name."""
    camera_height = test.get("camera_height", float, optional=True)
    # Cards without a clamp clamped predictions to the cap.
    has_clamp = "clamp" in test.content
    cap = test.get("cap", float, optional=has_clamp)
    clamp = test.get("clamp", float) if has_clamp else cap
    return {
        "protocol": shown(test.get("protocol", str)),
        "crop": shown(test.get("crop", str)),
        "cap": "none" if cap is None else f"{cap:g} m",
        "predictions": f"up to {clamp:g} m",
        "camera height": "none" if camera_height is None else f"{camera_height:g} m",
        "test list": test.get("sha256", str, pattern=DIGEST),
    }


def read_scores(scores: Entries, flip: str) -> dict[str, Score] | None:
    """{metric: score} of a variant; None where the card has null."""
    if scores.get(flip, dict, optional=True) is None:
        return None
    variant = scores.section(flip)
    return {metric: read_score(variant.section(metric)) for metric in METRICS}


def read_score(score: Entries) -> Score:
    mean, drives = score.get("mean", float, optional=True), score.get("drives", list, optional=True)
    if drives is None:
        return Score(mean, None)
    ends = Entries(score.path, dict(zip(("low", "high"), drives, strict=False)), f"{score.place}drives: ")
    return Score(mean, (ends.get("low", float), ends.get("high", float)))
