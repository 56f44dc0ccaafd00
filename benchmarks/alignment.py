"""Time and accuracy of direct alignment (`featdepth.alignment`).

python benchmarks/alignment.py [--sizes 192x640] [--batches 1 8] [--iterations 20] [--repeat 15] [--cpu] [--json FILE]
    [--kitti FOLDER] [--odometry FOLDER] [--height 192] [--width 640]

Time: of a pair of smooth random pictures with random depth, `--iterations` shared out to the levels of the pyramid; the
clock's and, which a busy machine disturbs less, the processor's. "x grey" is the ratio to grey pictures within a round.

Accuracy, on real frames where they are given: each pair of neighbours, forwards (the earlier frame's depth) and
backwards, from the identity, and the mean of both ways. --kitti: raw drives with laser scans (depth is the scan in the
camera) and inertial data; --odometry: KITTI odometry, grey or colour, with stereo pictures (depth by block matching,
metric by the true baseline) and poses. A test list is not needed: all frames are used whose neighbours are there.
Translation errors are in per cent of the way of the pair, rotation errors in degrees.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from measure import (
    REPOSITORY,
    Column,
    compiled,
    device_of,
    finish,
    heading,
    interleaved,
    make_parser,
    median_ratio,
    size,
    start,
    table_line,
)
from torch import Tensor
from torch.nn import functional

from featdepth.alignment import align
from featdepth.config import load_config
from featdepth.data import build_dataset
from featdepth.data.dataset import FrameDataset
from featdepth.data.kitti.ground_truth import read_scan
from featdepth.geometry import invert_pose
from featdepth.odometry.aligned import halfway
from featdepth.odometry.rotations import rotation_angles

SPEED = [
    Column("milliseconds", "ms a pair", 2),
    Column("processor_milliseconds", "processor", 2),
    Column("times_grey", "x grey", 2),
]
ACCURACY = [
    Column("pairs", "pairs", 0),
    Column("known", "known", 0),
    Column("translation_median", "t median %", 2),
    Column("translation_worst", "t worst %", 2),
    Column("rotation_median", "r median deg", 4),
    Column("rotation_worst", "r worst deg", 4),
]
BATCH = 8  # pairs that are aligned at once, for accuracy
LARGEST_DISPARITY = 96  # pixels
WINDOW = 9  # pixels of a matched block
SMALLEST_DISPARITY = 1.5  # pixels: what is farther away has no depth by matching
AGREEMENT = 1.0  # pixels between both ways of matching


def main() -> None:
    parser = make_parser(__doc__, repeat=15)
    parser.add_argument("--sizes", nargs="+", type=size, default=[(192, 640)], metavar="HEIGHTxWIDTH")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--iterations", type=int, default=20, help="of all levels together")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="compiled too; default: on a GPU")
    parser.add_argument("--kitti", type=Path, metavar="FOLDER", help="of KITTI raw")
    parser.add_argument("--odometry", type=Path, metavar="FOLDER", help="of KITTI odometry")
    arguments = parser.parse_args()
    device = device_of(arguments)
    result = start(device, {"iterations": arguments.iterations, "rounds": arguments.repeat})
    result["rows"] = []
    for (height, width), batch in product(arguments.sizes, arguments.batches):
        print(f"\nbatch {batch} of {height}x{width}\n{heading(SPEED)}", flush=True)
        for name, row in speed((height, width), batch, arguments, device).items():
            result["rows"].append({"name": name, "height": height, "width": width, "batch": batch, **row})
            print(table_line(name, row, SPEED), flush=True)
    folders = {"kitti_raw": arguments.kitti, "kitti_odometry": arguments.odometry}
    for (kind, folder), image_size in product(folders.items(), arguments.sizes):
        for dataset, drive in drives_of(kind, folder, image_size) if folder else ():
            print(f"\n{drive}, {image_size[0]}x{image_size[1]}\n{heading(ACCURACY)}", flush=True)
            for name, row in accuracy(dataset, device).items():
                result["rows"].append({"name": name, "drive": drive, "height": image_size[0], **row})
                print(table_line(name, row, ACCURACY), flush=True)
    finish(result, arguments)


def speed(
    image_size: tuple[int, int], batch: int, arguments: argparse.Namespace, device: torch.device
) -> dict[str, dict[str, float]]:
    """The figures of each kind of pictures."""
    generator = torch.Generator().manual_seed(0)
    height, width = image_size

    def smooth(channels: int) -> Tensor:
        coarse = torch.rand(batch, channels, height // 4, width // 4, generator=generator)
        return functional.interpolate(coarse, image_size, mode="bicubic").to(device)

    depth = 5 + 20 * smooth(1).clamp(0, 1)
    focal = 0.58 * width
    intrinsics = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], device=device)
    levels = 1 + max(0, int(math.log2(min(image_size) / 8)))
    others = arguments.iterations // (levels + 1)
    shared = (others, arguments.iterations - others * (levels - 1))  # on each level, and about twice on the coarsest
    pairs = {"grey": (smooth(1), smooth(1)), "colour": (smooth(3), smooth(3))}
    with_compiled = device.type == "cuda" if arguments.compile is None else arguments.compile
    ways: dict[str, Callable] = {"": align} | ({", compiled": compiled(align)} if with_compiled else {})
    runs = {
        f"{name}{way}": partial(run, *pair, depth, intrinsics.expand(batch, 3, 3), iterations=shared)
        for (name, pair), (way, run) in product(pairs.items(), ways.items())
    }
    seconds = interleaved(runs, arguments.repeat, device)
    return {
        name: {
            "milliseconds": 1e3 * statistics.median(values) / batch,
            "processor_milliseconds": 1e3 * processor_seconds(runs[name], arguments.repeat) / batch,
            "times_grey": median_ratio(values, seconds["grey"]),
        }
        for name, values in seconds.items()
    }


def processor_seconds(run: Callable[[], object], repeat: int) -> float:
    """The median over `repeat` calls of what all threads of this process worked."""
    worked = []
    for _ in range(repeat):
        started = time.process_time()
        run()
        worked.append(time.process_time() - started)
    return statistics.median(worked)


def drives_of(kind: str, folder: Path, image_size: tuple[int, int]) -> Iterator[tuple[FrameDataset, str]]:
    """The pairs of each drive below `folder` that has what its kind of depth needs."""
    stereo = kind == "kitti_odometry"
    found = folder.glob("sequences/*/image_*" if stereo else "*/*/velodyne_points")
    for drive in sorted({path.parent for path in found}):
        name = drive.name if stereo else f"{drive.parent.name}/{drive.name}"
        pictures = next(path for path in sorted(drive.glob("image_*")) if path.is_dir())
        numbers = sorted(int(path.stem) for path in pictures.rglob("*.png"))
        listed = [f"{name} {number} l" for number in numbers if number + 1 in numbers]
        with tempfile.TemporaryDirectory() as made:
            test_list = Path(made) / "frames.txt"
            test_list.write_text("\n".join(listed) + "\n")
            options = [f"data.kind={kind}", f"data.root={folder}", f"data.test_files={test_list}"]
            options += [f"data.height={image_size[0]}", f"data.width={image_size[1]}"]
            options += ["data.split=official"] if stereo else ["data.split=eigen", "evaluate.protocol=eigen"]
            config = load_config(REPOSITORY / "configs" / "kitti_odometry.yaml", options, training=False)
            dataset = build_dataset(config, "test", with_depth=False, frames=[0, 1, "s"] if stereo else [0, 1])
        poses = dataset.poses(name)
        dataset.samples = [each for each in dataset.samples if each.frame in poses and each.frame + 1 in poses]
        yield dataset, name


def accuracy(dataset: FrameDataset, device: torch.device) -> dict[str, dict[str, float]]:
    """The figures of each way through the pairs of one drive."""
    poses = dataset.poses(dataset.samples[0].drive)
    forwards, backwards, both = [], [], []
    for first in range(0, len(dataset), BATCH):
        chosen = range(first, min(first + BATCH, len(dataset)))
        items = [dataset[index] for index in chosen]
        images = (torch.stack([item["images"] for item in items]).float() / 255).mean(2, keepdim=True).to(device)
        intrinsics = torch.stack([item["intrinsics"] for item in items]).to(device)
        earlier = torch.cat([depth_at(dataset, index, 0, items[index - first]) for index in chosen]).to(device)
        later = torch.cat([depth_at(dataset, index, 1, items[index - first]) for index in chosen]).to(device)
        one = align(images[:, 0], images[:, 1], earlier, intrinsics)
        other = align(images[:, 1], images[:, 0], later, intrinsics)
        back = invert_pose(other.pose)
        forwards += zip(one.pose, one.is_known, strict=True)
        backwards += zip(back, other.is_known, strict=True)
        both += zip(halfway(one.pose, back), one.is_known & other.is_known, strict=True)
    truth = np.stack([np.linalg.inv(poses[each.frame + 1]) @ poses[each.frame] for each in dataset.samples])
    return {
        "forwards": figures(forwards, truth),
        "backwards": figures(backwards, truth),
        "mean of both": figures(both, truth),
    }


def figures(found: list[tuple[Tensor, Tensor]], truth: np.ndarray) -> dict[str, float]:
    """Errors of motions (with whether each is known), later_from_earlier, against the true ones `[N, 4, 4]`."""
    motions = torch.stack([pose for pose, _ in found]).cpu().double().numpy()
    way = np.linalg.norm(truth[:, :3, 3], axis=1)
    translation = 100 * np.linalg.norm(motions[:, :3, 3] - truth[:, :3, 3], axis=1) / way
    rotation = np.degrees(rotation_angles(motions[:, :3, :3].transpose(0, 2, 1) @ truth[:, :3, :3]))
    return {
        "pairs": len(found),
        "known": int(sum(bool(is_known) for _, is_known in found)),
        "translation_median": float(np.median(translation)),
        "translation_worst": float(translation.max()),
        "rotation_median": float(np.median(rotation)),
        "rotation_worst": float(rotation.max()),
    }


def depth_at(dataset: FrameDataset, index: int, offset: int, item: dict[str, Tensor]) -> Tensor:
    """Depth `[1, 1, H, W]` (metres, 0 = none) of the sample's frame or of the one after it."""
    sample = dataset.samples[index]
    sample = sample._replace(frame=sample.frame + offset)
    if "stereo_pose" not in item:
        return scan_depth(dataset, sample)
    left, right = item["images"][0], item["images"][2]
    if offset:
        camera = dataset.camera_of(sample)
        left, right = (dataset.load_frame(dataset.image_path(sample, frame), camera) for frame in (0, "s"))
    disparity = match(*(image[None].float().mean(1, keepdim=True) / 255 for image in (left, right)))
    metres = item["intrinsics"][0, 0] * -item["stereo_pose"][0, 3]
    return torch.where(disparity > SMALLEST_DISPARITY, metres / disparity, 0.0)


