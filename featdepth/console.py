"""What programs say on the console: numbers of things, commands to paste, and how far a long piece of work is.

Progress is a bar on a terminal; in a file or a pipe it is a line soon, and then one each minute.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from tqdm import tqdm

FIRST_SECONDS = 10.0  # until the first line: shorter work needs none
INTERVAL_SECONDS = 60.0  # between lines

Thing = TypeVar("Thing")


def count(number: int, thing: str, things: str | None = None) -> str:
    """A number of things: `count(1, "clip")` is "1 clip", `count(2, "clip")` "2 clips"; things: an irregular plural."""
    return f"{number} {thing}" if number == 1 else f"{number} {things or f'{thing}s'}"


def first_names(names: Sequence[str], most: int = 3) -> str:
    """The first of the names, and how many there are besides: "a, b, c and 4 more"."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def command(words: Iterable[object]) -> str:
    """A command as a shell and a program take it, with quotation marks where a path or value needs them.

    A path that begins with a dash would be taken for an option, and one that begins with ~ for a home directory.
    """
    return shlex.join(f"./{word}" if isinstance(word, Path) and str(word)[:1] in "-~" else str(word) for word in words)


class Display:
    """Shows on standard error how much of some work is done, or prints it where that is no terminal."""

    def __init__(
        self,
        name: str,
        total: int | None,
        units: str,
        done: int = 0,
        first_seconds: float = FIRST_SECONDS,
        hidden: bool = False,
    ) -> None:
        """units: what is counted, in words; total: of them in all, None: unknown; done: of them before.

        first_seconds: until the first line, which comes with a unit that is done.
        """
        on_terminal = sys.stderr.isatty()
        self.bar = tqdm(
            desc=name,
            total=total,
            initial=done,
            unit=f" {units}",
            dynamic_ncols=True,
            disable=hidden or not on_terminal,
        )
        self.name, self.total, self.units, self.done = name, total, units, done
        self.speaks = not hidden and not on_terminal
        self.first_seconds, self.said_any = first_seconds, False
        # When the last line came, and from where the pace counts: after the first line without what starting took.
        self.said = self.since = time.perf_counter()
        self.done_before = done

    def update(self, count: int = 1) -> None:
        """Another `count` units are done."""
        self.bar.update(count)
        self.done += count
        now = time.perf_counter()
        if self.speaks and count and now - self.said >= (INTERVAL_SECONDS if self.said_any else self.first_seconds):
            print(self.line(now), flush=True)
            if not self.said_any:
                self.since, self.done_before, self.said_any = now, self.done, True
            self.said = now

    def line(self, now: float) -> str:
        """How much is done, how long a unit takes, and how long the rest will."""
        seconds = (now - self.since) / (self.done - self.done_before)
        pace = f"{seconds:.3g} s each" if seconds > 1 else f"{1 / max(seconds, 1e-9):.3g} a second"
        if self.total is None:
            return f"{self.name}: {self.done} {self.units}, {pace}"
        left = timedelta(seconds=round((self.total - self.done) * seconds))
        return f"{self.name}: {self.done} of {self.total} {self.units}, {pace}, left {left} at this pace"

    def write(self, text: str) -> None:
        """Print a line, which serves as one of the display's own."""
        self.bar.write(text)
        self.said = time.perf_counter()

    def close(self) -> None:
        self.bar.close()

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def watched(
    things: Iterable[Thing], name: str, units: str, total: int | None = None, done: int = 0, hidden: bool = False
) -> Iterator[Thing]:
    """`things` one by one; each counts as done when the next is asked for."""
    with Display(name, total, units, done, FIRST_SECONDS, hidden) as display:
        for thing in things:
            yield thing
            display.update()
