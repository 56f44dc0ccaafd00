"""Programs that the arena starts, one at a time, and ends with itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import LAUNCH_VARIABLES, REPOSITORY
from featdepth.errors import InputError


def run_script(words: Sequence[object], log: Path, threads: int, what: str) -> float:
    """Run `python WORDS` in the repository; seconds that it took. See `run_command`."""
    return run_command([sys.executable, *map(str, words)], log, threads, what)


def run_command(command: list[str] | str, log: Path, threads: int, what: str) -> float:
    """Run a program, or a text in a shell, with so many threads and what it prints in `log`; seconds that it took.

    what: it is, for the message of the InputError where it fails. Where the arena ends, the program is told to end too,
    and waited for: a training saves its state then.
    """
    kept = {name: value for name, value in os.environ.items() if name not in LAUNCH_VARIABLES}
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            shell=isinstance(command, str),
            cwd=REPOSITORY,
            env=kept | {"OMP_NUM_THREADS": str(threads)},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            raise
    if code != 0:
        last = (log.read_text(errors="replace").strip().splitlines() or ["nothing"])[-1]
        raise InputError(f"{what} ended with code {code}: {last.removeprefix('error: ')} (all it said: {log})")
    return time.perf_counter() - started
