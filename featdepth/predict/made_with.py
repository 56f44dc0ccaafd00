"""What an output folder was made with, so that a second run goes on with it, and two models are never mixed in it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from featdepth.errors import InputError
from featdepth.files import read_object, write_text
from featdepth.models import FeatDepth
from featdepth.models.saved.digest import weights_digest
from featdepth.models.saved.provenance import versions
from featdepth.predict.sources import PREDICTION_RECORD, name_inputs

VERSION = 1  # of what is written: raise it when that changes
LARGEST_RECORD = 256 << 20  # bytes; a name and a path for each input


def model_digest(model: FeatDepth) -> str:
    """What tells a model from any other: a hash of its weights and of what turns them into depth."""
    settings = model.settings
    scale = (model.height, model.width, settings.min_depth, settings.max_depth, settings.metres_per_unit)
    return weights_digest(model, repr(scale))


class Claimed(NamedTuple):
    """Inputs that a folder has been claimed for."""

    named: dict[str, Path]  # by the names of their outputs
    changed: list[str]  # those of which earlier outputs were made with other intrinsics


def claim(
    out: Path,
    settings: dict[str, Any],
    intrinsics: dict[str, Any],
    paths: list[Path],
    overwrite: bool,
    may_change: Callable[[str, Path, bool], bool],
) -> Claimed:
    """The inputs at `paths` by the names of their outputs in the folder `out`, whose record is written.

    settings: all that values of the whole folder depend on, ready for JSON, the checkpoint first; intrinsics: what was
    given of them for these inputs. Inputs of earlier runs keep their names. may_change(name, path, were_given): whether
    an input may have been predicted with other intrinsics before. overwrite: everything may have been, as long as all
    inputs of a folder made with other settings are among `paths`. Raises InputError for a folder made otherwise, and
    where the record cannot be read or written.
    """
    record = read_record(out) or {"settings": settings, "inputs": {}}
    named = name_inputs(paths, record["inputs"])
    different = next((key for key in settings if record["settings"].get(key) != settings[key]), None)
    if different is not None:
        given = {os.path.abspath(path) for path in paths}
        others = [path for path in record["inputs"].values() if path not in given]
        if not overwrite:
            raise made_otherwise(out, different, record["settings"].get(different), settings[different])
        if others:
            raise InputError(
                f"{out}: also holds what another {different} made of {others[0]}"
                f"{f' and {len(others) - 1} more' if len(others) > 1 else ''}; choose another --out"
            )
    before = {name: intrinsics_of(record, name, intrinsics) for name in record["inputs"]}
    changed = [name for name in named if before.get(name, intrinsics) != intrinsics]
    for name in changed:
        were_given = any(value is not None for value in before[name].values())
        if not overwrite and not may_change(name, named[name], were_given):
            key = next(key for key in intrinsics if before[name][key] != intrinsics[key])
            raise made_otherwise(out, key, before[name][key], intrinsics[key])
    content = {
        "version": VERSION,
        "settings": settings,
        "inputs": record["inputs"] | {name: os.path.abspath(path) for name, path in named.items()},
        "intrinsics": before | dict.fromkeys(named, intrinsics),
        "made_with": versions(),
    }
    try:
        write_text(out / PREDICTION_RECORD, json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise InputError(f"{out}: cannot be written to ({error.strerror}); choose another --out") from error
    return Claimed(named, changed)


def made_otherwise(out: Path, what: str, before: Any, now: Any) -> InputError:
    change = f"{in_words(before)}, now {in_words(now)}"
    return InputError(
        f"{out}: was made with another {what} ({change}); choose another --out, or replace all of it by --overwrite"
    )


def intrinsics_of(record: dict[str, Any], name: str, keys: dict[str, Any]) -> dict[str, Any]:
    """What was given of the intrinsics of an input; records once had that in the settings of the whole folder."""
    known = record.get("intrinsics", {}).get(name, record["settings"])
    return {key: known.get(key) for key in keys}


def read_record(out: Path) -> dict[str, Any] | None:
    """The record of an output folder; None where there is none. Raises InputError for a folder that is not ours."""
    path = out / PREDICTION_RECORD
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; choose another --out")
    if not path.exists():
        if out.is_dir() and any(not name.startswith(".") for name in os.listdir(out)):
            raise InputError(f"{out}: holds other files; choose a new or empty folder for --out")
        return None
    problem = "not a record of a prediction of this version; choose another --out"
    record = read_object(path, LARGEST_RECORD, "the record", problem)
    if not is_record(record):
        raise InputError(f"{path}: {problem}")
    return record


def is_record(content: dict[str, Any]) -> bool:
    """Whether a record is of this version, and its names lead nowhere out of the folder."""
    settings, inputs, intrinsics = content.get("settings"), content.get("inputs"), content.get("intrinsics", {})
    return (
        content.get("version") == VERSION
        and all(isinstance(section, dict) for section in (settings, inputs, intrinsics))
        and all(isinstance(given, dict) for given in intrinsics.values())
        and all(os.sep not in name and name not in ("", ".", "..") for name in inputs)
        and all(isinstance(path, str) for path in inputs.values())
    )


def in_words(value: Any) -> str:
    """A setting in words; of a hash its beginning."""
    text = "none" if value is None else str(value)
    return text if len(text) < 60 else f"{text[:12]}..."
