"""Whether the recording is complete: time stamps that jump, neighbours that are missing, files that cannot be read."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from featdepth.console import count
from featdepth.data.dataset import FrameDataset
from featdepth.data.samples import STEREO
from featdepth.doctor.findings import Finding, ok, problem, skipped, warning
from featdepth.doctor.survey import Survey, spread

MOST_DRIVES = 40
JUMP = 1.6  # times the usual interval: a frame is missing there
MANY = 0.05  # share of intervals, or of samples


def check_files(survey: Survey, faults: set[str]) -> Iterator[Finding]:
    """Sampled frames that cannot be read; this check comes after those that load frames."""
    if not survey.unreadable:
        yield ok("files", "all frames that were looked at can be read")
        return
    first = next(iter(survey.unreadable.values()))
    blank = f" ({len(survey.blank)} of one colour all over)" if survey.blank else ""
    text = f"{count(len(survey.unreadable), 'frame')} of those that were looked at cannot be used{blank}"
    text += f"; the first: {first}"
    yield problem("files", "unreadable_files", text, "none", "")


def check_parts(survey: Survey, faults: set[str]) -> Iterator[Finding]:
    """What is there of each part."""
    for part, dataset in survey.parts.items():
        yield ok("parts", f"{part}: {count(len(dataset), 'sample')} of {count(len(dataset.drives), 'drive')}")
    if "validation" in survey.missing:
        text = f"there is no validation part, and training would stop: {survey.missing['validation']}"
        yield problem("parts", "no_validation", text, "", "")
    if "test" in survey.missing:
        yield skipped("parts", f"there is no test part: {survey.missing['test']}")


def check_neighbours(survey: Survey, faults: set[str]) -> Iterator[Finding]:
    """Listed samples that lack a neighbour, beyond the ends of the drives where that has to be so."""
    for part in ("train", "validation"):
        if part not in survey.parts:
            continue
        dataset = survey.parts[part]
        offsets = [frame for frame in dataset.frames if frame != STEREO]
        ends = len({(sample.drive, sample.side) for sample in dataset.samples}) * (max(offsets) - min(offsets))
        listed = len(dataset) + dataset.left_out
        lacking = max(0, dataset.left_out - ends)
        text = f"{part}: {dataset.left_out} of {count(listed, 'listed sample')} without one of the frames needed"
        if lacking <= MANY * listed:
            yield ok("neighbours", text)
        else:
            expected = f"at most {ends}, at the ends of drives"
            advice = "frames are missing in between, or data.frames asks for a camera that is not there: complete them"
            yield warning("neighbours", "missing_neighbours", text, expected, advice)


def check_times(survey: Survey, faults: set[str]) -> Iterator[Finding]:
    """Intervals between consecutive frames of the drives that have time stamps."""
    drives = spread(survey.train.drives, MOST_DRIVES)
    chosen = {drive: drops for drive in drives if (drops := survey.train.drops(drive)) is not None}
    if chosen:
        yield drop_finding(chosen)
    intervals = {drive: drive_intervals(survey.train, drive) for drive in drives if drive not in chosen}
    intervals = {drive: values for drive, values in intervals.items() if len(values)}
    if not intervals and chosen:
        return
    if not intervals:
        yield skipped("times", "there are no time stamps")
        return
    usual = float(np.median(np.concatenate(list(intervals.values()))))
    jumps = {drive: int(((each > JUMP * usual) | (each <= 0)).sum()) for drive, each in intervals.items()}
    jumping, total = sum(jumps.values()), sum(map(len, intervals.values()))
    text = f"{count(jumping, 'jump')} in {count(total, 'interval')} between frames, the usual one is {usual:.4g} s"
    if jumping == 0:
        yield ok("times", text)
        return
    worst = max(jumps, key=jumps.get)
    advice = "where frames are missing the neighbours are farther apart than elsewhere: leave such samples out"
    advice = f"most are in {worst}; {advice}"
    make = problem if jumping > MANY * total else warning
    yield make("times", "time_jumps", text, f"none above {JUMP} times that, and none backwards", advice)


def drop_finding(chosen: dict[str, np.ndarray]) -> Finding:
    """What the camera left out, in clips whose frames were chosen by motion."""
    number, total = (sum(map(of, chosen.values())) for of in (np.count_nonzero, len))
    text = (
        f"frames of {count(len(chosen), 'prepared clip')} are as far apart in time as the motion asks for, by design; "
        f"{count(number, 'gap')} in {count(total, 'interval')} where the film itself has none"
    )
    if number == 0:
        return ok("times", text)
    worst = max(chosen, key=lambda drive: chosen[drive].sum())
    advice = f"most are in {worst}: cut the film there, and prepare it again"
    return warning("times", "time_jumps", text, "none", advice)


def drive_intervals(dataset: FrameDataset, drive: str) -> np.ndarray:
    """Seconds between consecutive frame numbers of a drive, as far as their times are known."""
    times = dataset.times(drive)
    return np.array([times[frame + 1] - times[frame] for frame in times if frame + 1 in times])
