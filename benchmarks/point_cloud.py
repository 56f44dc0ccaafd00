"""How far point clouds are from the true surface of the synthetic street, beside the depth scores of the same pixels.

python benchmarks/point_cloud.py --checkpoint DIR --data STREET [--drives N] [--json FILE]

STREET: a folder that `python -m featdepth.data.synthetic` wrote, whose drives are rendered again with their exact
depth; DIR: a model of metric depth. For each frame of the test drives a PLY file is written with all pixels up to 80 m
and read back. Its points lie on the rays of their pixels, so that their distance from the true points, in units of the
true distance from the camera, has to be the relative error of depth, abs_rel at the model's own scale; also at the
laser returns that evaluate.py scores, where abs_rel is the figure that it reports. Next, the distance to the nearest
true point, seen by any frame of the drive at twice the resolution, of these clouds, of those without jumps of depth,
and of the fused clouds of whole drives with true poses. The rows of true depth say what the measure itself, and fusing,
add; "sky too" is what is shown where nobody knows the truth: whatever is predicted up to 80 m, also of the sky.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from measure import REPOSITORY, Column, finish, heading, start, table_line

from featdepth.config import load_config
from featdepth.data import build_dataset
from featdepth.data.street.rays import camera_rays, cast
from featdepth.data.synthetic import INTERVAL, LARGEST_RECORD, RECORD, Drive, Street, drive_parts, render_frame
from featdepth.errors import InputError, run_program
from featdepth.files import read_bytes
from featdepth.kinds import protocol_of
from featdepth.metrics.depth import depth_errors, evaluation_mask
from featdepth.models import FeatDepth
from featdepth.predict.fusion import DepthView, fuse
from featdepth.predict.point_cloud import VERTEX, depth_to_points, write_ply
from featdepth.scale import METRES

FARTHEST = 80.0  # metres
SAMPLES = 2  # rays of the true surface in a row and in a column of a pixel
MEASURED = 600  # points of a kind of cloud and a drive whose distance to the surface is measured
AT_ONCE = 200  # of them
COLUMNS = [
    Column("abs_rel", "abs_rel", 5),
    Column("ray_error", "along rays", 5),
    Column("surface_relative", "to surface", 4),
    Column("surface_median", "median, m", 3),
    Column("points", "points", 0),
]


class Shot(NamedTuple):
    """A frame of a drive with its true depth and what the model says."""

    image: np.ndarray  # uint8 [H, W, 3]
    truth: np.ndarray  # [H, W] metres, inf: sky
    predicted: np.ndarray  # [H, W] metres
    pose: np.ndarray  # world_from_camera 4x4


class Surface(NamedTuple):
    """What a drive's cameras see, in world axes."""

    points: torch.Tensor  # [N, 3] metres
    cameras: np.ndarray  # [F, 3]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="directory of the model, or hub id")
    parser.add_argument("--data", type=Path, required=True, help="folder of the synthetic street")
    parser.add_argument("--drives", type=int, help="test drives that are used (default: all)")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    arguments = parser.parse_args()
    model = FeatDepth.from_pretrained(arguments.checkpoint)
    if model.scale_source is None:
        raise InputError(f"{arguments.checkpoint}: its depth has no scale; give a model of metric depth")
    street = read_street(arguments.data)
    drives = list(drive_parts(street.drives)["test"])[: arguments.drives]
    scored = scored_depths(arguments.data)
    settings = {"test drives": len(drives), "frames": len(drives) * street.frames}
    result = start(torch.device("cpu"), settings | {"image": f"{street.height}x{street.width}"})
    measured: dict[str, list[dict[str, float]]] = {}
    for index in drives:
        for name, row in measure_drive(Drive(street, index), model, scored):
            measured.setdefault(name, []).append(row)
    result["rows"] = {name: mean(rows) for name, rows in measured.items()}
    print(f"\n{heading(COLUMNS)}")
    for name, row in result["rows"].items():
        print(table_line(name, row, COLUMNS))
    finish(result, arguments)


def read_street(folder: Path) -> Street:
    """The parameters of the street in a folder."""
    record = json.loads(read_bytes(folder / RECORD, LARGEST_RECORD, "the record of the street"))
    return Street(**{field.name: record[field.name] for field in fields(Street) if field.name in record})


def scored_depths(folder: Path) -> dict[tuple[str, int], np.ndarray]:
    """The depths `[H, W]` that evaluate.py compares with (metres, 0: none), by drive and frame."""
    overrides = [f"data.root={folder}", f"data.split={folder / 'splits'}"]
    config = load_config(REPOSITORY / "configs/demo.yaml", overrides, training=False)
    dataset = build_dataset(config, "test", frames=[0], require_depth=True)
    depths = {}
    for sample in dataset.samples:
        depth = torch.from_numpy(dataset.load_depth(sample))
        protocol = protocol_of(config)
        mask = evaluation_mask(depth, protocol.crop, protocol.cap)
        depths[Path(sample.drive).name, sample.frame] = np.where(mask, depth, 0.0)
    return depths


