"""Point clouds: back-projection, PLY files, and the fusion of a sequence."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, call_program, succeeded
from tiny_models import tiny_config, tiny_model

from featdepth.data.synthetic import Drive, RenderedFrame, Street, render_frame
from featdepth.errors import InputError
from featdepth.predict.fusion import DepthView, fuse
from featdepth.predict.point_cloud import depth_to_points, thin, write_ply
from featdepth.scale import METRES, RELATIVE

INTRINSICS = np.array([[50.0, 0.0, 20.5], [0.0, 60.0, 10.25], [0.0, 0.0, 1.0]])
FRAMES = 8
HEADER = b"""ply
format binary_little_endian 1.0
comment unit: metres
comment axes of the camera: x right, y down, z forward
element vertex 2
property float x
property float y
property float z
property uchar red
property uchar green
property uchar blue
end_header
"""


class Ride:
    """Some frames of a drive of the synthetic street, with their true geometry."""

    def __init__(self) -> None:
        drive = Drive(Street(drives=8, frames=FRAMES, height=64, width=192, seed=1), 1)
        self.intrinsics = drive.rig.intrinsics
        self.frames: list[RenderedFrame] = [render_frame(drive, index) for index in range(FRAMES)]
        self.poses = [drive.camera_pose(index) for index in range(FRAMES)]

    def views(self, factors: np.ndarray | None = None) -> list[DepthView]:
        """The frames, their true depths multiplied by `factors` `[FRAMES]`."""
        factors = np.ones(FRAMES) if factors is None else factors
        return [
            DepthView(frame.depth * factor, frame.image, self.intrinsics, pose)
            for frame, factor, pose in zip(self.frames, factors, self.poses, strict=True)
        ]

    def surface_distance(self, points: np.ndarray) -> np.ndarray:
        """Relative error of the depth of `points` (axes of the first camera) in the best of all frames `[N]`."""
        best = np.full(len(points), np.inf)
        world = points @ self.poses[0][:3, :3].T + self.poses[0][:3, 3]
        for frame, pose in zip(self.frames, self.poses, strict=True):
            seen = (world - pose[:3, 3]) @ pose[:3, :3]
            pixels = seen @ self.intrinsics.T
            column, row = np.rint(pixels[:, :2] / pixels[:, 2:]).T.astype(int)
            inside = (seen[:, 2] > 0) & (column >= 0) & (column < 192) & (row >= 0) & (row < 64)
            truth = frame.depth[row.clip(0, 63), column.clip(0, 191)]
            best = np.where(inside, np.minimum(best, np.abs(seen[:, 2] / truth - 1)), best)
        return best


@pytest.fixture(scope="module")
def ride() -> Ride:
    return Ride()


def test_points_are_where_their_pixels_see_them() -> None:
    depth = np.random.default_rng(0).uniform(2, 30, (12, 40))
    image = np.random.default_rng(1).integers(0, 256, (12, 40, 3), dtype=np.uint8)
    points, colours = depth_to_points(depth, image, INTRINSICS, grazing_angle=None)
    assert points.dtype == np.float32 and colours.dtype == np.uint8
    pixels = points.astype(float) @ INTRINSICS.T
    row, column = np.mgrid[:12, :40]
    np.testing.assert_allclose(pixels[:, 0] / pixels[:, 2], column.ravel(), atol=1e-4)
    np.testing.assert_allclose(pixels[:, 1] / pixels[:, 2], row.ravel(), atol=1e-4)
    np.testing.assert_allclose(points[:, 2], depth.ravel(), rtol=1e-6)
    np.testing.assert_array_equal(colours, image.reshape(-1, 3))


def test_pixels_without_depth_and_beyond_the_farthest_are_left_out() -> None:
    depth = np.array([[1.0, np.nan, np.inf], [0.0, -1.0, 5.0], [9.99, 10.0, 10.01]])
    image = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    points, colours = depth_to_points(depth, image, INTRINSICS, farthest=10.0, grazing_angle=None)
    np.testing.assert_allclose(points[:, 2], [1, 5, 9.99, 10], rtol=1e-6)
    np.testing.assert_array_equal(colours[:, 0], [0, 15, 18, 21])


def test_the_ramp_between_a_near_and_a_far_wall_is_left_out_and_a_road_is_not() -> None:
    intrinsics = np.array([[700.0, 0, 60], [0, 700.0, -10.0], [0, 0, 1]])
    row, _ = np.mgrid[:80, :120]
    road = 700 * 1.65 / (row + 10.0)  # a plane 1.65 below the camera
    image = np.zeros((80, 120, 3), np.uint8)
    visible = road < 90
    assert visible.any() and not visible.all()
    assert len(depth_to_points(road, image, intrinsics, farthest=90)[0]) == visible.sum()

    walls = np.full((80, 120), 10.0)
    walls[:, 60:] = 30.0
    walls[:, 58:62] = [14.0, 18.0, 22.0, 26.0]
    points, _ = depth_to_points(walls, image, intrinsics)
    assert set(np.unique(points[:, 2])) == {10.0, 30.0}
    assert len(points) >= 80 * (120 - 6)
    assert len(depth_to_points(walls, image, intrinsics, grazing_angle=None)[0]) == 80 * 120


def test_a_ply_file_is_as_its_format_says(tmp_path: Path) -> None:
    points, colours = np.array([[1.5, -2, 3], [0, 0.25, 1e6]]), np.array([[1, 2, 3], [254, 255, 0]], np.uint8)
    file = tmp_path / "new" / "cloud.ply"
    write_ply(file, points, colours, METRES)
    content = file.read_bytes()
    assert content.startswith(HEADER)
    body = content[len(HEADER) :]
    assert len(body) == 2 * 15
    for vertex in range(2):
        part = body[15 * vertex : 15 * (vertex + 1)]
        np.testing.assert_array_equal(np.frombuffer(part[:12], "<f4"), points[vertex].astype("<f4"))
        assert list(part[12:]) == list(colours[vertex])
    assert [path.name for path in file.parent.iterdir()] == ["cloud.ply"]
    write_ply(file, points[:0], colours[:0], RELATIVE)
    assert b"\ncomment unit: relative\n" in file.read_bytes() and b"element vertex 0\n" in file.read_bytes()


def test_a_ply_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    file = tmp_path / "cloud.ply"
    file.mkdir()
    with pytest.raises(OSError):
        write_ply(file, np.zeros((1, 3)), np.zeros((1, 3), np.uint8), METRES)
    assert [path.name for path in tmp_path.iterdir()] == ["cloud.ply"]


def test_thinning_keeps_the_limit_and_the_spread() -> None:
    image = np.zeros((30, 40, 3), np.uint8)
    cloud = depth_to_points(np.full((30, 40), 5.0), image, INTRINSICS)
    few = thin(cloud, 100)
    assert len(few.points) == len(few.colours) == 100
    np.testing.assert_array_equal(few.points, thin(cloud, 100).points)
    assert len(np.unique(few.points[:, 0])) > 30 and len(np.unique(few.points[:, 1])) == 30
    assert thin(cloud, 1200) is cloud


@pytest.mark.parametrize("factor", [1.0, 1.05])
def test_a_cloud_is_as_wrong_as_its_depth(ride: Ride, factor: float) -> None:
    frame = ride.frames[0]
    truth, _ = depth_to_points(frame.depth, frame.image, ride.intrinsics, grazing_angle=None)
    points, _ = depth_to_points(frame.depth * factor, frame.image, ride.intrinsics, grazing_angle=None)
    error = np.linalg.norm(points - truth, axis=1) / np.linalg.norm(truth, axis=1)
    np.testing.assert_allclose(error, factor - 1, atol=1e-6)


def test_true_depths_fuse_into_the_true_surface(ride: Ride) -> None:
    cloud = fuse(ride.views(), farthest=60.0, voxel=0.05)
    assert cloud.voxel == 0.05 and cloud.note is None
    np.testing.assert_array_equal(cloud.scales, 1)
    assert len(cloud.points) > 20_000
    # Rounded to pixels, which makes a difference for what lies far away on the ground.
    assert np.median(ride.surface_distance(cloud.points)) < 0.005
    again = fuse(iter(ride.views()), farthest=60.0, voxel=0.05)
    np.testing.assert_array_equal(cloud.points, again.points)
    np.testing.assert_array_equal(cloud.colours, again.colours)


def test_scales_that_vary_are_found(ride: Ride) -> None:
    factors = np.exp(np.random.default_rng(0).normal(0, 0.05, FRAMES))
    factors[0] = 1.0
    cloud = fuse(ride.views(factors), align=True, farthest=60.0)
    np.testing.assert_allclose(cloud.scales * factors, 1, atol=0.005)
    aligned, unaligned = (
        ride.surface_distance(each.points) for each in (cloud, fuse(ride.views(factors), farthest=60.0))
    )
    assert aligned.mean() < 0.5 * unaligned.mean()


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_poses_of_another_unit_do_not_make_scales_drift(ride: Ride, factor: float) -> None:
    cloud = fuse(ride.views(np.full(FRAMES, factor)), align=True, farthest=60.0)
    np.testing.assert_allclose(cloud.scales, 1, atol=0.02)


def test_a_sky_at_one_depth_does_not_make_scales_drift() -> None:
    intrinsics = np.array([[300.0, 0, 100], [0, 300, 40], [0, 0, 1]])
    row, _ = np.mgrid[:160, :200]
    depth = np.where(row > 43, 300 * 1.65 / np.maximum(row - 40.0, 1), 40.0)  # a road, and above it always 40
    views = []
    for index in range(8):
        pose = np.eye(4)
        pose[2, 3] = index
        views.append(DepthView(depth, np.zeros((160, 200, 3), np.uint8), intrinsics, pose))
    np.testing.assert_allclose(fuse(views, align=True).scales, 1, atol=0.02)


def test_what_other_views_do_not_confirm_is_left_out(ride: Ride) -> None:
    views = ride.views()
    wrong = views[3].depth.copy()
    wrong[20:40, 50:80] = 1.5
    views[3] = views[3]._replace(depth=wrong)
    alone, confirmed = (
        np.linalg.norm(fuse(views, voxel=0.02, least_views=least).points - camera_of(ride, 3), axis=1) < 2.5
        for least in (1, 3)
    )
    assert alone.sum() > 200 and confirmed.sum() < 30


def camera_of(ride: Ride, index: int) -> np.ndarray:
    """Where a frame's camera is, in the axes of the first."""
    return (np.linalg.inv(ride.poses[0]) @ ride.poses[index])[:3, 3]


