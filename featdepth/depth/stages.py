"""The stages of a film's way to depth: which are done, and the running of the others, each a program of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from featdepth.console import command
from featdepth.errors import InputError
from featdepth.files import read_object, write_text

RECORD = "depth.json"
LARGEST_RECORD = 1 << 20  # bytes


class Stages:
    """The record of what was asked for in a folder, and of each stage's command and seconds (null: not finished)."""

    def __init__(self, out: Path, asked: dict[str, Any]) -> None:
        """Raises InputError where the folder holds anything else, or was begun with something else asked for."""
        self.path, self.done = out / RECORD, {}
        if out.exists() and not out.is_dir():
            raise InputError(f"{out}: is a file; choose a new or empty folder for --out")
        if self.path.exists():
            problem = "cannot be understood; choose another --out"
            record = read_object(self.path, LARGEST_RECORD, "the record", problem)
            before, self.done = record.get("asked"), record.get("stages")
            if not (isinstance(before, dict) and isinstance(self.done, dict)):
                raise InputError(f"{self.path}: {problem}")
            for name, value in asked.items():
                if before.get(name) != value:
                    change = f"was {before.get(name)}, is {value}"
                    raise InputError(f"{out}: was begun with another {name} ({change}); choose another --out")
        elif out.is_dir() and any(out.iterdir()):
            raise InputError(f"{out}: is not empty; choose a new or empty folder for --out")
        self.asked = asked
        self.write()

    def write(self) -> None:
        write_text(self.path, json.dumps({"asked": self.asked, "stages": self.done}, indent=1) + "\n")

    def run(
        self,
        name: str,
        words: list[str],
        good: Collection[int] = (0,),
        seconds: float | None = None,
        otherwise: Sequence[str] = (),
    ) -> int:
        """Run a stage that is not done yet, and return its exit code; one that is not `good` ends this program, too.

        words: its command, without the interpreter; seconds: after which it is asked to stop, as by SIGTERM;
        otherwise: words that are added where the stage was begun with another command.
        """
        known = self.done.get(name, {"command": words})
        if known["command"] == words and known.get("seconds") is not None:
            print(f"\n[{name}] done before: {command(['python', *words])}")
            return known["code"]
        more = otherwise if known["command"] != words else ()
        self.done[name] = {"command": words, "seconds": None}
        self.write()
        print(f"\n[{name}] {command(['python', *words, *more])}")
        started = time.monotonic()
        code = run_child([sys.executable, *words, *more], seconds)
        if code not in good:
            sys.exit(code)
        self.done[name] |= {"seconds": round(time.monotonic() - started, 1), "code": code}
        self.write()
        return code


def run_child(words: list[str], seconds: float | None) -> int:
    """Run a command to its end. What asks this program to stop is passed on, and then ends this program as well.

    seconds: after which it is sent SIGTERM.
    """
    stopped_by: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        stopped_by.append(number)
        child.terminate()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with subprocess.Popen(words) as child:
            try:
                code = child.wait(seconds)
            except subprocess.TimeoutExpired:
                child.terminate()
                code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stopped_by:
        sys.exit(128 + stopped_by[0])
    return code if code >= 0 else 128 - code
