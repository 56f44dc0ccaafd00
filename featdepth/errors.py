"""The one kind of error that a user can cause, and how the programs report it and others that have a known reason."""

from __future__ import annotations

import errno
import io
import os
import re
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

INTERRUPTED, TERMINATED = 130, 143  # exit codes after Ctrl-C, and after SIGTERM

# What the operating system says when the place that we write to is the problem, not the program.
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
# What gloo, NCCL and torch's store say when another process is gone or does not answer.
LOST_PROCESS = re.compile(
    r"gloo|NCCL|ProcessGroup|Connection (closed|reset|refused)|Broken pipe|connection was (closed|reset)"
    r"|timeout caused pair closure|store.*time|TCPStore|recvValue failed|sendBytes failed",
    re.IGNORECASE,
)
LOST_WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([0-9, ]+)\)(?: is killed by signal: (\w+))?")


class InputError(Exception):
    """Something the user gave cannot be used; the message says in one line what, where and what to do."""


class FailedElsewhere(InputError):
    """What another process of the same run has met, and reports itself."""


def one_line(error: BaseException) -> str:
    """The message of `error` in one line.

    A data loader worker sends its error with the whole traceback as text; the last line of it is the message.
    """
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1].removeprefix(f"{InputError.__module__}.{InputError.__qualname__}: ")


def end_at_interrupt() -> None:
    """Let Ctrl-C end this program without a traceback while it is still importing: `run_program` takes over then.

    Each program calls this between its first imports and the slow ones. An exception in their midst would not do:
    libraries catch it or make another of it.
    """
    # Whoever starts a program in the background of a script has it ignore Ctrl-C; so it remains.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end_interrupted)


def end_interrupted(_number: int, _frame: FrameType | None) -> NoReturn:
    os._exit(INTERRUPTED)


def run_program(main: Callable[[], None]) -> None:
    """Run `main`; an end that can be explained is one line on standard error, without a traceback.

    Exit code 2 for bad input or a place that cannot be written to, 130 after Ctrl-C, 1 for a lost process or loader
    process.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # lines in a file or a pipe are seen when they are printed
    if signal.getsignal(signal.SIGINT) is end_interrupted:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main()
    except FailedElsewhere:
        leave(2)
    except InputError as error:
        end_with(one_line(error), 2)
    except KeyboardInterrupt:
        leave(INTERRUPTED)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        end_with(f"{error.filename or 'output'}: {error.strerror}; free some space or choose another directory", 2)
    except RuntimeError as error:
        message = explain_loss(error)
        if message is None:
            raise
        end_with(message, 1)


def end_with(message: str, code: int) -> None:
    """Print one line on standard error and end."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    leave(code)


def leave(code: int) -> None:
    """End with `code`: at once where other processes are connected, whose loss would make an orderly end hang."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def explain_loss(error: RuntimeError) -> str | None:
    """What happened where memory or a process of the run is gone; None for any other error."""
    import torch
    from torch import distributed

    worker = LOST_WORKER.search(str(error))
    if worker:
        reason = f"killed by signal {worker[2]}" if worker[2] else "gone"
        if worker[2] == "Bus":
            return (
                f"loader process {worker[1]} is {reason}: no room is left in shared memory, /dev/shm; give a "
                "container more (docker run --shm-size=8g), or lower data.workers, and continue with --resume"
            )
        return (
            f"loader process {worker[1]} is {reason}, often for want of memory; lower data.workers or "
            "train.batch_size, and continue with --resume"
        )
    if "shared memory object" in str(error):
        return (
            f"loader processes have no shared memory ({one_line(error)[:160]}); mount /dev/shm, or set data.workers=0"
        )
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return (
            "there is not enough memory for a batch; lower train.batch_size (train.accumulate keeps the size of a "
            "step) or set train.gradient_checkpointing=true, and continue with --resume; predict has --batch-size"
        )
    connected = distributed.is_available() and distributed.is_initialized()
    if connected and (isinstance(error, distributed.DistError) or LOST_PROCESS.search(str(error))):
        rank, count = distributed.get_rank(), distributed.get_world_size()
        return (
            f"process {rank} of {count}: another process has ended or does not answer ({one_line(error)[:160]}); "
            "see its own message, and continue with --resume"
        )
    return None
