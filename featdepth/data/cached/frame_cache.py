"""Decoded frames on disk, at the size they are trained at: loading one costs a copy.

A frame is found by its file's path, size and time of change, so a changed file is decoded again, and is compared with
its checksum whenever it is read, so a damaged copy is too.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from featdepth.console import count
from featdepth.data.cached.shards import (
    SHARD_BYTES,
    FrameIdentity,
    ShardWriter,
    file_size,
    identify,
    map_frames,
    read_lines,
    shard_files,
    size_folder,
    split_line,
    used_bytes,
)
from featdepth.data.images import crop_window, load_image
from featdepth.errors import InputError

SPARED_BYTES = 1 << 30  # of the disk, for checkpoints and everybody else: less is left free by no frame
MOST_MAPS = 128  # shards that are mapped at a time; each takes a file descriptor
FULL_DISK = {errno.ENOSPC, errno.EDQUOT}


class Place(NamedTuple):
    """Where a frame is."""

    shard: str
    slot: int
    checksum: int


class FrameCache:
    """The frames of one size in a cache folder, for reading and adding."""

    def __init__(
        self, folder: str | Path, size: tuple[int, int], limit: float | None = None, crop: Sequence[float] = ()
    ) -> None:
        """folder: may be shared by data sets, sizes, runs and machines; size: (H, W) of the frames kept.

        limit: GB that the folder may hold in all before nothing more is added; None: what leaves 1 GB of the disk free.
        crop: parts cut off at the top, bottom, left and right before resizing.
        Raises InputError where the folder is not there and cannot be made; one that can only be read is used as it is.
        """
        self.root, self.size, self.limit, self.crop = Path(folder), size, limit, tuple(crop)
        self.frame_bytes = 3 * size[0] * size[1]
        self.folder = self.root / size_folder(size, self.crop)
        self.closed = not make_folder(self.folder)  # nothing more is added
        self.forget()
        self.refresh()

    def forget(self) -> None:
        """Know nothing of what is on the disk."""
        self.known: dict[bytes, list[Place]] = {}  # by the digest of a frame's FrameIdentity
        self.read_up_to: dict[str, tuple[int, int]] = {}  # of each shard's index: bytes, lines
        self.maps: dict[str, np.ndarray] = {}  # uint8 [frames, 3, H, W] of each shard in use
        self.writer: ShardWriter | None = None

    def __getstate__(self) -> dict:
        """What a loader process that is not forked gets: the place, not what is known of it."""
        return {
            name: getattr(self, name) for name in ("root", "size", "limit", "crop", "frame_bytes", "folder", "closed")
        }

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self.forget()
        self.refresh()

    def __len__(self) -> int:
        """Frames that were here at the last look, all data sets together."""
        return len(self.known)

    def load(self, path: str | Path, expected_size: tuple[int, int]) -> Tensor:
        """`load_image` of the frame's size and crop: uint8 `[3, H, W]`, from the cache, or decoded and added to it.

        Raises InputError as `load_image` does, also for one colour all over, and where the cache is unusable.
        """
        source = identify(path, expected_size)
        frame = self.find(source)
        if frame is None:
            frame = load_image(path, self.size, expected_size, crop_window(expected_size, self.crop), True)
            self.add(source, frame)
        return frame

    def holds(self, path: str | Path, expected_size: tuple[int, int]) -> bool:
        """Whether the frame of the file at `path`, as it is now, is in the cache and undamaged."""
        return self.find(identify(path, expected_size)) is not None

    def find(self, source: FrameIdentity) -> Tensor | None:
        """A copy of the frame of `source`, where it is on the disk."""
        digest = digest_of(source.as_line())
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
        sizes = {path.stem: file_size(path) for path in shard_files(self.folder, ".index")}
        for shard in self.read_up_to.keys() - sizes.keys():
            # Its frames turn out to be gone when they are asked for.
            del self.read_up_to[shard]
            self.maps.pop(shard, None)
        for shard, size in sizes.items():
            start, slot = self.read_up_to.get(shard, (0, 0))
            if size <= start:
                continue
            lines = read_lines(self.folder / f"{shard}.index", start)
            for position, line in enumerate(lines, start=slot):
                checksum, source = split_line(line)
                if checksum is not None:
                    self.known.setdefault(digest_of(source), []).append(Place(shard, position, checksum))
            self.read_up_to[shard] = (start + sum(map(len, lines)), slot + len(lines))

    def add(self, source: FrameIdentity, frame: Tensor) -> None:
        """Append a frame to this process's shard, unless the limit is reached."""
        if self.closed or self.is_full():
            self.closed = True
            return
        try:
            self.open_shard().append(source, frame)
        except OSError as error:
            if error.errno not in FULL_DISK:
                raise InputError(f"{self.folder}: cannot be written to ({error.strerror}); set data.cache") from error
            print(f"warning: {self.folder}: the disk is full, no more frames are cached", file=sys.stderr)
            self.closed = True

    def open_shard(self) -> ShardWriter:
        """This process's shard: a new one after a fork, since that of the parent is the parent's, and after a GB."""
        writer = self.writer
        if writer is not None and (writer.process != os.getpid() or writer.bytes >= SHARD_BYTES):
            writer.close()
            writer = None
        self.writer = ShardWriter(self.folder) if writer is None else writer
        return self.writer

    def is_full(self) -> bool:
        """Whether one more frame would be beyond the limit, or the disk's."""
        if shutil.disk_usage(self.folder).free < SPARED_BYTES + self.frame_bytes:
            return True
        return self.limit is not None and used_bytes(self.root) + self.frame_bytes > self.limit * 1e9

    def describe(self, frames: int) -> str:
        """A line for the run's header; `frames`: how many the data set reads."""
        text = (
            f"{count(len(self), 'frame')} in {self.folder}, {frames} needed ({frames * self.frame_bytes / 1e9:.2g} GB)"
        )
        if self.closed:
            return f"{text}; it cannot be written to, what is not there is decoded each time"
        free = shutil.disk_usage(self.folder).free - SPARED_BYTES
        if self.limit is not None:
            free = min(free, self.limit * 1e9 - used_bytes(self.root))
        if frames > len(self) and (frames - len(self)) * self.frame_bytes > free:
            text += f"; room for {max(0, int(free // self.frame_bytes))} more, the rest is decoded each time"
        return text


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


def digest_of(source: bytes) -> bytes:
    """Of a FrameIdentity as its line has it, to be found by; parsing 100 000 lines would take a second."""
    return hashlib.blake2b(source, digest_size=16).digest()
