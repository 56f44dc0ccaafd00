"""The records that a preparation of own video leaves: names of their files, and reading them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from featdepth.files import read_object

SUMMARY, CLIP = "summary.json", "clip.json"
RIGHT = "right"  # folder in a clip, of the second camera
LARGEST_RECORD = 64 << 20  # bytes


def read_record(path: Path) -> dict[str, Any]:
    """The object in a file that a preparation wrote. Raises InputError, naming it, where it cannot be understood."""
    problem = "cannot be understood; prepare the frames again, into a new folder"
    return read_object(path, LARGEST_RECORD, "the record of prepared frames", problem)
