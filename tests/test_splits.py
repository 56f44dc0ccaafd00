"""List files, the built-in Eigen split, and the refusal of leakage."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from kitti_tree import drive_name, make_config, write_list

from featdepth.data import check_leakage, leaked_drives
from featdepth.data.kitti.drives import KITTI_DRIVES
from featdepth.data.kitti.eigen import eigen_split, eigen_test_samples
from featdepth.data.kitti.odometry import SEQUENCES
from featdepth.data.samples import Sample, parse_sample, read_list
from featdepth.data.splits import held_out_drives, seen_again
from featdepth.errors import InputError

SHARED = Path(os.environ.get("FEATDEPTH_SHARED", Path(__file__).parents[2] / "shared"))
FIRST = "2011_09_26/2011_09_26_drive_0001_sync"


def write_split(tmp_path: Path, train: str | None = None, val: str | None = None, test: str | None = None) -> None:
    """List files with one sample of the named drives each."""
    for name, drive in (("train", train), ("val", val), ("test", test)):
        if drive is not None:
            write_list(tmp_path / "split" / f"{name}_files.txt", [f"{drive} 5 l"])


def test_list_of_both_number_styles_with_line_numbers(tmp_path):
    path = write_list(tmp_path / "list.txt", [f"{FIRST} 0000000095 l", "", f"  {FIRST} 7 r\r", " "])
    assert read_list(path, KITTI_DRIVES) == [(1, Sample(FIRST, 95, "l")), (3, Sample(FIRST, 7, "r"))]


def test_sample_prints_as_its_line(tmp_path):
    sample = Sample(FIRST, 95, "l")
    assert read_list(write_list(tmp_path / "list.txt", [str(sample)]), KITTI_DRIVES) == [(1, sample)]
    assert sample.date == "2011_09_26"


@pytest.mark.parametrize(
    "line",
    [
        FIRST,
        f"{FIRST} 5",
        f"{FIRST} 5 l l",
        f"{FIRST} 5 x",
        f"{FIRST} -5 l",
        f"{FIRST} 5.0 l",
        f"{FIRST} ٥ l",
        f"/data/{FIRST} 5 l",
        f"../{FIRST} 5 l",
        f"{FIRST}/../2011_09_26_drive_0002_sync 5 l",
        "2011_09_26/2011_09_28_drive_0001_sync 5 l",
        "2011_09_26_drive_0001_sync 5 l",
        "\x00\x01\xff",
    ],
)
def test_malformed_line_is_refused_with_its_place(tmp_path, line):
    path = write_list(tmp_path / "list.txt", [f"{FIRST} 1 l", line])
    with pytest.raises(InputError) as raised:
        read_list(path, KITTI_DRIVES)
    assert str(raised.value).startswith(f"{path}:2: ") and "\n" not in str(raised.value)


def test_empty_missing_and_binary_lists_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"list.txt: the list of samples is empty"):
        read_list(write_list(tmp_path / "list.txt", ["", " "]), KITTI_DRIVES)
    with pytest.raises(InputError, match=r"absent.txt: the list of samples cannot be read"):
        read_list(tmp_path / "absent.txt", KITTI_DRIVES)
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)))
    with pytest.raises(InputError, match=r"binary.txt:\d"):
        read_list(tmp_path / "binary.txt", KITTI_DRIVES)


def test_eigen_split_has_697_left_frames_of_28_drives_and_disjoint_validation():
    samples = eigen_test_samples()
    assert len(samples) == len(set(samples)) == 697
    assert len({sample.drive for sample in samples}) == 28
    assert {sample.side for sample in samples} == {"l"}
    assert Sample("2011_10_03/2011_10_03_drive_0027_sync", 4535, "l") in samples
    validation = eigen_split()["validation"]
    assert len(validation) == 5 and not set(validation) & {sample.drive for sample in samples}


@pytest.mark.skipif(not (SHARED / "facts").is_dir(), reason="the benchmark's facts are not here")
def test_eigen_split_equals_the_published_facts():
    facts = json.loads((SHARED / "facts" / "kitti_eigen_test.json").read_text())["eigen_test"]
    expected = {(f"{drive[:10]}/{drive}", frame, "l") for drive, frames in facts.items() for frame in frames}
    assert set(map(tuple, eigen_test_samples())) == expected


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"train": FIRST, "val": FIRST, "test": drive_name(2)}, ["train", "validation"]),
        ({"train": FIRST, "val": drive_name(2), "test": FIRST}, ["train", "test"]),
        ({"train": drive_name(2), "val": FIRST, "test": FIRST}, ["validation", "test"]),
    ],
)
def test_parts_that_share_a_drive_are_refused_by_name(tmp_path, parts, words):
    write_split(tmp_path, **parts)
    config = make_config(tmp_path)
    with pytest.raises(InputError) as raised:
        check_leakage(config)
    message = str(raised.value)
    assert FIRST in message and all(word in message for word in words) and str(tmp_path / "split") in message
    config.data.allow_leakage = True
    assert check_leakage(config) == leaked_drives(config) == [FIRST]


def test_disjoint_parts_and_a_folder_that_lacks_parts_are_clean(tmp_path):
    write_split(tmp_path, train=FIRST)
    assert check_leakage(make_config(tmp_path)) == []
    write_split(tmp_path, val=drive_name(2), test=drive_name(9))
    assert check_leakage(make_config(tmp_path)) == []


def test_training_list_beside_the_eigen_split_must_avoid_its_test_and_validation_drives(tmp_path):
    for drive in (drive_name(13), eigen_split()["validation"][0]):
        path = write_list(tmp_path / "list.txt", [f"{drive} 5 l"])
        with pytest.raises(InputError, match=drive):
            check_leakage(make_config(tmp_path, split="eigen", train_files=str(path)))
    path = write_list(tmp_path / "list.txt", [f"{FIRST} 5 l"])
    assert check_leakage(make_config(tmp_path, split="eigen", train_files=str(path))) == []


def test_a_drive_of_a_synthetic_set_may_be_called_like_an_eigen_test_drive(tmp_path):
    write_split(tmp_path, train=drive_name(2), val=drive_name(3), test=drive_name(4))
    assert leaked_drives(make_config(tmp_path)) == []


def test_eigen_training_avoids_drives_of_lists_that_replace_the_other_parts(tmp_path):
    path = write_list(tmp_path / "list.txt", [f"{FIRST} 5 l"])
    config = make_config(tmp_path, split="eigen", val_files=str(path))
    assert FIRST in held_out_drives(config) and drive_name(13) in held_out_drives(config)
    assert leaked_drives(config) == []


def test_an_override_that_does_not_exist_is_refused(tmp_path):
    write_split(tmp_path, train=FIRST)
    with pytest.raises(InputError, match=r"absent.txt"):
        check_leakage(make_config(tmp_path, val_files=str(tmp_path / "absent.txt")))


@pytest.mark.parametrize(
    ("seen", "tested", "again"),
    [
        (["a", "b"], ["b", "c"], ["b"]),
        (["a 0-79"], ["a 80-99"], []),
        (["a 0-79"], ["a 79-99", "a 100-120"], ["a 79-99"]),
        (["a 0-79"], ["a"], ["a"]),
        (["a"], ["a 5-6"], ["a 5-6"]),
        (["a b 0-7"], ["a b 7-7", "a 0-7"], ["a b 7-7"]),
        ([], ["a"], []),
    ],
)
def test_recordings_that_were_seen_are_known_again(seen, tested, again):
    assert seen_again(seen, tested) == again


@pytest.mark.parametrize(
    ("line", "sample"),
    [
        ("9 0 l", Sample("09", 0, "l")),
        ("09 000473 r", Sample("09", 473, "r")),
        ("10 5 2", Sample("10", 5, "l")),
        ("0 5 03", Sample("00", 5, "r")),
        ("nine 5 l", None),
        ("9 5 1", None),
    ],
)
def test_published_odometry_lists_are_read(line: str, sample: Sample | None) -> None:
    assert parse_sample(line, SEQUENCES) == sample
    assert sample is None or parse_sample(str(sample), SEQUENCES) == sample


def test_published_lists_of_drives_are_read() -> None:
    drive = "2011_09_26/2011_09_26_drive_0001_sync"
    for line in (f"{drive} 473 r", f"{drive} 0000000473 r", f"{drive} 473 3"):
        assert parse_sample(line, KITTI_DRIVES) == Sample(drive, 473, "r")


def test_published_lists_of_images_are_read() -> None:
    drive = "2011_09_26/2011_09_26_drive_0001_sync"
    image = f"{drive}/image_03/data/0000000473"
    truth = "2011_09_26_drive_0001_sync/proj_depth/groundtruth/image_03/0000000473.png 721.5377"
    lines = [f"{image}.png", f"/{image}.jpg {drive}/image_02/data/0000000473.jpg", f"{image}.png {truth}"]
    for line in (*lines, "2011_09_26_drive_0001_sync_03 0000000473"):
        assert parse_sample(line, KITTI_DRIVES) == Sample(drive, 473, "r")
    for line in (f"../{image}.png", image, f"{drive}/image_00/data/0000000473.png", "2011_09_26_drive_0001_sync 473"):
        assert parse_sample(line, KITTI_DRIVES) is None
    assert parse_sample(f"{image}.png", SEQUENCES) is None
