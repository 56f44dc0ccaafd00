"""What somebody could make on purpose: each ends at once in one line, without running code or demanding memory."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import pickle
import random
import resource
import struct
import sys
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile_pickle import Touch
from kitti_tree import DAY, SIZE, drive_name, make_config, write_calibration, write_drive, write_list
from mutations import chunks_of, png_of
from PIL import Image
from tiny_models import tiny_config, tiny_model

from featdepth import import_weights
from featdepth.config import load_config
from featdepth.data import build_dataset
from featdepth.data.images import load_depth_image, load_image
from featdepth.data.kitti.calibration import Calibration
from featdepth.data.kitti.drives import KITTI_DRIVES
from featdepth.data.kitti.ground_truth import cached_lidar_depth, read_scan
from featdepth.data.samples import read_list
from featdepth.data.synthetic import Street, claim
from featdepth.errors import InputError, one_line
from featdepth.models import FeatDepth
from featdepth.models.encoders import ResNetEncoder
from featdepth.models.imagenet import load_imagenet
from featdepth.models.saved.storage import read_model_directory
from featdepth.models.saved.torch_files import check_torch_archive, read_torch_file

TIME_LIMIT = 30  # seconds
MEMORY_LIMIT = 200 << 20  # bytes that a refusal may take
DRIVE = drive_name(1)


class Calls:
    """Unpickling it calls `function`."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


