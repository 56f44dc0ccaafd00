"""Measured motion: values against known shifts, the record, and which samples are left out of training."""

from __future__ import annotations

import csv
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import call_program, succeeded
from kitti_tree import drive_name, make_config, write_calibration, write_drive, write_list
from PIL import Image

from featdepth.config import Config, load_config, save_config
from featdepth.data import build_dataset, motion
from featdepth.data.kitti.raw import KittiRaw
from featdepth.data.motion_record import MotionRecord
from featdepth.data.selection import moving_samples, pairs_of
from featdepth.errors import InputError

SIZE = (64, 192)  # of the files; training is at half of it
SHIFTS = (0.0, 0.0, 0.0, 0.0, 6.0, 12.0, 18.0, 26.0, 34.0)  # where each frame's picture is, pixels of the files
DRIVE = drive_name(1)


def pattern(shift: float) -> np.ndarray:
    """A smooth random picture uint8 [h, w, 3], moved to the right."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]].astype(float)
    grey = np.full(SIZE, 128.0)
    for _ in range(60):
        angle, length, phase = random.uniform(0, 2 * np.pi), random.uniform(9, 40), random.uniform(0, 2 * np.pi)
        grey += 9 * np.sin(2 * np.pi * (np.cos(angle) * (x - shift) + np.sin(angle) * y) / length + phase)
    return np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A drive that stands still for four frames, then moves by 6 and 8 pixels a frame."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    write_calibration(tmp_path / "raw", size=SIZE)
    folder = tmp_path / "raw" / DRIVE / "image_02" / "data"
    folder.mkdir(parents=True)
    for frame, shift in enumerate(SHIFTS):
        Image.fromarray(pattern(shift)).save(folder / f"{frame:010}.png")
    for part, frames in (("train", range(1, 8)), ("val", [1, 5])):
        drive = DRIVE if part == "train" else drive_name(2)
        write_list(tmp_path / "split" / f"{part}_files.txt", [f"{drive} {frame} l" for frame in frames])
    os.symlink(tmp_path / "raw" / DRIVE, tmp_path / "raw" / drive_name(2))
    config = make_config(tmp_path, width=96, frames=[0, -1, 1], workers=0)
    config.model.objective = "photometric"
    config.model.metres_per_unit = None
    return config


def run(config: Config, tmp_path: Path, *options: str) -> tuple[str, list[list[str]]]:
    """What the program prints, and the rows of its ranking."""
    config.data.height = 64  # the program checks sizes
    config.data.width = 96
    save_config(config, tmp_path / "config.yaml")
    out = tmp_path / "ranking.csv"
    printed = succeeded(call_program(motion.main, "--config", tmp_path / "config.yaml", "--out", out, *options)).out
    header, *rows = list(csv.reader(out.read_text().splitlines()))
    assert header == ["sample", "motion_pixels", "distance_metres"]
    return printed, rows


class TestProgram:
    def test_ranks_the_samples(self, config: Config, tmp_path: Path) -> None:
        printed, rows = run(config, tmp_path)
        assert "8 pairs of frames measured, 0 were known" in printed
        assert "motion of 7 samples in pixels at 96 wide" in printed
        measured = {int(row[0].split()[1]): float(row[1]) for row in rows}
        # Half of the files' pixels, to the neighbour that is most like the target.
        for frame, truth in {1: 0, 2: 0, 3: 0, 4: 3, 5: 3, 6: 3, 7: 4}.items():
            assert measured[frame] == pytest.approx(truth, abs=0.15), frame
        assert [float(row[1]) for row in rows] == sorted(measured.values())

    def test_continues_where_it_was_interrupted(self, config: Config, tmp_path: Path) -> None:
        _, complete = run(config, tmp_path)
        record = MotionRecord(config.data).path
        whole = record.read_bytes()
        whole_lines = whole.splitlines(keepends=True)[:4]
        record.write_bytes(b"".join(whole_lines) + b"0123456789")  # cut in the fourth measurement
        printed, continued = run(config, tmp_path)
        assert "5 pairs of frames measured, 3 were known" in printed
        assert continued == complete
        assert "0 pairs of frames measured, 8 were known" in run(config, tmp_path)[0]

    def test_any_number_of_workers(self, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(motion, "RUN", 3)
        _, alone = run(config, tmp_path)
        MotionRecord(config.data).path.unlink()
        _, together = run(config, tmp_path, "--workers", "2")
        assert together == alone

    def test_a_changed_frame_is_measured_again(self, config: Config, tmp_path: Path) -> None:
        run(config, tmp_path)
        path = tmp_path / "raw" / DRIVE / "image_02" / "data" / f"{2:010}.png"
        Image.fromarray(pattern(-8.0)).save(path)
        printed, rows = run(config, tmp_path)
        assert "2 pairs of frames measured, 6 were known" in printed
        moved = {row[0].split()[1]: float(row[1]) for row in rows}
        assert moved["2"] == pytest.approx(4.0, abs=0.15) and moved["1"] < 0.15

    def test_unreadable_frames_stop_it_unless_they_are_skipped(self, config: Config, tmp_path: Path) -> None:
        path = tmp_path / "raw" / DRIVE / "image_02" / "data" / f"{5:010}.png"
        path.write_bytes(b"no image")
        save_config(config, tmp_path / "config.yaml")
        options = ["--config", tmp_path / "config.yaml", "data.height=64", "--out", tmp_path / "out.csv"]
        assert str(path) in call_program(motion.main, *options).error_line()
        printed = succeeded(call_program(motion.main, *options, "data.skip_bad_frames=true")).out
        assert "unknown        1  nothing in common" in printed
        assert (tmp_path / "out.csv").read_text().splitlines()[-1] == f"{DRIVE} 5 l,,"

    def test_no_neighbours(self, config: Config, tmp_path: Path) -> None:
        config.data.frames = [0, "s"]
        config.data.height, config.model.metres_per_unit = 64, 36.0
        for frame in range(len(SHIFTS)):
            folder = tmp_path / "raw" / DRIVE / "image_03" / "data"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pattern(0)).save(folder / f"{frame:010}.png")
        save_config(config, tmp_path / "config.yaml")
        assert "data.frames" in call_program(motion.main, "--config", tmp_path / "config.yaml").error_line()


class TestSelection:
    @pytest.fixture(autouse=True)
    def measured(self, config: Config, tmp_path: Path) -> None:
        run(config, tmp_path)

    def test_static_samples_are_left_out_of_training_and_validation(self, config: Config) -> None:
        config.data.min_motion = 1.0
        training = build_dataset(config, "train")
        assert [sample.frame for sample in training.samples] == [4, 5, 6, 7]
        assert training.static == 3 and "4 samples of 1 drive, 3 left out (static)" in training.describe()
        validation = build_dataset(config, "validation")
        assert [sample.frame for sample in validation.samples] == [5] and validation.static == 1
        config.data.test_files = str(Path(config.data.split) / "val_files.txt")
        assert [sample.frame for sample in build_dataset(config, "test").samples] == [1, 5]  # what is tested stays

    def test_nothing_is_left_out_by_default(self, config: Config) -> None:
        training = build_dataset(config, "train")
        assert len(training) == 7 and training.static == 0 and "static" not in training.describe()

    def test_frames_without_neighbours_have_no_motion(self, config: Config) -> None:
        config.data.min_motion = 1.0
        assert len(build_dataset(config, "train", frames=[0])) == 7

    def test_not_measured_at_this_size(self, config: Config) -> None:
        config.data.min_motion, config.data.width = 1.0, 192
        with pytest.raises(InputError, match=r"7 of 7 samples .* python -m featdepth\.data\.motion"):
            build_dataset(config, "train")

    def test_nothing_moves(self, config: Config) -> None:
        config.data.min_motion = 50.0
        with pytest.raises(InputError, match=r"none of 7 samples .* moves so much"):
            build_dataset(config, "train")

    def test_unknown_motion_stays(self, config: Config) -> None:
        dataset = build_dataset(config, "train")
        record = MotionRecord(config.data)
        record.add({pair: math.nan for pair in pairs_of(dataset, dataset.samples[0])})
        dataset.config.min_motion = 1.0
        assert [sample.frame for sample in moving_samples(dataset, dataset.samples)] == [1, 4, 5, 6, 7]

    def test_distances(self, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
        """Half a metre a frame from frame 4 on; frame 6 and what borders it is not known."""
        place = {frame: max(0, frame - 3) * 0.5 for frame in range(9) if frame != 6}

        def distance(dataset: KittiRaw, sample: object, frame: int) -> float | None:
            known = sample.frame in place and sample.frame + frame in place
            return abs(place[sample.frame + frame] - place[sample.frame]) if known else None

        monkeypatch.setattr(KittiRaw, "distance", distance)
        config.data.min_distance = 0.3
        training = build_dataset(config, "train")
        assert [sample.frame for sample in training.samples] == [4, 5, 6, 7]
        assert training.unknown_motion == 1 and "1 kept whose motion is unknown" in training.describe()
        config.data.min_distance = 0.6
        assert [sample.frame for sample in build_dataset(config, "train").samples] == [6]


SPEEDS = (0.02, 0.02, 0.02, 0.5, 2.0, 5.0, 9.0, 9.0, 0.02, 0.02)  # m/s at each frame, ten frames a second
MOVING = [4, 5, 6, 7]  # 0.1 m and more both from the frame before and to the frame after


@pytest.fixture
def stopping(tmp_path: Path) -> Config:
    """Two drives that begin and end at a standstill, as `configs/kitti.yaml` selects their samples."""
    write_calibration(tmp_path / "raw")
    for number, part in enumerate(("train", "val", "test"), start=1):
        drive = drive_name(number)
        write_drive(tmp_path / "raw", drive, range(len(SPEEDS)))
        write_packets(tmp_path / "raw" / drive)
        write_list(tmp_path / "split" / f"{part}_files.txt", [f"{drive} {frame} l" for frame in range(1, 9)])
    shipped = load_config(Path(__file__).parents[1] / "configs" / "kitti.yaml", check_files=False)
    return make_config(tmp_path, frames=shipped.data.frames, min_distance=shipped.data.min_distance)


def write_packets(drive: Path) -> None:
    """What the inertial unit measured at the time of each picture."""
    (drive / "oxts" / "data").mkdir(parents=True)
    times = "".join(f"2011-09-26 13:02:{25 + frame / 10:.9f}\n" for frame in range(len(SPEEDS)))
    for folder in ("image_02", "oxts"):
        (drive / folder / "timestamps.txt").write_text(times)
    for frame, speed in enumerate(SPEEDS):
        numbers = [0.0] * 30
        numbers[8] = speed  # forward
        (drive / "oxts" / "data" / f"{frame:010}.txt").write_text(" ".join(map(str, numbers)) + "\n")


def test_kitti_is_trained_and_validated_without_standing_cameras(stopping: Config) -> None:
    for part in ("train", "validation"):
        dataset = build_dataset(stopping, part)
        assert [sample.frame for sample in dataset.samples] == MOVING
        assert "4 left out (static)" in dataset.describe() and "unknown" not in dataset.describe()
    assert len(build_dataset(stopping, "test")) == 8


def test_kitti_without_packets_says_that_motion_is_unknown(stopping: Config, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "raw" / drive_name(1) / "oxts")
    training = build_dataset(stopping, "train")
    assert len(training) == 8 and "8 kept whose motion is unknown" in training.describe()


def test_the_record_knows_pairs_in_any_order(config: Config, tmp_path: Path) -> None:
    one, other = (str(tmp_path / "raw" / DRIVE / "image_02" / "data" / f"{frame:010}.png") for frame in (0, 4))
    record = MotionRecord(config.data)
    assert record.find((one, other)) is None
    record.add({(one, other): 2.5})
    assert record.find((other, one)) == MotionRecord(config.data).find((one, other)) == 2.5


def test_the_record_cannot_be_written(config: Config, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config.data.cache = str(tmp_path / "file")
    with pytest.raises(InputError, match=r"data\.cache"):
        MotionRecord(config.data).add({})
