"""Which drives belong to training, validation and test, and which of them leak from one part into another.

Training on a built-in split is every drive on disk that it counts as training and that is not in another part.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from itertools import chain, combinations

from featdepth.config.keys import Config
from featdepth.config.reading import mixed_configs
from featdepth.console import first_names
from featdepth.data.samples import LIST_FILES, list_file, read_list
from featdepth.errors import InputError
from featdepth.kinds import dataset_class

RANGE = re.compile(r"(.*) ([0-9]+)-([0-9]+)")


def part_drives(config: Config, part: str) -> Collection[str]:
    """Names, or patterns such as "train/*", of a part's drives as far as they are fixed without looking at the data.

    Empty for the training of a built-in split (it is made of what the other parts leave) and for a part that the
    split's folder lacks.
    """
    path, kind = list_file(config, part), dataset_class(config.data.kind)
    if path is None:
        return kind.built_in_drives(config, part) if part != "train" else ()
    is_override = getattr(config.data, LIST_FILES[part]) is not None
    if not is_override and not path.is_file():
        return ()
    return {sample.drive for _, sample in read_list(path, kind.naming)}


def is_among(drive: str, names: Collection[str]) -> bool:
    """Whether a drive is one of `names`, which may have patterns."""
    return drive in names or any(fnmatchcase(drive, name) for name in names if "*" in name)


def held_out_drives(config: Config) -> set[str]:
    """What a built-in split's training leaves out: validation's and test's drives, and always its own test drives."""
    own = dataset_class(config.data.kind).built_in_drives(config, "test")
    return {*own, *part_drives(config, "validation"), *part_drives(config, "test")}


def leaks(config: Config) -> dict[tuple[str, str], list[str]]:
    """The drives that two parts of the configured split share, by the two parts' names; empty for a clean split."""
    drives = {part: part_drives(config, part) for part in LIST_FILES}
    shared = {
        (one, other): sorted(
            {drive for drive in drives[one] if is_among(drive, drives[other])}
            | {drive for drive in drives[other] if is_among(drive, drives[one])}
        )
        for one, other in combinations(LIST_FILES, 2)
    }
    return {parts: names for parts, names in shared.items() if names}


def check_leakage(config: Config) -> list[str]:
    """The drives that the split's parts share; InputError, naming them, unless `data.allow_leakage`."""
    found = leaks(config)
    if found and not config.data.allow_leakage:
        (one, other), drives = next(iter(found.items()))
        raise InputError(
            f"{one} ({source_name(config, one)}) and {other} ({source_name(config, other)}) share drives: "
            f"{first_names(drives, 5)}; make the lists disjoint by drive, or set data.allow_leakage=true, which marks "
            "all results as contaminated"
        )
    return sorted({drive for drives in found.values() for drive in drives})


def held_out_again(recordings: Sequence[str], config: Config) -> list[str]:
    """Those of the `recordings` whose drives the validation or test part of `config` has, as far as names tell."""
    held_out = {*part_drives(config, "validation"), *part_drives(config, "test")}
    return sorted(name for name in recordings if is_among(frame_range(name)[0], held_out))


def leaked_drives(config: Config, recordings: Sequence[str] = ()) -> list[str]:
    """Names of the drives that more than one of training, validation and test have, sorted; empty for a clean split.

    recordings: of the training data, with those of `data.mix`.
    """
    shared = [drives for each in (config, *mixed_configs(config)) for drives in leaks(each).values()]
    return sorted({*chain(*shared), *held_out_again(recordings, config)})


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


def is_transductive(config: Config, recordings: Sequence[str]) -> bool:
    """Whether a training goes on from another model and sees nothing but drives that it is tested on.

    recordings: of the training data. That is the published "online refinement": it sees all test images at once.
    """
    tested = part_drives(config, "test")
    return config.model.init is not None and all(is_among(name, tested) for name in recordings)
