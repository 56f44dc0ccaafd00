"""What somebody could make on purpose: each ends at once in one line, without running code or demanding memory."""

from __future__ import annotations

import os
import resource
import struct
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from kitti_tree import DAY, SIZE, drive_name, make_config, write_calibration
from mutations import chunks_of, png_of
from PIL import Image
from refusals import MEMORY_LIMIT, read_pth, refusal

from featdepth.config import load_config
from featdepth.data import build_dataset
from featdepth.data.images import load_depth_image, load_image
from featdepth.data.kitti.calibration import Calibration
from featdepth.data.kitti.drives import KITTI_DRIVES
from featdepth.data.kitti.ground_truth import read_scan
from featdepth.data.samples import read_list
from featdepth.data.synthetic import Street, claim
from featdepth.errors import InputError
from featdepth.models import FeatDepth
from featdepth.models.saved.torch_files import check_torch_archive

DRIVE = drive_name(1)


# What is no file, or far too large


def read_street(path: Path) -> None:
    claim(path.parent, Street())


def read_calibration(path: Path) -> None:
    Calibration(path.parent).projection_of_scan("l")


def read_model(path: Path) -> None:
    FeatDepth.from_pretrained(path.parent)


READERS = {
    "config.yaml": load_config,
    "list.txt": partial(read_list, naming=KITTI_DRIVES),
    f"{DAY}/calib_cam_to_cam.txt": read_calibration,
    f"{DAY}/calib_velo_to_cam.txt": read_calibration,
    "0000000001.bin": read_scan,
    "0000000001.png": lambda path: load_image(path, SIZE),
    "0000000001.jpg": lambda path: load_image(path, SIZE, SIZE),
    "depth.png": lambda path: load_depth_image(path, SIZE),
    "model/config.json": read_model,
    "model/model.safetensors": read_model,
    "weights.pth": read_pth,
    "optimizer.bin": check_torch_archive,
}


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_link_to_zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(50 << 30)


@pytest.mark.parametrize("make", [make_pipe, make_link_to_zeros, make_sparse])
@pytest.mark.parametrize("name", READERS)
def test_pipes_devices_and_huge_files_end_at_once(name, make, tmp_path, model_copy):
    write_calibration(tmp_path)
    path = tmp_path / name
    path.unlink(missing_ok=True)
    make(path)
    line = refusal(READERS[name], path)
    assert str(path) in line and ("too many for" if make is make_sparse else "not a plain file") in line


def test_a_street_whose_record_is_a_pipe_or_huge_is_left_alone(tmp_path):
    make_sparse(tmp_path / "street.json")
    assert "street.json" in refusal(read_street, tmp_path / "street.json")
    (tmp_path / "street.json").unlink()
    make_pipe(tmp_path / "street.json")
    assert str(tmp_path) in refusal(read_street, tmp_path / "street.json")


@pytest.mark.parametrize("text", ["[" * 50_000, "[]", '{"complete": false, "\\n": "\\n"}', "{", '{"complete": NaN}'])
def test_a_street_whose_record_is_damaged_is_left_alone(tmp_path, text):
    (tmp_path / "street.json").write_text(text)
    assert str(tmp_path) in refusal(read_street, tmp_path / "street.json")


def test_links_to_files_are_read(raw_tree):
    folder = raw_tree / "raw" / DRIVE / "image_02" / "data"
    folder.rename(raw_tree / "elsewhere")
    folder.mkdir()
    for path in (raw_tree / "elsewhere").iterdir():
        (folder / path.name).symlink_to(path)
    assert len(build_dataset(make_config(raw_tree, frames=[0, 1]), "train")[0]["images"]) == 2


# Images


def forged_header(path: Path, width: int, height: int) -> Path:
    """A small PNG whose header claims another size."""
    Image.new("RGB", (8, 8)).save(path)
    chunks = chunks_of(path.read_bytes())
    chunks[0] = (b"IHDR", struct.pack(">II", width, height) + chunks[0][1][8:])
    path.write_bytes(png_of(chunks))
    return path


@pytest.mark.parametrize(
    "size", [(31_623, 31_623), (2**31 - 1, 2**31 - 1), (9_700, 9_700), (1, 2**31 - 1), (10_100, 10_000)]
)
def test_an_image_whose_header_claims_a_billion_pixels_is_refused(tmp_path, size, capfd):
    path = forged_header(tmp_path / "a.png", *size)
    assert str(path) in refusal(load_image, path, SIZE, SIZE)
    assert str(path) in refusal(load_depth_image, path, SIZE)
    assert capfd.readouterr().err == ""  # Pillow warns of large images


