"""The KITTI raw dataset: what is found, what is left out, what a sample holds, and every kind of bad input."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from kitti_tree import BASELINE, DAY, FOCAL, SIZE, drive_name, make_config, write_calibration, write_drive, write_list
from PIL import Image
from torch.utils.data import DataLoader

from featdepth.config import Config
from featdepth.data import augment, build_dataset
from featdepth.data.kitti.eigen import eigen_split
from featdepth.data.samples import Sample
from featdepth.errors import InputError, one_line
from featdepth.geometry import warp

SHARED = Path(os.environ.get("FEATDEPTH_SHARED", Path(__file__).parents[2] / "shared"))
needs_kitti = pytest.mark.skipif(not (SHARED / "kitti_mini").is_dir(), reason="the KITTI excerpt is not here")
DRIVE = drive_name(1)


@pytest.fixture
def tree(tmp_path):
    """One drive of frames 10..15 with both cameras and scans; all frames of the left camera in the training list."""
    write_calibration(tmp_path / "raw")
    write_drive(tmp_path / "raw", DRIVE, range(10, 16), scans=True)
    write_list(tmp_path / "split" / "train_files.txt", [f"{DRIVE} {frame} l" for frame in range(10, 16)])
    return tmp_path


def image_path(tree: Path, frame: int, camera: str = "02") -> Path:
    return tree / "raw" / DRIVE / f"image_{camera}" / "data" / f"{frame:010d}.png"


def test_samples_without_all_their_frames_are_left_out_and_counted(tree):
    dataset = build_dataset(make_config(tree), "train")
    assert dataset.samples == [Sample(DRIVE, frame, "l") for frame in range(11, 15)]
    assert dataset.left_out == 2 and dataset.drives == [DRIVE] and len(dataset) == 4
    assert dataset.describe() == "4 samples of 1 drive, 2 left out (missing frames)"
    image_path(tree, 12, "03").unlink()
    stereo = build_dataset(make_config(tree, frames=[0, "s"]), "train")
    assert [sample.frame for sample in stereo.samples] == [10, 11, 13, 14, 15] and stereo.left_out == 1
    single = build_dataset(make_config(tree), "train", frames=[0])
    assert len(single) == 6 and single.left_out == 0


def test_a_sample_holds_its_frames_in_order(tree):
    item = build_dataset(make_config(tree, frames=[0, -1, 1, "s"]), "train")[1]
    assert item["images"].dtype == torch.uint8 and item["images"].shape == (4, 3, 32, 96)
    assert item["images"].float().mean((1, 2, 3)).tolist() == pytest.approx([13, 12, 14, 113], abs=0.3)
    assert set(item) == {"images", "intrinsics", "stereo_pose", "jitter", "index", "replaced"}
    assert item["index"].dtype == item["replaced"].dtype == torch.int64
    assert int(item["index"]) == 1 and int(item["replaced"]) == 0


def test_intrinsics_are_scaled_with_pixels_from_zero(tree):
    intrinsics = build_dataset(make_config(tree), "train")[0]["intrinsics"]
    # The camera's centre is the image's centre, at every size.
    expected = [[FOCAL * 96 / SIZE[1], 0, 95 / 2], [0, FOCAL * 32 / SIZE[0], 31 / 2], [0, 0, 1]]
    torch.testing.assert_close(intrinsics, torch.tensor(expected))


def test_crop_cuts_images_intrinsics_and_ground_truth_alike(tree):
    rows, columns = np.indices(SIZE)
    pixels = np.stack([2 * columns, 4 * rows, columns + rows], axis=-1).astype(np.uint8)
    Image.fromarray(pixels).save(image_path(tree, 12))
    # Of 40 x 120 pixels the rows 4 to 29 and the columns 30 to 119 are left, which fit into 26 x 90.
    config = make_config(tree, crop=[0.1, 0.25, 0.25, 0.0], height=26, width=90)
    item = build_dataset(config, "train", with_depth=True)[1]
    assert torch.equal(item["images"][0], torch.from_numpy(pixels[4:30, 30:120]).permute(2, 0, 1))
    expected = [[FOCAL, 0, 119 / 2 - 30], [0, FOCAL, 39 / 2 - 4], [0, 0, 1]]
    torch.testing.assert_close(item["intrinsics"], torch.tensor(expected))
    whole = build_dataset(make_config(tree), "train", with_depth=True)[1]["depth"]
    assert whole.count_nonzero() > 9 and torch.equal(item["depth"], whole[4:30, 30:120])
    assert item["depth_size"].tolist() == [26, 90]


def test_fixed_intrinsics_on_request(tree):
    intrinsics = build_dataset(make_config(tree, intrinsics="fixed"), "train")[0]["intrinsics"]
    expected = [[0.58 * 96, 0, 48.0], [0, 1.92 * 32, 16.0], [0, 0, 1]]
    torch.testing.assert_close(intrinsics, torch.tensor(expected))


@pytest.mark.parametrize(("side", "x"), [("l", -BASELINE), ("r", BASELINE)])
def test_stereo_pose_maps_the_target_into_the_other_camera(tree, side, x):
    write_list(tree / "split" / "train_files.txt", [f"{DRIVE} 12 {side}"])
    item = build_dataset(make_config(tree, frames=[0, "s"]), "train")[0]
    expected = torch.eye(4)
    expected[0, 3] = x
    torch.testing.assert_close(item["stereo_pose"], expected)
    means = item["images"].float().mean((1, 2, 3)).tolist()
    assert means == pytest.approx([13, 113] if side == "l" else [113, 13], abs=1.3)


def test_cameras_of_different_intrinsics_are_refused_as_a_stereo_pair(tree):
    path = tree / "raw" / DAY / "calib_cam_to_cam.txt"
    path.write_text(path.read_text().replace(f"P_rect_03: {FOCAL}", "P_rect_03: 70.0"))
    assert len(build_dataset(make_config(tree), "train")) == 4
    with pytest.raises(InputError, match=r"differ in K"):
        build_dataset(make_config(tree, frames=[0, "s"]), "train")


def test_jpg_is_read_too_and_png_preferred(tmp_path):
    write_calibration(tmp_path / "raw")
    folder = tmp_path / "raw" / DRIVE / "image_02" / "data"
    folder.mkdir(parents=True)
    ramp = np.linspace(-9, 9, SIZE[1])[:, None]
    for name, value in {"0.jpg": 50, "1.jpg": 90, "1.png": 200, "2.jpg": 130}.items():
        pixels = np.broadcast_to(np.rint(value + ramp), (*SIZE, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{name[0]:0>10}{name[1:]}")
    write_list(tmp_path / "split" / "train_files.txt", [f"{DRIVE} 1 l"])
    images = build_dataset(make_config(tmp_path), "train")[0]["images"]
    assert images.float().mean((1, 2, 3)).tolist() == pytest.approx([200, 50, 130], abs=1)


def test_resizing_averages_instead_of_skipping_pixels(tree):
    stripes = np.zeros((*SIZE, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(image_path(tree, 11))
    image = build_dataset(make_config(tree, width=32), "train")[0]["images"][0]
    assert image.min() > 90 and image.max() < 165


def test_training_draws_depend_on_seed_epoch_and_index_alone(tree):
    config = make_config(tree)
    dataset = build_dataset(config, "train")
    draws = torch.stack([item["jitter"] for item in dataset])
    assert draws.shape == (4, 5) and draws.dtype == torch.float32
    assert torch.equal(draws, torch.stack([item["jitter"] for item in build_dataset(config, "train")]))
    dataset.set_epoch(1)
    assert not torch.equal(draws, torch.stack([item["jitter"] for item in dataset]))
    config.train.seed = 1
    assert not torch.equal(draws, torch.stack([item["jitter"] for item in build_dataset(config, "train")]))


def test_draws_have_the_configured_probabilities_and_ranges(tree):
    dataset = build_dataset(make_config(tree, flip=0.25, colour_jitter=0.75), "train")
    draws = torch.stack([dataset.draw_jitter(index) for index in range(1000)])
    coloured = draws[(draws[:, 1:] != torch.tensor([1.0, 1, 1, 0])).any(1), 1:]
    assert 0.2 < float(draws[:, 0].mean()) < 0.3 and set(draws[:, 0].tolist()) == {0.0, 1.0}
    assert 700 < len(coloured) < 800
    assert coloured[:, :3].min() >= 0.8 and coloured[:, :3].max() <= 1.2 and coloured[:, 3].abs().max() <= 0.1
    never = build_dataset(make_config(tree, flip=0.0, colour_jitter=0.0), "train")
    assert never.draw_jitter(5).tolist() == [0, 1, 1, 1, 0]


def test_validation_is_never_augmented(tree):
    write_list(tree / "split" / "val_files.txt", [f"{drive_name(2)} {frame} l" for frame in range(4)])
    write_drive(tree / "raw", drive_name(2), range(4))
    for item in build_dataset(make_config(tree), "validation"):
        assert item["jitter"].tolist() == [0, 1, 1, 1, 0]


@pytest.mark.parametrize("workers", [0, 2])
def test_persistent_workers_see_the_epoch(tree, workers):
    dataset = build_dataset(make_config(tree), "train")
    loader = DataLoader(dataset, batch_size=2, num_workers=workers, persistent_workers=workers > 0)
    for epoch in range(3):
        dataset.set_epoch(epoch)
        draws = torch.cat([batch["jitter"] for batch in loader])
        assert torch.equal(draws, torch.stack([dataset.draw_jitter(index) for index in range(4)]))


# Ground truth


def test_depth_comes_with_validation_where_there_are_scans(tree):
    write_list(tree / "split" / "test_files.txt", [f"{drive_name(2)} {frame} l" for frame in range(4)])
    write_drive(tree / "raw", drive_name(2), range(4), scans=True)
    config = make_config(tree)
    (tree / "raw" / drive_name(2) / "velodyne_points" / "data" / "0000000002.bin").unlink()
    dataset = build_dataset(config, "test")
    assert dataset.with_depth and [bool(item["depth"].any()) for item in dataset] == [True, False]
    assert dataset[0]["depth"].shape == SIZE and dataset[0]["depth_size"].tolist() == list(SIZE)
    assert "depth" not in build_dataset(config, "test", with_depth=False)[0]
    assert "depth" not in build_dataset(config, "train")[0]
    assert "depth" in build_dataset(config, "train", with_depth=True)[0]
    scored = build_dataset(config, "test", frames=[0], require_depth=True)
    assert [sample.frame for sample in scored.samples] == [0, 1, 3] and scored.without_depth == 1
    assert "1 left out (no ground truth)" in scored.describe()


def test_depth_of_days_with_different_sizes_is_padded(tree):
    other = drive_name(4, "2011_10_03")
    write_calibration(tree / "raw", "2011_10_03", (44, 110))
    write_drive(tree / "raw", other, range(3), scans=True, size=(44, 110))
    write_list(tree / "split" / "train_files.txt", [f"{other} 1 l", f"{DRIVE} 11 l"])
    items = list(build_dataset(make_config(tree), "train", with_depth=True))
    assert [item["depth_size"].tolist() for item in items] == [[44, 110], list(SIZE)]
    for item in items:
        height, width = item["depth_size"].tolist()
        assert item["depth"].shape == (44, 120)
        assert item["depth"].any() and not item["depth"][height:].any() and not item["depth"][:, width:].any()


@pytest.mark.parametrize("place", [DRIVE, f"train/{Path(DRIVE).name}", f"val/{Path(DRIVE).name}"])
def test_improved_ground_truth_is_found_and_frames_without_it_left_out(tree, place):
    folder = tree / "raw" / place / "proj_depth" / "groundtruth" / "image_02"
    folder.mkdir(parents=True)
    depth = np.zeros(SIZE, dtype=np.uint16)
    depth[20, 30] = 256 * 12 + 128
    Image.fromarray(depth).save(folder / "0000000012.png")
    config = make_config(tree)
    config.evaluate.protocol = "eigen_improved"
    dataset = build_dataset(config, "train", with_depth=True, require_depth=True)
    assert [sample.frame for sample in dataset.samples] == [12] and dataset.without_depth == 3
    found = dataset[0]["depth"]
    assert float(found[20, 30]) == 12.5 and int((found > 0).sum()) == 1
    Image.fromarray(depth[:-1]).save(folder / "0000000012.png")
    with pytest.raises(InputError, match=r"0000000012.png: 120 x 39 pixels"):
        dataset[0]
    Image.new("RGB", SIZE[::-1]).save(folder / "0000000012.png")
    with pytest.raises(InputError, match=r"not a 16-bit depth image"):
        dataset[0]


def test_ground_truth_that_is_required_and_nowhere_is_refused(tree):
    config = make_config(tree)
    config.evaluate.protocol = "eigen_improved"
    with pytest.raises(InputError, match=r"none of 4 samples has ground truth.*proj_depth"):
        build_dataset(config, "train", require_depth=True)


# The Eigen split


def test_eigen_parts_are_found_on_disk_and_disjoint(tmp_path):
    validation = eigen_split()["validation"][0]
    write_calibration(tmp_path / "raw")
    for drive in (DRIVE, validation, drive_name(13)):
        write_drive(tmp_path / "raw", drive, range(94, 97))
    config = make_config(tmp_path, split="eigen")
    assert build_dataset(config, "train").samples == [Sample(DRIVE, 95, "l"), Sample(DRIVE, 95, "r")]
    assert build_dataset(config, "validation").samples == [Sample(validation, 95, "l")]
    test = build_dataset(config, "test", frames=[0])
    assert test.samples == [Sample(drive_name(13), 95, "l")] and test.left_out == 696
    for drive, part in ((validation, "validation"), (drive_name(13), "test")):
        (tmp_path / "raw" / drive).rename(tmp_path / part)
        with pytest.raises(InputError, match=rf"no {part} frame of the eigen split is here"):
            build_dataset(config, part)


def test_leakage_is_refused_for_training_alone(tree):
    write_list(tree / "split" / "val_files.txt", [f"{DRIVE} 12 l"])
    config = make_config(tree)
    with pytest.raises(InputError, match=rf"train .* and validation .* share drives: {DRIVE}"):
        build_dataset(config, "train")
    assert len(build_dataset(config, "validation")) == 1
    config.data.allow_leakage = True
    assert len(build_dataset(config, "train")) == 4


# Bad input


def test_a_line_that_names_a_missing_frame_is_refused(tree):
    path = write_list(tree / "split" / "train_files.txt", [f"{DRIVE} 11 l", f"{DRIVE} 99 l"])
    with pytest.raises(InputError) as raised:
        build_dataset(make_config(tree), "train")
    assert str(raised.value).startswith(f"{path}:2: ") and f"{DRIVE} 99 l" in str(raised.value)
    write_list(path, [f"{drive_name(7)} 11 l"])
    with pytest.raises(InputError, match=rf"{path}:1: {drive_name(7)} 11 l"):
        build_dataset(make_config(tree), "train")


def test_roots_and_parts_that_are_not_there_are_refused(tree):
    (tree / "empty").mkdir()
    for root, message in (("absent", "is no folder"), ("empty", "no KITTI raw drives here")):
        with pytest.raises(InputError, match=message):
            build_dataset(make_config(tree, root=str(tree / root), split="eigen"), "train")
    with pytest.raises(InputError, match=r"data.root: '' is no folder"):
        build_dataset(make_config(tree, root=""), "train")
    with pytest.raises(InputError, match=r"val_files.txt: the list of samples cannot be read"):
        build_dataset(make_config(tree), "validation")
    with pytest.raises(InputError, match=r"data.kind: 'odometry' is unknown"):
        build_dataset(make_config(tree, kind="odometry"), "train")


def test_no_sample_with_all_frames_is_refused(tree):
    with pytest.raises(InputError, match=r"none of 6 samples has all of its frames \[0, -8, 's'\]"):
        build_dataset(make_config(tree, frames=[0, -8, "s"]), "train")


def test_a_missing_calibration_is_refused_before_any_sample_is_read(tree):
    (tree / "raw" / DAY / "calib_velo_to_cam.txt").unlink()
    assert len(build_dataset(make_config(tree), "train")) == 4  # not needed without ground truth
    with pytest.raises(InputError, match=r"calib_velo_to_cam.txt"):
        build_dataset(make_config(tree), "train", with_depth=True)
    (tree / "raw" / DAY / "calib_cam_to_cam.txt").unlink()
    with pytest.raises(InputError, match=r"calib_cam_to_cam.txt.*download the calibration"):
        build_dataset(make_config(tree), "train")


def damage(path: Path, kind: str) -> None:
    """Make an image file unusable in one of several ways."""
    whole = path.read_bytes()
    if kind == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "noise":
        path.write_bytes(np.random.default_rng(0).bytes(1000))
    elif kind == "flipped":
        path.write_bytes(whole[:50] + bytes(byte ^ 255 for byte in whole[50:]))
    elif kind == "gone":
        path.unlink()
    elif kind == "size":
        Image.new("RGB", (SIZE[1], SIZE[0] - 1)).save(path)
    elif kind == "huge":  # only the header claims it
        path.write_bytes(b"P6 100000 100000 255\n")


KINDS_OF_DAMAGE = ["truncated", "empty", "noise", "flipped", "gone", "size", "huge"]


@pytest.mark.parametrize(("kind", "workers"), [*((kind, 0) for kind in KINDS_OF_DAMAGE), ("truncated", 1)])
def test_a_bad_image_ends_in_one_line_that_names_it(tree, kind, workers):
    dataset = build_dataset(make_config(tree), "train")
    damage(image_path(tree, 13), kind)
    with pytest.raises(InputError) as raised:
        list(DataLoader(dataset, num_workers=workers))
    message = one_line(raised.value)
    assert message.startswith(f"{image_path(tree, 13)}: ") and "\n" not in message
    if kind == "size":
        assert "120 x 39" in message and "120 x 40" in message


def test_a_cut_scan_ends_in_one_line_or_a_counted_skip(tree):
    scan = tree / "raw" / DRIVE / "velodyne_points" / "data" / "0000000012.bin"
    scan.write_bytes(scan.read_bytes()[:-3])
    with pytest.raises(InputError, match=r"0000000012.bin: 797 bytes"):
        list(build_dataset(make_config(tree), "train", with_depth=True))
    skipping = build_dataset(make_config(tree, skip_bad_frames=True), "train", with_depth=True)
    assert [int(item["replaced"]) for item in skipping] == [0, 1, 0, 0]


def test_bad_frames_are_replaced_and_marked_on_request(tree):
    dataset = build_dataset(make_config(tree, skip_bad_frames=True), "train")
    clean = list(dataset)
    damage(image_path(tree, 15), "truncated")  # neighbour of the last sample, 14
    damage(image_path(tree, 10), "size")  # neighbour of the first, 11
    items = list(dataset)
    assert [int(item["replaced"]) for item in items] == [1, 0, 0, 1]
    assert [int(item["index"]) for item in items] == [0, 1, 2, 3]
    for item, stand_in in zip(items, (1, 1, 2, 1), strict=True):
        assert torch.equal(item["images"], clean[stand_in]["images"])
    for item, original in zip(items, clean, strict=True):
        assert torch.equal(item["jitter"], original["jitter"])


def test_a_data_set_of_bad_frames_ends_even_when_they_may_be_skipped(tree):
    dataset = build_dataset(make_config(tree, skip_bad_frames=True), "train")
    for frame in range(10, 16):
        damage(image_path(tree, frame), "truncated")
    with pytest.raises(InputError, match=r"4 samples in a row cannot be read"):
        dataset[0]


# The real excerpt


def real_config(tmp_path: Path, split: str, frames: list[int | str]) -> Config:
    root, lists = SHARED / "kitti_mini" / "kitti_raw", SHARED / "kitti_mini" / "splits"
    return make_config(
        tmp_path, root=str(root), train_files=str(lists / split), frames=frames, height=96, width=320, flip=0.0
    )


@needs_kitti
def test_real_monocular_samples(tmp_path):
    config = real_config(tmp_path, "mono_files.txt", [0, -1, 1])
    dataset = build_dataset(config, "train")
    assert len(dataset) == 22 and dataset.left_out == 0 and len(dataset.drives) == 2
    config.data.split = "eigen"
    with pytest.raises(InputError, match=r"2011_09_26_drive_0013_sync"):
        build_dataset(config, "train")
    subset = SHARED / "kitti_mini" / "splits" / "eigen_test_subset.txt"
    config.data.test_files = str(subset)
    test = build_dataset(config, "test", frames=[0], require_depth=True)
    assert len(test) == 4 and test[0]["depth"].shape == (375, 1242) and int((test[0]["depth"] > 0).sum()) > 15000


@needs_kitti
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_real_stereo_geometry_explains_the_target(tmp_path, flip):
    dataset = build_dataset(real_config(tmp_path, "stereo_files.txt", [0, "s"]), "train")
    batch = augment({key: torch.stack([dataset[i][key] for i in (0, 1)]) for key in dataset[0]} | {
        "jitter": torch.tensor([[flip, 1, 1, 1, 0]]).repeat(2, 1)
    })  # fmt: skip
    assert {sample.side for sample in dataset.samples[:2]} == {"l", "r"}

    def least_error(pose: torch.Tensor) -> torch.Tensor:
        """Mean over the image of the least difference that any depth reaches, for each sample."""
        errors = []
        for depth in 1 / torch.linspace(1 / 80, 1 / 4, 24):
            warped = warp(batch["images"][:, 1], depth.expand(2, 1, 96, 320), batch["intrinsics"], pose)
            difference = (warped - batch["images"][:, 0]).abs().mean(1, keepdim=True)
            errors.append(torch.nn.functional.avg_pool2d(difference, 7, 1, 3))
        return torch.stack(errors).amin(0).mean((1, 2, 3))

    pose = batch["stereo_pose"]
    assert (least_error(pose) < 0.6 * least_error(torch.linalg.inv(pose))).all()
