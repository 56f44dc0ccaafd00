"""Checkpoints of a run: written whole or not at all, the newest complete one found by its content, exact on resume."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from accelerate import Accelerator
from safetensors import SafetensorError

from featdepth.config import Config
from featdepth.errors import InputError

MANIFEST = "manifest.json"  # step, circumstances and file sizes; written last, so a folder without it is incomplete
PREFIX = "step_"


@dataclass
class Progress:
    """Where a run stands; saved with every checkpoint."""

    epoch: int = 0  # the epoch in progress
    batch: int = 0  # batches of it that each process has consumed
    step: int = 0  # optimizer steps since the start
    best_loss: float = float("inf")  # smallest validation loss so far
    interval: list[list[float]] = field(default_factory=list)  # each process's sums since the last log line

    def state_dict(self) -> dict:
        return asdict(self)

    def load_state_dict(self, state: dict) -> None:
        for each in fields(self):
            setattr(self, each.name, state[each.name])


def save_checkpoint(accelerator: Accelerator, folder: Path, progress: Progress, config: Config) -> None:
    """Write `folder/step_<n>` with everything that an exact resume needs, then remove the oldest beyond the limit.

    Every process enters. Raises InputError when it cannot be written; the checkpoints before it are then intact.
    """
    final = folder / f"{PREFIX}{progress.step}"
    temporary = folder / f".{final.name}.writing"
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    try:
        accelerator.save_state(str(temporary))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            write_manifest(temporary, progress, circumstances(accelerator, config))
            shutil.rmtree(final, ignore_errors=True)
            os.replace(temporary, final)
            prune(folder, config.train.keep_checkpoints)
    # torch reports a full disk as RuntimeError, safetensors as an error of its own.
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{final}: the checkpoint could not be written ({reason}); free some space and continue with --resume, "
            "earlier checkpoints are intact"
        ) from error
    accelerator.wait_for_everyone()


def circumstances(accelerator: Accelerator, config: Config) -> dict[str, int]:
    """What has to be the same for a resumed run to be the uninterrupted one."""
    return {
        "processes": accelerator.num_processes,
        "train.batch_size": config.train.batch_size,
        "train.accumulate": config.train.accumulate,
        "train.seed": config.train.seed,
    }


def write_manifest(folder: Path, progress: Progress, conditions: dict[str, int]) -> None:
    """Flush every file of `folder` to the disk and list them with their sizes."""
    sizes = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
            sizes[str(path.relative_to(folder))] = path.stat().st_size
    content = {"step": progress.step, "conditions": conditions, "files": sizes}
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def read_manifest(folder: Path) -> dict | None:
    """The manifest of a checkpoint, or None when the checkpoint is incomplete or a file's size is not as written."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        complete = all((folder / name).stat().st_size == size for name, size in content["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return content if complete and isinstance(content.get("step"), int) else None


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints in `folder`, by ascending step."""
    found = {path: read_manifest(path) for path in folder.glob(f"{PREFIX}*") if path.is_dir()}
    return sorted((path for path in found if found[path]), key=lambda path: found[path]["step"])


def prune(folder: Path, keep: int) -> None:
    """Remove all but the `keep` newest complete checkpoints."""
    for path in checkpoints(folder)[:-keep]:
        shutil.rmtree(path)


def resume(accelerator: Accelerator, folder: Path, progress: Progress, config: Config) -> Path | None:
    """Load the newest complete checkpoint into everything prepared and into `progress`; None when there is none.

    Raises InputError when the run was made under other circumstances, or the checkpoint is of another architecture.
    """
    found = checkpoints(folder)
    if not found:
        return None
    saved = read_manifest(found[-1])["conditions"]
    for name, value in circumstances(accelerator, config).items():
        if saved.get(name) != value:
            raise InputError(
                f"{found[-1]}: made with {name} {saved.get(name)}, now {value}; the continued run would be "
                f"another one, set it as before or start a new run directory"
            )
    try:
        accelerator.load_state(str(found[-1]))
    except (RuntimeError, ValueError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{found[-1]}: does not fit this model ({reason}); set the model section as in the run's config.yaml"
        ) from error
    return found[-1]
