"""Checkpoints of a run: written whole or not at all, checked before they are used, exact on resume.

A checkpoint is Accelerate's state (weights, optimizer, random numbers of every process) and `manifest.json`, written
last: where the run stands, what it was made with, and size and digest of every file.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from accelerate.utils import load as load_plain_values
from safetensors import SafetensorError

from featdepth.errors import InputError, one_line
from featdepth.files import read_json
from featdepth.parallel.processes import on_all_processes, on_main_process
from featdepth.training.conditions import differences, same_place

MANIFEST = "manifest.json"
SCALER = "scaler.pt"  # Accelerate's name for the scale of the loss in fp16
PREFIX = "step_"
LARGEST_MANIFEST = 16 << 20  # bytes


@dataclass
class Progress:
    """Where a run stands, always between two optimizer steps."""

    epoch: int = 0  # the epoch in progress
    batch: int = 0  # batches of it that each process has consumed
    step: int = 0  # optimizer steps since the start
    validated: int = -1  # the step of the last validation
    best_loss: float | None = None  # smallest validation loss so far
    bad_in_a_row: int = 0  # steps up to here whose loss or gradient was not finite
    interval: list[list[float]] = field(default_factory=list)  # each process's sums since the last log line

    def end_validation(self, loss: float) -> bool:
        """Note that the step is validated, with this loss; whether that is the smallest so far."""
        is_best = loss < (math.inf if self.best_loss is None else self.best_loss)
        self.validated, self.best_loss = self.step, loss if is_best else self.best_loss
        return is_best

    def load(self, state: dict) -> None:
        for each in fields(self):
            setattr(self, each.name, state[each.name])


def save_checkpoint(
    accelerator: Accelerator, folder: Path, progress: Progress, conditions: dict[str, object], keep: int
) -> None:
    """Write `folder/step_<n>` with everything that an exact resume needs, then remove all but the `keep` newest.

    conditions: see `conditions_of`. Every process enters. Raises InputError when it cannot be written; the checkpoints
    before it are then intact.
    """
    final = folder / f"{PREFIX}{progress.step}"
    temporary = folder / f".{final.name}.writing"

    def prepare() -> None:
        remove(temporary)
        temporary.mkdir(parents=True)

    def finish() -> None:
        for rank in range(accelerator.num_processes):
            if not random_state_file(temporary, rank).is_file():
                raise InputError(
                    f"{temporary}: the state of process {rank} is not here; run.directory must be on a disk that all "
                    "machines share"
                )
        write_manifest(temporary, progress, conditions)
        remove(final)
        os.replace(temporary, final)
        flush(folder)
        prune(folder, keep)

    try:
        on_main_process(accelerator, prepare)
        on_all_processes(accelerator, lambda: write_state(accelerator, temporary))
        on_main_process(accelerator, finish)
    except OSError as error:
        remove(temporary)
        raise unwritten(final, error) from error
    except InputError:
        remove(temporary)
        raise


def write_state(accelerator: Accelerator, folder: Path) -> None:
    """Accelerate's state; InputError where it cannot be written."""
    try:
        accelerator.save_state(str(folder))
    # torch reports a full disk as RuntimeError, safetensors as an error of its own.
    except (OSError, RuntimeError, SafetensorError) as error:
        raise unwritten(folder, error) from error


def unwritten(path: Path, error: Exception) -> InputError:
    name = path.name.removeprefix(".").removesuffix(".writing")
    return InputError(
        f"{path.with_name(name)}: the checkpoint could not be written ({' '.join(str(error).split())[:200]}); "
        "free some space and continue with --resume, earlier checkpoints are intact"
    )


def write_manifest(folder: Path, progress: Progress, conditions: dict[str, object]) -> None:
    """Flush every file of `folder` to the disk and list them with size and digest."""
    files = {}
    for path in sorted(folder.iterdir()):
        flush(path)
        files[path.name] = {"bytes": path.stat().st_size, "sha256": digest(path)}
    content = {"progress": asdict(progress), "conditions": conditions, "files": files}
    (folder / MANIFEST).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    flush(folder / MANIFEST)
    flush(folder)


