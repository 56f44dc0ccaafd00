"""Where a model comes from."""

from __future__ import annotations

import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import torch
import torchvision


def versions() -> list[str]:
    """What a model or a result is made with: this project's commit, and the versions of what it stands on."""
    return [
        f"featdepth commit {git_commit()}",
        f"python {platform.python_version()}, torch {torch.__version__}, torchvision {torchvision.__version__}, "
        f"accelerate {metadata.version('accelerate')}",
    ]


def git_commit() -> str:
    """The commit of this checkout, or "unknown" outside one."""
    if shutil.which("git") is None:
        return "unknown"
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "unknown"
