"""ETH3D's rig video: layout, COLMAP's files, ground truth behind a fisheye lens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from drive_writer import RenderedDrive, render_drive
from kitti_tree import make_config, write_list
from tree_writers import FISHEYE_SIZE, directions_of, write_eth3d

from featdepth.config import Config
from featdepth.data import build_dataset
from featdepth.data.sets.eth3d import thin_prism_pixels
from featdepth.errors import InputError

FRAMES = 5
DRIVE = "scene_1/cam4"
LENS = (55.0, 56.0, 56.5, 36.5, 0.03, -0.01, 0.002, -0.003, 0.004, -0.001, 0.005, -0.004)
PLANE = np.array([0.05, 0.15, 0.2])  # of points with PLANE · (x, y, z) = 1, metres


@pytest.fixture(scope="module")
def drive() -> RenderedDrive:
    return render_drive(frames=FRAMES)


@pytest.fixture
def scene(drive: RenderedDrive, tmp_path: Path) -> Path:
    write_eth3d(tmp_path / "raw", [drive])
    write_list(tmp_path / "split" / "test_files.txt", [f"{DRIVE} {frame} l" for frame in range(FRAMES)])
    return tmp_path / "raw" / "scene_1"


def config_for(scene: Path, **data: object) -> Config:
    return make_config(scene.parents[1], **({"kind": "eth3d", "height": 64, "width": 96} | data))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


class TestContent:
    def test_images_and_intrinsics(self, scene: Path, drive: RenderedDrive) -> None:
        item = build_dataset(config_for(scene), "test")[1]
        for frame, image in zip((2, 1, 3), item["images"], strict=True):
            assert np.array_equal(image.permute(1, 2, 0), drive.images[frame])
        assert item["intrinsics"].numpy() == pytest.approx(drive.intrinsics, abs=1e-5)

    def test_poses_and_times(self, scene: Path, drive: RenderedDrive) -> None:
        data = build_dataset(config_for(scene), "test")
        assert np.stack(list(data.poses(DRIVE).values())) == pytest.approx(np.stack(drive.poses), abs=1e-6)
        assert np.diff(list(data.times(DRIVE).values())) == pytest.approx(np.diff(drive.times), abs=1e-6)
        moved = np.linalg.norm(drive.poses[3][:3, 3] - drive.poses[2][:3, 3])
        assert data.distance(data.samples[1], 1) == pytest.approx(moved, abs=1e-6)

    def test_image_that_was_not_localised_has_no_pose(self, scene: Path) -> None:
        path = scene / "rig_calibration_undistorted" / "images.txt"
        lines = path.read_text().splitlines()
        path.write_text("\n".join(lines[:1] + lines[3:]) + "\n")  # without the first image's two
        assert list(build_dataset(config_for(scene), "test").poses(DRIVE)) == [1, 2, 3, 4]

    def test_each_camera_is_a_drive(self, scene: Path) -> None:
        images = scene / "images"
        (images / "images_rig_cam5_undistorted").mkdir()
        (images / "images_rig_cam6").mkdir()  # distorted: not for training
        assert build_dataset(config_for(scene), "test").all_drives == [DRIVE, "scene_1/cam5"]


class TestGroundTruth:
    def test_is_resampled_through_the_lens(self, scene: Path, drive: RenderedDrive) -> None:
        """Exact but for edges, where the nearest of the lens's pixels may show what is behind."""
        depth, truth = build_dataset(config_for(scene), "test")[1]["depth"].numpy(), drive.depths[2]
        assert depth.shape == truth.shape
        finite = np.isfinite(truth)
        assert (depth[finite] > 0).mean() > 0.98
        assert np.median(abs(depth - truth)[finite] / truth[finite]) < 0.01

    def test_all_terms_of_the_lens(self, scene: Path, drive: RenderedDrive) -> None:
        """A plane seen through a lens in which every term counts, against the plane itself."""
        edit_lens(scene, LENS)
        column, row = np.meshgrid(np.arange(FISHEYE_SIZE[1]), np.arange(FISHEYE_SIZE[0]))
        points = invert_lens(np.stack([column, row], axis=-1))
        depth = 1 / np.clip(points @ PLANE[:2] + PLANE[2], 0.02, None)
        for path in (scene / "ground_truth_depth" / "images_rig_cam4").iterdir():
            depth.astype("<f4").tofile(path)
        found = build_dataset(config_for(scene), "test")[0]["depth"].numpy()
        directions = directions_of(drive.intrinsics, found.shape)
        inverse = np.clip(directions @ PLANE, 0.02, None)
        seen = (found > 0) & (inverse > 0.07)
        assert seen.mean() > 0.8
        # The nearest pixel is up to 0.71 pixels away; off the axis a pixel covers more of the plane z = 1.
        slack = 0.75 / LENS[0] * (directions**2).sum(axis=-1) * np.linalg.norm(PLANE[:2])
        errors = abs(1 / np.where(seen, found, 1) - inverse)[seen]
        assert (errors < slack[seen]).all()

    def test_terms_of_the_lens_by_hand(self) -> None:
        """On the axis nothing is bent; off it each term adds what COLMAP's documentation says."""
        assert thin_prism_pixels(np.zeros(2), LENS) == pytest.approx([56.0, 36.0])
        angle = 0.4  # off the axis, along x
        x = angle * (1 + 0.03 * angle**2 - 0.01 * angle**4 + 0.004 * angle**6 - 0.001 * angle**8)
        x += -0.003 * 3 * angle**2 + 0.005 * angle**2
        y = 0.002 * angle**2 - 0.004 * angle**2
        pixel = thin_prism_pixels(np.array([np.tan(angle), 0.0]), LENS)
        assert pixel == pytest.approx([55.0 * x + 56.0, 56.0 * y + 36.0])

    def test_infinite_is_none(self, scene: Path, drive: RenderedDrive) -> None:
        for path in (scene / "ground_truth_depth" / "images_rig_cam4").iterdir():
            np.full(FISHEYE_SIZE, np.inf, "<f4").tofile(path)
        assert not build_dataset(config_for(scene), "test")[0]["depth"].any()

    def test_wrong_number_of_bytes(self, scene: Path) -> None:
        for path in (scene / "ground_truth_depth" / "images_rig_cam4").iterdir():
            path.write_bytes(path.read_bytes()[:-4])
        with pytest.raises(InputError, match=r"\.png: 32252 bytes, but a depth map of 112 x 72 float32 has 32256"):
            build_dataset(config_for(scene), "test")[0]

    def test_needs_the_calibration_of_the_lens(self, scene: Path) -> None:
        (scene / "rig_calibration" / "images.txt").unlink()
        with pytest.raises(InputError, match=r"rig_calibration/images.txt: the calibration cannot be read"):
            build_dataset(config_for(scene), "test")
        assert build_dataset(config_for(scene), "test", with_depth=False)


