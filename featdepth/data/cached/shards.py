"""The files of the cache of decoded frames.

<folder>/<height>x<width>-<filter>-<version>/<name>.frames   frames uint8 [3, H, W], one after the other
                                             <name>.index    a line with checksum and FrameIdentity for each of them

(the folder of cropped frames ends with -cropped- and the four parts that are cut off)

The two files are a shard. One process writes it, a frame before its line, and nothing in it ever changes; others map it
into memory. So any number of processes and machines share a folder without locks: the worst that two of them can do is
to add the same frame twice.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import re
import secrets
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from featdepth.data.images import FILTER
from featdepth.errors import InputError
from featdepth.files import open_plain

VERSION = 2  # of the files: raise it when they or what is kept in them change, and all frames are decoded anew
SHARD_BYTES = 1 << 30  # a shard is closed when it has grown to this
LARGEST_INDEX = 1 << 28  # bytes; even frames of the smallest size make an index of 30 MB
SIZE_FOLDER = re.compile(r"[0-9]+x[0-9]+-[a-z]+-[0-9]+(-cropped(-[0-9.]+){4})?")
LINE = re.compile(rb"([0-9a-f]{8}) (\[.*\])\n")
SHARD_NAME = re.compile(r"[0-9a-f]{16}")


class FrameIdentity(NamedTuple):
    """What tells a frame from all others."""

    path: str  # absolute
    bytes: int
    changed: int  # nanoseconds
    height: int  # of the file's image
    width: int

    def as_line(self) -> bytes:
        return json.dumps(list(self)).encode()


class ShardWriter:
    """A new shard, for one process to append to."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError where it cannot be made."""
        self.process, self.bytes, self.index_bytes = os.getpid(), 0, 0
        self.path = folder / secrets.token_hex(8)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        # The index first: frames without one are what a removal has left.
        self.index = os.open(self.path.with_suffix(".index"), flags, 0o644)
        self.frames = os.open(self.path.with_suffix(".frames"), flags, 0o644)

    def append(self, source: FrameIdentity, frame: Tensor) -> None:
        """Raises OSError where the frame cannot be written; the shard is then as it was."""
        content = frame.contiguous().numpy().tobytes()
        line = b"%08x %s\n" % (zlib.crc32(content), source.as_line())
        try:
            write_all(self.frames, content)
            write_all(self.index, line)
        except OSError:
            os.ftruncate(self.frames, self.bytes)
            os.ftruncate(self.index, self.index_bytes)
            os.lseek(self.frames, self.bytes, os.SEEK_SET)
            os.lseek(self.index, self.index_bytes, os.SEEK_SET)
            raise
        self.bytes += len(content)
        self.index_bytes += len(line)

    def close(self) -> None:
        os.close(self.frames)
        os.close(self.index)


def write_all(handle: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(handle, rest) :]


def size_folder(size: tuple[int, int], crop: Sequence[float] = ()) -> str:
    """The name of the folder with frames of `size` (H, W), as this version decodes them; `crop` as in `data.crop`."""
    cropped = "-".join(["-cropped", *(f"{part:g}" for part in crop)]) if any(crop) else ""
    return f"{size[0]}x{size[1]}-{FILTER}-{VERSION}{cropped}"


def is_current(folder: Path) -> bool:
    """Whether the frames in a size's folder are as this version decodes them."""
    return folder.name.split("-")[1:3] == [FILTER, str(VERSION)]


def frame_size(folder: Path) -> tuple[int, int]:
    """The size (H, W) of the frames in a size's folder, from its name."""
    height, width = folder.name.split("-")[0].split("x")
    return int(height), int(width)


def identify(path: str | Path, expected_size: tuple[int, int]) -> FrameIdentity:
    """That of the file at `path` as it is now; `expected_size`: height and width it must have. Raises InputError."""
    try:
        state = os.stat(path)
    except OSError as error:
        raise InputError(f"{path}: the image cannot be read: {error.strerror}") from error
    return FrameIdentity(os.path.abspath(path), state.st_size, state.st_mtime_ns, *expected_size)


