"""Time to load one frame on one core: this loader and its cache against the usual way.

python benchmarks/loading.py [--images FOLDER] [--size 192x640] [--repeat 9] [--json FILE]

The usual way decodes, resizes with Lanczos, jitters colours on the host and makes floats, plain and jittered; here the
loader decodes and resizes, or copies from the cache, and the rest happens on the device for the whole batch. FOLDER
holds frames to load; without it frames of KITTI's size and detail are made on the spot: png as in KITTI's archives
(each row as differences from the pixel to the left, packed lightly), png as Pillow writes it (which takes longer to
decode, whoever does it), and jpg. Rounds are interleaved; medians, and ratios within a round. The difference of the two
results, in levels of 0 .. 255, is that of the filters.
"""

from __future__ import annotations

import statistics
import struct
import tempfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from measure import Column, finish, heading, interleaved, make_parser, median_ratio, size, start, table_line
from PIL import Image
from torch import Tensor
from torchvision import transforms

from featdepth.data.cached.frame_cache import FrameCache
from featdepth.data.images import load_image

FRAMES = 8
KITTI_SIZE = (375, 1242)
CPU = torch.device("cpu")
COLUMNS = [
    Column("kilobytes", "kB", 0),
    Column("usual_ms", "usual ms", 1),
    Column("decoded_ms", "decoded ms", 1),
    Column("cached_ms", "cached ms", 3),
    Column("decoded_ratio", "x decoded", 2),
    Column("cached_ratio", "x cached", 0),
    Column("mean_difference", "difference", 2),
]


def main() -> None:
    parser = make_parser(__doc__, repeat=9, on_gpu=False)
    parser.add_argument("--images", type=Path, help="folder with png and jpg frames")
    parser.add_argument("--size", type=size, default=(192, 640), metavar="HEIGHTxWIDTH")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    height, width = arguments.size
    result = start(CPU, {"size": f"{height}x{width}", "frames": FRAMES, "rounds": arguments.repeat})
    result["rows"] = {}
    print(f"\n{heading(COLUMNS)}", flush=True)
    with tempfile.TemporaryDirectory() as made:
        kinds = find_frames(arguments.images) if arguments.images else write_frames(Path(made))
        for kind, paths in kinds.items():
            cache = FrameCache(Path(made) / "cache", arguments.size)
            row = result["rows"][kind] = figures(paths, cache, arguments.repeat)
            print(table_line(kind, row, COLUMNS), flush=True)
    finish(result, arguments)


def figures(paths: list[Path], cache: FrameCache, repeat: int) -> dict[str, float]:
    """The figures of one kind of files."""

    sizes = {path: image_size(path) for path in paths}

    def cached(path: Path, _size: tuple[int, int]) -> Tensor:
        return cache.load(path, sizes[path])

    ways = {"usual": usual_way, "decoded": load_image, "cached": cached}
    runs = {name: partial(load_all, way, paths, cache.size) for name, way in ways.items()}
    seconds = interleaved(runs, repeat, CPU)
    difference = (usual_way(paths[0], cache.size)[0] * 255 - load_image(paths[0], cache.size)).abs()
    return {
        "kilobytes": statistics.mean(path.stat().st_size for path in paths) / 1e3,
        **{f"{name}_ms": 1e3 * statistics.median(seconds[name]) / len(paths) for name in ways},
        "decoded_ratio": median_ratio(seconds["usual"], seconds["decoded"]),
        "cached_ratio": median_ratio(seconds["usual"], seconds["cached"]),
        "mean_difference": float(difference.mean()),
    }


def find_frames(folder: Path) -> dict[str, list[Path]]:
    """The first png and jpg files below `folder`."""
    kinds = {suffix: sorted(folder.rglob(f"*.{suffix}"))[:FRAMES] for suffix in ("png", "jpg")}
    return {kind: paths for kind, paths in kinds.items() if paths}


def write_frames(folder: Path) -> dict[str, list[Path]]:
    """Frames with smooth shapes and fine noise, in three kinds of files."""
    height, width = KITTI_SIZE
    kinds: dict[str, list[Path]] = {"png, as KITTI's": [], "png, as Pillow's": [], "jpg": []}
    for index in range(FRAMES):
        random = np.random.default_rng(index)
        coarse = Image.fromarray(random.integers(0, 256, (24, 80, 3), dtype=np.uint8)).resize((width, height))
        pixels = np.asarray(coarse, dtype=float) + random.normal(0, 3, (height, width, 1))
        frame = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        paths = [folder / f"{index}_kitti.png", folder / f"{index}_pillow.png", folder / f"{index}.jpg"]
        write_png_as_kitti(frame, paths[0])
        frame.save(paths[1])
        frame.save(paths[2], quality=92)
        for kind, path in zip(kinds, paths, strict=True):
            kinds[kind].append(path)
    return kinds


def write_png_as_kitti(frame: Image.Image, path: Path) -> None:
    """A png whose rows are all differences from the pixel to the left (filter 1), packed at the lowest level."""
    pixels = np.asarray(frame)
    differences = np.diff(pixels, axis=1, prepend=np.uint8(0)).reshape(len(pixels), -1)
    rows = np.insert(differences, 0, 1, axis=1)
    header = struct.pack(">2I5B", frame.width, frame.height, 8, 2, 0, 0, 0)
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for name, content in ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 1)), (b"IEND", b"")):
            file.write(struct.pack(">I", len(content)) + name + content)
            file.write(struct.pack(">I", zlib.crc32(name + content)))


def image_size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.height, image.width


def usual_way(path: Path, size: tuple[int, int]) -> list[Tensor]:
    """The frame and its jittered copy, float32 `[3, H, W]` in [0, 1]."""
    with Image.open(path) as image:
        resized = image.convert("RGB").resize((size[1], size[0]), Image.Resampling.LANCZOS)
    jittered = transforms.ColorJitter(0.2, 0.2, 0.2, 0.1)(resized)
    return [transforms.functional.to_tensor(resized), transforms.functional.to_tensor(jittered)]


def load_all(way: Callable[[Path, tuple[int, int]], object], paths: list[Path], size: tuple[int, int]) -> None:
    """Load each of the frames at `size` (height, width)."""
    for path in paths:
        way(path, size)


if __name__ == "__main__":
    main()
