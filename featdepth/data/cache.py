"""Fill, check or shrink the folder of decoded frames that `data.cache` names.

python -m featdepth.data.cache --config configs/kitti.yaml data.cache=/fast/cache [key=value ...] [--workers N]
python -m featdepth.data.cache --config configs/kitti.yaml data.cache=/fast/cache --check
python -m featdepth.data.cache --config configs/kitti.yaml data.cache=/fast/cache --shrink [GB]

Filling decodes what training and validation need and the cache lacks; it may be interrupted at any time, repeated, and
run on several machines at once. Checking reads every frame of every size. Shrinking drops frames that are damaged, kept
twice, of files that have changed or gone, or of another version; then the oldest, until the folder holds GB (default:
data.cache_gb).
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from featdepth.config import Config, load_config, parse_arguments
from featdepth.console import count, watched
from featdepth.data import build_dataset
from featdepth.data.cached.frame_cache import FrameCache
from featdepth.data.cached.shards import (
    FrameIdentity,
    identify,
    is_current,
    keep_only,
    read_shard,
    remove_leftovers,
    shard_files,
    size_folders,
    used_bytes,
)
from featdepth.data.dataset import SKIPPING_ADVICE
from featdepth.errors import InputError, run_program

CACHED_PARTS = ("train", "validation")
THERE, ADDED, NO_ROOM, UNREADABLE = range(4)
GOOD = "good"


def main() -> None:
    arguments = parse_arguments(None, __doc__, add_options)
    config = load_config(arguments.config, arguments.overrides, training=False)
    if config.data.cache is None:
        raise InputError("data.cache: is not set; name the folder, as in data.cache=/fast/cache")
    root = Path(config.data.cache)
    if (arguments.check or arguments.shrink is not None) and not root.is_dir():
        raise InputError(f"data.cache: {root} is not there yet")
    if arguments.check:
        check(root)
    elif arguments.shrink is not None:
        limit = config.data.cache_gb if arguments.shrink is True else arguments.shrink
        shrink(root, None if limit is None else int(limit * 1e9))
    else:
        fill(config, config.data.workers if arguments.workers is None else arguments.workers)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers", type=whole_number, metavar="N", help="processes that decode (default: data.workers)"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="read every frame and say what is wrong")
    what.add_argument("--shrink", type=gigabytes, nargs="?", const=True, metavar="GB", help="drop what is of no use")


def whole_number(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError
    return number


def gigabytes(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise ValueError
    return number


class Frames(Dataset):
    """Image files as samples, for loader processes to put into the cache."""

    def __init__(self, cache: FrameCache, files: Sequence[tuple[str, tuple[int, int]]], skip_bad_frames: bool) -> None:
        self.cache, self.files, self.skip_bad_frames = cache, files, skip_bad_frames

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> int:
        """What became of the frame: THERE, ADDED, NO_ROOM or UNREADABLE; InputError unless bad frames are skipped."""
        path, size = self.files[index]
        try:
            if self.cache.holds(path, size):
                return THERE
            self.cache.load(path, size)
            return NO_ROOM if self.cache.closed else ADDED
        except InputError as error:
            if not self.skip_bad_frames:
                raise InputError(f"{error}{SKIPPING_ADVICE}") from error
            return UNREADABLE


def fill(config: Config, workers: int) -> None:
    """Add every frame that training and validation need and the cache lacks."""
    datasets = [member for part in CACHED_PARTS for member in build_dataset(config, part).members]
    # Data sets that are mixed are cropped in ways of their own, and each crop has a folder of its own.
    caches = {dataset.cache.folder: dataset.cache for dataset in datasets}
    for folder, cache in caches.items():
        files: dict[str, tuple[int, int]] = {}
        for dataset in datasets:
            if dataset.cache.folder == folder:
                files |= dataset.image_files()
        fill_one(cache, files, config.data.skip_bad_frames, workers)


def fill_one(cache: FrameCache, files: dict[str, tuple[int, int]], skip_bad_frames: bool, workers: int) -> None:
    """Add those of the image `files`, with their sizes (height, width), that the cache lacks."""
    print(cache.describe(len(files)))
    frames = Frames(cache, list(files.items()), skip_bad_frames)
    # In an order of its own: machines that fill the same cache meet as rarely as can be.
    loader = DataLoader(frames, shuffle=True, num_workers=workers, generator=torch.Generator())
    loader.generator.seed()
    counts: Counter[int] = Counter()
    for result in watched(loader, "cache", "frames", len(loader)):
        counts[int(result)] += 1
        if int(result) == NO_ROOM:
            break
    cache.refresh()
    print(f"{counts[ADDED]} added, {counts[THERE]} there before; {used_bytes(cache.root) / 1e9:.3g} GB in {cache.root}")
    if counts[UNREADABLE]:
        print(f"{counts[UNREADABLE]} cannot be read and are left out")
    if counts[NO_ROOM]:
        print("no room for more (data.cache_gb, or the disk; --shrink makes some): the rest is decoded each time")


def check(root: Path) -> None:
    """Read every frame, print what is there; InputError where anything is damaged."""
    total = Counter()
    for folder in size_folders(root):
        counts: Counter[str] = Counter()
        earlier: set[FrameIdentity] = set()
        shards = list(shard_files(folder, ".index"))
        for index in watched(shards, "checking", "files", len(shards)):
            for _, source, frame in read_shard(index):
                counts[verdict(source, frame, earlier)] += 1
        print(f"{folder.name}: {listed(counts)}")
        total += counts
    print(f"{used_bytes(root) / 1e9:.3g} GB in {root}")
    if total["damaged"]:
        raise InputError(
            f"{root}: {count(total['damaged'], 'damaged frame')} to be decoded again; --shrink drops what is damaged"
        )


def verdict(source: FrameIdentity | None, frame: np.ndarray | None, earlier: set[FrameIdentity]) -> str:
    """GOOD, or why a frame is of no use; `earlier`: those before it of the same size and crop, to which it is added."""
    if source is None or frame is None:
        return "damaged"
    try:
        current = identify(source.path, (source.height, source.width)) == source
    except InputError:
        current = False
    if not current:
        return "out of date"
    if source in earlier:
        return "double"
    earlier.add(source)
    return GOOD


def shrink(root: Path, limit: int | None) -> None:
    """Keep the good frames, of them the newest until `limit` bytes. Running programs decode again what they miss."""
    before, counts = used_bytes(root), Counter()
    earlier: defaultdict[Path, set[FrameIdentity]] = defaultdict(set)  # by the folder of their size
    shards = [index for folder in size_folders(root) for index in shard_files(folder, ".index")]
    shards.sort(key=lambda index: index.stat().st_mtime_ns, reverse=True)
    room = float("inf") if limit is None else limit
    for index in watched(shards, "shrinking", "files", len(shards)):
        outdated = not is_current(index.parent)
        kept = []
        for slot, (line, source, frame) in enumerate(read_shard(index)):
            name = "of another version" if outdated else verdict(source, frame, earlier[index.parent])
            if name == GOOD:
                room -= len(line) + frame.nbytes
                name = GOOD if room >= 0 else "beyond the limit"
            if name == GOOD:
                kept.append(slot)
            counts[name] += 1
        keep_only(index, kept)
    for folder in size_folders(root):
        remove_leftovers(folder)
    kept_count = counts.pop(GOOD, 0)
    print(f"{count(kept_count, 'frame')} kept; dropped: {listed(counts)}")
    print(f"{before / 1e9:.3g} GB before, {used_bytes(root) / 1e9:.3g} GB now in {root}")


def listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"


if __name__ == "__main__":
    run_program(main)
