"""What the processes of one run decide together: failures, and what signals ask for."""

from __future__ import annotations

import atexit
import ctypes
import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from featdepth.errors import FailedElsewhere, InputError, one_line

Answer = TypeVar("Answer")

# What can be asked of a run, by ascending weight.
NOTHING, SAVE, INTERRUPT, TERMINATE = range(4)
EXIT_CODES = {INTERRUPT: 130, TERMINATE: 143}
ASKED_BY = {signal.SIGUSR1: SAVE, signal.SIGINT: INTERRUPT, signal.SIGTERM: TERMINATE}
LAUNCHER = re.compile(rb"[^\0]*python[^\0]*\0.*(accelerate|torchrun|torch\.distributed)", re.DOTALL)  # its command line
PR_SET_PDEATHSIG = 1  # of linux/prctl.h
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h
AGREE_SECONDS = 1.0  # processes agree about this often, but at least every tenth step
AGREE_STEPS = 10
REPEATED_SECONDS = 1.0
LOADER_GRACE = 60  # seconds


def end_with_launcher() -> None:
    """Ask Linux for a SIGTERM when the launcher of this process dies, which would leave it alone and unwatched.

    Launchers start their processes in sessions of their own, and one that was killed takes none of them along. To be
    called first, before anything waits for the launcher; ends the process where that is gone already.
    """
    if sys.platform != "linux":
        return
    parent = command_of_parent()
    is_elastic = "TORCHELASTIC_RUN_ID" in os.environ
    if is_elastic or (parent is not None and LAUNCHER.match(parent)):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    # An orphan's parent is the first process of the system or container; a launcher is a Python program.
    if is_elastic and parent is not None and b"python" not in parent.partition(b"\0")[0]:
        sys.exit(EXIT_CODES[TERMINATE])


def command_of_parent() -> bytes | None:
    """The command line of the process that started this one, its words ended by zero bytes; None where it is hidden.

    In a container it is often outside (process 0), `/proc` may hide other users' processes (`hidepid`) or be no mount
    at all, and other systems have none.
    """
    try:
        return Path(f"/proc/{os.getppid()}/cmdline").read_bytes()
    except OSError:
        return None


def keep_freed_memory() -> None:
    """Let glibc keep for the next step what a step on the CPU has freed.

    It would give large tensors back to Linux, which fills each of their pages with zeros when they come again: a tenth
    of a step, and far more on a machine that is shared.
    """
    if hasattr(ctypes.CDLL(None), "mallopt"):
        ctypes.CDLL(None).mallopt(M_MMAP_MAX, 0)
        ctypes.CDLL(None).mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def together(accelerator: Accelerator, work: Callable[[], Answer], main_only: bool = False) -> Answer | None:
    """The result of `work()` on this process, or on the main process alone (then None on the others).

    Where it raises InputError or OSError on any process, all of them end with an error instead of waiting for one
    another: the process itself with its own, the others with FailedElsewhere. Every process enters.
    """
    result, failure = None, None
    try:
        if accelerator.is_main_process or not main_only:
            result = work()
    except (InputError, OSError) as error:
        failure = error
    failures = gather_object([None if failure is None else one_line(failure)])
    if failure is not None:
        raise failure
    for message in failures:
        if message is not None:
            raise FailedElsewhere(message)
    return result


class Requests:
    """What signals ask of this run, agreed among all of its processes, so that all of them act at the same step.

    SIGTERM and SIGINT: save and stop; a second SIGINT ends the process at once. SIGUSR1: save and go on.
    """

    def __init__(self, accelerator: Accelerator, timeout: timedelta) -> None:
        """Listen from now on. Every process enters."""
        self.asked = NOTHING
        self.interrupted: float | None = None  # when the first SIGINT came
        # Agreeing is the hosts' business: a group of its own neither waits for the GPUs nor makes them wait.
        self.group = None
        if accelerator.num_processes > 1:
            self.group = torch.distributed.new_group(backend="gloo", timeout=timeout)
        self.calls, self.every, self.since = 0, 1, time.perf_counter()
        for number in ASKED_BY:
            signal.signal(number, self.receive)

    def receive(self, number: int, _frame: FrameType | None) -> None:
        self.asked = max(self.asked, ASKED_BY[signal.Signals(number)])
        if number == signal.SIGINT:
            # The terminal sends it to every process, and a launcher that gets it sends it on: both together are one.
            if self.interrupted is not None and time.monotonic() - self.interrupted > REPEATED_SECONDS:
                os._exit(EXIT_CODES[INTERRUPT])
            if self.interrupted is None:
                self.interrupted = time.monotonic()
                os.write(2, b"\nsaving and stopping after this step; Ctrl-C again stops at once\n")

    def agreed(self, at_once: bool = False) -> int:
        """What any process was asked for: NOTHING, SAVE, INTERRUPT or TERMINATE. A wish to save is then fulfilled.

        Every process calls this equally often. They exchange their wishes about once a second (`at_once`: now).
        """
        self.calls += 1
        if self.group is not None and self.calls < self.every and not at_once:
            return NOTHING
        own = asked = self.asked
        if self.group is not None:
            seconds = (time.perf_counter() - self.since) / self.calls
            wishes = torch.tensor([float(own), seconds])
            torch.distributed.all_reduce(wishes, torch.distributed.ReduceOp.MAX, group=self.group)
            asked, seconds = int(wishes[0]), float(wishes[1])
            if not at_once:
                self.every = min(AGREE_STEPS, max(1, int(AGREE_SECONDS / seconds)))
            self.calls, self.since = 0, time.perf_counter()
        if own == SAVE:  # and not what has come in meanwhile
            self.asked = self.asked if self.asked > SAVE else NOTHING
        return asked

    def close(self) -> None:
        """Give the signals back."""
        for number in ASKED_BY:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def outlive_signals(_worker: int) -> None:
    """For loader processes: a signal to the whole group leaves them at work until the run has saved.

    They end with their run; as orphans, or told to terminate, at the latest a minute later.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, lambda _number, _frame: signal.alarm(LOADER_GRACE))


@atexit.register
def end_loader_processes() -> None:
    """At exit nobody waits for their samples any more, and Python would wait for them."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for child in multiprocessing.active_children():
        child.kill()
