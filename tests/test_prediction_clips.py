"""What is made of a clip as a whole, by threads that take its frames as they come."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from featdepth.errors import InputError
from featdepth.odometry.trajectory_files import read_trajectory
from featdepth.predict.clip_outputs import MOST_NAMED, MOST_QUEUED, ClipOutputs, Consumer, PageFrames, Way, reduced
from featdepth.predict.frames import InputFrame
from featdepth.predict.intrinsics import FrameCamera
from featdepth.predict.network import BY_ALIGNMENT, BY_POSE_NETWORK, BY_REPETITION
from featdepth.predict.outputs import Saved
from featdepth.predict.page import MOST_SHOWN
from featdepth.predict.point_cloud import depth_to_points
from featdepth.predict.settings import Settings
from featdepth.predict.sources import FrameSource
from featdepth.scale import Scale

RELATIVELY = Scale(None, None)


def saved_frame(index: int, size: tuple[int, int] = (6, 8)) -> Saved:
    frame = InputFrame(str(index), "clip", index, size, view=torch.full((*size, 3), index % 256, dtype=torch.uint8))
    pose = np.eye(4)
    pose[2, 3] = index
    intrinsics = np.array([[10.0, 0, size[1] / 2 - 0.5], [0, 10.0, size[0] / 2 - 0.5], [0, 0, 1]])
    frame = frame._replace(camera=FrameCamera(intrinsics))
    return Saved(frame, np.full(size, 5.0, np.float32), intrinsics, pose, BY_ALIGNMENT if index else None)


class TestThreads:
    def test_all_items_come_in_order(self) -> None:
        taken: list[Saved] = []
        consumer = Consumer(taken.extend)
        items = [saved_frame(index) for index in range(3 * MOST_QUEUED)]
        for item in items:
            consumer.add(item)
        consumer.finish(with_error=False)
        assert [item.frame.index for item in taken] == list(range(3 * MOST_QUEUED))

    def test_an_error_comes_out_at_the_end_and_nobody_waits(self) -> None:
        def fail(items: Iterator[Saved]) -> None:
            next(items)
            raise ValueError("no more")

        consumer = Consumer(fail)
        for index in range(3 * MOST_QUEUED):
            consumer.add(saved_frame(index))
        with pytest.raises(ValueError, match="no more"):
            consumer.finish(with_error=False)

    def test_what_is_left_by_an_error_is_not_finished(self) -> None:
        ended: list[str] = []

        def work(items: Iterator[Saved]) -> None:
            for _ in items:
                time.sleep(0.001)
            ended.append("whole")

        consumer = Consumer(work)
        consumer.add(saved_frame(0))
        consumer.finish(with_error=True)
        assert not ended


def test_a_clip_that_fails_leaves_no_trajectory(tmp_path: Path) -> None:
    source, settings = FrameSource("clip", tmp_path / "clip", {}), Settings(tmp_path, ["trajectory"])
    with pytest.raises(ValueError, match="stop"), ClipOutputs(source, settings, RELATIVELY) as clip:
        clip.add(saved_frame(0))
        raise ValueError("stop")
    assert not list(tmp_path.iterdir())
    with ClipOutputs(source, settings, RELATIVELY) as clip:
        for index in (0, 1, 3):  # one frame was damaged
            clip.add(saved_frame(index))
    trajectory = read_trajectory(tmp_path / "clip" / "trajectory_tum.txt")
    assert trajectory.poses[:, 2, 3].tolist() == [0, 1, 3] and trajectory.times == pytest.approx([0, 0.1, 0.3])


class TestWay:
    @pytest.mark.parametrize(
        ("lost", "stand_in", "expected"),
        [
            ([], None, "9 of 9 pairs of frames aligned"),
            ([4, 7], BY_POSE_NETWORK, "7 of 9 pairs of frames aligned; to 4, 7 stands in the pose network's"),
            (range(2, 10), BY_REPETITION, "aligned; to 2, 3, 4, 5, 6 and 3 more stands in the motion before it"),
        ],
    )
    def test_frames_whose_motion_is_anothers_are_named(self, lost: list[int], stand_in: str, expected: str) -> None:
        way = Way()
        for index in range(10):
            way.add(saved_frame(index)._replace(**{"motion": stand_in} if index in lost else {}))
        assert way.is_known and way.describe().endswith(expected) and len(way.others) <= MOST_NAMED

    def test_a_clip_of_which_nothing_is_known_has_no_way(self, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        settings = Settings(tmp_path, ["trajectory", "page", "fused_points"])
        message = (
            "clip: no fused_points, trajectory: 0 of 2 pairs of frames aligned; to 1, 2 stands in the motion before"
        )
        with (
            pytest.raises(InputError, match=message),
            ClipOutputs(FrameSource("clip", tmp_path / "clip", {}), settings, RELATIVELY) as clip,
        ):
            for index in range(3):
                clip.add(saved_frame(index)._replace(motion=BY_REPETITION if index else None))
        assert [path.name for path in (tmp_path / "clip").iterdir()] == ["page.html"]
        assert "0 of 2 pairs" in capsys.readouterr().out


class TestPageFrames:
    @pytest.mark.parametrize("count", [1, MOST_SHOWN, 7 * MOST_SHOWN])
    def test_they_are_evenly_spread(self, count: int) -> None:
        page = PageFrames()
        for index in range(count):
            page.add(saved_frame(index))
        places = [place for place, _ in page.kept]
        assert page.total == count and min(count, MOST_SHOWN) <= len(places) <= 2 * MOST_SHOWN
        assert places == list(range(0, count, page.stride)) and page.has_clouds

    def test_smaller_ones_show_the_same_space(self) -> None:
        """A plane five away, seen by a frame of more than twice a page's width, keeps its place and size."""
        large = saved_frame(0, (700, 1301))
        small = reduced(large)
        assert small.depth.shape == (234, 434) and small.frame.view.shape == (234, 434, 3)
        extents = [
            np.ptp(depth_to_points(each.depth, each.frame.view.numpy(), each.intrinsics, grazing_angle=None).points, 0)
            for each in (large, small)
        ]
        assert extents[1] == pytest.approx(extents[0], rel=0.005)
        assert reduced(saved_frame(0)).depth.shape == (6, 8)
