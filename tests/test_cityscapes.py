"""Cityscapes: what is found in its layout, each snippet's camera, the bonnet cut off, ground truth and speed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cityscapes_tree import INTERVAL, SPEED, city_file, stored_disparity, write_cityscapes, write_image
from drive_writer import render_drive
from kitti_tree import make_config, write_list

from featdepth.config import Config, load_config
from featdepth.data import build_dataset, leaked_drives
from featdepth.data.samples import Sample
from featdepth.errors import InputError
from featdepth.geometry import warp

REPOSITORY = Path(__file__).parents[1]
SIZE, FRAMES = (64, 96), 5
BENCHMARK = FRAMES - 2  # the frame with a camera file
DRIVES = {"train/aachen/000000": 0, "train/aachen/000001": 1, "val/munster/000000": 2, "test/berlin/000000": 3}
# As published, of aachen_000000_000019.
AACHEN = """{
    "extrinsic": {
        "baseline": 0.209313,
        "pitch": 0.038,
        "roll": 0.0,
        "x": 1.7,
        "y": 0.1,
        "yaw": -0.0195,
        "z": 1.22
    },
    "intrinsic": {
        "fx": 2262.52,
        "fy": 2265.3017905988554,
        "u0": 1096.98,
        "v0": 513.137
    }
}"""


@pytest.fixture
def tree(tmp_path):
    """Four drives of five frames each; the last but one has a camera file."""
    write_cityscapes(tmp_path / "raw", {name: render_drive(FRAMES, *SIZE, index) for name, index in DRIVES.items()})
    return tmp_path


def config_of(tree: Path, **data: object) -> Config:
    """The official split with the images as they are."""
    values = {"kind": "cityscapes", "split": "official", "height": SIZE[0], "width": SIZE[1]}
    return make_config(tree, **values | data)


def test_official_split_is_that_of_the_folders(tree):
    train = build_dataset(config_of(tree), "train")
    assert train.drives == ["train/aachen/000000", "train/aachen/000001"]
    assert [sample.frame for sample in train.samples] == [1, 2, 3] * 2 and train.left_out == 4
    stereo = build_dataset(config_of(tree, frames=[0, "s"]), "train")
    assert [sample.side for sample in stereo.samples] == (["l"] * FRAMES + ["r"] * FRAMES) * 2
    for part, drive in (("validation", "val/munster/000000"), ("test", "test/berlin/000000")):
        # The benchmark's image is the one with a camera file.
        assert build_dataset(config_of(tree), part, frames=[0]).samples == [Sample(drive, BENCHMARK, "l")]
    assert leaked_drives(config_of(tree)) == []


def test_a_city_has_one_camera_to_learn(tree):
    dataset = build_dataset(config_of(tree, frames=[0, "s"]), "train")
    assert {dataset.camera_name(sample) for sample in dataset.samples} == {"train/aachen"}


def test_training_list_with_a_test_city_is_leakage(tree):
    listed = write_list(tree / "split" / "train_files.txt", ["test/berlin/000000 2 l"])
    config = config_of(tree, train_files=str(listed))
    with pytest.raises(InputError, match=r"share drives: test/berlin/000000"):
        build_dataset(config, "train")


def test_snippets_of_one_sequence_are_no_neighbours_and_have_their_own_cameras(tree):
    root, name, drive = tree / "raw", "train/hamburg/000000", render_drive(FRAMES, *SIZE, 1)
    for first, baseline in ((20, 0.3), (50, 0.4)):
        write_cityscapes(root, {name: drive}, first_frame=first)
        path = city_file(root, "camera", name, first + BENCHMARK)
        path.write_text(
            path.read_text().replace(f'"baseline": {-drive.right_from_left[0, 3]}', f'"baseline": {baseline}')
        )
    listed = write_list(tree / "split" / "train_files.txt", [f"{name} {frame} l" for frame in (20, 24, 50, 54, 51)])
    config = config_of(tree, frames=[0, "s"], train_files=str(listed))
    poses = [item["stereo_pose"][0, 3].item() for item in build_dataset(config, "train")]
    assert poses == pytest.approx([-0.3, -0.3, -0.4, -0.4, -0.4])
    config.data.frames = [0, -1, 1]
    # 24 is the last one before a gap, and 50 the first one after it.
    assert [sample.frame for sample in build_dataset(config, "train").samples] == [51]


def test_thirty_frames_belong_to_each_camera_file(tree):
    name, image = "train/hanover/000000", np.zeros((*SIZE, 3), np.uint8)
    for frame in (0, 19, 29, 30, 49, 59):
        write_image(city_file(tree / "raw", "leftImg8bit_sequence", name, frame), image)
    for frame in (19, 49):
        city_file(tree / "raw", "camera", name, frame).write_text(AACHEN)
    dataset = build_dataset(config_of(tree, frames=[0]), "train")
    cameras = [Path(dataset.camera_path(Sample(name, frame, "l"))).name for frame in (0, 19, 29, 30, 49, 59)]
    assert [camera.split("_")[2] for camera in cameras] == ["000019"] * 3 + ["000049"] * 3


def test_cameras_of_every_frame_serve_too(tree):
    name = "train/aachen/000000"
    city_file(tree / "raw", "camera", name, BENCHMARK).unlink()
    for frame in range(FRAMES):
        text = AACHEN.replace("0.209313", f"0.{frame + 1}")
        city_file(tree / "raw", "camera_sequence", name, frame).write_text(text)
    items = list(build_dataset(config_of(tree, frames=[0, "s"]), "train"))
    assert [item["stereo_pose"][0, 3].item() for item in items[:FRAMES]] == pytest.approx(
        [-0.1, -0.2, -0.3, -0.4, -0.5]
    )


def test_published_camera_file(tree):
    for name in ("train/aachen/000000", "train/aachen/000001"):
        city_file(tree / "raw", "camera", name, BENCHMARK).write_text(AACHEN)
    config = config_of(tree, frames=[0, "s"])
    left, right = (build_dataset(config, "train")[index] for index in (0, FRAMES))
    expected = torch.tensor([[2262.52, 0, 1096.98], [0, 2265.3017905988554, 513.137], [0, 0, 1]])
    torch.testing.assert_close(left["intrinsics"], expected)
    assert left["stereo_pose"][0, 3].item() == pytest.approx(-0.209313)
    torch.testing.assert_close(right["stereo_pose"], torch.linalg.inv(left["stereo_pose"]))


@pytest.mark.parametrize(("crop", "size"), [([0, 0.25, 0, 0], (48, 96)), ([0.125, 0.25, 0, 0.25], (80, 144))])
def test_without_the_bonnet_the_geometry_is_exact(tree, crop, size):
    """The scene's points are found again from the cropped and resized pixels, their depth and their intrinsics."""
    drive = render_drive(FRAMES, *SIZE, 0)
    config = config_of(tree, frames=[0, "s"], crop=crop, height=size[0], width=size[1])
    item = build_dataset(config, "train", with_depth=True)[2]
    top, kept_height, kept_width = round(crop[0] * 64), round(64 * (1 - crop[0] - crop[1])), round(96 * (1 - crop[3]))
    assert item["depth_size"].tolist() == [kept_height, kept_width]
    # Where the centres of original pixels lie in the sample.
    rows, columns = np.mgrid[top : top + kept_height, :kept_width]
    y = (rows - top + 0.5) * size[0] / kept_height - 0.5
    x = (columns + 0.5) * size[1] / kept_width - 0.5
    own, true = item["intrinsics"].numpy(), drive.intrinsics
    np.testing.assert_allclose((x - own[0, 2]) / own[0, 0], (columns - true[0, 2]) / true[0, 0], atol=1e-5)
    np.testing.assert_allclose((y - own[1, 2]) / own[1, 1], (rows - true[1, 2]) / true[1, 1], atol=1e-5)

    depth, truth = item["depth"].numpy(), drive.depths[2][top : top + kept_height, :kept_width]
    disparity = -drive.right_from_left[0, 3] * true[0, 0] / truth
    assert ((depth > 0) == (np.rint(256 * disparity) > 0)).all() and (depth == 0).any()
    seen = depth > 0
    # The file's steps are 1/256 pixel.
    np.testing.assert_allclose(
        (disparity / truth)[seen] * (depth - truth)[seen] * truth[seen] / depth[seen], 0, atol=0.51 / 256
    )


