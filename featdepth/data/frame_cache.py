"""Decoded frames on disk, at the size they are trained at: loading one costs a copy.

<folder>/<height>x<width>-<filter>-<version>/<name>.frames   frames uint8 [3, H, W], one after the other
                                             <name>.index    a line of JSON for each of them, in the same order

The two files are a shard. One process writes it, a frame before its line, and nothing in it ever changes; others map it
into memory. So any number of processes and machines share a folder without locks: the worst that two of them can do is
to add the same frame twice. A frame is found by its file's path, size and time of change, so a changed file is decoded
again, and checked against its checksum whenever it is read, so a damaged copy is too.
"""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import re
import secrets
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from featdepth.data.images import FILTER, load_image
from featdepth.errors import InputError
from featdepth.files import open_plain

VERSION = 1  # of the files: raise it when they or what is kept in them change, and all frames are decoded anew
SHARD_BYTES = 1 << 30  # a shard is closed when it has grown to this
LARGEST_INDEX = 1 << 28  # bytes; even frames of the smallest size make an index of 30 MB
SPARED_BYTES = 1 << 30  # of the disk, for checkpoints and everybody else: less is left free by no frame
MOST_MAPS = 128  # shards that are mapped at a time; each takes a file descriptor
SIZE_FOLDER = re.compile(r"[0-9]+x[0-9]+-[a-z]+-[0-9]+")
SHARD_NAME = re.compile(r"[0-9a-f]{16}")
FULL_DISK = {errno.ENOSPC, errno.EDQUOT}


class Source(NamedTuple):
    """What tells a frame from all others."""

    path: str  # absolute
    bytes: int
    changed: int  # nanoseconds
    height: int  # of the file's image
    width: int


class Place(NamedTuple):
    """Where a frame is."""

    shard: str
    slot: int
    checksum: int


