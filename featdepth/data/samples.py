"""Samples: one target image each, how lists name them, and which list a part of a configured split has.

A list file has one sample a line, `<drive> <frame> <l|r>`, the established format of the field; of KITTI raw its other
published forms are read too, the paths of images and SfMLearner's names.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from featdepth.config.keys import Config
from featdepth.errors import InputError
from featdepth.files import read_text
from featdepth.kinds import BUILT_IN_SPLITS

STEREO = "s"  # the frame of the other camera
LIST_FILES = {"train": "train_files", "validation": "val_files", "test": "test_files"}
LARGEST_LIST = 256 << 20  # bytes; all of KITTI raw has 5 MB
FRAME = re.compile(r"[0-9]{1,10}")
SIDES = {"l": "l", "r": "r", "2": "l", "3": "r", "02": "l", "03": "r"}  # KITTI's colour cameras are 2 and 3


class Naming(NamedTuple):
    """How lists name the drives of a kind of data."""

    pattern: re.Pattern[str]
    form: str  # in words
    example: str  # a line
    digits: int = 0  # that the number of a drive has: published lists write 9 for 09
    published: tuple[re.Pattern[str], ...] = ()  # other lines, with groups of the names of `Sample`'s fields, or `date`

    def describe(self) -> str:
        return f"{self.form} <frame> <l|r>, as in {self.example}"


# Folders below the root, none of which leads upwards.
FOLDERS = Naming(re.compile(r"(?!/)(?:(?:^|/)(?!\.{1,2}(?:/|$))[^\s/\0]+)+"), "<drive>", "office/seq-01 95 l")


class Sample(NamedTuple):
    """One target image; `str(sample)` is its line in a list file."""

    drive: str  # "2011_09_26/2011_09_26_drive_0013_sync"
    frame: int
    side: str  # "l": the left or only camera, "r": the right one

    def __str__(self) -> str:
        return f"{self.drive} {self.frame} {self.side}"

    @property
    def date(self) -> str:
        """Of KITTI raw: the recording day, which is also the folder of its calibration."""
        return self.drive.split("/")[0]


def parse_sample(line: str, naming: Naming) -> Sample | None:
    """The sample of one line `<drive> <frame> <l|r>`, or None where the line is anything else.

    Read too are frames with leading zeros, 2 and 3 for l and r, and the naming's other published forms.
    """
    for match in filter(None, (pattern.fullmatch(line.strip()) for pattern in naming.published)):
        found = match.groupdict()
        drive = f"{found['date']}/{found['drive']}" if "date" in found else found["drive"]
        return Sample(drive, int(found["frame"]), SIDES[found["side"]])
    words = line.split()
    if len(words) != 3:
        return None
    drive, frame, side = words
    if not naming.pattern.fullmatch(drive) or not FRAME.fullmatch(frame) or side not in SIDES:
        return None
    return Sample(drive.zfill(naming.digits), int(frame), SIDES[side])


def read_list(path: str | Path, naming: Naming) -> list[tuple[int, Sample]]:
    """The samples of a list file with their line numbers, from 1; blank lines are allowed.

    Raises InputError, naming file and line, for a line that is no sample and for a list without any.
    """
    text = read_text(path, LARGEST_LIST, "the list of samples")
    samples = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        sample = parse_sample(line, naming)
        if sample is None:
            raise InputError(f"{path}:{number}: {line.strip()[:80]!r} is no sample; expected {naming.describe()}")
        samples.append((number, sample))
    if not samples:
        raise InputError(f"{path}: the list of samples is empty; write one sample a line: {naming.form} <frame> <l|r>")
    return samples


def list_file(config: Config, part: str) -> Path | None:
    """The list file that defines `part` ("train", "validation" or "test"), or None where a built-in split does.

    It need not exist where the split is a folder: a folder may lack a part.
    """
    name = LIST_FILES[part]
    override = getattr(config.data, name)
    if override is not None:
        return Path(override)
    return None if config.data.split in BUILT_IN_SPLITS else Path(config.data.split) / f"{name}.txt"