def test_the_limit_of_points_is_kept_and_said(ride: Ride) -> None:
    full = fuse(ride.views(), farthest=60.0, voxel=0.05)
    cloud = fuse(ride.views(), farthest=60.0, voxel=0.05, most_points=2000)
    assert 0 < len(cloud.points) <= 2000
    assert cloud.voxel > 0.05 and f"{cloud.voxel:.3g} instead of 0.05" in cloud.note and "2000" in cloud.note
    np.testing.assert_allclose(cloud.points.min(0), full.points.min(0), atol=2 * cloud.voxel)


def test_a_large_view_is_read_at_fewer_pixels(ride: Ride) -> None:
    (view,) = ride.views()[:1]
    depth = np.full((1100, 1000), 4.0)
    intrinsics = np.array([[800.0, 0, 500.25], [0, 800, 549.5], [0, 0, 1]])
    cloud = fuse(
        [DepthView(depth, np.zeros((1100, 1000, 3), np.uint8), intrinsics, view.world_from_camera)], voxel=1e-3
    )
    corner = (np.array([0, 0, 1]) @ np.linalg.inv(intrinsics).T) * 4
    np.testing.assert_allclose(cloud.points.min(0), corner, atol=1e-5)
    assert len(cloud.points) < 1 << 18


def test_impossible_clouds_are_errors(ride: Ride) -> None:
    with pytest.raises(InputError, match="at least one frame"):
        fuse([])
    views = ride.views()
    apart = [view._replace(depth=np.full_like(view.depth, 5.0 * 10 ** (index % 3))) for index, view in enumerate(views)]
    with pytest.raises(InputError, match="8 frames agree nowhere within 10%"):
        fuse(apart)
    with pytest.raises(InputError, match="use larger ones"):
        fuse(views, voxel=1e-6)