class TestBadInput:
    def test_other_folder(self, tmp_path: Path) -> None:
        (tmp_path / "raw").mkdir()
        with pytest.raises(InputError, match="no rig of ETH3D here; expected delivery_area/images/images_rig_cam4_und"):
            build_dataset(make_config(tmp_path, kind="eth3d", split="time"), "train")

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ("# Image list\n0 ", "# Image list\n0 one ", r"images.txt:2: '0 one .* is no image of COLMAP's"),
            (" 7 images_rig", " 8 images_rig", r"cameras.txt: .* of the cameras \[8\]"),
            ("images_rig_cam4", "images_rig_cam5", r"has no image in images_rig_cam4_undistorted/"),
        ],
    )
    def test_damaged_calibration(self, old: str, new: str, message: str, scene: Path) -> None:
        edit(scene / "rig_calibration_undistorted" / "images.txt", old, new)
        with pytest.raises(InputError, match=message):
            build_dataset(config_for(scene), "test")

    def test_distorted_images(self, scene: Path) -> None:
        path = scene / "rig_calibration_undistorted" / "cameras.txt"
        fields = path.read_text().split()
        path.write_text(f"7 OPENCV 96 64 {' '.join(fields[-4:])} 0.1 0 0 0\n")
        with pytest.raises(InputError, match=r"cameras.txt: has cameras with distortion"):
            build_dataset(config_for(scene), "test")

    def test_lens_of_another_model(self, scene: Path) -> None:
        edit(scene / "rig_calibration" / "cameras.txt", "THIN_PRISM_FISHEYE", "OPENCV")
        with pytest.raises(InputError, match=r"cameras.txt:2: .* should be a THIN_PRISM_FISHEYE camera"):
            build_dataset(config_for(scene), "test")


def edit_lens(scene: Path, parameters: tuple[float, ...]) -> None:
    values = " ".join(map(str, parameters))
    line = f"7 THIN_PRISM_FISHEYE {FISHEYE_SIZE[1]} {FISHEYE_SIZE[0]} {values}\n"
    (scene / "rig_calibration" / "cameras.txt").write_text(line)


def invert_lens(pixels: np.ndarray) -> np.ndarray:
    """Normalised points that LENS shows at `pixels`, by fixed-point iteration in the angle off the axis."""

    def to_point(bent: np.ndarray) -> np.ndarray:
        angle = np.linalg.norm(bent, axis=-1, keepdims=True)
        return bent * np.tan(angle) / np.maximum(angle, 1e-12)

    wanted = (pixels - (np.array(LENS[2:4]) - 0.5)) / LENS[:2]
    bent = wanted.copy()
    for _ in range(30):
        shown = (thin_prism_pixels(to_point(bent), LENS) - (np.array(LENS[2:4]) - 0.5)) / LENS[:2]
        bent += wanted - shown
    return to_point(bent)
