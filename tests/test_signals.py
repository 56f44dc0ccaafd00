"""Signals: what they save, how a run ends, and what becomes of the processes of a launcher that gets one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from conftest import (
    FAULTY,
    INTERRUPTIBLE,
    REPOSITORY,
    continue_here,
    program_command,
    program_environment,
    run_program_process,
    succeeded,
)
from process_families import family
from run_records import differences, read_metrics, weights

from featdepth.training.checkpoint import (
    checkpoints,
)

GRACE = 30  # seconds that a scheduler gives a job to save itself
# Of a run that is stopped, with a checkpoint by its signal alone.
ENDLESS = [
    "train.epochs=100",
    "train.accumulate=8",
    "train.log_every=1",
    "train.checkpoint_every=1000",
    "data.workers=1",
]


class Started:
    """A program that runs in the background, in a process group of its own."""

    def __init__(self, arguments: list[object], log: Path, processes: int = 1, **environment: str) -> None:
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                program_command(arguments, processes),
                cwd=REPOSITORY,
                env=program_environment() | environment,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def wait_until(self, ready: Callable[[], bool], seconds: float = 200) -> None:
        started = time.monotonic()
        while not ready():
            assert self.process.poll() is None, f"it ended early:\n{self.log.read_text()}"
            assert time.monotonic() - started < seconds, f"it takes too long:\n{self.log.read_text()}"
            time.sleep(0.02)

    def end(self, seconds: float = 200) -> int:
        return self.process.wait(seconds)

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in family(self.process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


class TestSignals:
    def test_save_and_go_on_then_stop(self, finished_run: Path, config_file: Path, run_directory: Path) -> None:
        """SIGUSR1, then SIGTERM to everything, loader processes included, as schedulers send it.

        Meanwhile the run directory is locked against a second run; after the end it is free.
        """
        options = [*INTERRUPTIBLE, "train.checkpoint_every=100", "data.workers=1"]
        arguments = ["train.py", "--cpu", "--config", config_file, f"run.directory={run_directory}", *options]
        folder = run_directory / "checkpoints"
        with Started([*arguments, "--resume"], run_directory.parent / "log") as run:
            run.wait_until((run_directory / "metrics.jsonl").exists)  # the third step is done
            line = continue_here(config_file, run_directory).error_line()
            assert f"in use by another run (process {run.process.pid} on " in line
            os.kill(run.process.pid, signal.SIGUSR1)
            run.wait_until(lambda: bool(checkpoints(folder)))
            os.killpg(run.process.pid, signal.SIGTERM)
            assert run.end(GRACE) == 143
            assert "--resume" in run.log.read_text() and "error" not in run.log.read_text()
        assert not list(folder.glob(".*"))
        result = succeeded(continue_here(config_file, run_directory, "train.checkpoint_every=100"))
        assert "continued from" in result.out
        assert differences(finished_run, run_directory) == []

    def test_interrupt_of_a_launcher_that_sends_it_on_is_one(self, config_file: Path, run_directory: Path) -> None:
        arguments = ["train.py", "--cpu", "--config", config_file, f"run.directory={run_directory}", *ENDLESS]
        with Started(arguments, run_directory.parent / "log") as run:
            run.wait_until((run_directory / "metrics.jsonl").exists)
            os.killpg(run.process.pid, signal.SIGINT)
            time.sleep(0.2)
            os.killpg(run.process.pid, signal.SIGINT)  # a launcher sends on what it gets: still the first one
            assert run.end(GRACE) == 130
            assert "Ctrl-C again" in run.log.read_text()
        assert len(checkpoints(run_directory / "checkpoints")) == 1

    @pytest.mark.long
    def test_interrupt_twice_ends_at_once(self, config_file: Path, run_directory: Path) -> None:
        arguments = ["train.py", "--cpu", "--config", config_file, f"run.directory={run_directory}", *ENDLESS]
        with Started(arguments, run_directory.parent / "log") as run:
            run.wait_until((run_directory / "metrics.jsonl").exists)
            os.kill(run.process.pid, signal.SIGINT)
            time.sleep(1.2)
            if run.process.poll() is None:
                os.kill(run.process.pid, signal.SIGINT)
            # At its very end Python leaves signals to the system, which a shell tells as 130 too.
            assert run.end(10) in (130, -signal.SIGINT)

    @pytest.mark.parametrize(("variable", "code"), [("ACCELERATE_MIXED_PRECISION", 0), ("TORCHELASTIC_RUN_ID", 143)])
    def test_an_orphan_of_a_launcher_ends_and_a_child_of_a_shell_does_not(self, variable: str, code: int) -> None:
        """Accelerate's variables may be set in anybody's shell; those of torchrun come from torchrun."""
        program = "from featdepth.parallel.launcher import end_with_launcher; end_with_launcher()"
        command = ["bash", "-c", f"'{sys.executable}' -c '{program}'; exit $?"]
        environment = program_environment() | {variable: "no"}
        assert subprocess.run(command, env=environment, cwd=REPOSITORY, check=False).returncode == code

    @pytest.mark.long
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
    def test_launcher_of_one_process_ends(
        self, config_file: Path, run_directory: Path, tmp_path: Path, number: int
    ) -> None:
        """It passes nothing on, and its process notices that it is gone."""
        options = ["train.epochs=100", "train.log_every=1", f"run.directory={run_directory}", "data.workers=1"]
        command = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines", "1"]
        command += ["--mixed_precision", "no", "--dynamo_backend", "no", FAULTY, "none", 0, 0, "--"]
        with Started(
            [*command, "--cpu", "--config", config_file, *options], tmp_path / "log", EXIT_CODES=tmp_path
        ) as run:
            run.wait_until((run_directory / "metrics.jsonl").exists)
            os.kill(run.process.pid, number)
            run.end(GRACE)
            started = time.monotonic()
            while not (tmp_path / "0").exists():
                assert time.monotonic() - started < GRACE
                time.sleep(0.1)
        assert (tmp_path / "0").read_text() == "143"
        assert len(checkpoints(run_directory / "checkpoints")) == 1

    def test_launcher_of_two_processes_is_told_to_stop(
        self, config_file: Path, run_directory: Path, tmp_path: Path
    ) -> None:
        codes = self.stop_two_processes(config_file, run_directory, tmp_path, signal.SIGTERM)
        assert codes == {"0": "143", "1": "143"}
        (saved,) = checkpoints(run_directory / "checkpoints")
        assert {path.name for path in saved.iterdir()} >= {"random_states_0.pkl", "random_states_1.pkl"}

    @staticmethod
    def stop_two_processes(config_file: Path, run_directory: Path, tmp_path: Path, number: int) -> dict[str, str]:
        """The exit codes of two processes, by rank, whose launcher gets the signal."""
        codes = tmp_path / "codes"
        codes.mkdir()
        options = [*INTERRUPTIBLE, "train.checkpoint_every=100", f"run.directory={run_directory}", "train.log_every=1"]
        command = [FAULTY, "none", 0, 0, "--", "--cpu", "--config", config_file, *options]
        with Started(command, tmp_path / "log", processes=2, EXIT_CODES=str(codes)) as run:
            run.wait_until((run_directory / "metrics.jsonl").exists)
            os.kill(run.process.pid, number)
            run.end(GRACE)
        return {path.name: path.read_text() for path in codes.iterdir()}

    @pytest.mark.long
    def test_two_interrupted_processes_continue(
        self, two_process_run: Path, config_file: Path, run_directory: Path, tmp_path: Path
    ) -> None:
        codes = self.stop_two_processes(config_file, run_directory, tmp_path, signal.SIGINT)
        assert codes == {"0": "130", "1": "130"}
        arguments = ["train.py", "--cpu", "--config", config_file, *INTERRUPTIBLE, f"run.directory={run_directory}"]
        succeeded(run_program_process([*arguments, "data.workers=0", "--resume"], processes=2))
        trained = [line for line in read_metrics(two_process_run) if line["split"] == "validation"][-1]["loss"]
        assert [line for line in read_metrics(run_directory) if line["split"] == "validation"][-1]["loss"] == trained
        one, other = weights(two_process_run), weights(run_directory)
        assert [name for name in one if not torch.equal(one[name], other[name])] == []
