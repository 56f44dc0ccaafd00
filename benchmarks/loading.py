"""Time to load one frame on one core: this loader against the usual way.

python benchmarks/loading.py [--images FOLDER] [--height 192 --width 640] [--repeat 9] [--json FILE]

The usual way decodes, resizes with Lanczos, jitters colours on the host and makes floats, plain and jittered; here the
loader decodes and resizes, and the rest happens on the device for the whole batch. FOLDER holds frames to load; without
it frames of KITTI's size, with an amount of detail that makes files of about its size, are made on the spot. Rounds are
interleaved; medians, and ratios within a round. The difference of the two results, in levels of 0 .. 255, is that of
the filters.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms

sys.path.insert(0, str(Path(__file__).parents[1]))

from featdepth.data.images import load_image

FRAMES = 8
KITTI_SIZE = (375, 1242)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder with png and jpg frames")
    parser.add_argument("--height", type=int, default=192)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    size = (arguments.height, arguments.width)
    result = {}
    with tempfile.TemporaryDirectory() as made:
        folder = arguments.images or write_frames(Path(made))
        print(f"{'':8}{'kB':>7}{'usual ms':>10}{'here ms':>10}{'ratio':>8}{'difference':>12}")
        for suffix in ("png", "jpg"):
            paths = sorted(folder.rglob(f"*.{suffix}"))[:FRAMES]
            if not paths:
                continue
            usual, here = time_interleaved(
                usual_way, lambda path, size: [load_image(path, size)], paths, size, arguments
            )
            difference = (usual_way(paths[0], size)[0] * 255 - load_image(paths[0], size)).abs().mean()
            row = {
                "kilobytes": statistics.mean(path.stat().st_size for path in paths) / 1e3,
                "usual_ms": 1e3 * statistics.median(usual),
                "here_ms": 1e3 * statistics.median(here),
                "ratio": statistics.median(one / other for one, other in zip(usual, here, strict=True)),
                "mean_difference": float(difference),
            }
            result[suffix] = row
            print(
                f"{suffix:8}{row['kilobytes']:7.0f}{row['usual_ms']:10.1f}{row['here_ms']:10.1f}{row['ratio']:8.2f}"
                f"{row['mean_difference']:12.2f}"
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def write_frames(folder: Path) -> Path:
    """Frames with smooth shapes and fine noise, as png and jpg."""
    height, width = KITTI_SIZE
    for index in range(FRAMES):
        random = np.random.default_rng(index)
        coarse = Image.fromarray(random.integers(0, 256, (24, 80, 3), dtype=np.uint8)).resize((width, height))
        pixels = np.asarray(coarse, dtype=float) + random.normal(0, 3, (height, width, 1))
        frame = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        frame.save(folder / f"{index}.png")
        frame.save(folder / f"{index}.jpg", quality=92)
    return folder


def usual_way(path: Path, size: tuple[int, int]) -> list[Tensor]:
    """The frame and its jittered copy, float32 `[3, H, W]` in [0, 1]."""
    with Image.open(path) as image:
        resized = image.convert("RGB").resize((size[1], size[0]), Image.Resampling.LANCZOS)
    jittered = transforms.ColorJitter(0.2, 0.2, 0.2, 0.1)(resized)
    return [transforms.functional.to_tensor(resized), transforms.functional.to_tensor(jittered)]


def time_interleaved(
    one: Callable[[Path, tuple[int, int]], object],
    other: Callable[[Path, tuple[int, int]], object],
    paths: list[Path],
    size: tuple[int, int],
    arguments: argparse.Namespace,
) -> tuple[list[float], list[float]]:
    """Seconds a frame of both, in each round after a warm-up."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for round_number in range(1 + arguments.repeat):
        for load, values in zip((one, other), seconds, strict=True):
            started = time.perf_counter()
            for path in paths:
                load(path, size)
            if round_number > 0:
                values.append((time.perf_counter() - started) / len(paths))
    return seconds


if __name__ == "__main__":
    main()
