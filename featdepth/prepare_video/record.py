"""What became of each frame: a journal while a preparation runs, from which it can go on, and what it leaves behind.

journal.jsonl    while it runs: a line for each frame that is done, one before a source's first, one after its last
manifest.jsonl   at the end: a line for each frame of the sources
summary.json     what was asked for, thresholds, what came of it; complete: whether all of it is there
<clip>/clip.json camera, intrinsics, and when and where each frame was taken
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any

from featdepth.data.sets.clips import CLIP, SUMMARY, read_record
from featdepth.errors import InputError
from featdepth.files import write_text
from featdepth.prepare_video.frame_choice import STATIC, USUAL
from featdepth.prepare_video.speed import SpeedRecord, odometer

JOURNAL, MANIFEST = "journal.jsonl", "manifest.jsonl"
SHORTEST_CLIP = 3  # frames: a target and its neighbours
# A picture that is shown again this often at most is a duplicate, as when 12 frames a second are stored as 60; a longer
# run is a camera that stands still.
MOST_REPEATS = 4
UNMOVED = {"duplicate", "static", "close"}
FEWEST_CLIPS = 10  # that are divided into training, validation and test by clip
VALIDATION, TEST = 4, 9  # of every ten clips

Line = dict[str, Any]


@dataclass
class SourceProgress:
    """How far a source is; the same from `note` of each line while it runs and of the journal's lines afterwards."""

    judged: int = 0  # frames
    distinct: int | None = None  # index of the last frame that was no duplicate
    kept: int | None = None  # index of the frame that was kept last
    clip: int = -1  # number of its clip
    frame: int = -1  # its number in the clip
    sharpness: tuple[float, ...] = ()  # of the last good frames
    ended: bool = False

    def next_place(self, source: str, begins_clip: bool) -> Line:
        """Clip and number of the next frame that is kept of a source."""
        number = self.clip + begins_clip
        return {"clip": f"{source}_{number:02}", "frame": 0 if begins_clip else self.frame + 1}

    def note(self, line: Line) -> None:
        """Take in a line of the journal that is about this source."""
        self.ended = self.ended or "ended" in line
        if "verdict" in line:
            self.judged = line["index"] + 1
            self.distinct = self.distinct if line["verdict"] == "duplicate" else line["index"]
        if "sharpness" in line:
            self.sharpness = (*self.sharpness, line["sharpness"])[-USUAL:]
        if "frame" in line:
            self.kept, self.frame = line["index"], line["frame"]
            self.clip += self.frame == 0


def claim(out: Path, settings: Line) -> bool:
    """Make the folder `out` that of a preparation with these settings; True where it is complete already.

    Raises InputError where it holds anything else.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; choose a new or empty folder")
    if not (out / SUMMARY).is_file():
        if out.is_dir() and any(out.iterdir()):
            raise InputError(f"{out}: is not empty and holds no prepared frames; choose a new or empty folder")
        write_json(out / SUMMARY, {"complete": False, **settings})
        return False
    found = read_record(out / SUMMARY)
    has_begun = (out / JOURNAL).is_file() and (out / JOURNAL).stat().st_size > 0
    if found.get("complete") is False and not has_begun:  # the last attempt may have failed for its settings
        write_json(out / SUMMARY, {"complete": False, **settings})
        return False
    for key, value in json.loads(json.dumps(settings)).items():
        if found.get(key) != value:
            raise InputError(f"{out}: holds frames prepared with other {key}; remove it or choose another folder")
    return found["complete"]


def read_journal(out: Path) -> Iterator[Line]:
    """The lines of the journal; a last one that an interruption cut off is none."""
    with open(out / JOURNAL, encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


def mend_journal(out: Path) -> None:
    """Make the journal if there is none, and take off the line that an interruption cut off."""
    with open(out / JOURNAL, "ab+") as file:
        end = file.tell()
        file.seek(max(0, end - (1 << 16)))
        tail = file.read()
        file.truncate(end - len(tail) + tail.rfind(b"\n") + 1)


def read_progress(out: Path) -> dict[str, SourceProgress]:
    """How far each source is, by its name in the journal."""
    progress: dict[str, SourceProgress] = defaultdict(SourceProgress)
    for line in read_journal(out):
        progress[line["source"]].note(line)
    return progress


def finish(out: Path, settings: Line, speeds: SpeedRecord | None) -> Line:
    """Write manifest, clips' records, lists and summary from a complete journal, which goes; returns the summary.

    Interrupted, it can be done again.
    """
    headers = {line["source"]: line["begins"] for line in read_journal(out) if "begins" in line}
    lengths = Counter(line["clip"] for line in read_journal(out) if "clip" in line)
    short = {clip for clip, length in lengths.items() if length < SHORTEST_CLIP}
    for clip in short:
        shutil.rmtree(out / clip, ignore_errors=True)
    clips = {clip: length for clip, length in lengths.items() if clip not in short}

    partial = out / f"{MANIFEST}.partial"
    verdicts: dict[str, Counter[str]] = {source: Counter() for source in headers}
    with open(partial, "w", encoding="utf-8") as file:
        frames = (line for line in read_journal(out) if "verdict" in line)
        for line in settled(frames, lengths, short):
            verdicts[line["source"]][line["verdict"]] += 1
            file.write(json.dumps(line) + "\n")
    os.replace(partial, out / MANIFEST)

    write_clips(out, headers, speeds)
    write_lists(out, clips)
    sources = [
        {"source": source, "frames": counted.total(), **headers[source], "verdicts": dict(sorted(counted.items()))}
        for source, counted in verdicts.items()
    ]
    summary = {"complete": True, **settings, "prepared": sources, "clips": clips}
    write_json(out / SUMMARY, summary)
    (out / JOURNAL).unlink()
    return summary


def settled(lines: Iterable[Line], lengths: Counter[str], short: set[str]) -> Iterator[Line]:
    """The journal's lines about frames with what only their surroundings tell: standing still, and clips too short."""
    for _, group in groupby(standstills(lines), lambda each: each[0]):
        first = list(islice(group, MOST_REPEATS + 1))
        is_static = len(first) > MOST_REPEATS
        for _, change, line in chain(first, group):
            if line.get("clip") in short:
                yield other_verdict(line, "short", "frames", lengths[line["clip"]], SHORTEST_CLIP)
            elif is_static and line["verdict"] == "close":
                yield other_verdict(line, "static", "change", round(change, 6), STATIC)
            else:
                yield line | {"verdict": "static"} if is_static else line


