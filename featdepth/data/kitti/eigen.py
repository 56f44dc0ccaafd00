"""KITTI's Eigen split (`eigen.json`): 697 test frames of 28 drives, and five drives held out for validation.

The latter have about 2100 frames of city, residential and road, of three recording days.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from featdepth.data.samples import Sample


@cache
def eigen_split() -> dict[str, dict[str, list[Sample]] | list[str]]:
    """The Eigen split's facts: `test`, its samples by drive, and `validation`, the names of its drives."""
    facts = json.loads(Path(__file__).with_name("eigen.json").read_text(encoding="utf-8"))
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