def test_cropped_views_match_through_depth_and_the_baseline(tree):
    config = config_of(tree, frames=[0, "s"], crop=[0, 0.25, 0, 0], height=48)
    item = build_dataset(config, "train", with_depth=True)[2]
    target, source = item["images"].float()
    warped = warp(
        source[None], item["depth"][None, None].clamp(min=0.1), item["intrinsics"][None], item["stereo_pose"][None]
    )
    seen = item["depth"] > 0
    assert (warped[0] - target).abs()[:, seen].median() < 3 < (source - target).abs()[:, seen].median()


def test_ground_truth_of_the_benchmark_images_alone(tree):
    name = "val/munster/000000"
    for frame in range(FRAMES):
        path = city_file(tree / "raw", "disparity_sequence", name, frame)
        if frame == BENCHMARK:
            path.rename(city_file(tree / "raw", "disparity", name, frame))
        else:
            path.unlink()
    item = build_dataset(config_of(tree), "validation", frames=[0], require_depth=True)[0]
    disparity = stored_disparity(render_drive(FRAMES, *SIZE, 2), BENCHMARK)
    assert ((item["depth"].numpy() > 0) == (disparity > 1)).all()
    with pytest.raises(InputError, match=r"ground truth; it is made of disparity_sequence"):
        build_dataset(
            config_of(tree, val_files=str(write_list(tree / "list.txt", [f"{name} 1 l"]))),
            "validation",
            require_depth=True,
        )


