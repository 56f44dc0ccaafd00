"""How messages put numbers of things, and commands that are to be pasted into a shell."""

from __future__ import annotations

import shlex
from collections.abc import Iterable


def count(number: int, thing: str, things: str | None = None) -> str:
    """A number of things: `count(1, "clip")` is "1 clip", `count(2, "clip")` "2 clips"; things: an irregular plural."""
    return f"{number} {thing}" if number == 1 else f"{number} {things or f'{thing}s'}"


def command(words: Iterable[object]) -> str:
    """A command as a shell takes it, with quotation marks where a path or value needs them."""
    return shlex.join(map(str, words))
