"""What the benchmarks share: options, the machine's name, interleaved rounds, peak memory, programs, tables, JSON.

Every benchmark imports this module before the package, which it makes importable from any folder.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))

PRECISIONS = {"float32": "no", "bfloat16": "bf16"}  # and what Accelerate calls them
NAME_WIDTH = 42  # characters of a table's first column
WARM_UP = 2  # calls of each run that are not counted
# A step on a GPU is over so soon that a single one would mostly measure the waiting for it.
CALLS = {"cpu": 1, "cuda": 10}
# Names that Accelerate and torchrun read; a benchmark decides on them, not the shell it is started from.
LAUNCH_VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Column(NamedTuple):
    """A column of a table: the key of the figure, its title and how many digits follow the point."""

    key: str
    title: str
    digits: int


def make_parser(description: str, repeat: int, on_gpu: bool = True) -> argparse.ArgumentParser:
    """A parser with the options of every benchmark: --repeat, --json, and --cpu where a GPU could be used."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=repeat, help=f"rounds that count (default: {repeat})")
    if on_gpu:
        parser.add_argument("--cpu", action="store_true", help="use no GPU")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    return parser


def size(text: str) -> tuple[int, int]:
    """`HEIGHTxWIDTH` in pixels, as (height, width)."""
    height, width = text.split("x")
    return int(height), int(width)


def add_variants(parser: argparse.ArgumentParser) -> None:
    """Options for what is fast on a GPU; to be settled by `choose_variants`."""
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, help="default: float32; on a GPU all")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="compiled too; default: on a GPU")


def choose_variants(arguments: argparse.Namespace, device: torch.device) -> None:
    """On a GPU everything, unless told otherwise; on a CPU the plain form."""
    if arguments.precisions is None:
        arguments.precisions = list(PRECISIONS) if device.type == "cuda" else ["float32"]
    if arguments.compile is None:
        arguments.compile = device.type == "cuda"


def device_of(arguments: argparse.Namespace) -> torch.device:
    """The GPU where there is one, unless --cpu."""
    return torch.device("cuda" if torch.cuda.is_available() and not arguments.cpu else "cpu")


def machine(device: torch.device, threads: int | None = None) -> str:
    """The name of the device; of a CPU with the number of `threads` in use (default: those of this process)."""
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    threads = threads or torch.get_num_threads()
    return f"{names[0] if names else platform.processor()}, {threads} thread{'s' if threads > 1 else ''}"


def start(device: torch.device, settings: dict[str, object], threads: int | None = None) -> dict:
    """Print on what and how it is measured; the same as the beginning of what --json writes."""
    result = {"machine": machine(device, threads), "torch": torch.__version__, "settings": settings}
    print(f"{result['machine']}, torch {torch.__version__}")
    print(", ".join(f"{name} {value}" for name, value in settings.items()))
    return result


def finish(result: dict, arguments: argparse.Namespace) -> None:
    """Write the figures where --json says."""
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def heading(columns: list[Column]) -> str:
    """The first line of a table."""
    return " " * NAME_WIDTH + "".join(f"{column.title:>12}" for column in columns)


def table_line(name: str, row: dict[str, float], columns: list[Column]) -> str:
    """A row of a table; empty where the row has no such figure."""
    figures = (f"{row[column.key]:.{column.digits}f}" if column.key in row else "" for column in columns)
    return f"{name:{NAME_WIDTH}}" + "".join(f"{figure:>12}" for figure in figures)


def compiled(function: Callable, **options: object) -> Callable:
    """`function`, compiled when it is called first, for the very sizes it meets; what was compiled before starts anew.

    To be used for all runs before any of them is called.
    """
    torch.compiler.reset()  # after eight forms of one function torch would go on with it uncompiled, without a word
    return torch.compile(function, dynamic=False, **options)


def interleaved(runs: dict[str, Callable[[], object]], repeat: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of a call of every run in each of `repeat` rounds, after a warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        for _ in range(WARM_UP):
            run()
    for _ in range(repeat):
        for name, run in runs.items():
            seconds[name].append(seconds_of(run, device))
    return seconds


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, with all that it leaves to the device; on a GPU the mean of several."""
    synchronise(device)
    started = time.perf_counter()
    for _ in range(CALLS[device.type]):
        run()
    synchronise(device)
    return (time.perf_counter() - started) / CALLS[device.type]


def synchronise(device: torch.device) -> None:
    """Wait for the GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def median_ratio(own: list[float], other: list[float]) -> float:
    """The median over the rounds of `own` / `other` within a round: what slows a whole round cancels."""
    return statistics.median(one / another for one, another in zip(own, other, strict=True))


def peak_memory(device: torch.device) -> float:
    """Largest memory in GB that this process has used so far, of the GPU or of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    # Not getrusage's figure, which begins with that of the parent process.
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(peak) * 1024 / 1e9


def run_python(words: list[object], threads: int | None = None, **variables: str) -> str:
    """What `python WORDS` prints, run in the repository with so many threads (default: torch's own choice).

    variables: of the environment. Its complaints are shown where it fails.
    """
    kept = {name: value for name, value in os.environ.items() if name not in LAUNCH_VARIABLES}
    kept = {name: value for name, value in kept.items() if not name.startswith("ACCELERATE_")}
    if threads is not None:
        kept["OMP_NUM_THREADS"] = str(threads)
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, cwd=REPOSITORY, env=kept | variables, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} ended with code {done.returncode}\n{done.stderr}")
    return done.stdout


def read_intervals(run_directory: Path) -> list[dict]:
    """The train lines of a run's metrics.jsonl."""
    lines = map(json.loads, (run_directory / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["split"] == "train"]
