"""Whether neighbours in number are neighbours in time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.nn import functional

from featdepth.data.samples import Sample
from featdepth.doctor.findings import Finding, ok, problem, skipped
from featdepth.doctor.survey import FEWEST_MATCHES, Pair, Survey, consecutive, samples_by_drive, spread

CHECK = "order"
MOST_DRIVES, MOST_FRAMES = 6, 40  # drives, and frames of each that are compared
OF_EACH, IN_ALL = 5, 15  # frames that are judged: of each of many drives, and at least
THUMBNAIL = (12, 32)  # pixels
NEARER = 0.8  # times the motion to a neighbour: a frame that is not one and moves less contradicts the order
FEWEST_JUDGED = 5
DISORDER = 0.15  # share of the frames; 0 in a video, 0.3 to 0.8 where frames are shuffled
STILL = 0.002  # of the width: frames whose neighbours move less tell nothing


def check_order(survey: Survey, faults: set[str]) -> Iterator[Finding]:
    """Frames that a frame farther away resembles more, and moves less from, than either neighbour."""
    verdicts: dict[str, list[bool]] = {}
    drives = spread(survey.train.drives, MOST_DRIVES)
    for drive, samples in samples_by_drive(survey.train.samples, set(drives)).items():
        count = max(OF_EACH, IN_ALL // len(drives))
        verdicts[drive] = list(contradictions(survey, samples[len(samples) // 2], count))
    judged = [verdict for drive in verdicts.values() for verdict in drive]
    if len(judged) < FEWEST_JUDGED:
        yield skipped(CHECK, "too few frames move, or are like another one, to judge the order of frames")
        return
    share = sum(judged) / len(judged)
    text = f"{sum(judged)} of {len(judged)} frames nearer to some other frame than to the neighbours"
    if share < DISORDER:
        yield ok(CHECK, text)
        return
    worst = max(verdicts, key=lambda drive: sum(verdicts[drive]))
    advice = f"frames are shuffled, most in {worst}: sort the files by time before numbering them"
    yield problem(CHECK, "shuffled_frames", text, f"less than {DISORDER:.0%}", advice)


def contradictions(survey: Survey, sample: Sample, count: int) -> Iterator[bool]:
    """Of up to `count` frames around a sample: whether one farther away is nearer than both neighbours."""
    clip = [each for each in consecutive(survey.train, sample, MOST_FRAMES) if survey.look("train", each, 0)]
    if len(clip) < 4:
        return
    signatures = np.stack([signature(survey, each) for each in clip])
    for index in spread(range(len(clip)), count):
        distances = np.abs(signatures - signatures[index]).mean(1)
        distances[max(index - 1, 0) : index + 2] = np.inf
        rival = int(distances.argmin())
        neighbours = [each for each in (index - 1, index + 1) if 0 <= each < len(clip)]
        moved = [distance_between(survey, clip, index, each) for each in neighbours]
        rival_moved = distance_between(survey, clip, index, rival)
        if min(moved) > STILL and np.isfinite([min(moved), rival_moved]).any():
            yield rival_moved < NEARER * min(moved)


def signature(survey: Survey, sample: Sample) -> np.ndarray:
    """A tiny picture of a frame, float32 `[384]`, without its brightness and contrast."""
    return thumbnail(survey.look("train", sample, 0).grey)


def thumbnail(grey: np.ndarray) -> np.ndarray:
    """A grey image uint8 `[h, w]` as 12x32 pixels in a row, with mean 0 and deviation 1 (all 0 for a plain one)."""
    small = functional.interpolate(torch.from_numpy(grey).float()[None, None], THUMBNAIL, mode="area").flatten().numpy()
    return (small - small.mean()) / max(small.std(), 1e-3)


def distance_between(survey: Survey, clip: list[Sample], one: int, other: int) -> float:
    """Median motion between two frames of a clip as a share of the width; infinite where they do not match."""
    pair: Pair | None = survey.pair("train", clip[one], clip[other].frame - clip[one].frame)
    matched = pair is not None and len(pair.matches.one) >= FEWEST_MATCHES
    return pair.motion if matched else float("inf")
