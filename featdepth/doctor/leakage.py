"""Whether parts of the split share drives or pictures, by name, by the content of files and by what they show."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations

import numpy as np

from featdepth.console import first_names
from featdepth.data.images import LARGEST_IMAGE_FILE
from featdepth.data.samples import LIST_FILES, Sample
from featdepth.data.splits import leaks
from featdepth.doctor.findings import Finding, ok, problem, warning
from featdepth.doctor.order import thumbnail
from featdepth.doctor.survey import Survey, spread_samples
from featdepth.files import read_bytes

CHECK = "leakage"
MOST_HASHED = 1500  # files
MOST_COMPARED = 40  # frames of each part that are looked at


def check_leakage(survey: Survey, faults: set[str]) -> Iterator[Finding]:
    """Drives in several parts; else equal files; else frames that look the same."""
    config = survey.config
    shared = leaks(config)
    for (one, other), drives in shared.items():
        yield leak(survey, f"{one} and {other} share drives: {first_names(drives)}")
    if not shared:
        doubles = list(equal_files(survey)) or list(similar_frames(survey))
        yield from (leak(survey, text) for text in doubles)
        if not doubles:
            yield ok(CHECK, f"{', '.join(survey.parts)} share no drive, no file and no view")


def leak(survey: Survey, text: str) -> Finding:
    """A problem, unless the configuration allows it."""
    expected, advice = "disjoint parts", "take those drives out of the training list"
    if survey.config.data.allow_leakage:
        return warning(CHECK, "leakage", f"{text}, as data.allow_leakage admits", expected, advice)
    return problem(CHECK, "leakage", text, expected, advice)


def equal_files(survey: Survey) -> Iterator[str]:
    """Target images of two parts with the same content, in words. Only files of equal size need to be read."""
    by_size: dict[int, dict[str, dict[str, Sample]]] = defaultdict(lambda: defaultdict(dict))
    for part, dataset in survey.parts.items():
        for sample in dataset.samples:
            path = dataset.image_path(sample, 0)
            by_size[os.path.getsize(path)][part][path] = sample
    candidates = [parts for parts in by_size.values() if len(parts) > 1]
    hashed = 0
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for parts in candidates:
        hashed += sum(map(len, parts.values()))
        if hashed > MOST_HASHED:
            break
        digests = {part: {digest(path): sample for path, sample in files.items()} for part, files in parts.items()}
        for one, other in combinations(digests, 2):
            for same in digests[one].keys() & digests[other].keys():
                mine, theirs = digests[one][same].drive, digests[other][same].drive
                if mine != theirs:  # a drive that is divided in time, and stands still, is no leak
                    found[one, other].add(f"{mine} is {theirs}")
    for (one, other), drives in found.items():
        yield f"{one} and {other} have equal image files: {first_names(sorted(drives))}"


def digest(path: str) -> bytes:
    return hashlib.sha256(read_bytes(path, LARGEST_IMAGE_FILE, "the image")).digest()


def similar_frames(survey: Survey) -> Iterator[str]:
    """Frames of different drives in two parts that are more alike than neighbours of one drive, in words."""
    if len({drive for dataset in survey.parts.values() for drive in dataset.drives}) < 2:
        return
    signatures = {part: part_signatures(survey, part) for part in survey.parts}
    for one, other in combinations(LIST_FILES, 2):
        if one not in signatures or other not in signatures:
            continue
        pairs = set()
        for mine, signature, to_neighbour in signatures[one]:
            for theirs, its_signature, _ in signatures[other]:
                if mine.drive != theirs.drive and np.abs(signature - its_signature).mean() < 0.5 * to_neighbour:
                    pairs.add(f"{mine} is like {theirs}")
        if pairs:
            yield f"{one} and {other} have frames that look the same: {first_names(sorted(pairs))}"


def part_signatures(survey: Survey, part: str) -> list[tuple[Sample, np.ndarray, float]]:
    """Of frames of a part: the tiny picture, and how much it differs from a neighbour's."""
    dataset, found = survey.parts[part], []
    for sample in spread_samples(dataset, MOST_COMPARED):
        neighbours = [frame for frame in (1, -1) if dataset.image_path(sample, frame)]
        looks = [survey.look(part, sample, frame) for frame in (0, *neighbours[:1])]
        if len(looks) == 2 and all(looks):
            own, beside = (thumbnail(look.grey) for look in looks)
            found.append((sample, own, float(np.abs(own - beside).mean())))
    return found
