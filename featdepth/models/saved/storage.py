"""Model directories: `config.json`, `model.safetensors` and a card, written whole or not at all, read strictly."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn

from featdepth.config.values import shown
from featdepth.errors import InputError
from featdepth.files import read_json, read_safetensors

LIBRARY, TAGS = "featdepth", ["depth-estimation", "self-supervised", "visual-odometry"]  # what the hub finds models by
CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "config.json", "model.safetensors", "README.md"
LARGEST_CONFIG = 16 << 20  # bytes; the training record may list many drives
LARGEST_WEIGHTS = 4 << 30  # bytes; the largest model has 600 MB


def write_model_directory(directory: str | Path, config: dict, state: Mapping[str, Tensor], card: str) -> None:
    """Write `config`, the tensors of `state` and the text `card` into `directory`, which is replaced as a whole.

    Raises InputError when the place cannot be written to; what stood there before is then untouched.
    """
    directory = Path(directory)
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}."))
    try:
        os.chmod(temporary, 0o755)
        try:
            save_file(tensors, temporary / WEIGHTS_FILE, metadata={"format": "pt"})
        except SafetensorError as error:
            raise InputError(f"{directory}: the model could not be written ({error}); is the disk full?") from error
        os.chmod(temporary / WEIGHTS_FILE, 0o644)
        (temporary / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (temporary / CARD_FILE).write_text(card, encoding="utf-8")
        replace_directory(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_directory(new: Path, directory: Path) -> None:
    """Put `new` in the place of `directory`; at no moment is there a half-written `directory`."""
    if directory.exists():
        old = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}.old."))
        os.replace(directory, old / directory.name)
        os.replace(new, directory)
        shutil.rmtree(old)
    else:
        os.replace(new, directory)


def read_model_directory(source: str | Path, **download: object) -> tuple[dict, dict[str, Tensor]]:
    """Configuration and tensors of a model directory, or of a model on the Hugging Face hub (`user/name`).

    download: `revision`, `token`, ... as `huggingface_hub.snapshot_download` takes them. Raises InputError.
    """
    directory = Path(source)
    if not directory.is_dir():
        directory = from_hub(str(source), [CONFIG_FILE, WEIGHTS_FILE], **download)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not os.path.exists(directory / name):
            raise InputError(
                f"{directory}: not a model directory, {name} is missing; "
                "give one such as runs/<name>/model (published .pth files: python -m featdepth.import_weights)"
            )
    config_path, weights_path = directory / CONFIG_FILE, directory / WEIGHTS_FILE
    config = read_settings(config_path)
    try:
        return config, load(read_safetensors(weights_path, LARGEST_WEIGHTS, "the weights"))
    # KeyError: a type of number that safetensors knows and torch does not.
    except (SafetensorError, KeyError) as error:
        raise InputError(
            f"{weights_path}: damaged or no safetensors file ({shown(str(error))}); copy it again"
        ) from error


def read_settings(path: Path) -> dict:
    """The JSON object in a file of a model directory. Raises InputError."""
    try:
        content = read_json(path, LARGEST_CONFIG, "the model's configuration")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a JSON object")
    return content


def read_camera_names(config: dict, source: str | Path) -> list[str]:
    """The cameras in a model's `config.json` whose intrinsics are learned. Raises InputError where there are none."""
    cameras = config.get("cameras")
    if not isinstance(cameras, dict):
        raise InputError(f"{source}/{CONFIG_FILE}: has no section cameras, for its learned intrinsics; copy it again")
    return list(cameras)


def from_hub(name: str, files: list[str], **download: object) -> Path:
    """The folder that holds `files` of the hub's model `name`, downloaded where need be. Raises InputError."""
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise InputError(f"{name}: no such model directory; give a directory or a hub id such as user/model")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=files, **download))
    # The hub's client raises errors of several libraries (its own, httpx, OSError); all mean that it gives none.
    except Exception as error:
        raise InputError(
            f"{name}: not a model directory here, and the hub does not give it ({hub_reason(error)})"
        ) from error


def hub_reason(error: Exception) -> str:
    """Why the Hugging Face hub did not do as asked, in words for one line."""
    from huggingface_hub import errors

    # From the special to the general: the first is an error that says of itself to be the second.
    reasons = {
        errors.GatedRepoError: "its owner has to admit you first; ask on its page, then log in with: hf auth login",
        errors.RepositoryNotFoundError: "there is none of this name, or it is private: log in with: hf auth login",
        errors.RevisionNotFoundError: "it has no such revision",
        errors.LocalEntryNotFoundError: "the hub cannot be reached, and it was not downloaded before",
        errors.LocalTokenNotFoundError: "it asks who you are: log in with: hf auth login",
    }
    for kind, reason in reasons.items():
        if isinstance(error, kind):
            return reason
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load `state` into `module`; InputError as in `check_fit`."""
    check_fit(module, state, source)
    module.load_state_dict(state)


def check_fit(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """InputError names the first tensor of `state` that `module` misses, has no place for, or has in another form."""
    own = module.state_dict()
    problems = [f"{key} is missing" for key in own if key not in state]
    problems += [f"{shown(key)} has no place in this architecture" for key in state if key not in own]
    both = [(key, state[key], own[key]) for key in own if key in state]
    problems += [
        f"{key} is {shown(list(found.shape))}, this architecture needs {list(needed.shape)}"
        for key, found, needed in both
        if found.shape != needed.shape
    ]
    problems += [
        f"{key} has numbers of type {found.dtype}, this architecture needs {needed.dtype}"
        for key, found, needed in both
        if not torch.can_cast(found.dtype, needed.dtype)
    ]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise InputError(
            f"{source}: weights of another architecture, {problems[0]}{more}; set the model section as in its training"
        )
