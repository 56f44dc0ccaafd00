"""TUM RGB-D: frames by the lines of rgb.txt, depth and poses by time, intrinsics of the cameras."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from drive_writer import RenderedDrive, render_drive
from kitti_tree import make_config, write_list
from tree_writers import START, quaternion_of, text_of, write_image, write_tum_rgbd

from featdepth.config import Config
from featdepth.data import build_dataset
from featdepth.data.sets.tum_rgbd import KNOWN_CAMERAS
from featdepth.errors import InputError

FRAMES = 5
SEQUENCE = "rgbd_dataset_freiburg1_1"


@pytest.fixture(scope="module")
def drive() -> RenderedDrive:
    return render_drive(frames=FRAMES)


@pytest.fixture
def sequence(drive: RenderedDrive, tmp_path: Path) -> Path:
    """A sequence whose frames are all in the test part's list."""
    write_tum_rgbd(tmp_path / "raw", [drive])
    write_list(tmp_path / "split" / "test_files.txt", [f"{SEQUENCE} {frame} l" for frame in range(FRAMES)])
    return tmp_path / "raw" / SEQUENCE


def config_for(sequence: Path, **data: object) -> Config:
    return make_config(sequence.parents[1], **({"kind": "tum_rgbd", "height": 64, "width": 96} | data))


def name_of(folder: str, frame: int) -> str:
    """The file of a frame; depth is 5 ms later."""
    time = START + 0.1 * frame + (0.005 if folder == "depth" else 0)
    return f"{folder}/{time:.6f}.png"


def test_image_depth_and_intrinsics(sequence: Path, drive: RenderedDrive) -> None:
    item = build_dataset(config_for(sequence), "test")[1]
    for frame, image in zip((2, 1, 3), item["images"], strict=True):
        assert np.array_equal(image.permute(1, 2, 0), drive.images[frame])
    depth, truth = item["depth"].numpy(), drive.depths[2]
    known = truth < 65534.5 / 5000
    assert depth[known] == pytest.approx(truth[known], abs=1.01e-4) and (depth[~known] == 0).all()
    assert 0.1 < known.mean() < 0.99
    assert item["intrinsics"].numpy() == pytest.approx(drive.intrinsics, abs=1e-5)


def test_times_and_poses(sequence: Path, drive: RenderedDrive) -> None:
    data = build_dataset(config_for(sequence), "test")
    assert list(data.times(SEQUENCE).values()) == pytest.approx([START + time for time in drive.times], abs=1e-5)
    assert np.stack(list(data.poses(SEQUENCE).values())) == pytest.approx(np.stack(drive.poses), abs=1e-6)
    moved = np.linalg.norm(drive.poses[3][:3, 3] - drive.poses[2][:3, 3])
    assert data.distance(data.samples[1], 1) == pytest.approx(moved, abs=1e-6)


def test_pose_between_two_measured_ones(sequence: Path) -> None:
    """The camera flies along x at 1 m/s and turns around y at 1 rad/s; poses come 40 ms before and 20 ms after."""

    def line(time: float) -> str:
        turn = np.array([[np.cos(time), 0, np.sin(time)], [0, 1, 0], [-np.sin(time), 0, np.cos(time)]])
        return f"{START + time:.6f} {text_of([time, 2, 3, *quaternion_of(turn)])}"

    write_list(sequence / "groundtruth.txt", [line(time) for time in (-0.04, 0.02, 0.13, 0.33)])
    poses = build_dataset(config_for(sequence), "test").poses(SEQUENCE)
    # 0.1 is 30 ms before a measured one; 0.2 has none within 50 ms; 0.4 is beyond the last.
    assert list(poses) == [0, 1, 3]
    assert poses[0][:3, 3] == pytest.approx([0, 2, 3], abs=1e-5)
    assert poses[0][:3, :3] == pytest.approx(np.eye(3), abs=1e-5)
    assert poses[1][0, 3] == pytest.approx(0.1, abs=1e-5) and poses[1][0, 2] == pytest.approx(np.sin(0.1), abs=1e-5)


