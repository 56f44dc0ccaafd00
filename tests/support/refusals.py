"""Refusals of what somebody could make on purpose, within limits of time and memory."""

from __future__ import annotations

import multiprocessing
import resource
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from featdepth.errors import InputError, one_line
from featdepth.models.saved.torch_files import read_torch_file

TIME_LIMIT = 30  # seconds
MEMORY_LIMIT = 200 << 20  # bytes that a refusal may take


def refusal(function: Callable, *arguments: object) -> str:
    """The one line that `function` ends in, within the limits; in a process of its own, which can be ended."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=send_refusal, args=(sender, function, *arguments))
    process.start()
    sender.close()
    answer = receiver.recv() if receiver.poll(TIME_LIMIT) else "it hangs"
    process.kill()
    process.join()
    assert isinstance(answer, tuple), answer
    line, memory = answer
    assert "\n" not in line and len(line) < 1000, line
    assert memory < MEMORY_LIMIT, f"{memory >> 20} MiB"
    return line


def send_refusal(sender: Connection, function: Callable, *arguments: object) -> None:
    torch.set_num_threads(1)  # a fork has none of the others
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        sender.send(f"not refused: {function(*arguments)!r:.200}")
    except InputError as error:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        sender.send((one_line(error), memory << (0 if sys.platform == "darwin" else 10)))
    except BaseException as error:
        sender.send(f"{type(error).__name__}: {error}")


def read_pth(path: Path) -> None:
    """Read weights as training does."""
    read_torch_file(path, "model.pretrained")
