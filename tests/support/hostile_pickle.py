"""A pickle that leaves a mark when it is unpickled."""

from __future__ import annotations

from pathlib import Path


class Touch:
    """Unpickling it makes a file: what a hostile file could do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)
