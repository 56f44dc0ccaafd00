"""What came of a preparation, and the command that trains on it, in words."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

from featdepth.config import Model
from featdepth.config.values import override
from featdepth.console import command, count
from featdepth.data.notes import fitting_size
from featdepth.errors import InputError
from featdepth.prepare_video import record
from featdepth.prepare_video.frame_choice import KEPT

NEAR = 0.5  # of the depth that a twentieth of points stay below: the nearest that a network should be able to say
TRAINED_PIXELS = 288 * 512  # about as many as configs/video.yaml trains with


def report(out: Path, summary: dict[str, Any]) -> None:
    """Print what came of it, and how to train with it. Raises InputError where nothing is left."""
    verdicts = sum((Counter(source["verdicts"]) for source in summary["prepared"]), Counter())
    clips, kept = summary["clips"], sum(summary["clips"].values())
    dropped = ", ".join(f"{number} {name}" for name, number in verdicts.most_common() if name not in KEPT)
    frames = count(verdicts.total(), "frame")
    told = f"{kept} of {frames} in {count(len(clips), 'clip')}; dropped: {dropped or 'none'}"
    if not clips:
        raise InputError(f"{out}: {told}; {out / record.MANIFEST} says why for each frame")
    print(f"{out}: {told}")
    for source in summary["prepared"]:
        known_from = source["intrinsics_from"] or "unknown: learn them, or set data.field_of_view"
        turned = f", turned by {source['turned']} degrees" if source["turned"] else ""
        print(f"{source['source']}: {source['size'][1]}x{source['size'][0]}{turned}; intrinsics {known_from}")
        if "baseline" in source:
            near, median, far = source["depths"]
            print(
                f"{source['source']}: {source['paired']}; rectification: {source['rectified']}, rows differ by "
                f"{source['rows']:.2f} pixels; baseline {source['baseline']:g} m, depths {near:g} to {far:g} m, "
                f"half of them below {median:g} m"
            )
    used = used_sources(summary)
    unknown = [source["source"] for source in used if source["intrinsics"] is None]
    if unknown and (degrees := known_field_of_view(used)) is not None:
        print(
            f"the intrinsics of {', '.join(unknown)} are unknown, so that all are learned, from the known field of "
            f"view of {degrees:.1f} degrees; with those of all (--intrinsics, --field-of-view) none need be"
        )
    print(command(training_command(out, summary)))


def training_command(out: Path, summary: dict[str, Any]) -> list[str]:
    """The words of the command that trains on what was prepared, at a size of the frames' own shape."""
    split = out / "splits" if len(summary["clips"]) >= record.FEWEST_CLIPS else "time"
    used = used_sources(summary)
    height, width = fitting_size(max(used, key=kept_frames)["size"], TRAINED_PIXELS)
    words = ["accelerate", "launch", "train.py", "--config", "configs/video.yaml"]
    words += [override("data.root", out), override("data.split", split)]
    words += [f"data.height={height}", f"data.width={width}"]
    depths = [source["depths"][0] for source in used if "baseline" in source]
    if depths:
        unit = float(f"{NEAR * min(depths) / Model.min_depth:.2g}")
        words += ["data.frames=[0,-1,1,s]", f"model.metres_per_unit={unit:g}"]
    if all(source["intrinsics"] is not None for source in used):
        return [*words, "model.intrinsics=given", "data.field_of_view=null"]
    # The configuration learns them, from one field of view for all cameras.
    return words if (degrees := known_field_of_view(used)) is None else [*words, f"data.field_of_view={degrees:.1f}"]


def known_field_of_view(sources: list[dict[str, Any]]) -> float | None:
    """Degrees, horizontal, of the source with known intrinsics that has most frames; None where none has them."""
    known = [source for source in sources if source["intrinsics"] is not None]
    if not known:
        return None
    most = max(known, key=kept_frames)
    return math.degrees(2 * math.atan(most["size"][1] / 2 / most["intrinsics"][0][0]))


def used_sources(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The sources of which there are clips."""
    return [source for source in summary["prepared"] if kept_frames(source)]


def kept_frames(source: dict[str, Any]) -> int:
    """How many frames of a source are in clips."""
    return sum(source["verdicts"].get(name, 0) for name in KEPT)
