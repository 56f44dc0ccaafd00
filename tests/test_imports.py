"""Every module can be the first that a program imports: none needs another one to have been imported before it."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
# Torch and what else the programs need takes seconds to load, so that one process does, forgets the package again, and
# forks a child for each module.
SERVER = """
import importlib, os, sys

importlib.import_module("train")
for name in [name for name in sys.modules if name == "train" or name.split(".")[0] == "featdepth"]:
    del sys.modules[name]
for name in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        try:
            importlib.import_module(name)
        except ImportError as error:
            print(f"{name}: {error}", flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


def modules() -> list[str]:
    """All of the package, and the two scripts beside it."""
    files = [path.relative_to(REPOSITORY).with_suffix("") for path in REPOSITORY.glob("featdepth/**/*.py")]
    return [*sorted(".".join(path.parts).removesuffix(".__init__") for path in files), "train", "evaluate"]


def test_every_module_can_be_imported() -> None:
    names = modules()
    assert len(names) > 100
    for name in names:
        importlib.import_module(name)


@pytest.mark.long
def test_every_module_can_be_imported_first() -> None:
    """Where no modules import one another in a circle, this is the test above."""
    names = modules()
    done = subprocess.run([sys.executable, "-c", SERVER, *names], cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