def test_the_benchmark_finds_in_clouds_the_errors_of_depth(
    street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config("photometric")
    model = tiny_model(config).eval()
    model.depth_decoder.start_from(model.to_disparity(9.0))  # 49 m: far enough to agree from frame to frame
    model.save_pretrained(tmp_path / "model")
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    module = import_module("point_cloud")
    monkeypatch.setattr(module, "MEASURED", 60)
    words = ["--checkpoint", tmp_path / "model", "--data", street, "--json", tmp_path / "figures.json"]
    succeeded(call_program(module.main, *words))
    rows = json.loads((tmp_path / "figures.json").read_text())["rows"]
    for name in ("predicted, all pixels", "predicted, at laser returns"):
        assert rows[name]["abs_rel"] > 0.05
        assert rows[name]["ray_error"] == pytest.approx(rows[name]["abs_rel"], rel=1e-5)
    assert rows["true depth, all pixels"]["ray_error"] < 1e-6
    assert rows["true depth, all pixels"]["surface_relative"] < 0.01 < rows["predicted, all pixels"]["surface_relative"]

    relative = tiny_config("photometric", frames=[0, -1], metres_per_unit=None)
    tiny_model(relative).eval().save_pretrained(tmp_path / "relative")
    words[1] = tmp_path / "relative"
    assert "its depth has no scale" in call_program(module.main, *words).error_line()
