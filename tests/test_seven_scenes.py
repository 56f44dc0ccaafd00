"""7-Scenes: layout, intrinsics, depth, poses, the official split, and a real excerpt where it is at hand."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from drive_writer import RenderedDrive, render_drive
from kitti_tree import make_config, write_list
from PIL import Image
from tree_writers import write_image, write_seven_scenes

from featdepth.config import Config
from featdepth.data import build_dataset, leaked_drives
from featdepth.errors import InputError

INDOOR = Path(os.environ.get("FEATDEPTH_SHARED", Path(__file__).parents[2] / "shared")) / "indoor_mini"
FRAMES = 5


@pytest.fixture(scope="module")
def drives() -> list[RenderedDrive]:
    return [render_drive(frames=FRAMES, index=index) for index in range(3)]


@pytest.fixture
def root(drives: list[RenderedDrive], tmp_path: Path) -> Path:
    """A scene of three sequences: two to train on, of which the last validates, and one to test."""
    root = tmp_path / "raw"
    write_seven_scenes(root, drives)
    write_list(root / "chess" / "TrainSplit.txt", ["sequence1", "sequence3"])
    write_list(root / "chess" / "TestSplit.txt", ["sequence2"])
    return root


def config_for(root: Path, **data: object) -> Config:
    values = {"kind": "seven_scenes", "split": "official", "root": str(root), "height": 64, "width": 96}
    return make_config(root.parent, **(values | data))


class TestContent:
    def test_image_depth_and_intrinsics(self, root: Path, drives: list[RenderedDrive]) -> None:
        data = build_dataset(config_for(root), "test")
        item = data[1]
        assert str(data.samples[1]) == "chess/seq-02 2 l"
        for frame, image in zip((2, 1, 3), item["images"], strict=True):
            assert np.array_equal(image.permute(1, 2, 0), drives[1].images[frame])
        depth, truth = item["depth"].numpy(), drives[1].depths[2]
        known = truth < 65.534  # what millimetres in 16 bits can say
        assert depth[known] == pytest.approx(truth[known], abs=0.51e-3)
        assert (depth[~known] == 0).all() and 0.1 < known.mean() < 0.99
        assert item["intrinsics"].numpy() == pytest.approx(drives[1].intrinsics, abs=1e-5)

    def test_pose_and_distance(self, root: Path, drives: list[RenderedDrive]) -> None:
        data = build_dataset(config_for(root), "test")
        poses = data.poses("chess/seq-02")
        assert list(poses) == list(range(FRAMES))
        assert np.stack(list(poses.values())) == pytest.approx(np.stack(drives[1].poses), abs=1e-8)
        moved = np.linalg.norm(drives[1].poses[3][:3, 3] - drives[1].poses[2][:3, 3])
        assert data.distance(data.samples[1], 1) == pytest.approx(moved)
        (root / "chess" / "seq-02" / "frame-000003.pose.txt").unlink()
        assert build_dataset(config_for(root), "test").distance(data.samples[1], 1) is None

    def test_frame_without_depth_has_none(self, root: Path) -> None:
        (root / "chess" / "seq-02" / "frame-000001.depth.png").unlink()
        data = build_dataset(config_for(root), "test")
        assert not data[0]["depth"].any() and data[1]["depth"].any()
        assert build_dataset(config_for(root), "test", require_depth=True).without_depth == 1

    def test_gap_has_no_neighbours(self, root: Path) -> None:
        (root / "chess" / "seq-02" / "frame-000002.color.png").unlink()
        with pytest.raises(InputError, match=r"none of 4 samples has all of its frames"):
            build_dataset(config_for(root), "test")


class TestIntrinsics:
    @pytest.mark.parametrize("place", ["chess/seq-02", "chess", "."])
    def test_nearest_file_counts(self, place: str, root: Path) -> None:
        for path in root.rglob("camera-intrinsics.txt"):
            path.unlink()
        for focal, folder in enumerate((".", "chess", "chess/seq-02"), start=50):
            (root / folder / "camera-intrinsics.txt").write_text(f"{focal} 0 47\n0 {focal + 10} 31\n0 0 1\n")
            if folder == place:
                break
        intrinsics = build_dataset(config_for(root), "test")[0]["intrinsics"].numpy()
        assert intrinsics == pytest.approx(np.array([[focal, 0, 47], [0, focal + 10, 31], [0, 0, 1]]), abs=1e-5)

    def test_lens_that_distorts(self, root: Path) -> None:
        """Its coefficients would be lost."""
        text = "1 OPENCV 96 64 50 50 48 32 0.1 0 0 0\n"
        (root / "chess" / "seq-02" / "camera-intrinsics.txt").write_text(text)
        with pytest.raises(InputError, match=r"seq-02/camera-intrinsics.txt: has lens distortion; undo it"):
            build_dataset(config_for(root), "test")

    def test_default_is_for_the_published_size(self, root: Path) -> None:
        folder = root / "chess" / "seq-02"
        (folder / "camera-intrinsics.txt").unlink()
        with pytest.raises(InputError, match=r"seq-02: images of 96 x 64 pixels without camera-intrinsics.txt"):
            build_dataset(config_for(root), "test")
        for path in folder.glob("*.png"):
            path.unlink()
        for frame in range(3):
            write_image(folder / f"frame-{frame:06}.color.png", np.indices((480, 640, 3)).sum(0).astype(np.uint8))
        item = build_dataset(config_for(root, height=480, width=640), "test")[0]
        assert item["intrinsics"].tolist() == [[585, 0, 320], [0, 585, 240], [0, 0, 1]]


class TestSplit:
    def test_official_parts(self, root: Path) -> None:
        config = config_for(root)
        parts = {part: build_dataset(config, part).drives for part in ("train", "validation", "test")}
        assert parts == {"train": ["chess/seq-01"], "validation": ["chess/seq-03"], "test": ["chess/seq-02"]}
        assert leaked_drives(config) == []

    def test_root_may_be_a_scene(self, root: Path) -> None:
        config = config_for(root / "chess")
        assert build_dataset(config, "test").drives == ["seq-02"]
        assert build_dataset(config, "validation").drives == ["seq-03"]

    def test_single_training_sequence_is_not_held_out(self, root: Path) -> None:
        write_list(root / "chess" / "TrainSplit.txt", ["sequence1"])
        assert build_dataset(config_for(root), "train").drives == ["chess/seq-01"]
        with pytest.raises(InputError, match="no validation frame of the official split"):
            build_dataset(config_for(root), "validation")

    def test_list_with_a_test_drive_is_refused(self, root: Path) -> None:
        path = write_list(root.parent / "list.txt", ["chess/seq-02 1 l"])
        with pytest.raises(InputError, match="share drives: chess/seq-02"):
            build_dataset(config_for(root, train_files=str(path)), "train")

    def test_scene_without_split_files(self, root: Path) -> None:
        (root / "chess" / "TestSplit.txt").unlink()
        with pytest.raises(InputError, match=r"no TestSplit.txt here or one folder below.*data.split=time"):
            build_dataset(config_for(root), "test")

    def test_line_that_is_no_sequence(self, root: Path) -> None:
        write_list(root / "chess" / "TestSplit.txt", ["sequence2", "seq-03"])
        with pytest.raises(InputError, match=r"TestSplit.txt:2: 'seq-03' should be a sequence"):
            build_dataset(config_for(root), "test")

    def test_folder_of_frames_is_one_drive(self, root: Path) -> None:
        config = config_for(root / "chess" / "seq-02", split="time")
        data = build_dataset(config, "train")
        assert data.drives == ["seq-02"] and data.recordings() == ["seq-02 1-3"]


class TestBadInput:
    def test_other_folder(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"nothing in the layout of 7-Scenes; expected chess/seq-01/"):
            build_dataset(config_for(tmp_path), "test")

    def test_pose_that_is_none(self, root: Path) -> None:
        path = root / "chess" / "seq-02" / "frame-000001.pose.txt"
        path.write_text("1 0 0 0\n0 1 0 nan\n0 0 1 0\n0 0 0 1\n")
        data = build_dataset(config_for(root), "test")
        with pytest.raises(InputError, match=r"frame-000001.pose.txt:2: '0 1 0 nan' should be 4 numbers of the pose"):
            data.poses("chess/seq-02")
        path.write_text("1 0 0 0\n0 1 0 0\n0 0 1 0\n")
        with pytest.raises(InputError, match=r"frame-000001.pose.txt: the pose should have 4 rows, found 3"):
            build_dataset(config_for(root), "test").poses("chess/seq-02")

    def test_depth_of_another_kind(self, root: Path) -> None:
        path = root / "chess" / "seq-02" / "frame-000001.depth.png"
        write_image(path, np.zeros((64, 96), np.uint8))
        with pytest.raises(InputError, match=r"frame-000001.depth.png: not a 16-bit depth image"):
            build_dataset(config_for(root), "test")[0]

    def test_depth_of_another_size(self, root: Path) -> None:
        write_image(root / "chess" / "seq-02" / "frame-000001.depth.png", np.zeros((32, 48), np.uint16))
        with pytest.raises(InputError, match=r"frame-000001.depth.png: 48 x 32 pixels"):
            build_dataset(config_for(root), "test")[0]


@pytest.mark.skipif(not INDOOR.is_dir(), reason=f"no indoor excerpt in {INDOOR}")
class TestRealExcerpt:
    def test_parts_by_time(self) -> None:
        config = config_for(INDOOR, split="time", frames=[0, -8, 8])
        recordings = {part: build_dataset(config, part).recordings() for part in ("train", "validation", "test")}
        # 240 frames; neighbours of a target belong to its own part.
        assert recordings == {
            "train": ["indoor_mini 8-183"],
            "validation": ["indoor_mini 200-207"],
            "test": ["indoor_mini 224-231"],
        }

    def test_depth_is_that_of_a_room(self, tmp_path: Path) -> None:
        data = build_dataset(config_for(INDOOR, split="time"), "test", frames=[0])
        depth = data[0]["depth"].numpy()
        with Image.open(data.depth_path(data.samples[0])) as image:
            stored = np.array(image)
        assert np.array_equal(depth > 0, (stored > 0) & (stored < 65535))
        assert depth[depth > 0].min() > 0.5 and depth.max() < 5
        x, y = 96 / 640, 64 / 480
        expected = [[585 * x, 0, 320.5 * x - 0.5], [0, 585 * y, 240.5 * y - 0.5], [0, 0, 1]]
        assert data[0]["intrinsics"].numpy() == pytest.approx(np.array(expected), abs=1e-4)
