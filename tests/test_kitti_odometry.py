"""KITTI odometry: layout, grey and colour, calibration, poses, ground truth, splits, and the raw drives behind it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from conftest import call_program
from drive_writer import RenderedDrive, render_drive
from kitti_tree import make_config, write_list
from PIL import Image
from tree_writers import LEFT_X, RIGHT_X, WRITERS, write_kitti_odometry

import evaluate
import train
from featdepth.config import Config
from featdepth.data import build_dataset, leaked_drives
from featdepth.errors import InputError
from featdepth.models import FeatDepth

EXCERPT = Path(os.environ.get("FEATDEPTH_SHARED", Path(__file__).parents[2] / "shared")) / "kitti_odometry_mini"
FRAMES = 5
PARTS = ("train", "val", "test")
SEQUENCE_04 = "2011_09_30/2011_09_30_drive_0016_sync"  # in KITTI raw; the Eigen split tests on it


@pytest.fixture(scope="module")
def drives() -> list[RenderedDrive]:
    return [render_drive(frames=FRAMES, index=index) for index in range(3)]


@pytest.fixture
def root(drives: list[RenderedDrive], tmp_path: Path) -> Path:
    """Sequences 00, 01 and 02, one for each part of a split by lists."""
    root = tmp_path / "raw"
    for part, name in zip(PARTS, write_kitti_odometry(root, drives), strict=True):
        lines = [f"{name} {frame} l" for frame in range(1, FRAMES - 1)]
        write_list(tmp_path / "split" / f"{part}_files.txt", lines)
    return root


def config_for(root: Path, **data: object) -> Config:
    values = {"kind": "kitti_odometry", "root": str(root), "height": 64, "width": 96}
    return make_config(root.parent, **(values | data))


def renumber(root: Path, old: str, new: str) -> None:
    (root / "sequences" / old).rename(root / "sequences" / new)
    (root / "poses" / f"{old}.txt").rename(root / "poses" / f"{new}.txt")


class TestContent:
    def test_frames_and_calibration(self, root: Path, drives: list[RenderedDrive]) -> None:
        """The files count pixels from 1, the sample from 0."""
        item = build_dataset(config_for(root, frames=[0, -1, 1, "s"]), "test")[1]
        left, right = drives[2].images, drives[2].right_images
        for image, expected in zip(item["images"], (left[2], left[1], left[3], right[2]), strict=True):
            assert np.array_equal(image.permute(1, 2, 0), expected)
        assert item["intrinsics"].numpy() == pytest.approx(drives[2].intrinsics, abs=1e-5)
        assert item["stereo_pose"].numpy() == pytest.approx(drives[2].right_from_left, abs=1e-5)

    def test_right_target(self, root: Path, drives: list[RenderedDrive]) -> None:
        path = write_list(root.parent / "right.txt", ["02 2 r"])
        item = build_dataset(config_for(root, frames=[0, "s"], test_files=str(path)), "test")[0]
        assert np.array_equal(item["images"][0].permute(1, 2, 0), drives[2].right_images[2])
        assert item["stereo_pose"].numpy() == pytest.approx(np.linalg.inv(drives[2].right_from_left), abs=1e-5)

    def test_poses_are_those_of_the_left_colour_camera(self, root: Path, drives: list[RenderedDrive]) -> None:
        """The files have those of camera 0, 6 cm beside it: in a bend that makes a difference."""
        poses = build_dataset(config_for(root), "test").poses("02")
        assert list(poses) == list(range(FRAMES))
        for frame, pose in poses.items():
            expected = np.linalg.inv(drives[2].poses[0]) @ drives[2].poses[frame]
            assert np.linalg.inv(poses[0]) @ pose == pytest.approx(expected, abs=1e-7)

    def test_poses_with_the_numbers_of_their_frames(self, root: Path) -> None:
        path = root / "poses" / "02.txt"
        expected = build_dataset(config_for(root), "test").poses("02")
        lines = path.read_text().splitlines()
        path.write_text("".join(f"{frame} {lines[frame]}\n" for frame in (0, 2, 3)))
        poses = build_dataset(config_for(root), "test").poses("02")
        assert list(poses) == [0, 2, 3] and all((pose == expected[frame]).all() for frame, pose in poses.items())
        path.write_text("0.0 0 0 0 0 0 0 1\n")
        with pytest.raises(InputError, match=r"02.txt: the poses have times; write them in KITTI's format"):
            build_dataset(config_for(root), "test").poses("02")

    def test_times_and_distance(self, root: Path, drives: list[RenderedDrive]) -> None:
        data = build_dataset(config_for(root), "test")
        assert list(data.times("02").values()) == pytest.approx(drives[2].times)
        moved = np.linalg.norm(drives[2].poses[3][:3, 3] - drives[2].poses[2][:3, 3])
        assert data.distance(data.samples[1], 1) == pytest.approx(moved)
        (root / "poses" / "02.txt").unlink()
        (root / "sequences" / "02" / "times.txt").unlink()
        data = build_dataset(config_for(root), "test")
        assert data.distance(data.samples[1], 1) is None and data.times("02") == {}

    def test_depth_of_the_scans(self, root: Path, drives: list[RenderedDrive]) -> None:
        """Each scan has the point that each pixel sees, in the scanner's own coordinates."""
        depth, truth = build_dataset(config_for(root), "test")[1]["depth"].numpy(), drives[2].depths[2]
        assert depth[np.isfinite(truth)] == pytest.approx(truth[np.isfinite(truth)], rel=1e-5)
        assert not depth[np.isinf(truth)].any()

    def test_depth_needs_the_scanner_in_the_calibration(self, root: Path) -> None:
        path = root / "sequences" / "02" / "calib.txt"
        path.write_text("".join(line for line in path.open() if not line.startswith("Tr")))
        with pytest.raises(InputError, match=r"02/calib.txt: row Tr is missing"):
            build_dataset(config_for(root), "test")


