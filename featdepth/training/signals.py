"""What signals ask of a run, decided by all of its processes together."""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta
from types import FrameType
from typing import NamedTuple

import torch
from accelerate import Accelerator

from featdepth.errors import INTERRUPTED, TERMINATED

# By ascending weight: the strongest wish of any process counts.
NOTHING, SAVE, INTERRUPT, TERMINATE = range(4)
EXIT_CODES = {INTERRUPT: INTERRUPTED, TERMINATE: TERMINATED}
ASKED_BY = {signal.SIGUSR1: SAVE, signal.SIGINT: INTERRUPT, signal.SIGTERM: TERMINATE}
AGREE_SECONDS = 1.0  # processes agree about this often, but at least every tenth step
AGREE_STEPS = 10
REPEATED_SECONDS = 1.0


class Asked(NamedTuple):
    """What a run is asked for."""

    save: bool = False
    exit_code: int | None = None  # to end with; None: to go on

    @property
    def stop(self) -> bool:
        return self.exit_code is not None


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

    def agreed(self, at_once: bool = False) -> Asked:
        """What any process was asked for. A wish to save is then fulfilled; one to stop remains.

        Every process calls this equally often. They exchange their wishes about once a second (`at_once`: now).
        """
        self.calls += 1
        if self.group is not None and self.calls < self.every and not at_once:
            return Asked()
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
        return Asked(asked >= SAVE, EXIT_CODES.get(asked))

    def must_stop(self) -> bool:
        """Whether the run is to stop, agreed at once. Every process enters."""
        return self.agreed(at_once=True).stop

    def close(self) -> None:
        """Give the signals back."""
        for number in ASKED_BY:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