def read_manifest(folder: Path) -> dict:
    """The manifest of a checkpoint. InputError when it is damaged, or a file has not the size that it says."""
    try:
        content = read_json(folder / MANIFEST, LARGEST_MANIFEST, "the list of the checkpoint's files")
        progress, conditions = content["progress"], content["conditions"]
        counts = [conditions["processes"], conditions["train.batch_size"]]
        if not is_progress(progress) or not all(type(count) is int and 0 < count < 2**31 for count in counts):
            raise ValueError("progress or conditions have another form")
        for name, file in content["files"].items():
            path = folder / name
            if path.parent != folder or path.is_symlink() or not path.is_file():
                raise ValueError(f"{name[:80]!r} is not a file of it")
            if not isinstance(file["sha256"], str) or path.stat().st_size != file["bytes"]:
                raise ValueError(f"{name} has {path.stat().st_size} bytes, not {file['bytes']}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        reason = f"{type(error).__name__} {error}" if isinstance(error, KeyError) else error
        raise InputError(f"{folder / MANIFEST}: not whole ({' '.join(str(reason).split())[:200]})") from error
    return content


def is_progress(state: object) -> bool:
    """Whether `state`, from a file, is what `Progress` holds."""
    if not isinstance(state, dict) or state.keys() != {each.name for each in fields(Progress)}:
        return False
    counts = [state[name] for name in ("epoch", "batch", "step", "bad_in_a_row")]
    rows = state["interval"]
    return (
        all(type(count) is int and 0 <= count < 2**53 for count in counts)
        and type(state["validated"]) is int
        and isinstance(state["best_loss"], float | int | None)
        and isinstance(rows, list)
        and all(isinstance(row, list) and len(row) == len(rows[0]) > 5 for row in rows)
        and all(isinstance(value, float | int) for row in rows for value in row)
    )


def check_digests(folder: Path, manifest: dict) -> None:
    """InputError when a file of the checkpoint does not hold what was written."""
    for name, file in manifest["files"].items():
        if digest(folder / name) != file["sha256"]:
            raise InputError(f"{folder / name}: not what was written")


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints in `folder`, by ascending step, as their manifests have it; contents are not looked at."""
    steps = {}
    for path in folder.glob(f"{PREFIX}*"):
        try:
            steps[path] = read_manifest(path)["progress"]["step"]
        except InputError:
            continue  # not a checkpoint, or not a whole one; `newest_checkpoint` says why
    return sorted(steps, key=steps.__getitem__)


def prune(folder: Path, keep: int) -> None:
    """Remove all but the `keep` newest complete checkpoints, and what an interrupted removal left."""
    for path in checkpoints(folder)[:-keep]:
        remove(path)
    for path in folder.glob(f".{PREFIX}*"):
        shutil.rmtree(path)


def remove(folder: Path) -> None:
    """Remove a checkpoint, if it is there. Its name goes first, so that no half of it is ever taken for a whole."""
    if folder.exists():
        doomed = folder.with_name(f".{folder.name.removeprefix('.')}.removing")
        shutil.rmtree(doomed, ignore_errors=True)
        os.replace(folder, doomed)
        shutil.rmtree(doomed)


def newest_checkpoint(accelerator: Accelerator, folder: Path) -> tuple[Path, dict] | None:
    """The newest checkpoint that is whole, and its manifest; None where there is none at all.

    Damaged ones that are newer are put aside as `damaged_step_<n>`, with a message. InputError where all are damaged.
    """
    candidates, damaged = [], []
    for path in sorted(folder.glob(f"{PREFIX}*")):
        try:
            candidates.append((path, read_manifest(path)))
        except InputError as error:
            damaged.append((path, error))
    candidates.sort(key=lambda candidate: candidate[1]["progress"]["step"])
    found = None
    while candidates and found is None:
        path, manifest = candidates.pop()
        try:
            check_digests(path, manifest)
            found = path, manifest
        except InputError as error:
            damaged.append((path, error))
    if damaged and found is None:
        raise InputError(
            f"{folder}: every checkpoint is damaged, as in {one_line(damaged[0][1])}; restore one of them, or remove "
            "the run's directory to start anew"
        )
    for path, error in damaged:
        aside = path.with_name(f"damaged_{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(path, aside)
        accelerator.print(f"damaged checkpoint put aside as {aside}: {one_line(error)}")
    return found


def resume(
    accelerator: Accelerator, folder: Path, progress: Progress, conditions: dict[str, object], anyway: bool = False
) -> Path | None:
    """Load the newest whole checkpoint into everything prepared and into `progress`; None when there is none.

    Every process enters. Raises InputError when the run was made under other `conditions`, unless `anyway`, or when
    the checkpoint does not fit the model.
    """
    choice = [on_main_process(accelerator, lambda: newest_checkpoint(accelerator, folder))]
    (found,) = broadcast_object_list(choice)
    if found is None:
        return None
    path, manifest = found
    changes, notes = differences(manifest["conditions"], conditions)
    if changes and not anyway:
        raise InputError(
            f"{path}: the run was made otherwise: {'; '.join(changes)}. Set it back, or continue as another run with "
            "--resume-anyway"
        )
    for text in (*changes, *notes):
        accelerator.print(f"note: {text}")
    progress.load(manifest["progress"])
    on_all_processes(accelerator, lambda: load_state(accelerator, path))
    if changes:
        progress.batch = same_place(progress.batch, manifest["conditions"], conditions)
        accelerator.step = 0
    return path


def load_state(accelerator: Accelerator, path: Path) -> None:
    """Accelerate's state, and the proof that the random numbers, whose absence it hides, are among it.

    A run that was not in fp16 has no scale of the loss to load: one in fp16 begins with a new one.
    """
    from featdepth.models.saved.torch_files import check_torch_archive

    scaler = accelerator.scaler
    try:
        for file in (*path.glob("*.bin"), *path.glob("*.pkl"), *path.glob("*.pt")):
            check_torch_archive(file)
        if not (path / SCALER).exists():
            accelerator.scaler = None
        accelerator.load_state(str(path))
        file = random_state_file(path, accelerator.process_index)
        if file.exists() and not torch.equal(load_plain_values(file)["torch_manual_seed"], torch.get_rng_state()):
            raise InputError(f"{file}: the state of the random numbers is damaged")
    except InputError:
        raise
    # A file that somebody else made can fail in as many ways as there are libraries that read it.
    except Exception as error:
        raise InputError(
            f"{path}: does not fit this model ({' '.join(str(error).split())[:200]}); set the model section as in the "
            "run's config.yaml"
        ) from error
    finally:
        accelerator.scaler = scaler


def random_state_file(folder: Path, rank: int) -> Path:
    """Where Accelerate keeps the random numbers of a process."""
    return folder / f"random_states_{rank}.pkl"


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sha256.update(block)
    return sha256.hexdigest()


def flush(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
