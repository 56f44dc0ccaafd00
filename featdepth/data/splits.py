"""Which samples belong to training, validation and test: list files, KITTI's Eigen split, leakage between the parts.

A list file has one sample a line, `<date>/<drive> <frame> <l|r>`, the established format of the field. The Eigen split
is built in (`kitti_eigen.json`): its 697 test frames of 28 drives, and five drives held out of training for validation
(about 2100 frames of city, residential and road, of three recording days). Training is every other drive on disk.
"""

from __future__ import annotations

import json
import re
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from featdepth.errors import InputError
from featdepth.files import read_bytes

if TYPE_CHECKING:
    from featdepth.config import Config

LIST_FILES = {"train": "train_files", "validation": "val_files", "test": "test_files"}
LARGEST_LIST = 256 << 20  # bytes; all of KITTI raw has 5 MB
DRIVE = re.compile(r"([0-9]{4}_[0-9]{2}_[0-9]{2})/\1_drive_[0-9]{4,10}_sync")
FRAME = re.compile(r"[0-9]{1,10}")
EIGEN = "eigen"


class Sample(NamedTuple):
    """One target image; `str(sample)` is its line in a list file."""

    drive: str  # "2011_09_26/2011_09_26_drive_0013_sync"
    frame: int
    side: str  # "l": image_02, "r": image_03

    def __str__(self) -> str:
        return f"{self.drive} {self.frame} {self.side}"

    @property
    def date(self) -> str:
        """The recording day, which is also the folder of its calibration."""
        return self.drive.split("/")[0]


def parse_sample(line: str) -> Sample | None:
    """The sample of one line `<date>/<drive> <frame> <l|r>`, or None where the line is anything else."""
    words = line.split()
    if len(words) != 3:
        return None
    drive, frame, side = words
    if not DRIVE.fullmatch(drive) or not FRAME.fullmatch(frame) or side not in ("l", "r"):
        return None
    return Sample(drive, int(frame), side)


def read_list(path: str | Path) -> list[tuple[int, Sample]]:
    """The samples of a list file with their line numbers, from 1; blank lines are allowed.

    Raises InputError, naming file and line, for a line that is no sample and for a list without any.
    """
    text = read_bytes(path, LARGEST_LIST, "the list of samples").decode("utf-8-sig", errors="replace")
    samples = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        sample = parse_sample(line)
        if sample is None:
            raise InputError(
                f"{path}:{number}: {line.strip()[:80]!r} is no sample; "
                "expected <date>/<drive> <frame> <l|r>, as in 2011_09_26/2011_09_26_drive_0013_sync 95 l"
            )
        samples.append((number, sample))
    if not samples:
        raise InputError(f"{path}: the list of samples is empty; write one sample a line: <date>/<drive> <frame> <l|r>")
    return samples


def list_file(config: Config, part: str) -> Path | None:
    """The list file that defines `part` ("train", "validation" or "test"), or None where the Eigen split does.

    It need not exist where the split is a folder: a folder may lack a part.
    """
    name = LIST_FILES[part]
    override = getattr(config.data, name)
    if override is not None:
        return Path(override)
    return None if config.data.split == EIGEN else Path(config.data.split) / f"{name}.txt"


@cache
def eigen_split() -> dict[str, dict[str, list[Sample]] | list[str]]:
    """The Eigen split's facts: `test`, its samples by drive, and `validation`, the names of its drives."""
    facts = json.loads(Path(__file__).with_name("kitti_eigen.json").read_text(encoding="utf-8"))
    test = {}
    for date, drives in facts["test"].items():
        for number, frames in drives.items():
            drive = drive_name(date, number)
            test[drive] = [Sample(drive, frame, "l") for frame in frames]
    validation = [drive_name(date, number) for date, numbers in facts["validation"].items() for number in numbers]
    return {"test": test, "validation": validation}


def drive_name(date: str, number: str) -> str:
    """A drive's folder below the root, as in `2011_09_26/2011_09_26_drive_0013_sync`."""
    return f"{date}/{date}_drive_{number}_sync"


def eigen_test_samples() -> list[Sample]:
    """The 697 test frames of the Eigen split, all of the left colour camera."""
    return [sample for samples in eigen_split()["test"].values() for sample in samples]


def part_drives(config: Config, part: str) -> set[str] | None:
    """The drives of a part, as far as they are fixed without looking at the data.

    None for the Eigen split's training (it is made of what the other parts leave) and for a part its folder lacks.
    """
    path = list_file(config, part)
    if path is None:
        return None if part == "train" else set(eigen_split()[part])
    is_override = getattr(config.data, LIST_FILES[part]) is not None
    if not is_override and not path.is_file():
        return None
    return {sample.drive for _, sample in read_list(path)}


def held_out_drives(config: Config) -> set[str]:
    """The drives that the Eigen split's training leaves out: validation's, test's, and always Eigen's test drives."""
    held_out = set(eigen_split()["test"])
    for part in ("validation", "test"):
        held_out |= part_drives(config, part) or set()
    return held_out


def leaks(config: Config) -> dict[tuple[str, str], list[str]]:
    """The drives that two parts of the configured split share, by the two parts' names; empty for a clean split."""
    drives = {part: part_drives(config, part) or set() for part in LIST_FILES}
    shared = {(one, other): sorted(drives[one] & drives[other]) for one, other in combinations(LIST_FILES, 2)}
    return {parts: names for parts, names in shared.items() if names}


def leaked_drives(config: Config) -> list[str]:
    """Names of the drives that more than one of training, validation and test have, sorted; empty for a clean split."""
    return sorted({drive for drives in leaks(config).values() for drive in drives})


def check_leakage(config: Config) -> list[str]:
    """The drives that the split's parts share; InputError, naming them, unless `data.allow_leakage`."""
    found = leaks(config)
    if found and not config.data.allow_leakage:
        (one, other), drives = next(iter(found.items()))
        names = ", ".join(drives[:5]) + (f" and {len(drives) - 5} more" if len(drives) > 5 else "")
        raise InputError(
            f"{one} ({source_name(config, one)}) and {other} ({source_name(config, other)}) share drives: {names}; "
            "make the lists disjoint by drive, or set data.allow_leakage=true, which marks all results as contaminated"
        )
    return leaked_drives(config)


def source_name(config: Config, part: str) -> str:
    """Where a part comes from, for messages: the path of its list file or the built-in split."""
    return str(list_file(config, part) or "built-in eigen split")
