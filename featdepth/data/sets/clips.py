"""The records that a preparation of own video leaves: names of their files, and reading them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from featdepth.errors import InputError
from featdepth.files import read_json

SUMMARY, CLIP = "summary.json", "clip.json"
LARGEST_RECORD = 64 << 20  # bytes


def read_record(path: Path) -> dict[str, Any]:
    """The object in a file that a preparation wrote. Raises InputError, naming it, where it cannot be understood."""
    try:
        found = read_json(path, LARGEST_RECORD, "the record of prepared frames")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InputError(f"{path}: cannot be understood; prepare the frames again, into a new folder")
    return found
