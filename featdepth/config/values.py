"""YAML as people mean it, and the conversion of its values to the types that the configuration declares."""

from __future__ import annotations

import json
import math
import re
import types
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Union, get_args, get_origin

import yaml

from featdepth.errors import InputError

WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
NOTHING = ("no", "off", "none", "false")  # what people write where they mean null
NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
FLOAT = re.compile(
    r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
)


class Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-4 is a number, `no` and 2011_09_26 are text, and a key may appear only once.

    PyYAML follows YAML 1.1, where these are text, false and the number 20110926. Like `yaml.safe_load` it makes plain
    values only. Aliases are refused: a configuration needs none, and a few lines of them stand for gigabytes. So are
    tags: `!!int 0x...` makes numbers beyond all limits, and PyYAML stumbles over others, such as `!!timestamp x`.
    """

    yaml_implicit_resolvers: ClassVar[dict] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem="an alias; write the value out", problem_mark=self.peek_event().start_mark
            )
        event = self.peek_event()
        if event.tag is not None:
            raise yaml.MarkedYAMLError(
                problem=f"could not determine a constructor for the tag {shown(event.tag)}; write the plain value",
                problem_mark=event.start_mark,
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"'{shown(key.value)}' is given twice", problem_mark=key.start_mark)
            seen.update([key.value] if isinstance(key, yaml.ScalarNode) else [])
        return super().construct_mapping(node, deep)


Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"(~|null|Null|NULL)?$"), ["~", "n", "N", ""])
Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][0-9]*)$"), list("-+0123456789"))
Loader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+.0123456789"))


class Dumper(yaml.SafeDumper):
    """Quotes text that `Loader`, or YAML 1.1, would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


Dumper.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+.0123456789"))


def parse_yaml(text: str, source: str) -> Any:
    """The value of one YAML document; raises InputError with source and line for anything that is not YAML."""
    try:
        return Loader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        raise InputError(f"{source}: {line}not valid YAML: {error.problem or error.context}") from None
    except yaml.reader.ReaderError as error:
        raise InputError(f"{source}: not valid YAML: {error.reason} (character {error.character})") from None
    except RecursionError:
        raise InputError(f"{source}: not valid YAML: nested too deeply") from None
    except ValueError as error:
        raise InputError(f"{source}: not valid YAML: {error}") from None


def override(name: str, text: str | Path) -> str:
    """`section.key=value` that the command line reads as this text, in quotes where YAML would take it for another."""
    value = f"./{text}" if str(text).startswith("~") else str(text)
    try:
        is_plain = parse_yaml(value, name) == value
    except InputError:
        is_plain = False
    return f"{name}={value if is_plain else json.dumps(value, ensure_ascii=False)}"


def convert(value: Any, hint: Any) -> Any:
    """`value` from YAML as `hint`: str, int, float, bool, None, a list of such, or a union of such.

    Whole numbers serve as numbers, `yes`, `no`, `on` and `off` as booleans; NaN and infinity are refused. Raises
    ValueError with a further hint for the user, or none, when `value` does not fit.
    """
    if get_origin(hint) in (Union, types.UnionType):
        return convert_union(value, get_args(hint))
    if get_origin(hint) is list:
        if not isinstance(value, list):
            raise ValueError("" if value is None or isinstance(value, dict) else f"; write [{value}]")
        return [convert(item, get_args(hint)[0]) for item in value]
    if hint is bool and isinstance(value, str) and value.lower() in WORDS:
        return WORDS[value.lower()]
    if hint is float and type(value) is int:
        value = float(value) if abs(value) < 1e300 else math.inf
    if type(value) is not hint:
        raise ValueError(f'; put it in quotes: "{shown(value)}"' if hint is str and is_scalar(value) else "")
    if hint is float and not math.isfinite(value):
        raise ValueError(", finite")
    return value


def convert_union(value: Any, hints: tuple[Any, ...]) -> Any:
    """The first of `hints` that `value` fits, text last: `no` is false where a boolean is possible."""
    if bool not in hints and type(None) in hints and isinstance(value, str) and value.lower() in NOTHING:
        raise ValueError("; write null for none")
    reasons = []
    for hint in sorted((each for each in hints if each is not type(None)), key=lambda each: each is str):
        try:
            return None if value is None and type(None) in hints else convert(value, hint)
        except ValueError as error:
            reasons.append(str(error))
    raise ValueError(reasons[0] if len(reasons) == 1 else "")


def is_scalar(value: Any) -> bool:
    """Whether YAML took `value` for a number or a boolean."""
    return isinstance(value, (bool, int, float))


def describe(hint: Any) -> str:
    """A type in words: `list[int] | None` -> "a list of whole numbers or null"."""
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(describe(each) for each in get_args(hint))
    if get_origin(hint) is list:
        return f"a list, each {describe(get_args(hint)[0])}"
    return NAMES[hint]


def shown(value: Any) -> str:
    """A value as YAML writes it, in one short line."""
    if isinstance(value, str) and value and value.isprintable():
        text = value
    else:
        text = yaml.safe_dump(outline(value), default_flow_style=True, width=math.inf).removesuffix("...\n")
    text = " ".join(text.split())
    return text if len(text) <= 60 else text[:57] + "..."


def outline(value: Any, depth: int = 3) -> Any:
    """As much of a value as a line can show: writing all of a large or deeply nested one takes very long."""
    if isinstance(value, str):
        return value[:60]
    if isinstance(value, (list, dict)) and depth == 0:
        return "..."
    if isinstance(value, list):
        return [outline(item, depth - 1) for item in value[:30]]
    if isinstance(value, dict):
        return {outline(key, depth - 1): outline(item, depth - 1) for key, item in islice(value.items(), 30)}
    return value
