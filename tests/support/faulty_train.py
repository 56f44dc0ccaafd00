"""train.py with a fault: python faulty_train.py FAULT [RANK] [STEP] -- ARGUMENTS OF train.py

FAULT, on process RANK before step STEP (from 1): `nan` (that step's loss), `nan_on` (and all later ones), `die`,
`hang`, `kill_loader`, `remove_images:FOLDER`, `none`. Where the variable EXIT_CODES names a folder, each process notes
there the exit code that it ends with.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

import train
from featdepth import errors

step = 0


def faulty_losses(prediction, batch, config):
    """compute_losses of the run, after the fault; a run of these tests has one batch a step."""
    global step
    losses = compute_losses(prediction, batch, config)
    if not torch.is_grad_enabled():
        return losses  # validation
    step += 1
    if int(os.environ.get("RANK", "0")) != int(rank) or step < int(at) or (step > int(at) and fault != "nan_on"):
        return losses
    if fault in ("nan", "nan_on"):
        return {name: loss * torch.nan for name, loss in losses.items()}
    if fault == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "hang":
        threading.Event().wait()
    if fault == "kill_loader":
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    if fault.startswith("remove_images:"):
        for path in Path(fault.partition(":")[2]).rglob("*.png"):
            path.unlink()
    return losses


def note_exit_code(leave):
    def noted(code):
        if "EXIT_CODES" in os.environ and os.getpid() == main_process:  # loader processes end here too
            (Path(os.environ["EXIT_CODES"]) / os.environ.get("RANK", "0")).write_text(str(code))
        leave(code)

    return noted


main_process = os.getpid()
fault, rank, at = sys.argv[1:4]
sys.argv = ["train.py", *sys.argv[5:]]
compute_losses, train.compute_losses = train.compute_losses, faulty_losses
sys.exit, os._exit = note_exit_code(sys.exit), note_exit_code(os._exit)
errors.run_program(train.main)
