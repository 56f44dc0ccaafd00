"""The record of how far pictures move, which `python -m featdepth.data.motion` measures."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from featdepth.config.keys import Data
from featdepth.data.cached.frame_cache import digest_of
from featdepth.data.cached.shards import identify, size_folder
from featdepth.errors import InputError
from featdepth.files import locked, read_bytes, user_cache_folder

VERSION = 1  # of what is measured: raise it when that changes, and everything is measured anew
LARGEST_RECORD = 1 << 30  # bytes; a pair of frames takes 40
LINE = re.compile(rb"([0-9a-f]{32}) (nan|[0-9]+\.[0-9]+)")

Pair = tuple[str, str]  # paths of two frames of one camera


class MotionRecord:
    """How far the picture moves between pairs of frames (pixels at the training width), in a file that only grows.

    A pair is found by its files' paths, sizes and times of change, so that a changed file is measured again. Several
    programs may add to the file.
    """

    def __init__(self, data: Data) -> None:
        """The record of frames as `data` decodes them: in `data.cache`, or else in the user's cache folder.

        Raises InputError where there is neither.
        """
        self.size = (data.height, data.width)
        default = user_cache_folder("motion")
        if data.cache is None and default is None:
            raise InputError("data.cache: is not set, and this user has no home folder to keep measurements in; set it")
        folder = default if data.cache is None else Path(data.cache) / "motion"
        self.path = folder / f"{size_folder(self.size, data.crop)}-{VERSION}.txt"
        lines = read_bytes(self.path, LARGEST_RECORD, "the record of motion").split(b"\n") if self.path.exists() else []
        # What follows the last end of line was cut; a damaged line is measured again.
        matches = (LINE.fullmatch(line) for line in lines[:-1])
        self.known = {match[1]: float(match[2]) for match in matches if match}
        self.identities: dict[str, bytes] = {}

    def find(self, pair: Pair) -> float | None:
        """The motion between two frames, NaN where nothing could be recognised; None: not measured yet."""
        return self.known.get(self.key(pair))

    def add(self, motions: Mapping[Pair, float]) -> None:
        """Keep measurements. Raises InputError where they cannot be written."""
        lines = {self.key(pair): f"{motion:.3f}" for pair, motion in motions.items()}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with locked(self.path.with_suffix(".lock")), self.path.open("ab") as file:
                # The empty line ends one that a killed process has cut.
                file.write(b"".join([b"\n", *(b"%s %s\n" % (key, text.encode()) for key, text in lines.items())]))
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written to ({error.strerror}); set data.cache") from error
        self.known |= {key: float(text) for key, text in lines.items()}

    def key(self, pair: Pair) -> bytes:
        """What a pair is found by, in whatever order its frames are."""
        for path in pair:
            if path not in self.identities:
                self.identities[path] = identify(path, self.size).as_line()
        return digest_of(b"".join(sorted(self.identities[path] for path in pair))).hex().encode()
