"""Every program with every shipped configuration, on small data of its kind: success, or one line that says why not.

Only places and sizes differ from what is shipped: images, networks, batches, epochs, and where the data and models lie.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from conftest import REPOSITORY, Result, call_program, succeeded
from drive_writer import RenderedDrive, render_drive
from tree_writers import WRITERS

import evaluate
import train
from featdepth.config import Config, load_config
from featdepth.data import build_dataset
from featdepth.doctor import __main__ as doctor
from featdepth.export import __main__ as export
from featdepth.predict import __main__ as predict

FRAMES, PARTS = 5, ("train", "val", "test")
NAMES = sorted(path.stem for path in (REPOSITORY / "configs").glob("*.yaml"))
WITHOUT_DEPTH = ("kitti_autoencoder", "euroc_autoencoder")  # they learn features
EXPORTED = ("kitti_mono", "kitti_joint")  # without and with metres, of which exporters make their graph
WITHOUT_TRUTH = ("euroc", "video")  # evaluation reports the loss


class Trained(NamedTuple):
    """A configuration's run, and what its programs are given."""

    config: Config
    arguments: list[str]  # --config FILE, and what differs
    result: Result  # of the training


@cache
def drives() -> list[RenderedDrive]:
    return [render_drive(frames=FRAMES, index=index) for index in range(len(PARTS))]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Trained]]:
    """Trains a configuration by name for one step, once; first what it starts from."""
    root = tmp_path_factory.mktemp("configurations")
    done: dict[str, Trained] = {}

    def trained(name: str) -> Trained:
        if name not in done:
            done[name] = train_once(name, root, trained)
        return done[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "home"))
        yield trained


def train_once(name: str, root: Path, trained: Callable[[str], Trained]) -> Trained:
    path = REPOSITORY / "configs" / f"{name}.yaml"
    shipped = load_config(path, check_files=False)
    options = [*data_options(shipped, root / shipped.data.kind), *size_options(shipped)]
    options += [f"run.directory={root / 'runs' / name}", f"data.ground_truth_cache={root / 'ground_truth'}"]
    if shipped.model.feature_encoder is not None:
        options.append(f"model.feature_encoder={trained('kitti_autoencoder').config.run.directory}/model_last")
    if shipped.model.init is not None:
        options.append(f"model.init={trained('kitti').config.run.directory}/model_last")
    if shipped.data.train_files is not None:  # refinement: of the test images
        options.append(f"data.train_files={root / shipped.data.kind / 'lists' / 'test_files.txt'}")
    arguments = ["--config", str(path), *options]
    result = call_program(train.main, "--cpu", *arguments, "train.max_steps=1")
    return Trained(load_config(path, options, check_files=False), arguments, result)


def data_options(shipped: Config, folder: Path) -> list[str]:
    """The kind's data below `folder`, one drive for each part; written once."""
    lists = folder / "lists"
    if not folder.exists():
        names = WRITERS[shipped.data.kind](folder / "data", drives())
        lists.mkdir()
        for part, drive in zip(PARTS, names, strict=True):
            (lists / f"{part}_files.txt").write_text(f"{drive} {FRAMES // 2} l\n")
    return [f"data.root={folder / 'data'}", f"data.split={lists}", f"data.frames={nearby(shipped.data.frames)}"]


def nearby(frames: list[int | str]) -> str:
    """The frames in the shipped order, as far apart as five allow."""
    farthest = FRAMES // 2
    return yaml.safe_dump(
        [frame if frame == "s" else max(-farthest, min(farthest, frame)) for frame in frames], default_flow_style=True
    ).strip()


def size_options(shipped: Config) -> list[str]:
    layers = [f"model.{name}_layers=18" for name in ("depth", "pose", "feature")]
    pose_size = [] if shipped.model.pose_size is None else ["model.pose_size=[64,96]"]
    small = ["data.height=64", "data.width=96", "data.workers=0", "model.decoder_width=16", "model.pretrained=false"]
    return [*layers, *pose_size, *small, "train.batch_size=1", "train.panel_samples=1", "evaluate.batch_size=1"]


@pytest.mark.parametrize("name", NAMES)
class TestEveryConfiguration:
    def test_train(self, name: str, workshop: Callable[[str], Trained]) -> None:
        run = workshop(name)
        succeeded(run.result)
        assert (Path(run.config.run.directory) / "model_last" / "model.safetensors").is_file()

    def test_evaluate(self, name: str, workshop: Callable[[str], Trained], tmp_path: Path) -> None:
        run = workshop(name)
        model = ["--checkpoint", f"{run.config.run.directory}/model_last", "--out", str(tmp_path)]
        result = call_program(evaluate.main, "--cpu", *run.arguments, *model)
        if name in WITHOUT_DEPTH:
            assert "predicts no depth" in result.error_line()
        elif name in WITHOUT_TRUTH:
            assert "without ground truth" in succeeded(result).out
        else:
            assert "model, median-scaled" in succeeded(result).out

    def test_doctor(self, name: str, workshop: Callable[[str], Trained], tmp_path: Path) -> None:
        """A report; its verdict on a street of five frames is none of this test's business."""
        result = call_program(doctor.main, *workshop(name).arguments, "--out", tmp_path, "--samples", 1)
        assert result.code in (0, 1) and not result.err, result
        assert (tmp_path / "report.json").is_file()

    def test_predict(self, name: str, workshop: Callable[[str], Trained], tmp_path: Path) -> None:
        run = workshop(name)
        test = build_dataset(run.config, "test", frames=[0])
        image = test.image_path(test.samples[0], 0)
        options = ["--checkpoint", f"{run.config.run.directory}/model_last", "--out", tmp_path, "--workers", 0, "--cpu"]
        result = call_program(predict.main, image, *options)
        if name in WITHOUT_DEPTH:
            assert "depth" in result.error_line()
        else:
            succeeded(result)
            assert list(tmp_path.glob("*_depth.*"))


@pytest.mark.parametrize("name", [*EXPORTED, *WITHOUT_DEPTH])
def test_export(name: str, workshop: Callable[[str], Trained], tmp_path: Path) -> None:
    run = workshop(name)
    options = ["--checkpoint", f"{run.config.run.directory}/model_last", "--out", tmp_path / "depth.pt2"]
    result = call_program(export.main, *options)
    if name in WITHOUT_DEPTH:
        assert "depth" in result.error_line()
    else:
        succeeded(result)
        assert (tmp_path / "depth.pt2").is_file()
