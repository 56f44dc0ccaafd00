"""Which samples belong to training, validation and test: list files, what a kind of data has built in, leakage.

A list file has one sample a line, `<drive> <frame> <l|r>`, the established format of the field; of KITTI raw its other
published forms are read too, the paths of images and SfMLearner's names. Training on a built-in split is every drive on
disk that it counts as training and that is not in another part.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from fnmatch import fnmatchcase
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from featdepth.config.checks import BUILT_IN_SPLITS
from featdepth.errors import InputError
from featdepth.files import read_text

if TYPE_CHECKING:
    from featdepth.config import Config
    from featdepth.data.dataset import FrameDataset

LIST_FILES = {"train": "train_files", "validation": "val_files", "test": "test_files"}
LARGEST_LIST = 256 << 20  # bytes; all of KITTI raw has 5 MB
FRAME = re.compile(r"[0-9]{1,10}")
SIDES = {"l": "l", "r": "r", "2": "l", "3": "r", "02": "l", "03": "r"}  # KITTI's colour cameras are 2 and 3
RANGE = re.compile(r"(.*) ([0-9]+)-([0-9]+)")


class Naming(NamedTuple):
    """How lists name the drives of a kind of data."""

    pattern: re.Pattern[str]
    form: str  # in words
    example: str  # a line
    digits: int = 0  # that the number of a drive has: published lists write 9 for 09
    published: tuple[re.Pattern[str], ...] = ()  # other lines, with groups of the names of `Sample`'s fields, or `date`

    def describe(self) -> str:
        return f"{self.form} <frame> <l|r>, as in {self.example}"


KITTI_DRIVES = Naming(
    re.compile(r"([0-9]{4}_[0-9]{2}_[0-9]{2})/\1_drive_[0-9]{4,10}_sync"),
    "<date>/<drive>",
    "2011_09_26/2011_09_26_drive_0013_sync 95 l",
    published=(
        # The left image is the first word, others (right image, depth, focal length) follow.
        re.compile(
            r"/?(?P<drive>([0-9]{4}_[0-9]{2}_[0-9]{2})/\2_drive_[0-9]{4,10}_sync)/image_(?P<side>0[23])/data/"
            r"(?P<frame>[0-9]{1,10})\.(?:png|jpe?g)(?:\s.*)?",
            re.IGNORECASE,
        ),
        re.compile(
            r"(?P<drive>(?P<date>[0-9]{4}_[0-9]{2}_[0-9]{2})_drive_[0-9]{4,10}_sync)_(?P<side>0[23])\s+"
            r"(?P<frame>[0-9]{1,10})"
        ),
    ),
)
SEQUENCES = Naming(re.compile(r"[0-9]{1,2}"), "<sequence>", "09 95 l", digits=2)
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


def parse_sample(line: str, naming: Naming = KITTI_DRIVES) -> Sample | None:
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


def read_list(path: str | Path, naming: Naming = KITTI_DRIVES) -> list[tuple[int, Sample]]:
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


def part_drives(config: Config, part: str, kind: type[FrameDataset]) -> Collection[str]:
    """Names, or patterns such as "train/*", of a part's drives as far as they are fixed without looking at the data.

    Empty for the training of a built-in split (it is made of what the other parts leave) and for a part that the
    split's folder lacks.
    """
    path = list_file(config, part)
    if path is None:
        return kind.built_in_drives(config, part) if part != "train" else ()
    is_override = getattr(config.data, LIST_FILES[part]) is not None
    if not is_override and not path.is_file():
        return ()
    return {sample.drive for _, sample in read_list(path, kind.naming)}


def is_among(drive: str, names: Collection[str]) -> bool:
    """Whether a drive is one of `names`, which may have patterns."""
    return drive in names or any(fnmatchcase(drive, name) for name in names if "*" in name)


def held_out_drives(config: Config, kind: type[FrameDataset]) -> set[str]:
    """What a built-in split's training leaves out: validation's and test's drives, and always its own test drives."""
    held_out = set(kind.built_in_drives(config, "test"))
    for part in ("validation", "test"):
        held_out |= set(part_drives(config, part, kind))
    return held_out


def leaks(config: Config, kind: type[FrameDataset]) -> dict[tuple[str, str], list[str]]:
    """The drives that two parts of the configured split share, by the two parts' names; empty for a clean split."""
    drives = {part: part_drives(config, part, kind) for part in LIST_FILES}
    shared = {
        (one, other): sorted(
            {drive for drive in drives[one] if is_among(drive, drives[other])}
            | {drive for drive in drives[other] if is_among(drive, drives[one])}
        )
        for one, other in combinations(LIST_FILES, 2)
    }
    return {parts: names for parts, names in shared.items() if names}


def leaked_drives(config: Config, kind: type[FrameDataset]) -> list[str]:
    """Names of the drives that more than one of training, validation and test have, sorted; empty for a clean split."""
    return sorted({drive for drives in leaks(config, kind).values() for drive in drives})


def check_leakage(config: Config, kind: type[FrameDataset]) -> list[str]:
    """The drives that the split's parts share; InputError, naming them, unless `data.allow_leakage`."""
    found = leaks(config, kind)
    if found and not config.data.allow_leakage:
        (one, other), drives = next(iter(found.items()))
        names = ", ".join(drives[:5]) + (f" and {len(drives) - 5} more" if len(drives) > 5 else "")
        raise InputError(
            f"{one} ({source_name(config, one)}) and {other} ({source_name(config, other)}) share drives: {names}; "
            "make the lists disjoint by drive, or set data.allow_leakage=true, which marks all results as contaminated"
        )
    return leaked_drives(config, kind)


def source_name(config: Config, part: str) -> str:
    """Where a part comes from, for messages: the path of its list file or the built-in split."""
    return str(list_file(config, part) or f"built-in {config.data.split} split")


def seen_again(seen: Collection[str], tested: Collection[str]) -> list[str]:
    """Which of the recordings `tested` were `seen` in training, sorted.

    A recording is a drive, or as "<drive> <first>-<last>" some of its frames.
    """
    ranges: dict[str, list[tuple[float, float]]] = {}
    for name in seen:
        drive, first, last = frame_range(name)
        ranges.setdefault(drive, []).append((first, last))
    again = []
    for name in tested:
        drive, first, last = frame_range(name)
        if any(first <= end and start <= last for start, end in ranges.get(drive, [])):
            again.append(name)
    return sorted(again)


def frame_range(name: str) -> tuple[str, float, float]:
    """Drive, first and last frame of a recording's name; all frames where it names none."""
    match = RANGE.fullmatch(name)
    return (match[1], float(match[2]), float(match[3])) if match else (name, 0.0, float("inf"))
