"""The kind `video`: prepared clips, and folders of images as they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import call_program, succeeded
from drive_writer import render_drive
from PIL import Image

from featdepth.config import Config
from featdepth.data import build_dataset
from featdepth.data.sets.sequences import time_parts
from featdepth.errors import InputError
from featdepth.prepare_video import __main__ as prepare_video
from featdepth.prepare_video.record import write_json

HEIGHT, WIDTH = 96, 144


def make_config(root: Path, **data: object) -> Config:
    config = Config()
    values = {"kind": "video", "root": str(root), "split": "time", "frames": [0, -1, 1], "height": 64, "width": 96}
    for key, value in (values | data).items():
        assert hasattr(config.data, key)
        setattr(config.data, key, value)
    config.evaluate.protocol = "own"
    return config


def write_drive(folder: Path, count: int = 14) -> np.ndarray:
    """Images frame1.png, ..., frame14.png of a rendered drive; returns their intrinsics 3x3."""
    drive = render_drive(14, HEIGHT, WIDTH, 1)
    folder.mkdir(parents=True)
    for number, image in enumerate(drive.images[:count], 1):
        Image.fromarray(image).save(folder / f"frame{number}.png", compress_level=1)
    return drive.intrinsics


def write_intrinsics(path: Path, intrinsics: np.ndarray) -> None:
    path.write_text("\n".join(" ".join(map(repr, row)) for row in intrinsics.tolist()) + "\n")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder of one clip."""
    folder = tmp_path_factory.mktemp("prepared")
    intrinsics = write_drive(folder / "street")
    write_intrinsics(folder / "camera.txt", intrinsics)
    options = ("--out", folder / "out", "--intrinsics", folder / "camera.txt", "--camera", "phone", "--format", "png")
    succeeded(call_program(prepare_video.main, folder / "street", *options))
    return folder / "out"


def test_a_plain_folder_in_natural_order(tmp_path: Path) -> None:
    intrinsics = write_drive(tmp_path / "walk")
    write_intrinsics(tmp_path / "intrinsics.txt", intrinsics)
    dataset = build_dataset(make_config(tmp_path, height=HEIGHT, width=WIDTH), "train")
    assert [sample.frame for sample in dataset.samples] == list(range(1, 7))  # of frames 0 to 7
    item = dataset[1]
    images = render_drive(14, HEIGHT, WIDTH, 1).images
    for image, frame in zip(item["images"], (2, 1, 3), strict=True):
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), images[frame])
    torch.testing.assert_close(item["intrinsics"], torch.from_numpy(intrinsics).float())
    assert (
        dataset.camera_name(dataset.samples[0]) == "camera 144x96" and dataset.distance(dataset.samples[0], 1) is None
    )


def test_a_drive_s_own_intrinsics_come_first(tmp_path: Path) -> None:
    intrinsics = write_drive(tmp_path / "walk")
    write_intrinsics(tmp_path / "intrinsics.txt", intrinsics)
    write_intrinsics(tmp_path / "walk" / "intrinsics.txt", intrinsics * [[2, 1, 1], [1, 2, 1], [1, 1, 1]])
    config = make_config(tmp_path, height=HEIGHT, width=WIDTH)
    assert build_dataset(config, "train")[0]["intrinsics"][0, 0] == pytest.approx(2 * intrinsics[0, 0])


def test_without_intrinsics_there_are_ways_to_give_them(tmp_path: Path) -> None:
    write_drive(tmp_path / "walk")
    with pytest.raises(InputError, match=r"intrinsics\.txt.*field_of_view.*learned"):
        build_dataset(make_config(tmp_path), "train")
    item = build_dataset(make_config(tmp_path, field_of_view=90.0), "train")[0]
    assert item["intrinsics"][0, 0] == pytest.approx(96 / 2)
    assert item["intrinsics"][0, 2] == pytest.approx(95 / 2)


