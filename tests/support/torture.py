"""Kill a small run again and again, resume it each time, and compare it with an undisturbed one.

python tests/support/torture.py --kills 40 [--processes 1 2] [--seed 0]

Half of the kills (SIGKILL) come at a random moment, half while a checkpoint is being written. With two processes some
hit one of them or the launcher alone, whose loss the others have to notice; the rest hit everything at once, as a power
cut does. In the end weights, optimizer state and every value of metrics.jsonl (timing aside) have to be the same, bit
for bit. Exit code 1 where they are not.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.extend(str(Path(__file__).parents[1] / folder) for folder in ("..", ".", "support/small_networks"))

from conftest import REPOSITORY, program_command, program_environment, write_tiny_config
from process_families import children, family, is_alive
from run_records import differences

from featdepth.data.synthetic import write_street

LONGEST_ATTEMPT = 300  # seconds
PATIENCE = 90  # seconds that a process may need to notice the loss of another


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=40, help="for each number of processes")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], choices=[1, 2])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="torture_") as folder:
        root = Path(folder) / "street"
        write_street(root, drives=4, frames=7, height=64, width=192, workers=1)
        config = write_tiny_config(Path(folder) / "tiny.yaml", root)
        same = [
            torture(Path(folder), config, processes, arguments.kills, random.Random(arguments.seed))
            for processes in arguments.processes
        ]
    return 0 if all(same) else 1


def torture(folder: Path, config: Path, processes: int, kills: int, dice: random.Random) -> bool:
    """One undisturbed and one tortured run on `processes`; prints what happened, and whether they are the same."""
    # About every second attempt gets a step further.
    options = [f"train.max_steps={max(4, kills // 2)}", "train.epochs=1000", "train.checkpoint_every=1"]
    options += ["train.accumulate=2", "train.log_every=3", "train.keep_checkpoints=2", "data.workers=1"]
    options += ["data.frames=[0, s]"]  # no pose network: half the bytes of a checkpoint
    command = program_command(["train.py", "--cpu", "--config", str(config), *options, "--resume"], processes)
    straight, tortured = folder / f"straight_{processes}", folder / f"tortured_{processes}"
    started = time.monotonic()
    end_of(start([*command, f"run.directory={straight}"], folder / "log"), folder / "log", code=0)
    # The time from the start to the first step of a resumed run and to the last: kills are spread over about it.
    duration = time.monotonic() - started
    print(f"{processes} processes: undisturbed in {duration:.0f} s", flush=True)

    count = {"at a random moment": 0, "while a checkpoint was written": 0, "one process or the launcher alone": 0}
    done = 0
    while done < kills:
        run = start([*command, f"run.directory={tortured}"], folder / "log")
        in_checkpoint = dice.random() < 0.5
        wait_for_moment(run, tortured / "checkpoints", in_checkpoint, dice, duration)
        if run.poll() is not None:
            end_of(run, folder / "log", code=0)  # it was done before its time had come
            shutil.rmtree(tortured)  # and is begun anew
            continue
        alone = processes > 1 and dice.random() < 0.3
        kill(run, alone, dice)
        done += 1
        count["while a checkpoint was written" if in_checkpoint else "at a random moment"] += 1
        count["one process or the launcher alone"] += alone
    end_of(start([*command, f"run.directory={tortured}"], folder / "log"), folder / "log", code=0)
    problems = differences(straight, tortured)
    print(f"  {kills} kills: " + ", ".join(f"{number} {name}" for name, number in count.items()))
    print(f"  {problems[0] if problems else 'the same weights, optimizer state and metrics'}", flush=True)
    shutil.rmtree(straight)
    shutil.rmtree(tortured)
    return not problems


def start(command: list[str], log: Path) -> subprocess.Popen:
    """Start a run in a process group of its own, so that all of it can be killed at once."""
    with log.open("w") as file:
        return subprocess.Popen(
            command, cwd=REPOSITORY, env=program_environment(), stdout=file, stderr=file, start_new_session=True
        )


def wait_for_moment(
    run: subprocess.Popen, folder: Path, in_checkpoint: bool, dice: random.Random, duration: float
) -> None:
    """Wait until the run is to be killed, or has ended: a random time, or while a checkpoint is being written."""
    limit = time.monotonic() + (LONGEST_ATTEMPT if in_checkpoint else dice.uniform(0, min(duration, 25)))
    while time.monotonic() < limit and run.poll() is None:
        if in_checkpoint and any(folder.glob(".step_*")):
            time.sleep(dice.uniform(0, 0.8))
            return
        time.sleep(0.005)


def kill(run: subprocess.Popen, alone: bool, dice: random.Random) -> None:
    """SIGKILL for everything, or for one process or the launcher alone; waits for the end of all."""
    everything = family(run.pid)
    chosen = [dice.choice([run.pid, *children(run.pid)])] if alone else everything
    for pid in chosen:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    limit = time.monotonic() + PATIENCE
    while any(is_alive(pid) for pid in everything):
        run.poll()
        if time.monotonic() > limit:
            raise SystemExit(f"after the loss of process {chosen} the others did not end within {PATIENCE} s")
        time.sleep(0.05)


def end_of(run: subprocess.Popen, log: Path, code: int) -> None:
    """Wait for a run, which has to end with `code`."""
    ended = run.wait(timeout=LONGEST_ATTEMPT * 10)
    if ended != code:
        raise SystemExit(f"exit code {ended} instead of {code}:\n{log.read_text()[-3000:]}")


if __name__ == "__main__":
    sys.exit(main())