class TestDepthByTime:
    def depth_frames(self, sequence: Path, listed: list[tuple[float, int]]) -> dict[int, str]:
        """Which frames have depth, and of which frame, where depth.txt lists (seconds after the start, frame)."""
        lines = [f"{START + time:.6f} {name_of('depth', frame)}" for time, frame in listed]
        write_list(sequence / "depth.txt", ["# depth", *lines])
        data = build_dataset(config_for(sequence), "test", frames=[0])
        names = {str(sequence / name_of("depth", frame)): frame for frame in range(FRAMES)}
        paths = {sample.frame: data.depth_path(sample) for sample in data.samples}
        return {frame: names[path] for frame, path in paths.items() if path}

    def test_nearest_counts(self, sequence: Path) -> None:
        assert self.depth_frames(sequence, [(0.085, 0), (0.108, 1), (0.195, 3), (0.203, 2)]) == {1: 1, 2: 2}

    def test_beyond_its_reach_there_is_none(self, sequence: Path) -> None:
        assert self.depth_frames(sequence, [(0.121, 1), (0.219, 2), (0.279, 3)]) == {2: 2}

    def test_single_one(self, sequence: Path) -> None:
        assert self.depth_frames(sequence, [(0.4, 4)]) == {4: 4}

    def test_file_that_is_missing(self, sequence: Path) -> None:
        (sequence / name_of("depth", 1)).unlink()
        assert self.depth_frames(sequence, [(0.1, 1), (0.2, 2)]) == {2: 2}

    def test_no_list(self, sequence: Path) -> None:
        (sequence / "depth.txt").unlink()
        data = build_dataset(config_for(sequence), "test")
        assert not data.with_depth
        with pytest.raises(InputError, match="none of 3 samples has ground truth; it is in depth/"):
            build_dataset(config_for(sequence), "test", require_depth=True)


def test_missing_image_leaves_a_gap(sequence: Path) -> None:
    """The others keep their numbers."""
    (sequence / name_of("rgb", 1)).unlink()
    write_list(sequence.parents[1] / "split" / "test_files.txt", [f"{SEQUENCE} {frame} l" for frame in (0, 2, 3, 4)])
    data = build_dataset(config_for(sequence), "test")
    assert [sample.frame for sample in data.samples] == [3] and data.left_out == 3


class TestIntrinsics:
    def test_file_of_the_root(self, sequence: Path) -> None:
        (sequence / "intrinsics.txt").unlink()
        (sequence.parent / "intrinsics.txt").write_text("60 0 40\n0 61 30\n0 0 1\n")
        intrinsics = build_dataset(config_for(sequence), "test")[0]["intrinsics"]
        assert intrinsics.tolist() == [[60, 0, 40], [0, 61, 30], [0, 0, 1]]

    @pytest.mark.parametrize("camera", sorted(KNOWN_CAMERAS))
    def test_published(self, camera: str, tmp_path: Path) -> None:
        folder = tmp_path / "raw" / f"rgbd_dataset_{camera}_desk"
        for frame in range(3):
            write_image(
                folder / name_of("rgb", frame), np.random.default_rng(frame).integers(0, 256, (480, 640, 3), np.uint8)
            )
        write_list(folder / "rgb.txt", [f"{START + 0.1 * frame:.6f} {name_of('rgb', frame)}" for frame in range(3)])
        config = make_config(tmp_path, kind="tum_rgbd", split="time", height=480, width=640)
        (fx, _, cx), (_, fy, cy), _ = build_dataset(config, "train")[0]["intrinsics"].tolist()
        assert (fx, fy, cx, cy) == pytest.approx(KNOWN_CAMERAS[camera])

    @pytest.mark.parametrize("name", ["my_room", SEQUENCE])
    def test_unknown_camera(self, name: str, sequence: Path) -> None:
        """A folder of another name, and images of another size."""
        (sequence / "intrinsics.txt").unlink()
        folder = sequence.rename(sequence.with_name(name))
        with pytest.raises(InputError, match=rf"{name}: no intrinsics.txt, and images of 96 x 64 pixels"):
            build_dataset(config_for(folder, split="time"), "train")


class TestBadInput:
    def test_other_folder(self, tmp_path: Path) -> None:
        (tmp_path / "raw").mkdir()
        config = make_config(tmp_path, kind="tum_rgbd", split="time")
        with pytest.raises(InputError, match=r"nothing in the layout of TUM RGB-D; expected <sequence>/rgb.txt"):
            build_dataset(config, "train")

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("1305031102.1", r"rgb.txt:1: '1305031102.1' should be a time"),
            ("now rgb/1.png", r"rgb.txt:1: 'now rgb/1.png' should be a time"),
        ],
    )
    def test_damaged_list(self, line: str, message: str, sequence: Path) -> None:
        write_list(sequence / "rgb.txt", [line])
        with pytest.raises(InputError, match=message):
            build_dataset(config_for(sequence), "test")

    def test_unsorted_list(self, sequence: Path) -> None:
        lines = (sequence / "rgb.txt").read_text().splitlines()
        write_list(sequence / "rgb.txt", [*lines[:3], *lines[:1:-1]])
        with pytest.raises(InputError, match=r"rgb.txt:5: the time is before that of the line above"):
            build_dataset(config_for(sequence), "test")

    def test_quaternion_that_is_no_rotation(self, sequence: Path) -> None:
        write_list(sequence / "groundtruth.txt", [f"{START} 0 0 0 0 0 0 2"])
        with pytest.raises(InputError, match=r"groundtruth.txt: has quaternions that are not of length 1"):
            build_dataset(config_for(sequence), "test").poses(SEQUENCE)
