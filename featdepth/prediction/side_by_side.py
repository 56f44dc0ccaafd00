"""A video of a clip: each frame beside its depth in colours that mean the same throughout."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path

import numpy as np
from PIL import Image

from featdepth.errors import InputError
from featdepth.files import written_whole
from featdepth.prediction.pictures import bar_height, colour_depth, draw_scale_bar, nearest_depth

RANGED_FRAMES = 32  # the first of a clip, which its range of colours is taken from
# The first of them that is there, and its options.
CODECS = {"libx264": {"crf": "20", "preset": "veryfast"}, "mpeg4": {"qscale": "3"}}


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
    depth of the brightest colour, None: from the first frames; frame_rate: frames a second where they know no times.
    The file appears once it is whole, and not where there is no frame. Raises InputError without PyAV, OSError where it
    cannot be written.
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
            stream = container.add_stream(codec, rate=Fraction(rate).limit_denominator(1000), options=CODECS[codec])
            stream.width, stream.height, stream.pix_fmt = 2 * width, height + len(bar), "yuv420p"
            for image, depth, _ in chain(first, frames):
                pair = [fitted(panel, (height, width)) for panel in (image, colour_depth(depth, nearest))]
                pixels = np.concatenate([np.concatenate(pair, axis=1), bar], axis=0)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())
    except av.FFmpegError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def fitted(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 `[h, w, 3]` resized to `size` (height, width)."""
    if pixels.shape[:2] == size:
        return pixels
    return np.array(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR))


def rate_of(times: Sequence[float | None]) -> float | None:
    """Frames a second by the median time between frames; None where frames know no times."""
    if len(times) < 2 or None in times:
        return None
    step = float(np.median(np.diff(times)))
    return round(1 / step, 3) if step > 0 else None