def mean(rows: list[dict[str, float]]) -> dict[str, float]:
    """The means of the figures of several clouds."""
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def measure_drive(
    drive: Drive, model: FeatDepth, scored: dict[tuple[str, int], np.ndarray]
) -> Iterator[tuple[str, dict[str, float]]]:
    """The rows of one drive: of each frame, and of the fused clouds."""
    shots = [shoot(drive, index, model) for index in range(drive.street.frames)]
    surface, share = true_surface(drive), MEASURED // drive.street.frames
    intrinsics = drive.rig.intrinsics
    for index, shot in enumerate(shots):
        if (drive.name, index) in scored:
            row, _ = measure_frame(shot, shot.predicted, scored[drive.name, index], intrinsics)
            yield "predicted, at laser returns", row
    for name, depth_of in DEPTHS.items():
        for shot in shots:
            if "sky" not in name:
                row, points = measure_frame(shot, depth_of(shot), shot.truth, intrinsics)
                yield f"{name}, all pixels", row | distances(points, shot.pose, surface, share)
            points, _ = depth_to_points(depth_of(shot), shot.image, intrinsics, FARTHEST)
            yield f"{name}, without jumps", distances(points, shot.pose, surface, share)
        views = [DepthView(depth_of(shot), shot.image, intrinsics, shot.pose) for shot in shots]
        for align in (False, True):
            cloud = fuse(views, align=align, farthest=FARTHEST)
            yield f"{name}, fused{', aligned' * align}", distances(cloud.points, shots[0].pose, surface, MEASURED)


DEPTHS: dict[str, Callable[[Shot], np.ndarray]] = {
    "true depth": lambda shot: shot.truth,
    "predicted": lambda shot: np.where(shot.truth <= FARTHEST, shot.predicted, np.inf),
    "predicted, sky too": lambda shot: shot.predicted,
}


@torch.no_grad()
def shoot(drive: Drive, index: int, model: FeatDepth) -> Shot:
    """A frame of the left camera."""
    frame = render_frame(drive, index)
    image = torch.from_numpy(frame.image).permute(2, 0, 1)[None].float() / 255
    return Shot(frame.image, frame.depth, model.predict_depth(image)[0, 0].numpy(), drive.camera_pose(index))


def true_surface(drive: Drive) -> Surface:
    """Points of the surface that the cameras of a drive see, dense, a little farther than predictions are shown."""
    rig, street, points, cameras = drive.rig, drive.street, [], []
    for index in range(street.frames):
        pose = drive.camera_pose(index)
        rays = camera_rays(rig.intrinsics, street.height, street.width, pose, SAMPLES)
        length, _ = cast(rays, drive.scene.at(INTERVAL * index)[0])
        directions = rays.scale[:, None, None] * rays.across + rays.down[:, None]
        near = length < 1.5 * FARTHEST
        points.append(rays.origin + directions[near] * length[near][:, None])
        cameras.append(pose[:3, 3])
    return Surface(torch.from_numpy(np.concatenate(points)).float(), np.stack(cameras))


def measure_frame(
    shot: Shot, depth: np.ndarray, truth: np.ndarray, intrinsics: np.ndarray
) -> tuple[dict[str, float], np.ndarray]:
    """abs_rel of the pixels up to FARTHEST, the relative error of the points in their PLY file, and these points."""
    valid = (truth > 0) & (truth <= FARTHEST)
    scores = depth_errors(torch.from_numpy(depth[valid]), torch.from_numpy(truth[valid]))
    points = through_file(np.where(valid, depth, np.inf), shot.image, intrinsics)
    row, column = np.nonzero(valid)
    rays = np.stack([column, row, np.ones(len(row))], 1) @ np.linalg.inv(intrinsics).T
    expected = rays * truth[valid][:, None]
    error = np.linalg.norm(points - expected, axis=1) / np.linalg.norm(expected, axis=1)
    return {"abs_rel": scores["abs_rel"], "ray_error": float(error.mean())}, points


def through_file(depth: np.ndarray, image: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """The points of a depth map `[N, 3]` as its PLY file has them."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cloud.ply"
        write_ply(file, *depth_to_points(depth, image, intrinsics, grazing_angle=None), METRES)
        _, _, vertices = file.read_bytes().partition(b"end_header\n")
    vertices = np.frombuffer(vertices, VERTEX)
    return np.stack([vertices[axis] for axis in "xyz"], axis=1).astype(np.float64)


def distances(points: np.ndarray, pose: np.ndarray, surface: Surface, most: int) -> dict[str, float]:
    """Distances to the nearest true point of `most` of the `points` `[N, 3]`, which `pose` takes to the world.

    surface_median: metres; surface_relative: mean, in units of the distance to the nearest camera.
    """
    some = points[np.linspace(0, len(points) - 1, min(most, len(points))).astype(int)]
    world = some @ pose[:3, :3].T + pose[:3, 3]
    # Around the first camera, so that float32 has digits enough.
    around = torch.from_numpy(surface.cameras[0]).float()
    known, wanted = surface.points - around, torch.from_numpy(world).float() - around
    nearest = torch.cat([torch.cdist(part, known).amin(1) for part in wanted.split(AT_ONCE)]).double().numpy()
    ranges = np.linalg.norm(world[:, None] - surface.cameras, axis=2).min(1)
    relative = float((nearest / ranges).mean())
    return {"surface_relative": relative, "surface_median": float(np.median(nearest)), "points": len(points)}


if __name__ == "__main__":
    run_program(main)
