"""Where a model's weights come from, as its `config.json` says it, and with what they were made."""

from __future__ import annotations

import dataclasses
import math
import platform
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch
import torchvision

from featdepth.errors import InputError

LEARNED, NOTHING, TOO_FEW = "learned", "nothing learned", "too few samples"  # verdicts of a check
WITHOUT_OPENCV = "without_opencv"  # 1 in a check where motion could not be compared with matched points
LISTS = ("drives", "contaminated", "versions", "kinds")
TEXTS = ("imported_from", "scale_source", "configuration_digest")
TABLES = ("configuration", "validation", "check")


@dataclass
class Provenance:
    """How a model's weights came about: the section `training` of its `config.json`. None: not recorded."""

    imported_from: str | None = None  # file name of a published checkpoint
    scale_source: str | None = None  # what knew how long a metre is, see `featdepth.scale`
    drives: list[str] | None = None  # that the weights have seen, those that they started from too
    contaminated: list[str] | None = None  # of these, those that another part of their split has too
    versions: list[str] | None = None  # of the last training, as `versions` has them; so are all below
    configuration: dict[str, dict] | None = None  # all sections
    transductive: bool | None = None  # whether the training data were the test data, see `data.splits`
    kinds: list[str] | None = None  # of all data that the weights have seen, see `data.kind`
    configuration_digest: str | None = None  # what runs have in common that differ in nothing but their seed
    validation: dict[str, float] | None = None  # losses and scores of these weights
    check: dict[str, float | int | str] | None = None  # what `featdepth.training.learned_check` found

    def add_data(self, drives: Iterable[str], contaminated: Iterable[str], kinds: Iterable[str] = ()) -> None:
        """Note data that the weights have seen, beside those noted before."""
        self.drives = sorted({*(self.drives or ()), *drives})
        self.contaminated = sorted({*(self.contaminated or ()), *contaminated})
        if kinds:
            self.kinds = sorted({*(self.kinds or ()), *kinds})

    def begin_training(self, configuration: dict[str, dict], transductive: bool) -> None:
        """Note what a training is made with, in place of what was noted of the weights that it starts from."""
        self.configuration, self.transductive, self.versions = configuration, transductive, versions()
        self.configuration_digest = self.validation = self.check = None

    def add_validation(self, scores: Mapping[str, float]) -> None:
        """Note how good the weights are; what is not finite is left out."""
        self.validation = {name: value for name, value in scores.items() if math.isfinite(value)}

    @property
    def doubt(self) -> str | None:
        """What the check says against the model's depth; None: nothing, or it was never checked."""
        if self.check is None or self.check.get("verdict") != NOTHING:
            return None
        return f"the model seems to have learned nothing; train it longer: {describe_check(self.check)}"

    def as_dict(self) -> dict:
        """What is recorded, ready for JSON."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}

    @classmethod
    def read(cls, config: dict, place: str) -> Provenance:
        """The section of a model's `config.json` at `place`; entries of other versions are left out.

        Raises InputError for entries of wrong types.
        """
        content = config.get("training", {})
        if not (isinstance(content, dict) and is_whole(content)):
            raise InputError(f"{place}: the section training is damaged; copy the file again")
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in content.items() if name in names})


def is_whole(content: dict) -> bool:
    """Whether the entries of a `Provenance` as a file has them are of the right types."""
    lists, texts, tables = (
        [content.get(name, kind()) for name in names] for names, kind in ((LISTS, list), (TEXTS, str), (TABLES, dict))
    )
    return (
        all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists)
        and all(isinstance(text, str) for text in texts)
        and all(isinstance(table, dict) for table in tables)
        and all(isinstance(section, dict) for section in content.get("configuration", {}).values())
        and type(content.get("configuration", {}).get("train", {}).get("seed", 0)) is int
        and all(is_number(value) for value in content.get("validation", {}).values())
        and all(
            isinstance(value, str) if name == "verdict" else is_number(value)
            for name, value in content.get("check", {}).items()
        )
        and isinstance(content.get("transductive", False), bool)
    )


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def describe_check(check: Mapping[str, float | int | str]) -> str:
    """What the check at the end of a training found, in one line."""
    words = [f"on {check.get('samples', 0)} samples"]
    if "angle" in check:
        words.append(f"motion {check['angle']:.0f} degrees off matched points")
    if "turned" in check and "shifted" in check:
        words.append(f"its network {check['turned']:.2g} degrees and {check['shifted']:.0%} off alignment")
    if WITHOUT_OPENCV in check:
        from featdepth.two_view.opencv import INSTALL  # the networks know nothing of matching, but for this word

        words.append(f"motion not compared with matched points: no OpenCV; {INSTALL}")
    if "row_correlation" in check:
        words.append(f"nearer at the bottom {check['row_correlation']:+.2f}")
    if "gain" in check:
        words.append(f"warping removes {check['gain']:.0%} of the error")
    if "relief" in check:
        words.append(f"depth removes {check['relief']:.0%} of the error that a flat wall leaves")
    return f"{check['verdict']} ({', '.join(words)})"


def versions() -> list[str]:
    """What a model or a result is made with: this project's commit, and the versions of what it stands on."""
    return [
        f"featdepth commit {git_commit()}",
        f"python {platform.python_version()}, torch {torch.__version__}, torchvision {torchvision.__version__}, "
        f"accelerate {metadata.version('accelerate')}",
    ]


def git_commit() -> str:
    """The commit of this checkout, or "unknown" outside one."""
    if shutil.which("git") is None:
        return "unknown"
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "unknown"
