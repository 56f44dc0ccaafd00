"""A video of a clip: each frame beside its depth in colours that mean the same throughout."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from featdepth.drawing import bar_height, colour_depth, draw_scale_bar, nearest_depth
from featdepth.errors import InputError
from featdepth.files import written_whole

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.packet import Packet

RANGED_FRAMES = 32  # the first of a clip, which its range of colours is taken from
# The first of them that is there, and its options: frames are stored as shown, so that the last one has a duration.
CODECS = {"libx264": {"crf": "20", "preset": "veryfast", "bf": "0"}, "mpeg4": {"qscale": "3"}}
TICK = Fraction(1, 60000)  # seconds: usual frame rates are whole numbers of it, and mpeg4 takes nothing finer
RESTARTED = 1.0  # seconds: a clock that goes back by more has begun again


def check_video_writer() -> None:
    """Raise InputError where PyAV, which writes videos, is not installed."""
    if importlib.util.find_spec("av") is None:
        raise InputError("a side-by-side video needs PyAV (pip install av); install it, or leave video out of --save")


def write_side_by_side(
    path: Path,
    frames: Iterable[tuple[np.ndarray, np.ndarray, float | None]],
    unit: str,
    nearest: float | None = None,
    frame_rate: float = 10.0,
) -> None:
    """Write an mp4 of `frames`, each uint8 RGB `[h, w, 3]` with its depth `[h, w]` and its time in seconds or None.

    They are read one by one; those of another size than the first are resized to it. unit: METRES or RELATIVE; nearest:
    depth of the brightest colour, None: from the first frames; frame_rate: frames a second where they have no times.
    Each frame is shown at its own time after the first, and the last one as long as the one before it. The file appears
    once it is whole, and not where there is no frame. Raises InputError without PyAV, OSError where it cannot be
    written.
    """
    check_video_writer()
    import av

    frames = iter(frames)
    first = list(islice(frames, RANGED_FRAMES))
    if not first:
        return
    nearest = nearest or nearest_depth(*(depth for _, depth, _ in first))
    height, width = first[0][0].shape[:2]
    height, width = height + height % 2, width + width % 2  # encoders want even sides
    bar = np.array(draw_scale_bar(2 * width, bar_height(height) // 2 * 2, unit, nearest))
    try:
        with written_whole(path) as temporary, av.open(str(temporary), "w") as container:
            codec = next(codec for codec in CODECS if codec in av.codecs_available)
            rate = rate_of([seconds for _, _, seconds in first]) or frame_rate
            step = 1 / rate
            stream = container.add_stream(codec, rate=Fraction(rate).limit_denominator(1000), options=CODECS[codec])
            stream.width, stream.height, stream.pix_fmt = 2 * width, height + len(bar), "yuv420p"
            stream.codec_context.time_base = TICK
            place, last = Places(step), 0
            durations: dict[int, int] = {}  # ticks, by the tick at which a frame is shown
            for image, depth, seconds in chain(first, frames):
                pair = [fitted(panel, (height, width)) for panel in (image, colour_depth(depth, nearest))]
                pixels = np.concatenate([np.concatenate(pair, axis=1), bar], axis=0)
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts, frame.time_base = max(round(place.next(seconds) / TICK), last + bool(durations)), TICK
                durations[frame.pts] = frame.pts - last if durations else round(step / TICK)
                last = frame.pts
                mux(container, stream.encode(frame), durations)
            mux(container, stream.encode(), durations)
    except av.FFmpegError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def fitted(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 `[h, w, 3]` resized to `size` (height, width)."""
    if pixels.shape[:2] == size:
        return pixels
    return np.array(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR))


def mux(container: OutputContainer, packets: Iterable[Packet], durations: dict[int, int]) -> None:
    """Write encoded frames. A player needs the duration of the last one; that of any other ends with the next."""
    for packet in packets:
        packet.duration = durations[packet.pts]
        container.mux(packet)


class Places:
    """When each frame of a video is shown, in seconds after the first: at its own time wherever that is possible.

    A frame without a time comes one usual step after the one before; one whose time is not after that is put between it
    and the next; and where the clock begins again the video goes on.
    """

    def __init__(self, step: float) -> None:
        """step: usual seconds between frames."""
        self.step = step
        self.offset: float | None = None  # from a frame's time to its place
        self.last: float | None = None

    def next(self, seconds: float | None) -> float:
        """The place of the next frame, taken at `seconds` (None: unknown)."""
        if self.last is None:
            place = 0.0
        elif seconds is None:
            place = self.last + self.step
        elif self.offset is None or seconds + self.offset < self.last - RESTARTED:
            place = self.last + self.step
            self.offset = None
        else:
            place = seconds + self.offset
            place = place if place > self.last else self.last + self.step / 2
        if self.offset is None and seconds is not None:
            self.offset = place - seconds
        self.last = place
        return place


def rate_of(times: Sequence[float | None]) -> float | None:
    """Frames a second by the median time between frames; None where frames have no times."""
    if len(times) < 2 or None in times:
        return None
    step = float(np.median(np.diff(times)))
    return round(1 / step, 3) if step > 0 else None
