"""Which picture of the right camera was taken together with each of the left one.

Every picture has a place on its camera's time line: its film's seconds, or what the names of images say. A pair are two
pictures at the same place, but for a lag that is the same throughout.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from featdepth.console import count
from featdepth.data.films import Picture, read_pictures
from featdepth.data.frame_folders import list_sequence
from featdepth.errors import InputError

# Seconds since 1970 and their fraction, in digits at the end of a name.
UNIX_TIME = re.compile(r"(?:.*[^0-9])?([1-9][0-9]{9})[._]?([0-9]{0,9})")
LATEST = 0.25  # of the time between frames: images with times that are farther apart are no pair
SURVEYED = 192  # frames, for the interval between them and for the lag
CELLS = (16, 3)  # rows, columns of the picture whose brightness is compared
CLEAR, AHEAD = 0.5, 0.2  # correlation of the best lag, and by how much it has to be better than others
FEWEST_CHANGES = 12  # that a lag can be told from
SAME_RATE = 0.01  # relative


class Sides(NamedTuple):
    """Where the pictures of each camera are."""

    left: Path
    right: Path


@dataclass(frozen=True)
class Pairing:
    """Two films, or two folders of images, with the places of the images."""

    sides: Sides
    places: tuple[list[float], list[float]] | None  # of the images; None: films, whose frames have seconds
    interval: float  # from one frame to the next, in the same unit
    tolerance: float  # how far the places of a pair may differ
    by: str  # what pairs them, in words
    has_times: bool  # places are seconds
    lag: float = 0.0  # place of a right picture less that of its left one

    def pictures(self) -> Iterator[tuple[Picture, Picture | None]]:
        """Each left picture with the nearest right one; None where that is too far away."""
        left, right = self.stream(0), self.stream(1)
        current, following = next(right, None), next(right, None)
        for place, picture in left:
            wanted = place + self.lag
            while following is not None and abs(following[0] - wanted) <= abs(current[0] - wanted):
                current, following = following, next(right, None)
            is_near = current is not None and abs(current[0] - wanted) <= self.tolerance
            yield picture, current[1] if is_near else None

    def stream(self, side: int) -> Iterator[tuple[float, Picture]]:
        """Places and pictures of a side."""
        path, pictures = self.sides[side], read_pictures(self.sides[side])
        if self.places is not None:
            pairs = zip(self.places[side], pictures, strict=True)
            first = self.places[side][0]
            yield from ((at, each._replace(seconds=at - first if self.has_times else None)) for at, each in pairs)
            return
        for index, picture in enumerate(pictures):
            if picture.seconds is None:
                raise InputError(f"{path}: frame {index} has no time; convert the film again, or to a folder of images")
            yield picture.seconds, picture

    def describe(self) -> str:
        """How pictures are paired, in words."""
        if not self.lag:
            return f"paired by {self.by}"
        frames = round(self.lag / self.interval)
        seconds = f" ({self.lag:+.3f} s)" if self.has_times else ""
        return f"paired by {self.by}: left frame {max(0, -frames)} with right frame {max(0, frames)}{seconds}"


def pair(sides: Sides, offset: int | None) -> Pairing:
    """How the pictures of two films or two folders belong together.

    offset: frames, the place of the right picture that belongs to the first left one; None: by the names of images,
    by their order where these have no numbers in common, and of films by how the pictures change. Raises InputError
    where nothing tells, and where names say one thing and pictures another.
    """
    if sides.left.is_dir() != sides.right.is_dir():
        raise InputError(f"{sides.left} and {sides.right}: one is a folder and the other a film; convert one of them")
    pairing = pair_folders(sides, offset) if sides.left.is_dir() else pair_films(sides)
    if offset is not None:
        return replace(pairing, lag=offset * pairing.interval, by="--offset")
    lag = picture_lag(islice(pairing.pictures(), SURVEYED))
    if not lag:
        return pairing
    if pairing.by not in ("time", "order"):
        first = int(np.argmin(np.abs(np.subtract(pairing.places[1], pairing.places[0][0]))))
        raise InputError(
            f"{sides.right}: by their {pairing.by} pictures are paired with those that were taken {abs(lag)} frames "
            f"{'later' if lag < 0 else 'earlier'}, judging by how both change; give --offset {first + lag}, or "
            f"--offset {first} to pair them so all the same"
        )
    return replace(pairing, lag=lag * pairing.interval, by="how both pictures change")


def pair_films(sides: Sides) -> Pairing:
    """By time from the first frame on; films of different frame rates are refused."""
    intervals = [film_interval(path) for path in sides]
    if abs(intervals[0] / intervals[1] - 1) > SAME_RATE:
        rates = " and ".join(f"{1 / interval:.2f}" for interval in intervals)
        raise InputError(
            f"{sides.left} and {sides.right}: have {rates} frames a second; convert both to one frame rate"
        )
    return Pairing(sides, None, intervals[0], intervals[0] / 2, "time", True)


def film_interval(path: Path) -> float:
    """Seconds from a frame of a film to the next, in the median."""
    times = [picture.seconds for picture in islice(read_pictures(path), SURVEYED)]
    if len(times) < 2 or None in times or not np.median(np.diff(times)) > 0:
        raise InputError(f"{path}: its frames have no times that increase; convert it again, or to a folder of images")
    return float(np.median(np.diff(times)))


def pair_folders(sides: Sides, offset: int | None) -> Pairing:
    """By times since 1970 or numbers in the names of images, else by order."""
    names = [[Path(file).stem for file in list_sequence(folder)] for folder in sides]
    counts = [len(each) for each in names]
    if offset is None and (times := times_in(names)) is not None:
        interval = float(np.median(np.diff(times[0]))) if counts[0] > 1 else 1.0
        return Pairing(sides, times, interval, LATEST * interval, "the times in their names", True)
    if offset is None and (numbers := numbers_in_common(names)) is not None:
        return Pairing(sides, numbers, 1.0, 0.0, "the numbers in their names", False)
    if offset is None and counts[0] != counts[1]:
        raise InputError(
            f"{sides.left} has {count(counts[0], 'image')}, {sides.right} {counts[1]}, and no numbers in their names "
            "tell which belong together; give --offset, the number (from 0) of the right one that belongs to the first"
        )
    return Pairing(sides, tuple([*map(float, range(each))] for each in counts), 1.0, 0.0, "order", False)


def times_in(names: Sequence[Sequence[str]]) -> tuple[list[float], list[float]] | None:
    """Seconds since the first image of either folder, by the time in each name; None where one has none."""
    matches = [[UNIX_TIME.fullmatch(name) for name in each] for each in names]
    if not all(match for each in matches for match in each):
        return None
    nanoseconds = [[int(match[1] + match[2].ljust(9, "0")) for match in each] for each in matches]
    first = min(each[0] for each in nanoseconds)
    left, right = ([(time - first) / 1e9 for time in each] for each in nanoseconds)
    return left, right


def numbers_in_common(names: Sequence[Sequence[str]]) -> tuple[list[float], list[float]] | None:
    """The place of each image by those numbers in its name that differ within the folder; None where none is in both.

    So left_0007_a2 and right_0007_a3 are a pair.
    """
    keys = [changing_numbers(each) for each in names]
    if None in keys or not set(keys[0]) & set(keys[1]):
        return None
    rank = {key: float(place) for place, key in enumerate(sorted({*keys[0], *keys[1]}))}
    left, right = ([rank[key] for key in each] for each in keys)
    return left, right


def changing_numbers(names: Sequence[str]) -> list[tuple[int, ...]] | None:
    """Of each name the numbers that are not the same in all; None where names differ in how many there are."""
    numbers = [tuple(map(int, re.findall("[0-9]+", name))) for name in names]
    if len({len(each) for each in numbers}) != 1:
        return None
    changing = [place for place, values in enumerate(zip(*numbers, strict=True)) if len(set(values)) > 1]
    keys = [tuple(each[place] for place in changing) for each in numbers]
    return keys if len(set(keys)) == len(keys) else None


def picture_lag(pairs: Iterable[tuple[Picture, Picture | None]]) -> int | None:
    """By how many frames right pictures change later than left ones; None where that is not clear.

    Two cameras side by side see the same brightness come and go in large parts of their pictures.
    """
    cells = [[brightness(picture.pixels) for picture in both] for both in pairs if both[1] is not None]
    if len(cells) <= FEWEST_CHANGES:
        return None
    left, right = np.diff(np.array(cells), axis=0).swapaxes(0, 1)
    longest = len(left) // 3
    scores = {lag: correlation(left, right, lag) for lag in range(-longest, longest + 1)}
    best = max(scores, key=scores.get)
    others = max(score for lag, score in scores.items() if abs(lag - best) > 1)
    return best if scores[best] >= CLEAR and scores[best] - others >= AHEAD else None


def brightness(pixels: np.ndarray) -> np.ndarray:
    """The mean grey level of each cell of a picture uint8 RGB `[h, w, 3]`: float64 `[cells]`."""
    rows, columns = CELLS
    grey = Image.fromarray(pixels).convert("L").resize((columns, rows), Image.Resampling.BOX)
    return np.array(grey, dtype=np.float64).ravel()


def correlation(left: np.ndarray, right: np.ndarray, lag: int) -> float:
    """Of changes `[N, cells]` with those of the other camera `lag` frames later."""
    left, right = left[max(0, -lag) : len(left) - max(0, lag)], right[max(0, lag) : len(right) - max(0, -lag)]
    left, right = left - left.mean(0), right - right.mean(0)
    return float((left * right).sum() / max(np.sqrt((left**2).sum() * (right**2).sum()), 1e-9))