def test_distance_from_speed_and_time(tree):
    dataset = build_dataset(config_of(tree), "train")
    sample = Sample("train/aachen/000000", 2, "l")
    seconds = INTERVAL / 1e9
    assert dataset.distance(sample, 1) == pytest.approx((SPEED + 2.5) * seconds)
    assert dataset.distance(sample, -2) == pytest.approx(2 * (SPEED + 1) * seconds)
    assert dataset.distance(sample, 3) is None
    city_file(tree / "raw", "vehicle_sequence", sample.drive, 1).unlink()
    dataset = build_dataset(config_of(tree), "train")
    assert dataset.distance(sample, 1) is not None and dataset.distance(sample, -1) is None


def test_times_are_those_of_the_files_or_of_the_cameras_rate(tree):
    dataset = build_dataset(config_of(tree), "train")
    times = dataset.times("train/aachen/000001")
    assert list(times) == list(range(FRAMES)) and times[3] == pytest.approx(3 * INTERVAL / 1e9)
    for frame in range(FRAMES):
        city_file(tree / "raw", "timestamp_sequence", "train/aachen/000001", frame).unlink()
    times = build_dataset(config_of(tree), "train").times("train/aachen/000001")
    assert times[4] - times[3] == pytest.approx(1 / 17)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "the camera is no JSON"),
        ("[1]", "the camera is no JSON object"),
        (AACHEN.replace("2262.52", "NaN"), "intrinsic.fx should be a number"),
        (AACHEN.replace("2262.52", "1" + 400 * "0"), "intrinsic.fx should be a number"),
        (AACHEN.replace("513.137", '"513"'), "intrinsic.v0 should be a number"),
        (AACHEN.replace("2262.52", "0"), "intrinsic has a focal length that is not positive"),
        (AACHEN.replace("0.209313", "-0.2"), "the baseline is -0.2 m, it must be above 0"),
        (AACHEN.replace('"baseline"', '"base"'), "extrinsic.baseline should be a number"),
    ],
)
def test_damaged_camera_file_is_named(tree, text, message):
    path = city_file(tree / "raw", "camera", "train/aachen/000001", BENCHMARK)
    path.write_text(text)
    with pytest.raises(InputError) as raised:
        build_dataset(config_of(tree), "train")
    assert str(raised.value).startswith(f"{path}: {message}")


def test_what_is_missing_is_named(tree):
    city_file(tree / "raw", "camera", "train/aachen/000001", BENCHMARK).unlink()
    with pytest.raises(InputError, match=r"no camera of train/aachen/000001; download camera_trainvaltest.zip"):
        build_dataset(config_of(tree), "train")
    with pytest.raises(InputError, match=r"no video of Cityscapes here; expected leftImg8bit_sequence/train"):
        build_dataset(config_of(tree, root=str(tree / "split")), "train")


@pytest.mark.parametrize(
    ("package", "text"), [("vehicle_sequence", '{"speed": "fast"}'), ("timestamp_sequence", "1.5")]
)
def test_damaged_measurements_are_named(tree, package, text):
    path = city_file(tree / "raw", package, "train/aachen/000000", 2)
    path.write_text(text)
    dataset = build_dataset(config_of(tree), "train")
    with pytest.raises(InputError) as raised:
        dataset.distance(dataset.samples[0], 1)
    assert str(raised.value).startswith(f"{path}: ")


def test_image_of_another_size_is_refused(tree):
    path = city_file(tree / "raw", "leftImg8bit_sequence", "train/aachen/000000", 2)
    write_image(path, np.zeros((32, 48, 3), np.uint8))
    with pytest.raises(InputError, match=r"48 x 32 pixels, but its camera's images have 96 x 64"):
        build_dataset(config_of(tree), "train")[0]


def test_each_folder_is_listed_once(tree, monkeypatch):
    from featdepth.data.sets import cityscapes

    listed = []
    monkeypatch.setattr(
        cityscapes, "file_names", lambda folder, names=cityscapes.file_names: listed.append(folder) or names(folder)
    )
    build_dataset(config_of(tree, frames=[0, -1, 1, "s"]), "train")
    assert len(listed) == len(set(listed)) and tree / "raw/leftImg8bit_sequence/train/aachen" in listed


def test_configuration_is_sound(tree):
    config = load_config(REPOSITORY / "configs" / "cityscapes.yaml", [f"data.root={tree / 'raw'}"])
    assert config.data.kind == "cityscapes" and config.data.crop[1] > 0.15
    assert len(build_dataset(config, "train")) == 12
