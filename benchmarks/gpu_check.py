"""What a GPU must show, in one command: PASS, FAIL or figures for each check.

python benchmarks/gpu_check.py [--only NAME ...] [--seconds 480] [--out FILE] [--cpu]

numbers      losses and gradients of all objectives in float32, bfloat16 and float16, against float64 on the CPU
bad_steps    a float16 training into which losses that are not finite are put: found, undone, and the scale survives
waiting      no copy that the host waits for in steps of train.py outside of its log lines, of objectives and options
compiled     train.py with accumulation, compiled in the modes default and reduce-overhead, against eager
resume       train.py killed and resumed, against one that was not
processes    train.py on two GPUs (one process for each): their batch norms together against one process with the whole
             batch; and one of them is killed, which the other one has to notice
loader       the share of its time that a training waits for data (data_wait.py)
prediction   frames per second at batch 1 and 8 (prediction.py)
speed        steps of train.py: seconds, images per second, peak memory, ratio to the bare networks (step_time.py)

Each check is a process of its own, which is ended when its time is up; `speed` comes last and goes as far as the time
allows, the most important first. Without a GPU the same list runs small on the CPU, in at most five minutes. Needs
nothing but the requirements of training. --out FILE has all rows as JSON. Exit code 1: something failed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import torch
from gpu_numbers import bad_steps, numbers
from gpu_rows import Check, Context, Row
from gpu_runs import compiled, processes, resume, waiting
from gpu_speed import loader, prediction, speed
from measure import REPOSITORY, device_of, machine

from featdepth.models.saved.provenance import versions

CHECKS = {
    "numbers": Check(numbers, 30, 15),
    "bad_steps": Check(bad_steps, 25, 18),
    "waiting": Check(waiting, 40, 25),
    "compiled": Check(compiled, 120, 40),
    "resume": Check(resume, 40, 40),
    "processes": Check(processes, 60, 40, least_gpus=2),
    "loader": Check(loader, 50, 40),
    "prediction": Check(prediction, 15, 8),
    "speed": Check(speed, 160, 30),
}
SECONDS = {"cuda": 480, "cpu": 290}
LEAST_SHARE = 0.5  # of its usual time that has to be left for a check to be begun
STATUSES = ("PASS", "FAIL", "figure", "not run")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CHECKS, metavar="NAME", default=list(CHECKS), help="these checks")
    parser.add_argument("--seconds", type=float, help="that all of it may take (default: 480, without a GPU 290)")
    parser.add_argument("--out", type=Path, help="write all rows there as JSON")
    parser.add_argument("--cpu", action="store_true", help="use no GPU")
    parser.add_argument("--run", choices=CHECKS, help=argparse.SUPPRESS)  # one check, in this process
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = device_of(arguments)
    seconds = arguments.seconds or SECONDS[device.type]
    if arguments.run:
        run_here(arguments.run, Context(device, arguments.folder, time.monotonic() + seconds))
        return

    result = about(device)
    for name, value in result.items():
        print(f"{name:11} {value}")
    ends = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        checks = [name for name in CHECKS if name in arguments.only]  # in the order of the list
        rows = [
            row | {"check": name}
            for name in checks
            for row in run_check(name, Context(device, Path(folder), ends), announce=True)
        ]
    counts = {status: sum(row["status"] == status for row in rows) for status in STATUSES}
    print(", ".join(f"{count} {status}" for status, count in counts.items()))
    if arguments.out:
        arguments.out.write_text(json.dumps(result | {"rows": rows, "counts": counts}, indent=1) + "\n")
    sys.exit(1 if counts["FAIL"] else 0)


def about(device: torch.device) -> dict[str, object]:
    """The machine and what runs on it."""
    result: dict[str, object] = {"machine": machine(device), "versions": "; ".join(versions())}
    if device.type == "cuda":
        result["GPUs"] = torch.cuda.device_count()
        result["CUDA"] = f"{torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
        result["driver"] = driver()
    return result


def driver() -> str:
    """The version of the GPU's driver, as Linux tells it."""
    path = Path("/proc/driver/nvidia/version")
    return path.read_text().splitlines()[0] if path.is_file() else "unknown"


def run_check(name: str, context: Context, announce: bool = False) -> list[dict]:
    """The rows of a check, run in a process of its own that ends in time; announce: print them."""
    check, left = CHECKS[name], context.seconds_left()
    reason = check.reason_not_to_run(context)
    if reason is None and left < LEAST_SHARE * check.usual_seconds(context):
        reason = f"{left:.0f} s are left, it takes about {check.usual_seconds(context):.0f}; --only {name}"
    rows = [Row(name, "not run", note=reason).describe()] if reason else run_apart(name, check, context)
    for row in rows if announce else ():
        print(table_line(name, row), flush=True)
    return rows


def run_apart(name: str, check: Check, context: Context) -> list[dict]:
    """The same, in a new session, so that what it starts ends with it."""
    seconds = min(context.seconds_left(), check.most_seconds(context))
    words = [__file__, "--run", name, "--folder", context.folder, "--seconds", seconds]
    environment = dict(os.environ)
    if context.device.type == "cpu":
        words.append("--cpu")
        environment["OMP_NUM_THREADS"] = "1"  # small work; threads that wait for busy cores take several times as long
    errors, found = context.folder / f"{name}.errors", context.folder / f"{name}.rows"
    started = time.monotonic()
    with errors.open("wb") as log:
        command = [sys.executable, *map(str, words)]
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end_session(process)
    rows = [json.loads(line) for line in found.read_text().splitlines()] if found.is_file() else []
    if code != 0:
        end = f"did not end in {seconds:.0f} s" if code is None else f"ended with code {code}"
        text = errors.read_text(errors="replace").strip()
        print(f"\n{text[-4000:]}\n", file=sys.stderr)
        rows.append(
            Row("ends", "FAIL", note=f"{end}: {text.splitlines()[-1][:200] if text else 'no message'}").describe()
        )
    return [*rows, Row("time", "figure", {"s": time.monotonic() - started}).describe()]


def end_session(process: subprocess.Popen) -> None:
    """End a process that leads a session, and all others of it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_here(name: str, context: Context) -> None:
    """Run a check, and write each of its rows as soon as it is known; an error is a row too, and the others go on."""
    with (context.folder / f"{name}.rows").open("a") as file:
        for part, rows in CHECKS[name].parts(context).items():
            for row in without_errors(part, rows):
                file.write(json.dumps(row.describe()) + "\n")
                file.flush()


def without_errors(part: str, rows: Callable[[], Iterable[Row]]) -> Iterator[Row]:
    """The rows of a part of a check, and one more where it fails."""
    try:
        yield from rows()
    except Exception as error:
        traceback.print_exc()
        yield Row(part, "FAIL", note=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def table_line(check: str, row: dict) -> str:
    """A row for people."""
    figures = ", ".join(f"{value:.4g} {unit}" for unit, value in row["figures"].items())
    note = f"  ({row['note']})" if row["note"] else ""
    return f"{row['status']:8} {check:11} {row['name']:58} {figures}{note}"


if __name__ == "__main__":
    main()