class TestGrey:
    @pytest.fixture
    def grey(self, root: Path) -> Path:
        """Sequence 02 with the grey cameras only."""
        folder = root / "sequences" / "02"
        for colour, number in ((2, 0), (3, 1)):
            images = (folder / f"image_{colour}").rename(folder / f"image_{number}")
            for path in images.iterdir():
                with Image.open(path) as image:
                    image.convert("L").save(path)
        return root

    def test_is_read_where_there_is_no_colour(self, grey: Path, drives: list[RenderedDrive]) -> None:
        item = build_dataset(config_for(grey, frames=[0, "s"]), "test")[1]
        for image, expected in zip(item["images"], (drives[2].images[2], drives[2].right_images[2]), strict=True):
            luminance = np.array(Image.fromarray(expected).convert("L"))
            assert all(np.array_equal(channel, luminance) for channel in image)
        assert item["stereo_pose"][0, 3].item() == pytest.approx(RIGHT_X - LEFT_X)

    def test_poses_are_those_of_camera_0(self, grey: Path, drives: list[RenderedDrive]) -> None:
        data = build_dataset(config_for(grey), "test")
        assert data.poses("02")[0] == pytest.approx(np.eye(4), abs=1e-8)

    def test_colour_comes_first(self, root: Path) -> None:
        folder = root / "sequences" / "02"
        (folder / "image_0").mkdir()
        (folder / "image_0" / "000001.png").touch()
        data = build_dataset(config_for(root), "test")
        assert Path(data.image_path(data.samples[0], 0)).parent.name == "image_2"


class TestSplit:
    def test_official(self, root: Path) -> None:
        renumber(root, "01", "10")
        renumber(root, "02", "17")
        config = config_for(root, split="official")
        parts = {part: build_dataset(config, part).drives for part in ("train", "validation", "test")}
        assert parts == {"train": ["00"], "validation": ["17"], "test": ["10"]}
        assert leaked_drives(config) == []

    def test_official_training_avoids_lists_of_the_other_parts(self, root: Path) -> None:
        path = write_list(root.parent / "list.txt", ["01 1 l"])
        config = config_for(root, split="official", test_files=str(path))
        assert build_dataset(config, "train").drives == ["00", "02"]

    def test_list_with_an_official_test_sequence(self, root: Path) -> None:
        renumber(root, "01", "09")
        path = write_list(root.parent / "list.txt", ["09 1 l"])
        with pytest.raises(InputError, match="share drives: 09"):
            build_dataset(config_for(root, split="official", train_files=str(path)), "train")

    def test_no_sequence_of_a_part(self, root: Path) -> None:
        with pytest.raises(InputError, match="no test frame of the official split is here; its drives are 09, 10"):
            build_dataset(config_for(root, split="official"), "test")

    def test_other_folder(self, tmp_path: Path) -> None:
        (tmp_path / "raw").mkdir()
        with pytest.raises(InputError, match=r"no KITTI odometry here; expected sequences/00/image_2/000000.png"):
            build_dataset(config_for(tmp_path / "raw", split="time"), "train")


