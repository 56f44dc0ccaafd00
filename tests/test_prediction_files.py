"""What predictions are written as: depth in files, pictures with a scale bar, side-by-side videos."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featdepth.data.films import read_pictures
from featdepth.data.images import load_depth_image
from featdepth.drawing import (
    NARROWEST,
    SMALLEST_BAR,
    TABLE,
    colour_depth,
    draw_depth,
    draw_scale_bar,
    nearest_depth,
    round_depths,
)
from featdepth.predict.depth_files import encode_depth, write_depth_npz, write_depth_png, write_depth_tiff
from featdepth.predict.side_by_side import RANGED_FRAMES, Places, rate_of, write_side_by_side
from featdepth.scale import METRES, RELATIVE

needs_pyav = pytest.mark.skipif(importlib.util.find_spec("av") is None, reason="PyAV is not installed")


@pytest.fixture
def depth() -> np.ndarray:
    """Depth [h, w] from 2 to 200."""
    return np.random.default_rng(0).uniform(2, 200, (37, 50)).astype(np.float32)


class TestDepthFiles:
    def test_png_is_read_as_kittis_depth(self, tmp_path: Path, depth: np.ndarray) -> None:
        assert write_depth_png(tmp_path / "new" / "depth.png", depth, METRES) == 0
        read = load_depth_image(tmp_path / "new" / "depth.png", depth.shape)
        assert abs(read - depth).max() <= 0.5 / 256
        assert Image.open(tmp_path / "new" / "depth.png").text["depth unit"] == METRES

    def test_what_16_bits_cannot_say_is_cut_and_counted(self) -> None:
        values, clipped = encode_depth(np.array([[1e-4, 1.0, 255.99, 256.0, 3000.0]]))
        assert values.tolist() == [[1, 256, 65533, 65535, 65535]]  # 0 would mean "none"
        assert clipped == 2

    def test_npz_keeps_depth_unit_and_known_intrinsics(self, tmp_path: Path, depth: np.ndarray) -> None:
        intrinsics = np.diag([50.0, 60.0, 1.0])
        write_depth_npz(tmp_path / "known.npz", depth, METRES, intrinsics)
        write_depth_npz(tmp_path / "unknown.npz", depth, RELATIVE, None)
        with np.load(tmp_path / "known.npz", allow_pickle=False) as known:
            assert (known["depth"] == depth).all() and known["depth"].dtype == np.float32
            assert str(known["unit"]) == METRES and (known["intrinsics"] == intrinsics).all()
        with np.load(tmp_path / "unknown.npz", allow_pickle=False) as unknown:
            assert str(unknown["unit"]) == RELATIVE and "intrinsics" not in unknown

    def test_tiff_is_exact(self, tmp_path: Path, depth: np.ndarray) -> None:
        write_depth_tiff(tmp_path / "depth.tiff", depth)
        assert (np.array(Image.open(tmp_path / "depth.tiff")) == depth).all()


class TestPictures:
    def test_colours_follow_inverse_depth(self) -> None:
        colours = colour_depth(np.array([[1.0, 5.0, 10.0, 1e9]]), nearest=5.0)[0]
        last = len(TABLE) - 1
        expected = [TABLE[last], TABLE[last], TABLE[last // 2], TABLE[0]]
        assert (colours == expected).all()

    def test_a_twentieth_is_brighter_than_the_range(self, depth: np.ndarray) -> None:
        assert (depth < nearest_depth(depth)).mean() == pytest.approx(0.05, abs=0.01)

    def test_the_bar_is_below_the_picture(self, depth: np.ndarray) -> None:
        picture = np.array(draw_depth(depth, METRES, nearest=4.0))
        assert picture.shape == (37 + SMALLEST_BAR, NARROWEST, 3)
        assert (picture[:37, :50] == colour_depth(depth, 4.0)).all() and not picture[:37, 50:].any()

    def test_the_bar_shows_each_depth_in_its_colour(self) -> None:
        """The row of the ramp at the place of a depth, (1 - nearest / depth) of the width, has the depth's colour."""
        ramp = np.array(draw_scale_bar(1001, 40, METRES, nearest=2.0))[1]
        for value in (2.5, 4.5, 13.0, 90.0):
            place = round((1 - 2.0 / value) * 1000)
            expected = colour_depth(np.array([[value]]), 2.0)[0, 0]
            assert abs(ramp[place].astype(int) - expected).max() <= 3

    def test_metres_are_named_only_where_they_are_known(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from PIL import ImageDraw

        said: list[str] = []
        monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda _self, _place, text, *_: said.append(text))
        draw_scale_bar(800, 40, METRES, nearest=2.2)
        assert said and all(text.endswith(" m") for text in said)
        said.clear()
        draw_scale_bar(800, 40, RELATIVE, nearest=2.2)
        assert RELATIVE in said and len(said) > 2 and not any(" m" in text for text in said)

    @pytest.mark.parametrize("nearest", [0.003, 0.1, 1.0, 4.9, 730.0])
    def test_numbers_are_round_and_in_order(self, nearest: float) -> None:
        values = round_depths(nearest)
        assert values == sorted(values) and min(values) >= nearest and len(values) > 5
        assert all(float(f"{value:.1g}") == value for value in values)