def test_an_image_that_is_large_indeed_is_refused_before_it_is_decoded(tmp_path):
    path = tmp_path / "a.png"
    Image.new("1", (9_000, 9_000)).save(path)
    assert path.stat().st_size < 20_000
    assert "9000 x 9000 pixels" in refusal(load_image, path, SIZE, SIZE)


def test_more_data_than_the_image_has_pixels_is_not_decompressed(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", SIZE[::-1]).save(path)
    chunks = chunks_of(path.read_bytes())
    compressor = zlib.compressobj(9)
    data = b"".join(compressor.compress(bytes(1 << 24)) for _ in range(16)) + compressor.flush()
    path.write_bytes(png_of([chunks[0], (b"IDAT", data), (b"IEND", b"")]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert load_image(path, SIZE, SIZE).shape == (3, *SIZE)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10 < MEMORY_LIMIT


@pytest.mark.parametrize("chunk", [b"zTXt", b"iCCP", b"iTXt"])
def test_text_and_profiles_that_decompress_to_gigabytes_are_refused(tmp_path, chunk):
    path = tmp_path / "a.png"
    Image.new("RGB", SIZE[::-1]).save(path)
    chunks = chunks_of(path.read_bytes())
    bomb = zlib.compress(bytes(1 << 28), 9)
    start = b"key\0\1\0\0\0" if chunk == b"iTXt" else b"key\0\0"
    path.write_bytes(png_of([chunks[0], (chunk, start + bomb), *chunks[1:]]))
    assert str(path) in refusal(load_image, path, SIZE, SIZE)


@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICNS", "TGA"])
def test_only_known_formats_are_decoded_whatever_the_name(tmp_path, kind):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png", format=kind)
    assert "no PNG, JPEG or other format" in refusal(load_image, tmp_path / "a.png", (64, 64))
    Image.new("L", SIZE[::-1]).save(tmp_path / "b.png", format="JPEG")
    assert "b.png" in refusal(load_depth_image, tmp_path / "b.png", SIZE)


# Configurations


ALIASES = "data:\n  frames: [&a [x, x], &b [*a, *a], &c [*b, *b], [*c, *c]]"


@pytest.mark.parametrize(
    "text",
    [
        "data: !!python/object/apply:os.system ['touch MARK']",
        "data: !!python/name:os.system",
        "data: {root: !!python/object/new:pathlib.Path [MARK]}",
        ALIASES,
        "[" * 60_000,
        "{a: " * 10_000,
        "- " * 30_000,
        "data: {height: !!int 0x" + "f" * 10_000 + "}",
        "data: {height: " + "9" * 10_000 + "}",
        "data: {height: !!timestamp x}",
        "data: {height: !!int ''}",
        "data: {height: !!bool maybe}",
        "data: {root: \"\\0\"}",
        "data: {root: " + "a" * 5_000 + "}",
        "data: {train_files: " + "a" * 5_000 + "}",
        "data: {? [a]: b}",
        "data: {\"a\\nb\": 1}",
        "data: {frames: [0, \"a\\nb\"]}",
        "data: {frames: [" + "0, " * 10_000 + "]}",
        "\ufffe",
        "data: {height: 1.0e+400}",
        "data: {height: 3200000000}",
        "model: {decoder_width: 1000000000}",
    ],
)  # fmt: skip
def test_hostile_configurations_are_refused(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text.replace("MARK", str(tmp_path / "ran")), encoding="utf-8")
    assert str(path) in refusal(load_config, path)
    assert not (tmp_path / "ran").exists()


def test_a_million_levels_are_too_large_for_a_configuration(tmp_path):
    (tmp_path / "config.yaml").write_text("[" * 10**6)
    assert "too many for the configuration" in refusal(load_config, tmp_path / "config.yaml")


@pytest.mark.parametrize(
    "override",
    [
        "data.root=!!python/object/apply:os.system ['touch MARK']",
        "data.frames=[&a [x, x], *a]",
        "data.frames=" + "[" * 100_000,
        "data.height=!!int 0x" + "f" * 10_000,
        "data.height=9" + "9" * 4_000,
        "data.height=٣",
        "data.root=\0",
        'data.root="\\0"',
        "data.root=a\nb",
        "a\nb=1",
        "a\nb",
        "x" * 100_000 + "=1",
        "data.root=\udcff",
        "\udcff",
        "model.pretrained=\0",
        "model.init=" + "a" * 5_000,
    ],
)
def test_hostile_overrides_are_refused(tmp_path, override):
    (tmp_path / "config.yaml").write_text(f"data: {{root: {tmp_path}}}\nmodel: {{objective: photometric}}")
    line = refusal(load_config, tmp_path / "config.yaml", [override.replace("MARK", str(tmp_path / "ran"))])
    assert line.startswith("command line: ") and not (tmp_path / "ran").exists()


# Lists


@pytest.mark.parametrize(
    "line",
    [
        "../../etc/passwd 1 l",
        "/etc/passwd 1 l",
        f"{DRIVE}/../../../etc 1 l",
        f"../{DRIVE} 1 l",
        f"{DAY}/../{DAY}_drive_0001_sync 1 l",
        f"{DRIVE}\0 1 l",
        f"{DRIVE} 1 l\0",
        f"{DAY}/{DAY}_drive_٠٠٠١_sync 1 l",
        f"{DRIVE} １ l",
        f"{DRIVE} ² l",
        f"{DRIVE} 99999999999 l",
        f"{DAY}/{DAY}_drive_{'1' * 300}_sync 1 l",
        "a" * 10**6,
    ],
)
def test_lists_cannot_name_other_places(raw_tree, line):
    path = raw_tree / "split" / "train_files.txt"
    path.write_text(f"{DRIVE} 1 l\n{line}\n", encoding="utf-8")
    assert refusal(build_dataset, make_config(raw_tree), "train").startswith(f"{path}:2: ")


# Calibration


@pytest.mark.parametrize(
    ("file", "row", "numbers"),
    [
        ("cam_to_cam", "P_rect_02", "60 0 60 3 0 60 20 0 0 0 0 0"),
        ("cam_to_cam", "P_rect_02", "60 0 60 3 0 60 20 0 0 0 1e-300 0"),
        ("cam_to_cam", "P_rect_02", "60 0 60 3 60 60 20 0 0 0 1 0"),
        ("cam_to_cam", "P_rect_02", "1e-300 0 60 3 0 60 20 0 0 0 1 0"),
        ("cam_to_cam", "P_rect_02", "-60 0 60 3 0 60 20 0 0 0 1 0"),
        ("cam_to_cam", "P_rect_02", "1e308 1e308 60 1e308 0 60 20 0 0 0 1 0"),
        ("cam_to_cam", "P_rect_02", "1e400 0 60 3 0 60 20 0 0 0 1 0"),
        ("cam_to_cam", "P_rect_02", "nan 0 60 3 0 60 20 0 0 0 1 0"),
        ("cam_to_cam", "P_rect_02", "６０ 0 60 3 0 60 20 0 0 0 1 0"),
        ("cam_to_cam", "P_rect_02", "6_0 0 60 3 0 60 20 0 0 0 1 0"),
        ("cam_to_cam", "P_rect_02", "9" * 5000 + " 0 60 3 0 60 20 0 0 0 1 0"),
        ("cam_to_cam", "S_rect_02", "-120 -40"),
        ("cam_to_cam", "S_rect_02", "1e308 1e308"),
        ("cam_to_cam", "S_rect_02", "120.5 40"),
        ("cam_to_cam", "S_rect_02", "100000 100000"),
        ("cam_to_cam", "R_rect_00", "0 0 0 0 0 0 0 0 0"),
        ("cam_to_cam", "R_rect_00", "1e308 0 0 0 1e308 0 0 0 1e308"),
        ("cam_to_cam", "R_rect_00", "1 0 0 0 1 0 0 0 -1"),
        ("velo_to_cam", "R", "0 0 0 0 0 0 0 0 0"),
        ("velo_to_cam", "R", "2 0 0 0 2 0 0 0 2"),
        ("velo_to_cam", "T", "1e308 0 0"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_cameras_that_cannot_be_are_refused_by_file_and_row(raw_tree, file, row, numbers):
    path = raw_tree / "raw" / DAY / f"calib_{file}.txt"
    rows = [line for line in path.read_text().splitlines() if not line.startswith(f"{row}:")]
    path.write_text("\n".join([*rows, f"{row}: {numbers}"]), encoding="utf-8")
    config = make_config(raw_tree, frames=[0, "s"])
    with pytest.raises(InputError) as raised:
        build_dataset(config, "train", with_depth=True)[0]
    assert str(raised.value).startswith(f"{path}: ") and row in str(raised.value)


@pytest.mark.filterwarnings("error")
def test_points_that_are_no_numbers_make_no_depth_and_no_warning(raw_tree):
    scan = raw_tree / "raw" / DRIVE / "velodyne_points" / "data" / "0000000001.bin"
    values = [np.inf, np.nan, 3e38, -3e38, 1e-45, 0.0, 1.0]
    np.random.default_rng(0).choice(values, (5000, 4)).astype("<f4").tofile(scan)
    depth = build_dataset(make_config(raw_tree), "train", with_depth=True)[0]["depth"]
    assert depth.isfinite().all() and (depth >= 0).all()
