"""Writes a synthetic street in KITTI's raw layout: stereo pictures, laser scans, inertial data, calibration, splits.

Beside these lies what only a renderer knows of each picture: exact depth, where KITTI's improved ground truth lies,
and which pixels show moving cars, in the folders moving_02 and moving_03 that KITTI has not.

python -m featdepth.data.synthetic OUT
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from featdepth.config import Parser
from featdepth.config.values import shown
from featdepth.console import Display, count
from featdepth.data.images import KITTI_DEPTH_UNITS
from featdepth.data.street.kitti_formats import DATES, INTERVAL, OXTS_FIELDS, Rig, oxts_line, timestamps
from featdepth.data.street.layout import ROADS, build_street
from featdepth.data.street.look import LOOKS, change_look
from featdepth.data.street.rays import camera_rays, cast, scanner_rays
from featdepth.data.street.render import Painter
from featdepth.data.street.scene import Solids
from featdepth.errors import InputError, run_program
from featdepth.files import read_object, write_text

VERSION = 3  # of the street's looks and geometry: raise it when they change
RECORD = "street.json"
LARGEST_RECORD = 1 << 16  # bytes
BEAMS = np.radians(np.linspace(2.0, -24.9, 64))
AHEAD = np.arange(-47.0, 47.01, 0.5)  # azimuths, degrees; a little more than the cameras see
BACK = np.arange(130.0, 180.0, 6.0)
AZIMUTHS = np.radians(np.concatenate([-BACK[::-1], AHEAD, BACK]))
RANGE, NOISE, LOST = 120.0, 0.02, 0.04  # metres, metres, share of returns
LIMITS = {
    "drives": (3, 9999), "frames": (3, 1000), "height": (32, 2048), "width": (64, 4096), "seed": (0, 2**63),
    "turning": (0, 5),
}  # fmt: skip


@dataclass(frozen=True)
class Street:
    """The parameters of a set of drives; the same parameters always give the same bytes."""

    drives: int = 80
    frames: int = 6  # of each drive
    height: int = 80
    width: int = 240
    seed: int = 0
    turning: float = (
        0.0  # degrees a frame by which every drive turns, or more, in a third of its frames; 0: no such rule
    )

    look: str = "default"  # or "other": see featdepth.data.street.look

    def __post_init__(self) -> None:
        if self.look not in LOOKS:
            raise InputError(f"--look {self.look}: has to be one of {', '.join(LOOKS)}")
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(f"--{name} {value}: has to be from {low} to {high}")


class RenderedFrame(NamedTuple):
    """One rendered frame."""

    image: np.ndarray  # uint8 [H, W, 3]
    depth: np.ndarray  # float32 [H, W]: metres at pixel centres, inf for the sky
    moving: np.ndarray  # bool [H, W]: the pixel shows a moving car


class Drive:
    """One drive of a street: its scene, way and sensors. `index` counts from 0."""

    def __init__(self, street: Street, index: int) -> None:
        self.street, self.index = street, index
        self.date = DATES[index % len(DATES)]
        self.name = f"{self.date}_drive_{index + 1:04}_sync"
        self.rig = Rig.of(self.date, street.height, street.width)
        rng = np.random.default_rng((street.seed, index))
        kind = "winding" if street.turning else ROADS[index % len(ROADS)]
        rate = np.radians(street.turning) / INTERVAL
        self.scene, self.trajectory = build_street(rng, kind, INTERVAL * street.frames, rate)
        if street.look == "other":
            self.scene, self.trajectory = change_look(self.scene, self.trajectory)
        self.painter = Painter(self.scene)

    def imu_pose(self, frame: int) -> np.ndarray:
        """world_from_imu [4, 4]."""
        return self.trajectory.pose(INTERVAL * frame)

    def camera_pose(self, frame: int, camera: int = 2) -> np.ndarray:
        """world_from_camera [4, 4] of a rectified camera: 2 (left) or 3 (right)."""
        return self.rig.camera_pose(self.imu_pose(frame), camera)

    def image(self, frame: int, camera: int) -> np.ndarray:
        """The picture uint8 [H, W, 3] of a camera."""
        rig = self.rig
        pose = self.camera_pose(frame, camera)
        return self.painter.picture(rig.intrinsics, rig.height, rig.width, pose, INTERVAL * frame)

    def scan(self, frame: int) -> np.ndarray:
        """The laser scan float32 [N, 4]: x forward, y left, z up (metres), reflectance."""
        rng = np.random.default_rng((self.street.seed, self.index, frame, 1))
        rays = scanner_rays(BEAMS, AZIMUTHS, self.rig.scanner_pose(self.imu_pose(frame)))
        solids, _ = self.scene.at(INTERVAL * frame)
        length, surface = cast(rays, solids)
        length = np.minimum(length, 2 * RANGE) + rng.normal(0, NOISE, length.shape).astype(np.float32)
        looks = np.concatenate([solids.materials.ravel(), solids.round_materials])["colour"].mean(1)
        reflectance = np.concatenate([[0.0, 0.3], looks])[surface + 1]
        flat = np.cos(BEAMS)[:, None]
        x, y = flat * np.cos(AZIMUTHS), flat * np.sin(AZIMUTHS)
        z = np.broadcast_to(np.sin(BEAMS)[:, None], x.shape)
        kept = (length < RANGE) & (rng.random(length.shape) >= LOST)
        return np.stack([length * x, length * y, length * z, reflectance], -1)[kept].astype("<f4")


def render_frame(drive: Drive, frame: int, camera: int = 2) -> RenderedFrame:
    """One frame with its exact geometry."""
    rig, pose = drive.rig, drive.camera_pose(frame, camera)
    solids: Solids = drive.scene.at(INTERVAL * frame)[0]
    depth, surface = cast(camera_rays(rig.intrinsics, rig.height, rig.width, pose), solids)
    moving = (surface > 6 * len(drive.scene.static.planes)) & (surface <= 6 * len(solids.planes))
    return RenderedFrame(drive.image(frame, camera), depth, moving)


def drive_parts(drives: int) -> dict[str, range]:
    """Which drives (from 0) are for training, validation and testing; disjoint."""
    test = min(max(8, round(0.22 * drives)), max(1, drives // 4))
    validation = max(1, round(0.1 * drives))
    first, second = drives - test - validation, drives - test
    return {"train": range(first), "val": range(first, second), "test": range(second, drives)}


def write_street(
    out: str | Path,
    drives: int = Street.drives,
    frames: int = Street.frames,
    height: int = Street.height,
    width: int = Street.width,
    seed: int = Street.seed,
    workers: int | None = None,
    turning: float = Street.turning,
    look: str = Street.look,
) -> bool:
    """Write a street into the folder `out`; False where the same one is there already.

    `workers` (default: all cores) has no influence on what is written. An interrupted street is finished.
    Raises InputError for bad parameters and for a folder with anything else in it.
    """
    out, street = Path(out), Street(drives, frames, height, width, seed, turning, look)
    if workers is not None and workers < 1:
        raise InputError(f"--workers {workers}: has to be at least 1")
    if claim(out, street):
        return False
    todo = [index for index in range(drives) if not drive_folder(out, index).is_dir()]
    workers = min(workers or available_cores(), max(1, len(todo)))
    with Display(out.name, drives * frames, "frames", done=(drives - len(todo)) * frames) as progress:
        for _ in run_all(out, street, todo, workers):
            progress.update(frames)
    for date in DATES[:drives]:
        for name, text in Rig.of(date, height, width).files().items():
            write_text(out / date / name, text)
    write_splits(out, street)
    write_record(out, street, complete=True)
    return True


def run_all(out: Path, street: Street, todo: list[int], workers: int) -> Iterator[None]:
    """Write the drives `todo`, in this process or in several; yields after each."""
    if workers == 1:
        yield from (write_drive(out, street, index) for index in todo)
        return
    # Started afresh, not forked: the caller may have threads.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        # Ctrl-C reaches all processes of a terminal; these leave it to this one, also while they are importing.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        jobs = [pool.submit(write_drive, out, street, index) for index in todo]
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        try:
            yield from (job.result() for job in as_completed(jobs))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in active_children():
                process.kill()
            raise


def available_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def claim(out: Path, street: Street) -> bool:
    """Make `out` ours; True where it already holds this very street. InputError where it holds anything else."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; choose a new or empty folder")
    out.mkdir(parents=True, exist_ok=True)
    record = out / RECORD
    if not record.is_file():
        if any(out.iterdir()):
            raise InputError(f"{out}: is not empty and holds no synthetic street; choose a new or empty folder")
        write_record(out, street, complete=False)
        return False
    problem = f"cannot be understood; remove {out} or choose another folder"
    found = read_object(record, LARGEST_RECORD, "the record of the street", problem)
    if type(complete := found.pop("complete", None)) is not bool:
        raise InputError(f"{record}: {problem}")
    if found != parameters(street):
        described = shown(found)
        raise InputError(f"{out}: holds another street ({described}); remove it or choose another folder")
    return complete


