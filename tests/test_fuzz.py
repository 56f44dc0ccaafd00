"""Everything that is read, damaged in thousands of seeded ways: it is read all the same, or refused in one line.

Anything else (another error, a warning, more than a few seconds) fails with the kind, the seed and the number of the
mutation, which repeat it: `python tests/test_fuzz.py --kind KIND --seed SEED --first NUMBER --mutations 1`.
`python tests/test_fuzz.py --mutations 2000 --seed 1` does more of them than the test.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import tempfile
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from kitti_tree import DAY, SIZE, drive_name, make_config, write_calibration, write_drive, write_list
from mutations import BYTES, TEXT, Mutation, change_chunk, forge_directory, repack, replace_header, replace_value
from PIL import Image
from safetensors.torch import save
from tiny_models import tiny_config, tiny_model

from featdepth.config import Config, load_config
from featdepth.data import build_dataset
from featdepth.data.cached.frame_cache import FrameCache
from featdepth.data.images import load_depth_image, load_image
from featdepth.data.kitti.calibration import Calibration
from featdepth.data.kitti.drives import KITTI_DRIVES
from featdepth.data.kitti.ground_truth import cached_lidar_depth, lidar_depth, read_scan
from featdepth.data.samples import Sample, read_list
from featdepth.errors import InputError, one_line
from featdepth.models import FeatDepth
from featdepth.models.saved.storage import read_model_directory
from featdepth.models.saved.torch_files import read_torch_file
from featdepth.training.checkpoint import MANIFEST, Progress, digest, resume, save_checkpoint
from featdepth.training.journal import MetricsFile
from featdepth.training.steps import IntervalLog

LONGEST = 20  # seconds for one reading
DRIVE = drive_name(1)


class TooLong(BaseException):
    """Reading takes so long that it hangs; no handler of errors may take it for one of its own."""


class Kind(NamedTuple):
    """One kind of input. `write` makes valid files in a folder, `read` reads them and checks what it gets."""

    write: Callable[[Path], object]
    read: Callable[[Path], object]
    mutations: tuple[Mutation, ...]
    count: int = 170  # mutations in the test
    named: str = ""  # what the refusal names instead of the damaged file


# The kinds


def write_config(folder: Path) -> None:
    config = {
        "run": {"name": "a", "trackers": ["tensorboard"]},
        "data": {"root": "/data", "frames": [0, -1, "s"], "height": 64, "width": 96, "flip": 0.5, "val_files": None},
        "model": {"objective": "photometric", "depth_layers": 18, "pretrained": False, "pose_size": [64, 96]},
        "loss": {"automask": True, "smoothness": 1e-3},
        "schedule": {"milestones": [20, 30]},
    }
    (folder / "config.yaml").write_text("# a configuration\n" + yaml.safe_dump(config))


def read_config(folder: Path) -> None:
    assert isinstance(load_config(folder / "config.yaml", check_files=True, training=False), Config)


def write_whole_config(folder: Path) -> None:
    """One whose folders exist, so that what it is read with decides."""
    write_config(folder)
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("/data", str(folder)))


def write_overrides(folder: Path) -> None:
    write_whole_config(folder)
    lines = ["data.height=64", "data.frames=[0, 1, s]", "model.pretrained=no", "optimizer.lr=1e-4", "run.name=b"]
    lines += ["model.metres_per_unit=36.0", "data.val_files=null", "schedule.milestones=[1, 2]", "data.root=/tmp"]
    (folder / "overrides").write_text("\n".join(lines))


def read_overrides(folder: Path) -> None:
    overrides = (folder / "overrides").read_bytes().decode("utf-8", "surrogateescape").split("\n")
    assert isinstance(load_config(folder / "config.yaml", overrides), Config)


def write_samples(folder: Path) -> None:
    write_list(
        folder / "list.txt", [f"{drive_name(number)} {number:010d} {side}" for number in range(5) for side in "lr"]
    )


def read_samples(folder: Path) -> None:
    for number, sample in read_list(folder / "list.txt", KITTI_DRIVES):
        assert number > 0 and isinstance(sample, Sample) and 0 <= sample.frame < 10**10 and sample.side in "lr"
        assert re.fullmatch("[0-9_]+/[0-9_]+_drive_[0-9]{4,10}_sync", sample.drive)


def read_calibration(folder: Path) -> None:
    calibration = Calibration(folder / DAY)
    for side in "lr":
        height, width = calibration.size(side)
        assert height > 0 and width > 0 and height * width <= 1e8
        matrices = (calibration.intrinsics(side), calibration.projection_of_scan(side), calibration.stereo_pose(side))
        assert [matrix.shape for matrix in matrices] == [(3, 3), (3, 4), (4, 4)]
        for matrix in matrices:
            assert np.isfinite(matrix.astype(np.float32)).all()
        np.linalg.inv(matrices[0])


def write_scan(folder: Path) -> None:
    write_calibration(folder)
    write_drive(folder, DRIVE, [3], sides="", scans=True)
    (folder / DRIVE / "velodyne_points" / "data" / "0000000003.bin").rename(folder / "scan.bin")


def read_points(folder: Path) -> None:
    points = read_scan(folder / "scan.bin")
    assert points.dtype == np.float32 and points.ndim == 2 and points.shape[1] == 4
    check_depth(lidar_depth(folder / "scan.bin", Calibration(folder / DAY), "l"))


def check_depth(depth: np.ndarray) -> None:
    assert depth.dtype == np.float32 and depth.shape == SIZE and np.isfinite(depth).all() and (depth >= 0).all()


def write_image(folder: Path, name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (10, 30, 3))
    Image.fromarray(np.kron(noise, np.ones((4, 4, 1))).astype(np.uint8)).save(folder / name)


def read_image(folder: Path, name: str) -> None:
    image = load_image(folder / name, (32, 96), SIZE)
    assert image.dtype == torch.uint8 and image.shape == (3, 32, 96)


def write_depth_image(folder: Path) -> None:
    depth = np.random.default_rng(0).integers(0, 2**16, SIZE).astype(np.uint16)
    Image.fromarray(depth).save(folder / "depth.png")


def read_depth_image(folder: Path) -> None:
    check_depth(load_depth_image(folder / "depth.png", SIZE))


def read_cached(folder: Path) -> None:
    """A damaged map is made anew, so the answer is always the same."""
    calibration = Calibration(folder / DAY)
    depth = cached_lidar_depth(folder / "scan.bin", calibration, "l", folder / "cache")
    check_depth(depth)
    assert np.array_equal(depth, lidar_depth(folder / "scan.bin", calibration, "l"))


def read_cached_frames(folder: Path) -> None:
    """A damaged frame is decoded again, so the answer is always the same."""
    cache = FrameCache(folder / "cache", (32, 96))
    for path in sorted(folder.glob("*.png")):
        assert torch.equal(cache.load(path, SIZE), load_image(path, (32, 96), SIZE))


def write_cached_frames(folder: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        write_image(folder, name)
    read_cached_frames(folder)


def write_cached(folder: Path) -> None:
    write_scan(folder)
    read_cached(folder)


def write_model(folder: Path) -> None:
    tiny_model(tiny_config("photometric", [0, "s"])).save_pretrained(folder / "model")


def read_model(folder: Path) -> None:
    model = FeatDepth.from_pretrained(folder / "model")
    assert not model.training and all(not parameter.is_meta for parameter in model.parameters())


def write_weights(folder: Path) -> None:
    tensors = {"a.weight": torch.ones(3, 4), "a.bias": torch.zeros(4).half(), "count": torch.tensor(5)}
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))


def read_weights(folder: Path) -> None:
    config, state = read_model_directory(folder)
    assert config == {} and all(isinstance(tensor, torch.Tensor) for tensor in state.values())
    assert sum(tensor.nbytes for tensor in state.values()) <= (folder / "model.safetensors").stat().st_size


def write_torch(folder: Path, in_zip: bool) -> None:
    state = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).state_dict()
    content = {"state_dict": state, "meta": {"epoch": 3, "time": "now", "loss": 0.5, "steps": (1, [2, None, True])}}
    torch.save(content, folder / "weights.pth", _use_new_zipfile_serialization=in_zip)


def read_torch(folder: Path) -> None:
    assert isinstance(read_torch_file(folder / "weights.pth", "model.pretrained"), dict)


def write_data(folder: Path) -> None:
    write_calibration(folder / "raw")
    write_drive(folder / "raw", DRIVE, range(3), scans=True)
    write_list(folder / "split" / "train_files.txt", [f"{DRIVE} 1 l", f"{DRIVE} 1 r"])
    write_list(folder / "split" / "val_files.txt", [f"{drive_name(2)} 1 l"])
    read_data(folder)


def read_data(folder: Path) -> None:
    item = build_dataset(make_config(folder, frames=[0, -1, 1, "s"]), "train", with_depth=True)[0]
    assert item["images"].dtype == torch.uint8 and item["images"].shape == (4, 3, 32, 96)
    height, width = item["depth_size"].tolist()
    assert item["depth"].dtype == torch.float32 and (height, width) == SIZE
    for name, shape in (("intrinsics", (3, 3)), ("stereo_pose", (4, 4)), ("depth", item["depth"].shape)):
        assert item[name].shape == shape and item[name].isfinite().all(), name


CONDITIONS = {"processes": 1, "train.batch_size": 2, "train.accumulate": 1, "optimizer.lr": 1e-4}


def prepared() -> tuple[Accelerator, torch.nn.Module, torch.optim.Optimizer]:
    """The smallest thing that can be trained."""
    accelerator = Accelerator(cpu=True)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    model, optimizer = accelerator.prepare(model, torch.optim.Adam(model.parameters(), fused=True))
    return accelerator, model, optimizer


def write_checkpoint(folder: Path) -> None:
    accelerator, model, optimizer = prepared()
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    progress = Progress(epoch=1, batch=2, step=3, best_loss=0.5, interval=[[0.5] * 7])
    save_checkpoint(accelerator, folder / "checkpoints", progress, CONDITIONS, keep=1)


def read_checkpoint(folder: Path) -> None:
    accelerator, model, _ = prepared()
    progress = Progress()
    path = resume(accelerator, folder / "checkpoints", progress, CONDITIONS, anyway=True)
    assert path.name == "step_3" and type(progress.step) is int
    assert all(parameter.shape[0] == 4 for parameter in model.parameters())
    interval = IntervalLog(accelerator)
    interval.restore(progress.interval)


def read_forged_checkpoint(folder: Path) -> None:
    """With a manifest that fits what stands there, as whoever forges the files would make it."""
    path = folder / "checkpoints" / "step_3"
    manifest = json.loads((path / MANIFEST).read_text())
    for name in manifest["files"]:
        manifest["files"][name] = {"bytes": (path / name).stat().st_size, "sha256": digest(path / name)}
    (path / MANIFEST).write_text(json.dumps(manifest))
    read_checkpoint(folder)


def write_record(folder: Path) -> None:
    metrics = MetricsFile(folder / "metrics.jsonl", enabled=True)
    for step in range(0, 60, 10):
        metrics.write({"split": "train", "epoch": 0, "step": step, "lr": 1e-4, "loss": 0.5, "images_per_second": 3.5})
    metrics.write({"split": "validation", "epoch": 0, "step": 50, "loss": 0.25, "samples": 5})


def read_record(folder: Path) -> None:
    MetricsFile(folder / "metrics.jsonl", enabled=True).forget_after(30, validated=False)
    assert all(json.loads(line)["step"] <= 30 for line in (folder / "metrics.jsonl").read_bytes().splitlines())


KINDS = {
    "configuration": Kind(write_whole_config, read_config, TEXT),
    "overrides": Kind(write_overrides, read_overrides, TEXT, named="command line"),
    "list": Kind(write_samples, read_samples, TEXT),
    "calibration": Kind(write_calibration, read_calibration, TEXT),
    "scan": Kind(write_scan, read_points, BYTES),
    "image.png": Kind(
        lambda folder: write_image(folder, "a.png"),
        lambda folder: read_image(folder, "a.png"),
        (*BYTES, *[change_chunk] * 8),
    ),
    "image.jpg": Kind(lambda folder: write_image(folder, "a.jpg"), lambda folder: read_image(folder, "a.jpg"), BYTES),
    "depth image": Kind(write_depth_image, read_depth_image, (*BYTES, *[change_chunk] * 8)),
    "depth cache": Kind(write_cached, read_cached, (*BYTES, *[replace_header] * 4)),
    "frame cache": Kind(write_cached_frames, read_cached_frames, (*BYTES, *TEXT)),
    "model configuration": Kind(write_model, read_model, (*TEXT, *[replace_value] * 14), count=80, named="model"),
    "weights": Kind(write_weights, read_weights, (*BYTES, *[replace_header] * 8)),
    "torch archive": Kind(
        lambda folder: write_torch(folder, True), read_torch, (*BYTES, *[repack] * 6, forge_directory)
    ),
    "torch, before 1.6": Kind(lambda folder: write_torch(folder, False), read_torch, BYTES),
    "checkpoint": Kind(write_checkpoint, read_checkpoint, BYTES, count=80, named="checkpoints"),
    "forged checkpoint": Kind(write_checkpoint, read_forged_checkpoint, BYTES, named="checkpoints"),
    "checkpoint manifest": Kind(
        write_checkpoint, read_checkpoint, (*TEXT, *[replace_value] * 20), count=120, named="checkpoints"
    ),
    "record of a run": Kind(write_record, read_record, TEXT),
    "data set": Kind(write_data, read_data, (*TEXT, *BYTES), named="raw|split|cache"),
}
# Which files of a kind are damaged; all that it writes where nothing is said. `*.[!j]*` is all but the manifest.
DAMAGED = {
    "overrides": "overrides",
    "scan": "scan.bin",
    "depth cache": "cache/*/*.safetensors",
    "frame cache": "cache/*/*",
    "model configuration": "model/config.json",
    "weights": "model.safetensors",
    "forged checkpoint": "checkpoints/step_3/*.[!j]*",
    "checkpoint manifest": "checkpoints/step_3/manifest.json",
}


def outcome(kind: Kind, folder: Path, name: str) -> str:
    """ "valid" or "refused"; any other end of reading is raised. `name`: of the damaged file."""

    def too_long(*_: object) -> None:
        raise TooLong(f"longer than {LONGEST} seconds")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(LONGEST)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            kind.read(folder)
        return "valid"
    except InputError as error:
        assert "\n" not in str(error).strip() and one_line(error) == str(error).strip(), f"not one line: {error!r}"
        assert re.search(kind.named or re.escape(name), str(error)), f"{name} is not named: {error}"
        assert len(str(error)) < 1000, f"a line of {len(str(error))} characters"
        return "refused"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fuzz(name: str, folder: Path, seed: int, first: int, count: int) -> dict[str, int]:
    """How many of `count` mutations were read and refused. Raises AssertionError for the first of any other end."""
    kind = KINDS[name]
    kind.write(folder)
    originals = {path: path.read_bytes() for path in sorted(folder.rglob(DAMAGED.get(name, "*"))) if path.is_file()}
    originals = {path: content for path, content in originals.items() if path.name != "lock"}
    assert outcome(kind, folder, "") == "valid"
    counts = {"valid": 0, "refused": 0}
    for number in range(first, first + count):
        random = np.random.default_rng((seed, zlib.crc32(name.encode()), number))
        path = list(originals)[random.integers(len(originals))]
        mutate = kind.mutations[random.integers(len(kind.mutations))]
        path.write_bytes(mutate(originals[path], random))
        try:
            counts[outcome(kind, folder, path.name)] += 1
        except (Exception, TooLong) as error:
            raise AssertionError(
                f"kind {name!r}, seed {seed}, mutation {number} ({mutate.__name__} of {path}): "
                f"{type(error).__name__}: {error}"
            ) from error
        path.write_bytes(originals[path])
    return counts


def report(name: str, counts: dict[str, int]) -> None:
    """A line of the table: kind, mutations, read, refused."""
    print(f"{name:20} {sum(counts.values()):6} mutations {counts['valid']:6} valid {counts['refused']:6} refused")


@pytest.mark.parametrize("name", KINDS)
def test_damaged_input_is_read_or_refused_in_one_line(name, tmp_path):
    counts = fuzz(name, tmp_path, 0, 0, KINDS[name].count)
    print()
    report(name, counts)
    assert counts["valid"] + counts["refused"] == KINDS[name].count


def test_the_mutations_are_many():
    assert sum(kind.count for kind in KINDS.values()) >= 2000


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", choices=KINDS, action="append", help="all if not given")
    parser.add_argument("--mutations", type=int, default=1000, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first mutation")
    arguments = parser.parse_args()
    for each in arguments.kind or KINDS:
        with tempfile.TemporaryDirectory() as temporary:
            report(each, fuzz(each, Path(temporary), arguments.seed, arguments.first, arguments.mutations))
