"""The folder of a run, used by one run at a time."""

from __future__ import annotations

import fcntl
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from accelerate import Accelerator

from featdepth.config import Config, save_config
from featdepth.errors import InputError
from featdepth.models import FeatDepth
from featdepth.models.saved.provenance import versions
from featdepth.parallel.processes import on_all_processes, on_main_process

LOCK = ".lock"


class RunDirectory:
    """The folder of a run, used by one run at a time. Every process calls this; the main one does the work."""

    def __init__(self, accelerator: Accelerator, config: Config, resume: bool) -> None:
        """Look at the folder, and lock it where it exists; nothing else is written.

        Raises InputError for one that is in use or holds links, and unless `resume` for one that is not empty.
        """
        self.accelerator, self.config, self.resume = accelerator, config, resume
        self.path = Path(config.run.directory)
        self.lock: TextIO | None = None  # the main process's, for as long as it lives
        on_main_process(accelerator, self.check)

    def check(self) -> None:
        """InputError where the folder is not to be used; it is locked where it is."""
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path}: is a file; choose another run.directory")
        if not self.path.is_dir():
            return
        if not self.resume and any(path.name != LOCK for path in self.path.iterdir()):
            raise InputError(
                f"{self.path}: holds a run already; continue it with --resume, or choose another run.directory"
            )
        for path in (*self.path.iterdir(), *self.path.glob("checkpoints/*")):
            if path.is_symlink():
                raise InputError(
                    f"{path}: is a symbolic link, and the run would write or remove what it leads to; remove it "
                    "(run.directory itself may be a link)"
                )
        self.take_lock()

    def take_lock(self) -> None:
        """Lock the folder against other runs. The lock ends with this process, however that ends."""
        if self.lock is not None:
            return
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
            self.lock = open(os.open(self.path / LOCK, flags, 0o644), "r+")  # noqa: SIM115
            fcntl.lockf(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = self.lock.read(200).strip()
            raise InputError(f"{self.path}: in use by another run ({holder}); wait for it, or stop it") from None
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written to ({error.strerror}); set run.directory") from error
        self.lock.truncate(0)
        self.lock.write(f"process {os.getpid()} on {platform.node()}")
        self.lock.flush()

    def make(self) -> None:
        """Make the folder and note what the run is made with. InputError if it cannot be written, or not by all."""
        on_main_process(self.accelerator, self.write)
        on_all_processes(self.accelerator, self.check_visible)

    def write(self) -> None:
        """Make the folder and its `config.yaml`."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.check()  # another run may have come first
            save_config(self.config, self.path / "config.yaml", "\n".join(versions()))
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written to ({error.strerror}); set run.directory") from error

    def keep_model(
        self, model: FeatDepth, is_best: bool, check: Callable[[FeatDepth, str], None] | None = None
    ) -> None:
        """Write `model_last/`, and `model/` where it is the best so far.

        check: at the end of a training, what looks at the "last" and the "best" model before they are written.
        """
        if check is not None:
            check(model, "last")
        model.save_pretrained(self.path / "model_last")
        directory = self.path / "model"
        if is_best:
            model.save_pretrained(directory)
        elif check is not None and directory.is_dir():
            best = FeatDepth.from_pretrained(directory).to(self.accelerator.device)
            check(best, "best")
            best.save_pretrained(directory)

    def check_visible(self) -> None:
        """InputError where this process does not see what the main process has written."""
        if not self.path.is_dir() or "config.yaml" not in os.listdir(self.path):
            raise InputError(
                f"{self.path}: process {self.accelerator.process_index} on {platform.node()} does not see what the "
                "main process writes there; run.directory must be on a disk that all machines share"
            )