def drive_folder(out: Path, index: int) -> Path:
    """Where drive `index` (from 0) goes."""
    date = DATES[index % len(DATES)]
    return out / date / f"{date}_drive_{index + 1:04}_sync"


def write_drive(out: Path, street: Street, index: int) -> None:
    """Write all of one drive; its folder gets its name when everything is in it."""
    drive, final = Drive(street, index), drive_folder(out, index)
    partial = final.with_name(final.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for sensor in ("image_02", "image_03", "velodyne_points", "oxts"):
        (partial / sensor / "data").mkdir(parents=True)
        times = timestamps(index, drive.date, street.frames)
        for name in ("timestamps", "timestamps_start", "timestamps_end")[: 3 if sensor == "velodyne_points" else 1]:
            (partial / sensor / f"{name}.txt").write_text(times)
    (partial / "oxts" / "dataformat.txt").write_text(OXTS_FIELDS)
    for frame in range(street.frames):
        for camera in (2, 3):
            write_pictures(partial, frame, camera, render_frame(drive, frame, camera))
        drive.scan(frame).tofile(partial / "velodyne_points" / "data" / f"{frame:010}.bin")
        measured = oxts_line(drive.trajectory.pose, INTERVAL * frame)
        (partial / "oxts" / "data" / f"{frame:010}.txt").write_text(measured)
    os.replace(partial, final)


def write_pictures(folder: Path, number: int, camera: int, frame: RenderedFrame) -> None:
    """Write a camera's picture, its depth (16 bits, 256 to a metre; 0: sky, or 256 m and more) and moving pixels."""
    depth = np.round(frame.depth * np.float32(KITTI_DEPTH_UNITS))
    depth[depth > np.iinfo(np.uint16).max] = 0
    pictures = {
        f"image_{camera:02}/data": frame.image,
        f"proj_depth/groundtruth/image_{camera:02}": depth.astype(np.uint16),
        f"moving_{camera:02}/data": np.uint8(255) * frame.moving,
    }
    for place, pixels in pictures.items():
        (folder / place).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / place / f"{number:010}.png", compress_level=4)