def standstills(lines: Iterable[Line]) -> Iterator[tuple[int, float, Line]]:
    """Each line with the number of its run, and how far `motion` has changed within that.

    A run is one frame, or several between which the camera moves less than counts as motion.
    """
    run, start, previous = 0, None, None
    for line in lines:
        motion = line.get("motion")  # since the frame that was kept last
        change = 0.0 if motion is None or start is None else abs(motion - start)
        unmoved = previous is not None and {previous["verdict"], line["verdict"]} <= UNMOVED and change < STATIC
        if not unmoved or previous["source"] != line["source"]:
            run, start, change = run + 1, None, 0.0
        start = motion if start is None else start
        previous = line
        yield run, change, line


def other_verdict(line: Line, verdict: str, quantity: str, value: float, limit: float) -> Line:
    """The line about a frame with another verdict and what decided that."""
    known = {key: line[key] for key in ("source", "index", "seconds", "turned") if key in line}
    return {**known, "verdict": verdict, quantity: value, "limit": limit}


def write_clips(out: Path, headers: dict[str, Line], speeds: SpeedRecord | None) -> None:
    """Write each clip's record, from the manifest."""
    with open(out / MANIFEST, encoding="utf-8") as file:
        kept = (line for line in map(json.loads, file) if "clip" in line)
        for clip, group in groupby(kept, lambda line: line["clip"]):
            lines = list(group)
            header, seconds = headers[lines[0]["source"]], [line["seconds"] for line in lines]
            record = {key: header[key] for key in ("camera", "size", "intrinsics", "baseline") if key in header}
            record |= {"source": lines[0]["source"], "index": [line["index"] for line in lines], "seconds": seconds}
            if speeds is not None:
                record["odometer"] = [None if time is None else odometer(speeds, time) for time in seconds]
            write_json(out / clip / CLIP, record)


def write_lists(out: Path, clips: dict[str, int]) -> None:
    """Lists of frames with both neighbours, disjoint by clip; none where there are too few clips to divide."""
    if len(clips) < FEWEST_CLIPS:
        return
    parts: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for number, (clip, length) in enumerate(clips.items()):
        part = {VALIDATION: "val", TEST: "test"}.get(number % 10, "train")
        parts[part] += [f"{clip} {frame} l\n" for frame in range(1, length - 1)]
    for part, lines in parts.items():
        write_text(out / "splits" / f"{part}_files.txt", "".join(lines))


def write_json(path: Path, value: Line) -> None:
    write_text(path, json.dumps(value, indent=1) + "\n")
