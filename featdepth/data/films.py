"""Frames of video files and of folders of images, upright and one at a time.

Videos are decoded by PyAV where it is installed, else by the `ffmpeg` program (5.1 or newer).
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import BinaryIO, NamedTuple

import numpy as np

from featdepth.data.frame_folders import list_sequence
from featdepth.data.images import HEAD, is_image, is_other_picture, read_photo
from featdepth.data.listing import CONVERT
from featdepth.errors import InputError

# EXIF orientations without mirroring, as degrees by which the picture has to be turned against the clock.
EXIF_TURNS = {3: 180, 6: -90, 8: 90}
FRAME_NOTE = re.compile(rb"pts_time:(\S+)|rotation of (-?[0-9.]+) degrees")  # of ffmpeg's filter "showinfo"
LONGEST_HEADER_LINE = 64  # bytes


class Picture(NamedTuple):
    """One frame of a source."""

    pixels: np.ndarray  # uint8 RGB [h, w, 3], upright
    seconds: float | None  # after the source's first frame; None for images
    turned: int  # degrees against the clock by which it was turned to stand upright


def read_pictures(path: Path, first: int = 0) -> Iterator[Picture]:
    """The frames of a video file or of a folder of images, from number `first` (from 0) on.

    Raises InputError, naming the place, for what is missing, damaged, empty, or changes its size on the way.
    """
    pictures = read_folder(path, first) if path.is_dir() else read_video(path, first)
    size = None
    for index, picture in enumerate(pictures, first):
        height, width = picture.pixels.shape[:2]
        if size not in (None, (height, width)):
            raise InputError(
                f"{path}: frame {index} has {width} x {height} pixels, those before {size[1]} x {size[0]}; "
                "put frames of different sizes into inputs of their own"
            )
        size = height, width
        yield picture


def read_folder(path: Path, first: int) -> Iterator[Picture]:
    """The images in a folder in natural order, turned as their EXIF orientation says."""
    for file in list_sequence(path)[first:]:
        pixels, orientation = read_photo(file)
        yield Picture(pixels, None, EXIF_TURNS.get(orientation, 0))


def video_reader() -> str:
    """What decodes videos here: "PyAV" or "ffmpeg". Raises InputError where there is neither."""
    if importlib.util.find_spec("av") is not None:
        return "PyAV"
    if shutil.which("ffmpeg") is not None:
        return "ffmpeg"
    raise InputError(
        "videos need PyAV (pip install av) or the program ffmpeg on the PATH, and neither is here; "
        "install one, or give a folder of images"
    )


def refuse_photo(path: Path) -> None:
    """Raise InputError for a file that is a single photo, whether its format is read or not."""
    with open(path, "rb") as file:
        head = file.read(HEAD)
    if is_other_picture(path, head):
        raise InputError(f"{path}: {CONVERT}")
    if is_image(path):
        raise InputError(f"{path}: a single photo, no video; give the folder that holds the frames")


def read_video(path: Path, first: int) -> Iterator[Picture]:
    """The frames of a video file, turned as its metadata say, by whichever reader there is."""
    if not path.is_file():
        raise InputError(f"{path}: no such video file or folder of images")
    refuse_photo(path)
    frames = (read_with_pyav if video_reader() == "PyAV" else read_with_ffmpeg)(path, first)
    for pixels, seconds, rotation in frames:
        quarters = round(rotation / 90)
        # Contiguous: a turned view of the array would be slow to work with.
        yield Picture(np.ascontiguousarray(np.rot90(pixels, quarters)), seconds, 90 * quarters)


def read_with_pyav(path: Path, first: int) -> Iterator[tuple[np.ndarray, float | None, float]]:
    """Pixels as stored, seconds, and the turn (degrees against the clock) that the metadata ask for."""
    import av

    if not hasattr(av.VideoFrame, "rotation"):
        raise InputError(f"PyAV {av.__version__} does not tell how a video is turned; pip install --upgrade av")
    index = 0
    try:
        # An absolute path is never taken for an address in a network.
        with av.open(str(path.resolve())) as container:
            if not container.streams.video:
                raise InputError(f"{path}: has no video in it; give a video file or a folder of images")
            container.streams.video[0].thread_type = "AUTO"
            start = None
            for index, frame in enumerate(container.decode(video=0)):
                start = frame.time if start is None else start
                if index >= first:
                    seconds = None if frame.time is None else round(frame.time - start, 6)
                    yield frame.to_ndarray(format="rgb24"), seconds, frame.rotation
    except av.FFmpegError as error:
        raise unreadable_video(path, index, error.strerror) from error


def read_with_ffmpeg(path: Path, first: int) -> Iterator[tuple[np.ndarray, float | None, float]]:
    """As `read_with_pyav`, from the program: pictures through a pipe, times and turns from what it reports."""
    command = ["ffmpeg", "-nostdin", "-hide_banner", "-nostats", "-noautorotate", "-xerror"]
    command += ["-protocol_whitelist", "file,pipe", "-i", f"file:{path.resolve()}", "-map", "0:v:0"]
    command += ["-fps_mode", "passthrough", "-vf", "showinfo", "-f", "image2pipe", "-c:v", "ppm", "pipe:1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            notes = Notes(process.stderr)
            index, start = 0, None
            while (pixels := read_ppm(process.stdout)) is not None:
                seconds = notes.next_time()
                start = seconds if start is None else start
                if index >= first:
                    yield pixels, None if seconds is None else round(seconds - start, 6), notes.rotation
                index += 1
            if process.wait() != 0 or index == 0:
                raise unreadable_video(path, index, notes.last_line())
        finally:
            process.kill()


def read_ppm(stream: BinaryIO) -> np.ndarray | None:
    """The next binary PPM picture of a stream, uint8 `[h, w, 3]`; None at its end or where it is cut off."""
    header = [stream.readline(LONGEST_HEADER_LINE) for _ in range(3)]
    if header[0] != b"P6\n" or header[2] != b"255\n":
        return None
    width, height = map(int, header[1].split())
    data = stream.read(3 * width * height)
    return np.frombuffer(data, np.uint8).reshape(height, width, 3) if len(data) == 3 * width * height else None


class Notes:
    """What ffmpeg reports while it decodes; read by a thread, since it stops when nobody reads."""

    def __init__(self, stream: BinaryIO) -> None:
        self.rotation = 0.0  # degrees
        self.times: SimpleQueue[float | None] = SimpleQueue()
        self.last = b""
        self.thread = Thread(target=self.read, args=(stream,), daemon=True)
        self.thread.start()

    def read(self, stream: BinaryIO) -> None:
        for line in stream:
            self.last = line.strip() or self.last
            for seconds, rotation in FRAME_NOTE.findall(line):
                if rotation:
                    self.rotation = float(rotation)
                else:
                    self.times.put(None if seconds == b"NOPTS" else float(seconds))
        self.times.put(None)

    def next_time(self) -> float | None:
        """Seconds of the next frame, in the video's own count; None where they are unknown."""
        return None if self.times.empty() and not self.thread.is_alive() else self.times.get()

    def last_line(self) -> str:
        """The last that was reported, once everything is."""
        self.thread.join()
        return self.last.decode("utf-8", "replace")[-160:]


def unreadable_video(path: Path, index: int, reason: str) -> InputError:
    """The error for a video that cannot be decoded beyond its first `index` frames."""
    place = f"cannot be read after frame {index}" if index else "cannot be read as a video"
    return InputError(f"{path}: {place}: {' '.join(reason.split())}; convert it again, or cut it before that place")