def write_splits(out: Path, street: Street) -> None:
    """Lists of frames with both neighbours: training has both cameras, testing every second frame of the left one."""
    for part, indices in drive_parts(street.drives).items():
        step = 2 if part == "test" else 1
        sides = "lr" if part == "train" else "l"
        names = [drive_folder(out, index).relative_to(out).as_posix() for index in indices]
        frames = range(1, street.frames - 1, step)
        lines = [f"{name} {frame} {side}\n" for name in names for side in sides for frame in frames]
        write_text(out / "splits" / f"{part}_files.txt", "".join(lines))


def write_record(out: Path, street: Street, complete: bool) -> None:
    """Note what the folder holds."""
    write_text(out / RECORD, json.dumps({**parameters(street), "complete": complete}, indent=1) + "\n")


def parameters(street: Street) -> dict[str, float]:
    """What the record says of a street; without turns or in the default look it reads as before there were others."""
    values = {"version": VERSION, **asdict(street)}
    for name in ("turning", "look"):
        if values[name] == getattr(Street, name):
            del values[name]
    return values


def main() -> None:
    """Command line."""
    parser = Parser(
        prog="python -m featdepth.data.synthetic",
        description="Write a synthetic street in KITTI's raw layout: stereo pictures, laser scans, inertial data, "
        "calibration, and lists of training, validation and test frames (disjoint by drive) in OUT/splits.",
        epilog="The same arguments give the same bytes. An interrupted street is finished by the same command.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("out", metavar="OUT", help="new or empty folder")
    parser.add_argument(
        "--drives", type=int, default=Street.drives, help="number of drives, each in a scene of its own"
    )
    parser.add_argument("--frames", type=int, default=Street.frames, help="frames of each drive, 10 a second")
    parser.add_argument("--height", type=int, default=Street.height, help="of the pictures, pixels")
    parser.add_argument("--width", type=int, default=Street.width, help="of the pictures, pixels")
    parser.add_argument("--seed", type=int, default=Street.seed, help="another seed, another street")
    parser.add_argument(
        "--turning",
        type=float,
        default=Street.turning,
        metavar="DEGREES",
        help="every drive turns by so much or more a frame in a third of its frames; 0: roads as they come",
    )
    parser.add_argument(
        "--look",
        default=Street.look,
        metavar="|".join(LOOKS),
        help="other: colours, textures, light and camera height that the default look does not have",
    )
    parser.add_argument("--workers", type=int, default=None, help="processes; all cores if not given")
    arguments = parser.parse_args()
    written = write_street(**vars(arguments))
    parts = ", ".join(f"{len(indices)} {part}" for part, indices in drive_parts(arguments.drives).items())
    print(f"{arguments.out}: {'' if written else 'already there: '}{count(arguments.drives, 'drive')} ({parts})")


if __name__ == "__main__":
    run_program(main)