def scan_depth(dataset: FrameDataset, sample: object) -> Tensor:
    """The laser scan at the images' size: the camera's own z, unlike that of `featdepth.data.kitti.ground_truth`."""
    calibration = dataset.calibration(sample)
    points = read_scan(dataset.files.scan(sample.drive, sample.frame))
    projection = calibration.projection_of_scan(sample.side)
    seen = points[points[:, 0] >= 0, :3].astype(np.float64) @ projection[:, :3].T + projection[:, 3]
    seen = seen[seen[:, 2] > 1]
    (height, width), (own_height, own_width) = dataset.size, calibration.size(sample.side)
    column = np.round((seen[:, 0] / seen[:, 2] - 0.5) * width / own_width - 0.5)  # pixels count from 1 there
    row = np.round((seen[:, 1] / seen[:, 2] - 0.5) * height / own_height - 0.5)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    depth = np.full(height * width, np.inf, dtype=np.float32)
    np.minimum.at(depth, (row[inside] * width + column[inside]).astype(np.int64), seen[inside, 2].astype(np.float32))
    return torch.from_numpy(np.where(np.isinf(depth), 0, depth).reshape(1, 1, height, width))


def match(left: Tensor, right: Tensor) -> Tensor:
    """Disparity `[1, 1, H, W]` (pixels, 0 = none) of the left picture of a rectified pair, by blocks.

    Blocks lose their mean first. What the right picture's own matching does not confirm is left out.
    """
    left, right = (image - box(image) for image in (left, right))
    count = min(LARGEST_DISPARITY, left.shape[-1] // 4)
    cost = torch.full((count, *left.shape[-2:]), torch.inf)
    back = cost.clone()
    for disparity in range(count):
        width = left.shape[-1] - disparity
        found = box((left[..., disparity:] - right[..., :width]).abs().clamp(max=0.1))[0, 0]
        cost[disparity, :, disparity:] = found
        back[disparity, :, :width] = found
    best = cost.argmin(0)
    inner = best.clamp(1, count - 2)
    before, here, after = (cost.gather(0, (inner + step)[None])[0] for step in (-1, 0, 1))
    curvature = before + after - 2 * here
    parabola = inner + torch.where(curvature > 0, (before - after) / (2 * curvature), 0.0).nan_to_num(0.0)
    seen_at = (torch.arange(left.shape[-1]) - best).clamp(min=0)
    confirmed = (back.argmin(0).gather(1, seen_at) - best).abs() <= AGREEMENT
    is_sharp = (best == inner) & curvature.isfinite() & (curvature > 1e-3)
    return torch.where(confirmed & is_sharp, parabola, 0.0)[None, None]


def box(image: Tensor) -> Tensor:
    """Means of `[1, 1, H, W]` over blocks."""
    rows = functional.avg_pool2d(image, (WINDOW, 1), 1, (WINDOW // 2, 0), count_include_pad=False)
    return functional.avg_pool2d(rows, (1, WINDOW), 1, (0, WINDOW // 2), count_include_pad=False)


if __name__ == "__main__":
    main()
