"""How far long work is, where the output is a file or a pipe."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import REPOSITORY, program_environment

from featdepth import console as progress
from featdepth.console import Display, watched


class Clock:
    """Time as the test has it."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress.time, "perf_counter", clock)
    return clock


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out.splitlines()


class TestDisplay:
    def test_a_line_after_the_first_unit_and_then_each_minute(
        self, clock: Clock, capsys: pytest.CaptureFixture[str]
    ) -> None:
        display = Display("training", 100, "steps", first_seconds=0)
        clock.now += 41.0
        display.update()
        assert lines_of(capsys) == ["training: 1 of 100 steps, 41 s each, left 1:07:39 at this pace"]
        for _ in range(7):
            clock.now += 20.0
            display.update()
        # What starting took is no part of the pace.
        assert lines_of(capsys) == [
            "training: 4 of 100 steps, 20 s each, left 0:32:00 at this pace",
            "training: 7 of 100 steps, 20 s each, left 0:31:00 at this pace",
        ]

    def test_a_line_of_somebody_else_serves(self, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
        display = Display("training", None, "steps", first_seconds=0)
        for step in range(9):
            clock.now += 20.0
            display.update()
            if step % 2:
                display.write("a line")
        assert lines_of(capsys) == ["training: 1 steps, 20 s each", *["a line"] * 4]

    def test_short_work_and_hidden_work_say_nothing(self, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
        for seconds, hidden in ((0.9, False), (99.0, True)):
            for _ in watched(range(10), "work", "things", 10, hidden=hidden):
                clock.now += seconds
        assert lines_of(capsys) == []

    def test_work_that_goes_on(self, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
        for _ in watched(range(8), "film", "frames", 1008, done=1000):
            clock.now += 3.0
        assert lines_of(capsys) == ["film: 1004 of 1008 frames, 3 s each, left 0:00:12 at this pace"]


def test_lines_reach_a_pipe_when_they_are_printed() -> None:
    program = (
        "import sys, time; from featdepth.errors import run_program\n"
        "run_program(lambda: (print('now'), sys.stdin.readline()))"
    )
    command = [sys.executable, "-c", program]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=REPOSITORY, env=program_environment(), **pipes) as process:
        assert process.stdout.readline() == "now\n"  # else both would wait for each other
        process.stdin.write("\n")
        process.stdin.flush()
    assert process.returncode == 0