class FrameCache:
    """The frames of one size in a cache folder, for reading and adding."""

    def __init__(self, folder: str | Path, size: tuple[int, int], limit: float | None = None) -> None:
        """folder: may be shared by data sets, sizes, runs and machines; size: (H, W) of the frames kept.

        limit: GB that the folder may hold in all before nothing more is added; None: what leaves 1 GB of the disk free.
        Raises InputError where the folder cannot be made, and where it can be neither written nor found complete.
        """
        self.root, self.size, self.limit = Path(folder), size, limit
        self.frame_bytes = 3 * size[0] * size[1]
        self.folder = self.root / size_folder(size)
        self.closed = not make_folder(self.folder)  # nothing more is added
        self.forget()
        self.refresh()

    def forget(self) -> None:
        """Know nothing of what is on the disk."""
        self.known: dict[bytes, list[Place]] = {}  # by the digest of a frame's Source
        self.read_up_to: dict[str, tuple[int, int]] = {}  # of each shard's index: bytes, lines
        self.maps: dict[str, np.ndarray] = {}  # uint8 [frames, 3, H, W] of each shard in use
        self.writer: ShardWriter | None = None

    def __getstate__(self) -> dict:
        """What a loader process that is not forked gets: the place, not what is known of it."""
        return {name: getattr(self, name) for name in ("root", "size", "limit", "frame_bytes", "folder", "closed")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self.forget()
        self.refresh()

    def __len__(self) -> int:
        """Frames that were here at the last look, all data sets together."""
        return len(self.known)

    def load(self, path: str | Path, expected_size: tuple[int, int]) -> Tensor:
        """`load_image(path, size, expected_size)`: uint8 `[3, H, W]`, from the cache, or decoded and added to it.

        Raises InputError as `load_image` does, and where the cache cannot be read or written.
        """
        source = identify(path, expected_size)
        frame = self.find(source)
        if frame is None:
            frame = load_image(path, self.size, expected_size)
            self.add(source, frame)
        return frame

    def holds(self, path: str | Path, expected_size: tuple[int, int]) -> bool:
        """Whether the frame of the file at `path`, as it is now, is in the cache and undamaged."""
        return self.find(identify(path, expected_size)) is not None

    def find(self, source: Source) -> Tensor | None:
        """A copy of the frame of `source`, where it is on the disk."""
        digest = digest_of(source)
        frame = self.read(digest)
        if frame is None:
            self.refresh()  # another process may have added it, or this one
            frame = self.read(digest)
        return frame

    def read(self, digest: bytes) -> Tensor | None:
        """A copy of a known frame; a damaged one is forgotten."""
        places = self.known.get(digest, [])
        while places:
            frames = self.mapped(places[-1])
            if frames is not None:
                frame = frames[places[-1].slot].copy()
                if zlib.crc32(frame) == places[-1].checksum:
                    return torch.from_numpy(frame)
            places.pop()
        self.known.pop(digest, None)
        return None

    def mapped(self, place: Place) -> np.ndarray | None:
        """The frames of a shard, with at least the one at `place`; None where the file is gone or cut."""
        frames = self.maps.get(place.shard)
        if frames is None or len(frames) <= place.slot:
            if len(self.maps) >= MOST_MAPS:
                self.maps.pop(next(iter(self.maps)))
            frames = self.maps[place.shard] = map_frames(self.folder / f"{place.shard}.frames", self.size)
        return frames if place.slot < len(frames) else None

    def refresh(self) -> None:
        """Take in what all processes have added since the last look, and forget shards that were removed."""
        sizes = {path.stem: path.stat().st_size for path in shard_files(self.folder, ".index")}
        for shard in self.read_up_to.keys() - sizes.keys():
            # Its frames turn out to be gone when they are asked for.
            del self.read_up_to[shard]
            self.maps.pop(shard, None)
        for shard, size in sizes.items():
            start, slot = self.read_up_to.get(shard, (0, 0))
            if size <= start:
                continue
            lines = read_lines(self.folder / f"{shard}.index", start)
            for line in lines:
                entry = parse_line(line)
                if entry is not None:
                    source, checksum = entry
                    self.known.setdefault(digest_of(source), []).append(Place(shard, slot, checksum))
                slot += 1
            self.read_up_to[shard] = (start + sum(map(len, lines)), slot)

    def add(self, source: Source, frame: Tensor) -> None:
        """Append a frame to this process's shard, unless the limit is reached."""
        if self.closed or self.is_full():
            self.closed = True
            return
        # After a fork the parent's writer is the parent's; and a shard does not grow forever.
        if self.writer is None or self.writer.process != os.getpid() or self.writer.bytes >= SHARD_BYTES:
            self.writer = ShardWriter(self.folder)
        try:
            self.writer.append(source, frame)
        except OSError as error:
            if error.errno not in FULL_DISK:
                raise InputError(f"{self.folder}: cannot be written to ({error.strerror}); set data.cache") from error
            print(f"warning: {self.folder}: the disk is full, no more frames are cached", file=sys.stderr)
            self.closed = True

    def is_full(self) -> bool:
        """Whether one more frame would be beyond the limit, or the disk's."""
        if shutil.disk_usage(self.folder).free < SPARED_BYTES + self.frame_bytes:
            return True
        return self.limit is not None and used_bytes(self.root) + self.frame_bytes > self.limit * 1e9

    def describe(self, frames: int) -> str:
        """A line for the run's header; `frames`: how many the data set reads."""
        text = f"{len(self)} frames in {self.folder}, {frames} needed ({frames * self.frame_bytes / 1e9:.2g} GB)"
        if self.closed:
            return f"{text}; it cannot be written to, what is not there is decoded each time"
        free = shutil.disk_usage(self.folder).free - SPARED_BYTES
        if self.limit is not None:
            free = min(free, self.limit * 1e9 - used_bytes(self.root))
        if frames > len(self) and (frames - len(self)) * self.frame_bytes > free:
            text += f"; room for {max(0, int(free // self.frame_bytes))} more, the rest is decoded each time"
        return text


class ShardWriter:
    """A new shard, for one process to append to."""

    def __init__(self, folder: Path) -> None:
        """Raises InputError where it cannot be made."""
        self.process, self.bytes, self.index_bytes = os.getpid(), 0, 0
        self.path = folder / secrets.token_hex(8)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            # The index first: frames without one are what a removal has left.
            self.index = os.open(self.path.with_suffix(".index"), flags, 0o644)
            self.frames = os.open(self.path.with_suffix(".frames"), flags, 0o644)
        except OSError as error:
            raise InputError(f"{folder}: cannot be written to ({error.strerror}); set data.cache") from error

    def append(self, source: Source, frame: Tensor) -> None:
        """Raises OSError where the frame cannot be written; the shard is then as it was."""
        content = frame.contiguous().numpy().tobytes()
        line = json.dumps([zlib.crc32(content), *source]).encode() + b"\n"
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


def size_folder(size: tuple[int, int]) -> str:
    """The name of the folder with frames of `size` (H, W), as this version decodes them."""
    return f"{size[0]}x{size[1]}-{FILTER}-{VERSION}"


def frame_size(folder: Path) -> tuple[int, int]:
    """The size (H, W) of the frames in a size's folder, from its name."""
    height, width = folder.name.split("-")[0].split("x")
    return int(height), int(width)


def make_folder(folder: Path) -> bool:
    """Make `folder`; whether it can be written to. InputError where it is not there and cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"data.cache: {folder} cannot be made: {error.strerror}; choose another folder") from error
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False  # a cache that somebody else has filled and only lends; the run's header says so


def identify(path: str | Path, expected_size: tuple[int, int]) -> Source:
    """The Source of the file at `path` as it is now; `expected_size`: height and width it must have. InputError."""
    try:
        state = os.stat(path)
    except OSError as error:
        raise InputError(f"{path}: the image cannot be read: {error.strerror}") from error
    return Source(os.path.abspath(path), state.st_size, state.st_mtime_ns, *expected_size)


def digest_of(source: Source) -> bytes:
    return hashlib.blake2b(repr(tuple(source)).encode(), digest_size=16).digest()


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
    with open_plain(path, LARGEST_INDEX, "the cache's index") as file:
        file.seek(start)
        return [line + b"\n" for line in file.read().split(b"\n")[:-1]]


def parse_line(line: bytes) -> tuple[Source, int] | None:
    """Source and checksum of a frame, from its line; None where the line is damaged."""
    try:
        checksum, path, *numbers = json.loads(line)
    except (ValueError, TypeError, RecursionError):
        return None
    if not isinstance(path, str) or len(numbers) != 4 or not all(type(each) is int for each in (checksum, *numbers)):
        return None
    return Source(path, *numbers), checksum


def map_frames(path: Path, size: tuple[int, int]) -> np.ndarray:
    """The whole frames uint8 `[N, 3, H, W]` in a file, mapped into memory; none where it is gone."""
    shape = (3, *size)
    count = file_size(path) // int(np.prod(shape))
    if count == 0:
        return np.empty((0, *shape), dtype=np.uint8)
    with open_plain(path, 2 * SHARD_BYTES, "the cache") as file:
        content = mmap.mmap(file.fileno(), count * int(np.prod(shape)), access=mmap.ACCESS_READ)
    return np.frombuffer(content, dtype=np.uint8).reshape(count, *shape)


def read_shard(index: Path) -> Iterator[tuple[bytes, Source | None, np.ndarray | None]]:
    """Line, source and frame of each slot; None for a line or a frame that is damaged."""
    frames = map_frames(index.with_suffix(".frames"), frame_size(index.parent))
    for slot, line in enumerate(read_lines(index)):
        entry = parse_line(line)
        if entry is None or slot >= len(frames):
            yield line, None, None
            continue
        source, checksum = entry
        frame = frames[slot]
        yield line, source, frame if zlib.crc32(frame) == checksum else None


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
