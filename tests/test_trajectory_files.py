"""Trajectory files in KITTI's and TUM's formats: there and back, and what is no trajectory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featdepth.errors import InputError
from featdepth.odometry.interpolate import poses_from_quaternions
from featdepth.odometry.trajectory_files import read_kitti, read_trajectory, read_tum, write_kitti, write_tum
from featdepth.score_trajectory import associate

HALF = "0.5 0.5 0.5 0.5"
IDENTITY = "1 0 0 0 0 1 0 0 0 0 1 0"


def some_poses(count: int = 12) -> np.ndarray:
    random = np.random.default_rng(2)
    return poses_from_quaternions(random.normal(0, 100, (count, 3)), random.normal(size=(count, 4)))


class TestThereAndBack:
    def test_kitti(self, tmp_path: Path) -> None:
        poses = some_poses()
        write_kitti(tmp_path / "new" / "way.txt", poses)
        assert np.allclose(read_kitti(tmp_path / "new" / "way.txt"), poses, rtol=1e-9, atol=1e-9)
        assert [len(line.split()) for line in (tmp_path / "new" / "way.txt").read_text().splitlines()] == [12] * 12
        found = read_trajectory(tmp_path / "new" / "way.txt")
        assert found.times is None and np.allclose(found.poses, poses, atol=1e-7)

    def test_tum(self, tmp_path: Path) -> None:
        """Times since 1970 keep their microseconds."""
        poses, times = some_poses(), 1305031102.175304 + 0.1 * np.arange(12)
        write_tum(tmp_path / "way.txt", poses, times, "a comment")
        found = read_trajectory(tmp_path / "way.txt")
        assert np.allclose(found.poses, poses, rtol=1e-8, atol=1e-8)
        assert np.allclose(found.times, times, rtol=0, atol=1e-6)
        assert (tmp_path / "way.txt").read_text().startswith("# a comment\n1305031102.175304 ")

    def test_tum_puts_the_real_part_last(self, tmp_path: Path) -> None:
        """A quarter turn that takes x to y: z is the axis."""
        pose = np.eye(4)
        pose[:3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
        write_tum(tmp_path / "way.txt", pose[None], [2.0])
        numbers = [float(word) for word in (tmp_path / "way.txt").read_text().split()]
        assert numbers == pytest.approx([2, 0, 0, 0, 0, 0, 0.5**0.5, 0.5**0.5])
        (tmp_path / "opposite.txt").write_text(f"2 0 0 0 0 0 {-(0.5**0.5)} {-(0.5**0.5)}\n")
        assert np.allclose(read_tum(tmp_path / "opposite.txt").poses, pose)

    def test_a_failure_leaves_what_was_there(self, tmp_path: Path) -> None:
        write_tum(tmp_path / "way.txt", some_poses(), range(12))
        before = (tmp_path / "way.txt").read_bytes()
        with pytest.raises(ValueError, match="zip"):
            write_tum(tmp_path / "way.txt", some_poses(), range(11))
        assert (tmp_path / "way.txt").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


BAD = {
    "empty": ("# nothing\n\n", "way.txt: holds no trajectory"),
    "nine columns": ("1 0 0 0 1 0 0 0 1\n", "way.txt:1: a pose has 12 numbers in KITTI's format and 8 in TUM's"),
    "one number too few": (f"{IDENTITY}\n\n{IDENTITY[:-2]}\n", "way.txt:3: .* should be 12 numbers"),
    "a word": (f"{IDENTITY}\n{IDENTITY[:-1]}x\n", "way.txt:2: .* should be 12 numbers"),
    "not finite": (f"{IDENTITY[:-1]}nan\n", "way.txt:1: .* should be 12 numbers"),
    "no rotation": (f"# way\n{IDENTITY}\n2{IDENTITY[1:]}\n", "way.txt:3: '2 0 0 .* are not a rotation"),
    "mirrored": (f"{IDENTITY}\n-{IDENTITY}\n", "way.txt:2: .* are not a rotation"),
    "both formats": (f"0 0 0 0 {HALF}\n{IDENTITY}\n", "way.txt:2: .* should be 8 numbers"),
    "quaternion of zeros": (f"0 0 0 0 {HALF}\n1 0 0 0 0 0 0 0\n", "way.txt:2: .* is not of length 1"),
    "time stands still": (f"1 0 0 0 {HALF}\n\n1 0 0 0 {HALF}\n", "way.txt:3: .* its time is not after"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_trajectory_is_refused_by_its_line(name: str, tmp_path: Path) -> None:
    text, message = BAD[name]
    (tmp_path / "way.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        read_trajectory(tmp_path / "way.txt")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"way.txt: the trajectory cannot be read: No such file"):
        read_trajectory(tmp_path / "way.txt")


class TestOtherForms:
    """The same two poses, written in other ways."""

    POSES = poses_from_quaternions(np.array([[0.0, 0, 0], [1, 2, 3]]), np.array([[0, 0, 0, 1.0], [0, 0, 0.6, 0.8]]))
    ROWS = tuple(" ".join(f"{value:.9g}" for value in pose[:3].ravel()) for pose in POSES)
    TUM = ("0 0 0 0 0 0 1", "1 2 3 0 0 0.6 0.8")
    EUROC = ("0 0 0 1 0 0 0" + " 0" * 9, "1 2 3 0.8 0 0 0.6" + " 0" * 9)

    @pytest.mark.parametrize(
        ("text", "times", "frames"),
        [
            (f"4 {ROWS[0]}\n7 {ROWS[1]}\n", None, [4, 7]),
            (f"4 {ROWS[0]} 0 0 0 1\n7 {ROWS[1]} 0 0 0 1\n", None, [4, 7]),
            (f"{ROWS[0]} 0 0 0 1\n{ROWS[1]} 0 0 0 1\n", None, None),
            (f"r11 r12 r13 tx r21 r22 r23 ty r31 r32 r33 tz\n{ROWS[0]}\n{ROWS[1]}\n", None, None),
            (f"% a comment\n// another\n{ROWS[0]}\n{ROWS[1]}\n", None, None),
            (f"timestamp,tx,ty,tz,qx,qy,qz,qw\n5 {TUM[0]}\n6 {TUM[1]}\n".replace(" ", ","), [5, 6], None),
            (f"0 5.5 {TUM[0]}\n1 6.5 {TUM[1]}\n", [5.5, 6.5], None),
            (
                "#timestamp [ns], p_RS_R_x [m], q_RS_w []\n"
                f"1403636580838555648 {EUROC[0]}\n1403636581838555648 {EUROC[1]}\n".replace(" ", ","),
                [1403636580.838555648, 1403636581.838555648],
                None,
            ),
            (f"1403636580838555648 {TUM[0]}\n1403636581838555648 {TUM[1]}\n", [1403636580.838, 1403636581.838], None),
        ],
    )
    def test_is_read(self, text: str, times: list[float] | None, frames: list[int] | None, tmp_path: Path) -> None:
        (tmp_path / "way").write_text(text)
        found = read_trajectory(tmp_path / "way")
        assert np.allclose(found.poses, self.POSES, atol=1e-6)
        assert (found.times is None) == (times is None) and (
            times is None or np.allclose(found.times, times, atol=1e-2)
        )
        assert (None if found.frames is None else found.frames.tolist()) == frames

    def test_frames_are_compared_by_their_numbers(self, tmp_path: Path) -> None:
        poses = some_poses(6)
        write_kitti(tmp_path / "truth", poses)
        lines = (tmp_path / "truth").read_text().splitlines()
        (tmp_path / "own").write_text("".join(f"{frame} {lines[frame]}\n" for frame in (1, 3, 4, 9 - 4)))
        truth, own, count = associate(str(tmp_path / "truth"), str(tmp_path / "own"), 0.02)
        assert count == 4 and np.allclose(truth, own, atol=1e-6) and np.allclose(own, poses[[1, 3, 4, 5]], atol=1e-6)
        (tmp_path / "far").write_text(f"70 {lines[0]}\n71 {lines[1]}\n")
        with pytest.raises(InputError, match="0 frames of the same number in common"):
            associate(str(tmp_path / "truth"), str(tmp_path / "far"), 0.02)