def refusal(function: Callable, *arguments: object) -> str:
    """The one line that `function` ends in, within the limits; in a process of its own, which can be ended."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=send_refusal, args=(sender, function, *arguments))
    process.start()
    sender.close()
    answer = receiver.recv() if receiver.poll(TIME_LIMIT) else "it hangs"
    process.kill()
    process.join()
    assert isinstance(answer, tuple), answer
    line, memory = answer
    assert "\n" not in line and len(line) < 1000, line
    assert memory < MEMORY_LIMIT, f"{memory >> 20} MiB"
    return line


def send_refusal(sender: Connection, function: Callable, *arguments: object) -> None:
    torch.set_num_threads(1)  # a fork has none of the others
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        sender.send(f"not refused: {function(*arguments)!r:.200}")
    except InputError as error:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        sender.send((one_line(error), memory << (0 if sys.platform == "darwin" else 10)))
    except BaseException as error:
        sender.send(f"{type(error).__name__}: {error}")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("hostile") / "model"
    tiny_model(tiny_config("photometric", [0, "s"])).save_pretrained(directory)
    return directory


@pytest.fixture
def copy(model, tmp_path) -> Path:
    """A model directory to damage; its weights are a link to the whole ones."""
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "model.safetensors").symlink_to(model / "model.safetensors")
    (directory / "config.json").write_text((model / "config.json").read_text())
    return directory


@pytest.fixture
def tree(tmp_path) -> Path:
    """A drive of three frames with scans, and its list."""
    write_calibration(tmp_path / "raw")
    write_drive(tmp_path / "raw", DRIVE, range(3), scans=True)
    write_list(tmp_path / "split" / "train_files.txt", [f"{DRIVE} 1 l"])
    return tmp_path


# What is no file, or far too large


def read_street(path: Path) -> None:
    claim(path.parent, Street())


def read_calibration(path: Path) -> None:
    Calibration(path.parent).projection_of_scan("l")


def read_model(path: Path) -> None:
    FeatDepth.from_pretrained(path.parent)


def read_pth(path: Path) -> None:
    read_torch_file(path, "model.pretrained")


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
def test_pipes_devices_and_huge_files_end_at_once(name, make, tmp_path, copy):
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


def test_links_to_files_are_read(tree):
    folder = tree / "raw" / DRIVE / "image_02" / "data"
    folder.rename(tree / "elsewhere")
    folder.mkdir()
    for path in (tree / "elsewhere").iterdir():
        (folder / path.name).symlink_to(path)
    assert len(build_dataset(make_config(tree, frames=[0, 1]), "train")[0]["images"]) == 2


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
def test_lists_cannot_name_other_places(tree, line):
    path = tree / "split" / "train_files.txt"
    path.write_text(f"{DRIVE} 1 l\n{line}\n", encoding="utf-8")
    assert refusal(build_dataset, make_config(tree), "train").startswith(f"{path}:2: ")


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
def test_cameras_that_cannot_be_are_refused_by_file_and_row(tree, file, row, numbers):
    path = tree / "raw" / DAY / f"calib_{file}.txt"
    rows = [line for line in path.read_text().splitlines() if not line.startswith(f"{row}:")]
    path.write_text("\n".join([*rows, f"{row}: {numbers}"]), encoding="utf-8")
    config = make_config(tree, frames=[0, "s"])
    with pytest.raises(InputError) as raised:
        build_dataset(config, "train", with_depth=True)[0]
    assert str(raised.value).startswith(f"{path}: ") and row in str(raised.value)


@pytest.mark.filterwarnings("error")
def test_points_that_are_no_numbers_make_no_depth_and_no_warning(tree):
    scan = tree / "raw" / DRIVE / "velodyne_points" / "data" / "0000000001.bin"
    values = [np.inf, np.nan, 3e38, -3e38, 1e-45, 0.0, 1.0]
    np.random.default_rng(0).choice(values, (5000, 4)).astype("<f4").tofile(scan)
    depth = build_dataset(make_config(tree), "train", with_depth=True)[0]["depth"]
    assert depth.isfinite().all() and (depth >= 0).all()


# Weights


def archive_of(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def members_of(content: object) -> dict[str, bytes]:
    """What torch.save writes for `content`, by name."""
    packed = io.BytesIO()
    torch.save(content, packed)
    with zipfile.ZipFile(packed) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize("in_zip", [True, False])
@pytest.mark.parametrize(
    "payload",
    [
        Calls(bytearray, 1 << 40),
        Calls(torch.FloatTensor, 1 << 33),
        Calls(torch.Tensor, 1 << 33),
        Calls(os.system, "true"),
        Calls(eval, "1"),
    ],
)
def test_what_a_pickle_may_call_is_little(tmp_path, payload, in_zip):
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(3), "b": payload}, path, _use_new_zipfile_serialization=in_zip)
    assert "could run code" in refusal(read_pth, path)
    if in_zip:
        assert "could run code" in refusal(check_torch_archive, path)


@pytest.mark.parametrize("in_zip", [True, False])
def test_weight_files_never_run_code(tmp_path, in_zip):
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(3), "b": Touch(tmp_path / "ran")}, path, _use_new_zipfile_serialization=in_zip)
    assert str(path) in refusal(read_pth, path)
    path.write_bytes(pickle.dumps(Touch(tmp_path / "ran"), protocol=2))
    assert str(path) in refusal(read_pth, path)
    assert not (tmp_path / "ran").exists()


def test_what_a_checkpoint_holds_passes(tmp_path):
    network = torch.nn.Conv2d(3, 4, 3)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.zeros(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    numbers = {"numpy": np.random.get_state(), "torch": torch.get_rng_state(), "python": random.getstate()}  # noqa: NPY002
    for content in (optimizer.state_dict(), numbers, {"step": 3, "best": 0.5}):
        torch.save(content, tmp_path / "optimizer.bin")
        assert check_torch_archive(tmp_path / "optimizer.bin") is None


def test_a_compressed_archive_is_refused_before_it_grows(tmp_path):
    members = members_of({"a": torch.zeros(1 << 26)})
    path = archive_of(tmp_path / "weights.pth", members, zipfile.ZIP_DEFLATED)
    del members
    assert path.stat().st_size < 1 << 20
    assert "compressed" in refusal(check_torch_archive, path)
    assert "compressed" in refusal(read_pth, path)


def test_an_archive_whose_parts_overlap_is_refused(tmp_path):
    """A thousand entries of the directory that name the same bytes."""
    path = archive_of(tmp_path / "weights.pth", members_of({"a": torch.zeros(10_000)}))
    with zipfile.ZipFile(path, "a") as archive:
        (largest,) = (each for each in archive.infolist() if each.filename.endswith("data/0"))
        archive.filelist.extend([largest] * 1000)
        archive.comment, archive.comment = b"x", b""  # makes it write the directory
    assert "larger than the whole" in refusal(check_torch_archive, path)


def test_an_archive_with_two_directories_is_refused(tmp_path):
    """zipfile reads the one at the end, torch the one that the last bytes name."""
    inner = archive_of(tmp_path / "inner", members_of({"a": torch.zeros(3)})).read_bytes()
    path = tmp_path / "weights.pth"
    path.write_bytes(inner + inner)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    assert "does not end with its directory" in refusal(check_torch_archive, path)


def test_a_script_is_no_weight_file(tmp_path):
    members = members_of({"a": torch.zeros(3)})
    pickled = next(data for name, data in members.items() if name.endswith("data.pkl"))
    path = archive_of(tmp_path / "weights.pth", {**members, "archive/constants.pkl": pickled})
    assert str(path) in refusal(read_pth, path)


@pytest.mark.parametrize(
    "numel", [b"J\0\0\0\x70", b"\x8a\x06\0\0\0\0\0\x10", b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f"]
)
def test_forged_sizes_in_a_legacy_file_demand_no_memory(tmp_path, numel):
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(3, 4)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert content.count(b"K\x0c") == 1
    path.write_bytes(content.replace(b"K\x0c", numel))
    assert str(path) in refusal(read_pth, path)
    path.write_bytes(content.replace(b"K\x03K\x04\x86", b"K\x03" + numel + b"\x86"))
    assert str(path) in refusal(read_pth, path)
    path.write_bytes(content[:15] + b"\x80\x02\x8e" + struct.pack("<Q", 1 << 40))  # a text of a terabyte
    assert str(path) in refusal(read_pth, path)


def test_a_dictionary_whose_methods_are_replaced_is_read_as_one(tmp_path):
    inner = OrderedDict(a=torch.zeros(3))
    content = OrderedDict(state_dict=inner)
    for each in (inner, content):
        each.item_, each.get, each.keys, each.__iter__ = 5, 5, 5, 5
    members = members_of(content)
    # Saving calls items(), so it gets its name afterwards.
    members = {name: data.replace(b"item_", b"items") for name, data in members.items()}
    archive_of(tmp_path / "published.pth", members)
    assert "named a" in refusal(run_import, tmp_path / "published.pth", tmp_path / "out")


def run_import(*arguments: object) -> None:
    sys.argv = ["import_weights", *map(str, arguments)]
    import_weights.main()


@pytest.mark.parametrize(
    "content", [{0: torch.zeros(3)}, {"a": 1}, {"conv1.weight": torch.zeros(1).expand(1 << 20, 3, 1 << 10, 1 << 10)}]
)
def test_imagenet_weights_that_are_none_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "resnet18.pth")
    assert "resnet18.pth" in refusal(load_imagenet, ResNetEncoder(18, input_channels=6), str(tmp_path / "resnet18.pth"))


@pytest.mark.parametrize("width", [5000, 10**9, 10**15])
def test_a_checkpoint_of_absurd_width_is_refused_before_it_is_built(tmp_path, width):
    wide = torch.zeros(1).expand(width, 1, 1, 1)
    torch.save({"DepthDecoder.merge1.conv.weight": wide}, tmp_path / "published.pth")
    assert "decoder_width" in refusal(run_import, tmp_path / "published.pth", tmp_path / "out")


def test_names_of_hostile_tensors_stay_in_one_short_line(tmp_path):
    torch.save({"a\nb" + "x" * 10_000: torch.zeros(3)}, tmp_path / "published.pth")
    assert "no network" in refusal(run_import, tmp_path / "published.pth", tmp_path / "out")


# Model directories


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("model", "decoder_width", 10**9),
        ("model", "decoder_width", 10**30),
        ("model", "decoder_width", 1.5),
        ("model", "decoder_width", [[[[[[1]]]]]]),
        ("model", "dropout", float("nan")),
        ("model", "max_depth", float("inf")),
        ("model", "depth_layers", "../../etc"),
        ("model", "pose_size", [10**9, 10**9]),
        ("model", "pose_size", [96] * 10**5),
        ("data", "width", 32 * 10**9),
        ("data", "frames", list(range(10**5))),
        ("data", "frames", [0, 10**4000]),
        ("data", "height", 10**4000),
        ("data", "frames", [0, "a\nb"]),
        ("data", "frames", 0),
        ("training", "drives", ["a"] * 10 + [1]),
    ],
)
def test_hostile_model_configurations_are_refused(copy, section, key, value):
    content = json.loads((copy / "config.json").read_text())
    content[section][key] = value
    (copy / "config.json").write_text(json.dumps(content))
    assert str(copy) in refusal(FeatDepth.from_pretrained, copy)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 10**6,
        '{"model": ' + "[" * 900 + "]" * 900 + "}",
        '{"format": 1, "data": {"frames": ' + "[" * 900 + "]" * 900 + '}, "model": {}}',
        '{"format": "a\\nb"}',
        "9" * 10**6,
        "{} {}",
        "\0",
    ],
)
def test_a_model_configuration_that_is_none_is_refused(copy, text):
    (copy / "config.json").write_text(text)
    assert "config.json" in refusal(FeatDepth.from_pretrained, copy)


def test_a_model_configuration_names_no_file_that_is_touched(copy, tmp_path, monkeypatch):
    """Where its weights come from is for those who train; whoever reads a model follows none of it."""
    content = json.loads((copy / "config.json").read_text())
    for name in ("pretrained", "init"):
        os.mkfifo(tmp_path / name)
        content["model"][name] = str(tmp_path / name)
    for name in ("root", "train_files", "cache"):
        content["data"][name] = None if name == "cache" else str(tmp_path / "init")
    content["data"]["ground_truth_cache"] = str(tmp_path / "cache")
    (copy / "config.json").write_text(json.dumps(content))
    model = FeatDepth.from_pretrained(copy)
    model.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "cache").exists()
    saved = json.loads((tmp_path / "again" / "config.json").read_text())["model"]
    assert saved["pretrained"] is False and saved["init"] is saved["feature_encoder"] is None


def test_links_to_a_models_files_are_read(copy):
    assert FeatDepth.from_pretrained(copy).has_depth


def safetensors_of(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


SAFETENSORS = {
    "longer than the file": safetensors_of({}, length=100),
    "2**63": safetensors_of({}, length=2**63),
    "a terabyte": safetensors_of({}, length=1 << 40),
    "overlapping": safetensors_of({"a": entry(0, 16, [4]), "b": entry(8, 24, [4])}, bytes(24)),
    "beyond": safetensors_of({"a": entry(0, 1 << 40, [1 << 38])}, bytes(16)),
    "overflow": safetensors_of({"a": entry(0, 16, [2**63, 4])}, bytes(16)),
    "negative": safetensors_of({"a": entry(0, 16, [-4])}, bytes(16)),
    "a million entries": safetensors_of({str(number): entry(0, 0, [0]) for number in range(10**6)}),
    "no object": safetensors_of([1, 2]),
    "deep": (5000).to_bytes(8, "little") + b"[" * 5000,
    "empty": b"",
    "four bits": safetensors_of({"a": entry(0, 2, [4], "F4")}, bytes(2)),
    "unknown": safetensors_of({"a": entry(0, 16, [4], "F99")}, bytes(16)),
}


@pytest.mark.parametrize("kind", SAFETENSORS)
def test_forged_safetensors_are_refused_as_a_model_and_replaced_in_the_cache(kind, copy, tree):
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors").write_bytes(SAFETENSORS[kind])
    assert str(copy) in refusal(read_then_fit, copy)
    scan = tree / "raw" / DRIVE / "velodyne_points" / "data" / "0000000001.bin"
    arguments = (scan, Calibration(tree / "raw" / DAY), "l", tree / "cache")
    first = cached_lidar_depth(*arguments)
    (path,) = (tree / "cache").rglob("*.safetensors")
    whole = path.read_bytes()
    path.write_bytes(SAFETENSORS[kind])
    assert np.array_equal(cached_lidar_depth(*arguments), first) and path.read_bytes() == whole


def read_then_fit(directory: Path) -> None:
    read_model_directory(directory)
    FeatDepth.from_pretrained(directory)


def test_a_pipe_in_the_cache_is_replaced(tree):
    scan = tree / "raw" / DRIVE / "velodyne_points" / "data" / "0000000001.bin"
    arguments = (scan, Calibration(tree / "raw" / DAY), "l", tree / "cache")
    first = cached_lidar_depth(*arguments)
    (path,) = (tree / "cache").rglob("*.safetensors")
    precious = tree / "precious"
    precious.write_text("mine")
    path.unlink()
    os.mkfifo(path)
    path.with_suffix(".writing").symlink_to(precious)
    assert np.array_equal(cached_lidar_depth(*arguments), first) and path.is_file()
    assert precious.read_text() == "mine"


def test_weights_of_another_kind_of_number_are_refused(copy, model):
    from safetensors.torch import load_file, save_file

    state = load_file(model / "model.safetensors")
    (copy / "model.safetensors").unlink()
    save_file(
        state | {"depth_encoder.bn1.weight": state["depth_encoder.bn1.weight"].to(torch.complex64)},
        copy / "model.safetensors",
    )
    assert "complex64" in refusal(FeatDepth.from_pretrained, copy)