def shard_files(folder: Path, suffix: str) -> list[Path]:
    """The files of shards in `folder` with `suffix`, and no others, by name."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise InputError(f"{folder}: the cache cannot be read: {error.strerror}") from error
    paths = [folder / name for name in names if name.endswith(suffix)]
    return [path for path in paths if SHARD_NAME.fullmatch(path.stem) and path.is_file()]


def size_folders(root: Path) -> list[Path]:
    """The folders for each size (filter, version) in a cache."""
    return sorted(path for path in root.iterdir() if SIZE_FOLDER.fullmatch(path.name) and path.is_dir())


def used_bytes(root: Path) -> int:
    """Bytes of all shards in a cache, of any size of frame."""
    paths = [
        path
        for folder in size_folders(root)
        for suffix in (".frames", ".index")
        for path in shard_files(folder, suffix)
    ]
    return sum(file_size(path) for path in paths)


def file_size(path: Path) -> int:
    """Bytes of a file; 0 where another process has removed it."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def read_lines(path: Path, start: int = 0) -> list[bytes]:
    """The whole lines of an index from byte `start` on; one without an end is still being written, or was cut."""
    try:
        with open_plain(path, LARGEST_INDEX, "the cache's index") as file:
            file.seek(start)
            return [line + b"\n" for line in file.read().split(b"\n")[:-1]]
    except InputError:
        if path.exists():
            raise
        return []  # another process has just removed it


def split_line(line: bytes) -> tuple[int | None, bytes]:
    """Checksum and FrameIdentity, as text, of a frame; no checksum where the line is damaged."""
    match = LINE.fullmatch(line)
    return (int(match[1], 16), match[2]) if match else (None, b"")


def parse_identity(text: bytes) -> FrameIdentity | None:
    """The FrameIdentity of a line; None where it is damaged."""
    try:
        path, *numbers = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return None
    if not isinstance(path, str) or len(numbers) != 4 or not all(type(number) is int for number in numbers):
        return None
    return FrameIdentity(path, *numbers)


def map_frames(path: Path, size: tuple[int, int]) -> np.ndarray:
    """The whole frames uint8 `[N, 3, H, W]` in a file, mapped into memory; none where it is gone."""
    shape = (3, *size)
    count = file_size(path) // math.prod(shape)
    if count == 0:
        return np.empty((0, *shape), dtype=np.uint8)
    try:
        with open_plain(path, 2 * SHARD_BYTES, "the cache") as file:
            content = mmap.mmap(file.fileno(), count * math.prod(shape), access=mmap.ACCESS_READ)
    except InputError:
        if path.exists():
            raise
        return np.empty((0, *shape), dtype=np.uint8)
    return np.frombuffer(content, dtype=np.uint8).reshape(count, *shape)


def read_shard(index: Path) -> Iterator[tuple[bytes, FrameIdentity | None, np.ndarray | None]]:
    """Line, source and frame of each slot; None for a line or a frame that is damaged."""
    frames = map_frames(index.with_suffix(".frames"), frame_size(index.parent))
    for slot, line in enumerate(read_lines(index)):
        checksum, text = split_line(line)
        source = None if checksum is None else parse_identity(text)
        intact = slot < len(frames) and zlib.crc32(frames[slot]) == checksum
        yield line, source, frames[slot] if intact else None


def keep_only(index: Path, slots: Sequence[int]) -> None:
    """Reduce a shard to some of its frames: a new shard takes its place, unless there is nothing to leave out."""
    entries = list(read_shard(index)) if slots else []
    whole = sum(frame.nbytes for _, _, frame in entries if frame is not None)
    if entries and len(slots) == len(entries) and whole == file_size(index.with_suffix(".frames")):
        return
    if slots:
        writer = ShardWriter(index.parent)
        for slot in slots:
            _, source, frame = entries[slot]
            writer.append(source, torch.from_numpy(frame.copy()))
        writer.close()
        changed = index.stat().st_mtime_ns
        os.utime(writer.path.with_suffix(".index"), ns=(changed, changed))  # as old as what it holds
    index.unlink(missing_ok=True)
    index.with_suffix(".frames").unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove frames without an index, which an interrupted removal has left."""
    for path in shard_files(folder, ".frames"):
        if not path.with_suffix(".index").exists():
            path.unlink(missing_ok=True)