@needs_pyav
class TestSideBySide:
    def test_frames_are_beside_their_depth(self, tmp_path: Path) -> None:
        """Odd sides, one frame of another size, and times: colours mean the same in all frames."""
        path, count = tmp_path / "clip" / "video.mp4", RANGED_FRAMES + 3
        image = np.full((47, 81, 3), 200, np.uint8)
        frames = [(image, np.full((47, 81), 5.0 + 20 * (index % 2)), index / 25) for index in range(count)]
        frames[-1] = (image[:20, :30], np.full((20, 30), 25.0), (count - 1) / 25)
        write_side_by_side(path, iter(frames), METRES, nearest=5.0)
        pictures = list(read_pictures(path))
        assert len(pictures) == count and pictures[0].pixels.shape == (48 + SMALLEST_BAR, 164, 3)
        assert pictures[1].seconds == pytest.approx(1 / 25, abs=1e-3)
        near, far = colour_depth(np.array([[5.0, 25.0]]), 5.0)[0].astype(int)
        for index in (0, 1, count - 2, count - 1):
            left, right = pictures[index].pixels[24, 40], pictures[index].pixels[24, 120]
            expected = far if index % 2 or index == count - 1 else near
            assert abs(left.astype(int) - 200).max() < 12 and abs(right - expected).max() < 25
        assert list(path.parent.iterdir()) == [path]

    def test_a_clip_without_frames_makes_no_file(self, tmp_path: Path) -> None:
        write_side_by_side(tmp_path / "video.mp4", [], METRES)
        assert not list(tmp_path.iterdir())

    def test_an_error_on_the_way_leaves_no_file(self, tmp_path: Path, depth: np.ndarray) -> None:
        def frames():
            for _ in range(RANGED_FRAMES + 1):
                yield np.zeros((*depth.shape, 3), np.uint8), depth, None
            raise ValueError("stop")

        with pytest.raises(ValueError, match="stop"):
            write_side_by_side(tmp_path / "video.mp4", frames(), METRES)
        assert not list(tmp_path.iterdir())

    def test_the_rate_is_that_of_the_times(self) -> None:
        assert rate_of([0.0, 0.04, 0.08, 0.5]) == 25.0
        assert rate_of([None, None]) is None and rate_of([0.0]) is None

    def test_each_frame_is_shown_at_its_own_time(self, tmp_path: Path):
        import av

        times = [0.0, 0.033, 0.066, 0.266, 0.3, 1.1]
        frame, depth = np.full((64, 96, 3), 99, np.uint8), np.full((64, 96), 5.0, np.float32)
        path = tmp_path / "video.mp4"
        write_side_by_side(path, ((frame, depth, time) for time in times), METRES)
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            shown = [each.time for each in container.decode(video=0)]
            length = float(stream.duration * stream.time_base)
        assert shown == pytest.approx(times, abs=1e-3)
        assert length == pytest.approx(1.1 + 0.8, abs=1e-2)  # the last frame lasts as long as the one before it

    @pytest.mark.parametrize(
        ("times", "expected"),
        [
            ([5.0, 5.1, 5.4], [0.0, 0.1, 0.4]),
            ([None, None, None], [0.0, 0.1, 0.2]),
            ([0.0, 0.1, 0.1, 0.2], [0.0, 0.1, 0.15, 0.2]),
            ([0.0, 0.2, 0.1, 0.3], [0.0, 0.2, 0.25, 0.3]),
            ([8.0, 8.1, 0.0, 0.3], [0.0, 0.1, 0.2, 0.5]),
            ([0.0, None, 0.3], [0.0, 0.1, 0.3]),
        ],
    )
    def test_times_that_are_missing_equal_or_decreasing(self, times: list[float | None], expected: list[float]):
        places = Places(0.1)
        assert [places.next(time) for time in times] == pytest.approx(expected)
