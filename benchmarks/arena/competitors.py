"""Who competes: configurations of ours with overrides, and other people's programs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from featdepth.config.values import parse_yaml, shown
from featdepth.errors import InputError
from featdepth.files import read_text

LARGEST_FILE = 1 << 16  # bytes of a file of competitors
NAME = re.compile(r"[\w.+-]+")
FORM = "NAME: CONFIGURATION [key=value ...], as in 'slow: configs/demo.yaml optimizer.lr=1e-4'"
PLACES = ("data", "run", "seed", "steps", "seconds", "images", "predictions")  # what a command may name in braces


class Competitor(NamedTuple):
    """One row of the table."""

    name: str
    config: str = ""  # YAML file; "": other people's program
    overrides: tuple[str, ...] = ()  # key=value
    command: str = ""  # of other people: trains for {seconds} or {steps} on the training part below {data}
    predict: str = ""  # and writes the depth of the {images} into {predictions}
    metric: bool = False  # whether that depth is in metres

    @property
    def is_ours(self) -> bool:
        return bool(self.config)


def read_competitors(words: Sequence[str]) -> list[Competitor]:
    """The competitors of the command line: each word is one, in FORM, or a YAML file of several.

    Raises InputError for anything else, and for names that are there twice.
    """
    found: list[Competitor] = []
    for word in words:
        if word.endswith((".yaml", ".yml")) and ": " not in word:
            found += read_file(Path(word))
        else:
            name, _, value = word.partition(":")
            found.append(make_competitor(name.strip(), value.strip(), "command line"))
    names = [each.name for each in found]
    if len(set(names)) < len(names):
        raise InputError(f"competitors {', '.join(names)}: a name is there twice; rename one")
    return found


def read_file(path: Path) -> list[Competitor]:
    """The competitors of a YAML file, `NAME: CONFIGURATION [key=value ...]` or `NAME: {command: ..., predict: ...}`."""
    content = parse_yaml(read_text(path, LARGEST_FILE, "the list of competitors"), str(path))
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path}: has to be a list of lines {FORM}")
    return [make_competitor(str(name), value, str(path)) for name, value in content.items()]


def make_competitor(name: str, value: object, source: str) -> Competitor:
    """A competitor of its name and what stands behind it. Raises InputError."""
    if not NAME.fullmatch(name):
        raise InputError(f"{source}: '{shown(name)}' cannot be the name of a competitor; write {FORM}")
    if isinstance(value, str) and value:
        config, *overrides = shlex.split(value)
        return Competitor(name, config, tuple(overrides))
    if isinstance(value, Mapping):
        return make_program(name, value, source)
    raise InputError(f"{source}: competitor {name} is {shown(value)}; write {FORM}")


def make_program(name: str, value: Mapping, source: str) -> Competitor:
    """Other people's program. Raises InputError for unknown keys, missing commands and unknown places."""
    unknown = sorted(set(map(str, value)) - {"command", "predict", "metric"})
    missing = [key for key in ("command", "predict") if not isinstance(value.get(key), str)]
    if unknown or missing or not isinstance(value.get("metric", False), bool):
        raise InputError(f"{source}: competitor {name} needs the texts command and predict, and metric: true or false")
    competitor = Competitor(name, **value)
    for command in (competitor.command, competitor.predict):
        fill(competitor, command, dict.fromkeys(PLACES, ""))
    return competitor


def fill(competitor: Competitor, command: str, places: Mapping[str, object]) -> str:
    """The command with its {places} filled in, for a shell. Raises InputError for one that is not known here."""
    try:
        return command.format_map({name: shlex.quote(str(value)) for name, value in places.items()})
    except (KeyError, ValueError, IndexError) as error:
        known = ", ".join(f"{{{name}}}" for name in places)
        raise InputError(f"competitor {competitor.name}: '{shown(command)}' has {error}; known are {known}") from None
