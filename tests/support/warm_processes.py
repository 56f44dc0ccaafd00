"""Programs in processes of their own that start with torch imported: forks of a server that has done so once.

For tests that need a process, or two that are connected, but not the start of Python, a shell or a launcher.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import resource
import runpy
import socket
import sys
import time
from collections.abc import Sequence
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PRELOADED = ["torch._dynamo", "train", "evaluate", "featdepth.predict.__main__"]
PRELOADED += ["featdepth.doctor.__main__", "featdepth.export.__main__"]
LAUNCHER_NAMES = {"--dynamo_backend": "ACCELERATE_DYNAMO_BACKEND", "--mixed_precision": "ACCELERATE_MIXED_PRECISION"}
PATIENCE = 30  # seconds that a process has to notice that another has failed, before it is ended

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(PRELOADED)


def start_server(environment: dict[str, str]) -> None:
    """Start the server, unless it runs. It reads variables such as OMP_NUM_THREADS once, from `environment`."""
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)


def run_warm(
    words: list[str],
    environment: dict[str, str],
    folder: Path,
    processes: int,
    time_limit: float,
    launcher_options: Sequence[str] = (),
    file_limit: int | None = None,
    patience: float = PATIENCE,
) -> tuple[int, str, str]:
    """Run a program (`words`: a script, or -m and a module, and its arguments): exit code, output, errors.

    folder: an empty one, for the outputs. processes: connected ones, as a launcher on one machine starts them; where
    one fails the others are ended, and its code is the result.
    """
    start_server(environment)
    if processes > 1:
        environment = environment | launched_environment(processes, launcher_options)
    started = []
    for rank in range(processes):
        own = environment | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {})
        paths = folder / f"out_{rank}", folder / f"err_{rank}"
        started.append(context.Process(target=become, args=(words, own, *paths, file_limit)))
        started[-1].start()
    code = wait(started, time_limit, patience)
    out, err = (
        "".join((folder / f"{name}_{rank}").read_text() for rank in range(processes)) for name in ("out", "err")
    )
    return code, out, err


def launched_environment(processes: int, launcher_options: Sequence[str]) -> dict[str, str]:
    """What `accelerate launch` on one machine without GPUs tells its processes, but for their ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names, values = launcher_options[::2], launcher_options[1::2]
    return {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
        **{LAUNCHER_NAMES[name]: value for name, value in zip(names, values, strict=True)},
    }


def wait(started: list[BaseProcess], time_limit: float, patience: float) -> int:
    """The exit code of the first process that failed, or 0."""
    limit, code = time.monotonic() + time_limit, 0
    while running := [each for each in started if each.exitcode is None]:
        failed = [each.exitcode for each in started if each.exitcode]
        if failed and not code:
            code, limit = failed[0], min(limit, time.monotonic() + patience)
        if time.monotonic() > limit:
            for each in running:
                each.kill()
        running[0].join(0.02)
    return code or next((each.exitcode for each in started if each.exitcode), 0)


def become(words: list[str], environment: dict[str, str], out: Path, err: Path, file_limit: int | None) -> None:
    """Turn this process into the program."""
    os.setsid()
    os.chdir(REPOSITORY)
    multiprocessing.set_start_method(None, force=True)  # of loader processes: what it is in a fresh Python
    os.environ.clear()
    os.environ.update(environment)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    if file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            for name in (words[1], f"{words[1]}.__main__"):  # one that is there already makes Python warn
                if not hasattr(sys.modules.get(name), "__path__"):
                    sys.modules.pop(name, None)
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # as a program of its own does at its end, but not a child of multiprocessing