def test_distortion_is_sent_to_the_preparation(tmp_path: Path) -> None:
    write_drive(tmp_path / "walk")
    (tmp_path / "intrinsics.txt").write_text(
        f"image_width: {WIDTH}\nimage_height: {HEIGHT}\ndistortion_model: plumb_bob\n"
        "camera_matrix: {rows: 3, cols: 3, data: [100, 0, 71, 0, 100, 47, 0, 0, 1]}\n"
        "distortion_coefficients: {rows: 1, cols: 5, data: [-0.2, 0.05, 0.0, 0.0, 0.0]}\n"
    )
    with pytest.raises(InputError, match=r"distortion.*prepare_video"):
        build_dataset(make_config(tmp_path), "train")


def test_a_prepared_clip(prepared: Path) -> None:
    config = make_config(prepared, height=HEIGHT, width=WIDTH)
    dataset = build_dataset(config, "train")
    assert dataset.drives == ["street_00"] and dataset.recordings() == ["street_00 1-6"]
    assert dataset.camera_name(dataset.samples[0]) == "phone 144x96" and dataset.times("street_00") == {}
    expected = torch.from_numpy(render_drive(14, HEIGHT, WIDTH, 1).intrinsics).float()
    torch.testing.assert_close(dataset[0]["intrinsics"], expected)
    parts = {part: {sample.frame for sample in build_dataset(config, part).samples} for part in ("validation", "test")}
    assert parts == {"validation": {9}, "test": {12}}


def test_times_and_distances_of_a_clip(prepared: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(prepared, root)
    clip = json.loads((root / "street_00" / "clip.json").read_text())
    clip |= {"seconds": [0.5 * number for number in range(14)], "odometer": [None, *[-3.0 * n for n in range(13)]]}
    write_json(root / "street_00" / "clip.json", clip)
    config = make_config(root)
    config.loss.velocity, config.model.metres_per_unit = 0.1, 1.0
    dataset = build_dataset(config, "train")
    assert dataset.times("street_00")[3] == 1.5
    assert dataset.distance(dataset.samples[1], 2) == 6.0 and dataset.distance(dataset.samples[0], -1) is None
    torch.testing.assert_close(dataset[0]["distance"], torch.tensor([torch.nan, 3.0]), equal_nan=True)


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [("seconds", [0.0], "a number for each of 14"), ("odometer", ["a"] * 14, "a number"), ("intrinsics", [1], "3x3")],
)
def test_a_damaged_record_ends_in_one_line(prepared: Path, tmp_path: Path, key: str, value: object, text: str) -> None:
    root = tmp_path / "copy"
    shutil.copytree(prepared, root)
    path = root / "street_00" / "clip.json"
    write_json(path, json.loads(path.read_text()) | {key: value})
    with pytest.raises(InputError, match=rf"clip\.json.*{text}"):
        build_dataset(make_config(root), "train")
    path.write_text("{")
    with pytest.raises(InputError, match=r"clip\.json: cannot be understood"):
        build_dataset(make_config(root), "train")


def test_an_unfinished_preparation_and_wrong_folders_are_refused(prepared: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(prepared, root)
    write_json(root / "summary.json", json.loads((root / "summary.json").read_text()) | {"complete": False})
    with pytest.raises(InputError, match="not finished"):
        build_dataset(make_config(root), "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no folder with png or jpg"):
        build_dataset(make_config(tmp_path / "empty"), "train")
    write_drive(tmp_path / "short" / "walk", 5)
    with pytest.raises(InputError, match="long enough"):
        build_dataset(make_config(tmp_path / "short", field_of_view=60.0), "validation")


@pytest.mark.parametrize("reach", [0, 1, 8])
def test_parts_in_time_cover_a_drive_and_have_room_for_neighbours(reach: int) -> None:
    for count in range(1, 120):
        train, validation, test = time_parts(count, reach).values()
        assert train[0] == 0 and train[1] == validation[0] and validation[1] == test[0] and test[1] == count
        sizes = [last - first for first, last in (validation, test)]
        assert min(sizes) >= 2 * reach + 1 or (sizes == [0, 0] and count < 3 * (2 * reach + 1))
    assert time_parts(1000, 1) == {"train": (0, 800), "validation": (800, 900), "test": (900, 1000)}