class TestRawDrives:
    def test_are_remembered(self, root: Path) -> None:
        renumber(root, "00", "04")
        assert build_dataset(config_for(root, split="official"), "train").recordings() == [
            "01",
            "02",
            "04",
            "2011_09_30/2011_09_30_drive_0016_sync",
            "2011_10_03/2011_10_03_drive_0034_sync",
            "2011_10_03/2011_10_03_drive_0042_sync",
        ]

    def test_frames_of_08_start_at_1100(self, root: Path) -> None:
        renumber(root, "00", "08")
        recordings = build_dataset(config_for(root, split="time"), "train").recordings()
        assert "08 1-3" in recordings and "2011_09_30/2011_09_30_drive_0028_sync 1101-1103" in recordings
        assert "2011_10_03/2011_10_03_drive_0034_sync 1-3" in recordings  # sequence 02

    def test_a_model_trained_on_them_is_contaminated_for_the_eigen_test(
        self, root: Path, drives: list[RenderedDrive], tmp_path: Path
    ) -> None:
        """Trained on sequence 04, which the Eigen split tests on, then scored on KITTI raw."""
        renumber(root, "00", "04")
        write_list(tmp_path / "split" / "train_files.txt", ["04 1 l", "04 2 l", "04 3 l"])
        tiny = ["model.depth_layers=18", "model.decoder_width=16", "model.pretrained=false", "model.pose_size=null"]
        tiny += ["model.objective=photometric", "data.height=64", "data.width=96", "data.frames=[0, -1, s]"]
        tiny += [f"run.directory={tmp_path / 'run'}", "data.workers=0", "evaluate.crop=none"]
        (tmp_path / "empty.yaml").write_text("run: {name: tiny}\n")
        odometry = ["data.kind=kitti_odometry", f"data.root={root}", f"data.split={tmp_path / 'split'}"]
        options = ["--config", tmp_path / "empty.yaml", *tiny]
        trained = call_program(train.main, *options, *odometry, "evaluate.protocol=own", "train.max_steps=1")
        assert trained.code == 0, trained.err
        record = FeatDepth.from_pretrained(tmp_path / "run" / "model").provenance
        assert record.drives == ["04", SEQUENCE_04]

        raw = tmp_path / "kitti_raw"
        (written,) = WRITERS["kitti_raw"](raw, drives[:1])
        (raw / SEQUENCE_04).parent.mkdir(parents=True)
        (raw / written).rename(raw / SEQUENCE_04)
        for name in ("calib_cam_to_cam.txt", "calib_velo_to_cam.txt"):
            (raw / written.split("/")[0] / name).rename(raw / SEQUENCE_04.split("/")[0] / name)
        test_list = write_list(tmp_path / "eigen.txt", [f"{SEQUENCE_04} 2 l"])
        tested = [f"data.root={raw}", f"data.test_files={test_list}"]
        refused = call_program(evaluate.main, *options, *tested)
        assert f"the model was trained on test drives ({SEQUENCE_04})" in refused.error_line()
        marked = call_program(evaluate.main, *options, *tested, "data.allow_leakage=true")
        assert (
            marked.code == 0
            and f"CONTAMINATED: trained on drives that it should not have seen: {SEQUENCE_04}" in marked.out
        )


@pytest.mark.skipif(not EXCERPT.is_dir(), reason=f"no excerpt of KITTI odometry in {EXCERPT}")
class TestRealExcerpt:
    def test_grey_stereo_of_sequence_06(self) -> None:
        data = build_dataset(config_for(EXCERPT, split="time", frames=[0, -1, 1, "s"]), "train")
        assert data.drives == ["06"] and not data.with_depth
        assert data.recordings() == ["06 1-39", "2011_09_30/2011_09_30_drive_0020_sync 1-39"]
        assert len(data.poses("06")) == 51
        # Calibrated focal length and baseline of that day, to the millimetre.
        item = data[0]
        assert item["intrinsics"][0, 0].item() * 1226 / 96 == pytest.approx(707.0912, abs=1e-3)
        assert item["stereo_pose"][0, 3].item() == pytest.approx(-0.537, abs=5e-4)
        assert 0.3 < data.distance(data.samples[0], 1) < 2.5  # of a car, in a tenth of a second
