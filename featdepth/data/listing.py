"""Files of a data set: numbered ones in a folder, and tables of numbers."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from featdepth.errors import InputError
from featdepth.files import read_bytes

LARGEST_TABLE = 64 << 20  # bytes; an hour of poses at 30 a second has 20 MB


def list_frames(folder: Path, pattern: re.Pattern[str]) -> dict[int, str]:
    """The files in `folder` whose whole names match, by the frame number that is the pattern's first group, in order.

    Empty where there is no such folder; InputError where it cannot be read.
    """
    try:
        names = sorted(os.listdir(folder)) if folder.is_dir() else []
    except OSError as error:
        raise InputError(f"{folder}: the folder cannot be read: {error.strerror}") from error
    matches = (pattern.fullmatch(name) for name in names)
    found = {int(match[1]): str(folder / match[0]) for match in matches if match}
    return dict(sorted(found.items()))


def read_numbers(path: str | Path, columns: int, what: str) -> np.ndarray:
    """The table float64 `[N, columns]` in a text file; blank lines and those that start with # are left out.

    `what` it should be is said in errors ("the poses"). Raises InputError, naming file and line, for anything that is
    no table of finite numbers.
    """
    rows = []
    for number, line in enumerate(read_bytes(path, LARGEST_TABLE, what).decode("utf-8", "replace").splitlines(), 1):
        words = line.replace(",", " ").split()
        if not words or words[0].startswith("#"):
            continue
        try:
            values = [float(word) for word in words]
        except ValueError:
            values = []
        if len(values) != columns or not np.isfinite(values).all():
            raise InputError(f"{path}:{number}: {line.strip()[:60]!r} should be {columns} numbers of {what}")
        rows.append(values)
    return np.array(rows, dtype=np.float64).reshape(-1, columns)
