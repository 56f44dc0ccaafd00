"""Configurations read: how YAML and the command line become a `Config`.

A configuration is YAML with the sections of `featdepth.config.keys`; `section.key=value` on the command line overrides
it. Reading is strict: an unknown key, a wrong type or an impossible combination ends in an `InputError` that names the
key, before any work starts.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import yaml

from featdepth.config.checks import CHOICES, COMMAND_LINE, check_config
from featdepth.config.keys import Config
from featdepth.config.values import Dumper, convert, describe, parse_yaml, shown
from featdepth.errors import InputError
from featdepth.files import read_text, write_text

# Keys of the data section that are the mixing configuration's for all of its data sets.
SHARED_KEYS = (
    *("frames", "height", "width", "flip", "colour_jitter"),
    *("workers", "cache", "cache_gb", "skip_bad_frames", "allow_leakage", "drive_balance"),
)
LARGEST_CONFIG = 1 << 16  # bytes; a configuration has 4 kB, and YAML takes a second for ten times as much

SECTIONS: dict[str, type] = get_type_hints(Config)
TYPES: dict[str, Any] = {
    f"{section}.{key}": hint for section, cls in SECTIONS.items() for key, hint in get_type_hints(cls).items()
}
PATHS = {
    "run.directory",
    "data.root",
    "data.split",
    "data.train_files",
    "data.val_files",
    "data.test_files",
    "data.cache",
    "data.ground_truth_cache",
    "data.mix",
    "model.pretrained",
    "model.feature_encoder",
    "model.init",
}  # `~` in these is the home directory: shells do not expand it in key=value


def load_config(
    path: str | Path, overrides: Sequence[str] = (), check_files: bool = True, training: bool = True
) -> Config:
    """Read the YAML file `path`, apply the `section.key=value` overrides in order, and check the result.

    `check_files` also demands that the files and folders it names exist; `training=False` leaves out those that only
    training needs (an evaluation takes its model from a checkpoint). Raises InputError, one line, for anything wrong.
    """
    source = str(path)
    if not os.path.exists(path):
        raise InputError(f"{source}: no such configuration file")
    if os.path.isdir(path):
        raise InputError(f"{source}: cannot read the configuration: Is a directory")
    try:
        text = read_text(path, LARGEST_CONFIG, "the configuration", errors="strict")
    except UnicodeDecodeError:
        raise InputError(f"{source}: not a text file in UTF-8") from None
    values = flatten(parse_yaml(text, source), source)
    overridden = dict(parse_override(override) for override in overrides)
    config = build(values | overridden)
    check_config(config, source, check_files, training, overridden)
    return config


def mixed_configs(config: Config) -> list[Config]:
    """`config` for each of the data sets of `data.mix`. Raises InputError, naming the file."""
    configs = []
    for path in config.data.mix:
        other = load_config(path, training=False)
        if other.data.mix:
            raise InputError(f"data.mix: {path} mixes data sets itself; name each of them here")
        data = dataclasses.replace(other.data, **{key: getattr(config.data, key) for key in SHARED_KEYS})
        mixed = dataclasses.replace(config, data=data, evaluate=other.evaluate)
        check_config(mixed, f"data.mix: {path}, with the frames and sizes of this configuration", training=False)
        configs.append(mixed)
    return configs


def from_dict(values: Mapping[str, Any], source: str) -> Config:
    """The configuration in a nested dict such as `to_dict` gives; `source` (a file) is named in errors."""
    return build(flatten(values, source))


def to_dict(config: Config) -> dict[str, dict[str, Any]]:
    """Nested dict of plain values, ready for YAML or JSON."""
    return dataclasses.asdict(config)


def save_config(config: Config, path: str | Path, header_comment: str = "") -> None:
    """Write `config` as YAML that `load_config` reads, atomically; `header_comment` goes above it, line by line."""
    header = "".join(f"# {line}".rstrip() + "\n" for line in header_comment.splitlines())
    text = header + yaml.dump(to_dict(config), Dumper=Dumper, sort_keys=False, default_flow_style=None, width=120)
    write_text(path, text)


def flatten(values: Any, source: str) -> dict[str, Any]:
    """{section: {key: value}} -> {"section.key": value of the declared type}; raises InputError naming the key."""
    if not isinstance(values, Mapping):
        raise InputError(f"{source}: expected the sections {', '.join(SECTIONS)}, found {shown(values)}")
    flat: dict[str, Any] = {}
    for section, keys in values.items():
        if section not in SECTIONS:
            raise unknown_key(shown(section), source)
        if keys is None:  # a section whose keys are all commented out
            continue
        if not isinstance(keys, Mapping):
            raise InputError(f"{source}: '{section}' is a section of keys, found {shown(keys)}")
        for key, value in keys.items():
            name = f"{section}.{shown(key)}"
            flat[name] = typed(name, value, source)
    return flat


# Lists of a fixed length, as they are written.
FIXED_LISTS = {
    "data.crop": "four parts, as in [0.25, 0.0, 0.0, 0.0]: top, bottom, left, right",
    "model.pose_size": "two sides, as in [192, 640]: height, width",
}


def typed(name: str, value: Any, source: str) -> Any:
    """`value` as the type that the key `name` ("section.key") declares; raises InputError when it cannot be that."""
    if name not in TYPES:
        raise unknown_key(name, source)
    if isinstance(value, str) and value in CHOICES.get(name, ()):
        return value  # also "none", which is null elsewhere
    try:
        value = convert(value, TYPES[name])
    except ValueError as error:
        advice = f"; write {FIXED_LISTS[name]}" if name in FIXED_LISTS and not isinstance(value, list) else error
        message = f"{source}: {name} is {shown(value)}, expected {describe(TYPES[name])}{advice}"
        raise InputError(message) from None
    if name not in PATHS or not isinstance(value, str | list):
        return value
    paths = value if isinstance(value, list) else [value]
    if any("\0" in path for path in paths):
        raise InputError(f"{source}: {name} is {shown(value)}, which no path can be")
    expanded = [os.path.expanduser(path) for path in paths]
    return expanded if isinstance(value, list) else expanded[0]


def build(flat: Mapping[str, Any]) -> Config:
    """{"section.key": value} -> Config; what is absent keeps its default."""
    sections: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for name, value in flat.items():
        section, key = name.split(".")
        sections[section][key] = value
    return Config(**{section: cls(**sections[section]) for section, cls in SECTIONS.items()})


def parse_override(override: str) -> tuple[str, Any]:
    """`section.key=value`, the value in YAML, split at the first `=` -> (section.key, typed value)."""
    name, equals, text = override.partition("=")
    name = name.strip()
    if not equals:
        raise InputError(
            f"{COMMAND_LINE}: '{shown(override)}' is not of the form section.key=value, as in train.batch_size=4"
        )
    if name not in TYPES:
        raise unknown_key(shown(name), COMMAND_LINE)
    return name, typed(name, parse_yaml(text, f"{COMMAND_LINE}: {name}"), COMMAND_LINE)


def unknown_key(name: str, source: str) -> InputError:
    """The error for a key that does not exist, with the nearest that does."""
    section, _, key = name.partition(".")
    if name in SECTIONS:
        keys = ", ".join(known for known in TYPES if known.startswith(f"{name}."))
        return InputError(f"{source}: '{name}' is a section, set one of its keys: {keys}")
    same_key = [known for known in TYPES if known.split(".")[1] == (key or section)]
    candidates = list(TYPES) if key else [*SECTIONS, *TYPES]
    nearest = same_key or difflib.get_close_matches(name, candidates, n=1)
    if nearest:
        return InputError(f"{source}: unknown key '{name}'; did you mean '{nearest[0]}'?")
    known = [each for each in TYPES if each.startswith(f"{section}.")] or list(SECTIONS)
    return InputError(f"{source}: unknown key '{name}'; there are {', '.join(known)}")


class Parser(argparse.ArgumentParser):
    """Reports bad usage in one line, as all other bad input."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{COMMAND_LINE}: {message} (see --help)")


def parse_arguments(
    argv: Sequence[str] | None,
    description: str,
    extra: Callable[[argparse.ArgumentParser], None] | None = None,
    program: str | None = None,
) -> argparse.Namespace:
    """The command line that the programs share: `--config FILE`, `key=value` anywhere, and what `extra(parser)` adds.

    `argv=None` takes it from sys.argv. Returns a namespace with `config` (path), `overrides` (list of `key=value`) and
    the options of `extra`; then call `load_config(arguments.config, arguments.overrides)`. program: its name in the
    usage, by default that of its file. Raises InputError.
    """
    parser = Parser(prog=program, description=description, allow_abbrev=False)
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML file, see configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a key, e.g. train.batch_size=4")
    if extra is not None:
        extra(parser)
    return parser.parse_intermixed_args(argv)
