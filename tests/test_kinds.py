"""Every kind of data trains and is scored, on drives of the synthetic street in the kind's own format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from conftest import Result, call_program, run_program_process, succeeded
from drive_writer import RenderedDrive, render_drive
from house import loaded_by, modules
from run_records import read_metrics
from tree_writers import WRITERS

import evaluate
import train
from featdepth.data.sets.stills import StillImages
from featdepth.kinds import KINDS, dataset_class

FRAMES, STEPS = 5, 21
WITHOUT_DEPTH = {"euroc", "video"}
PARTS = ("train", "val", "test")

MakeConfig = Callable[[str], Path]


@pytest.fixture(scope="module")
def drives() -> list[RenderedDrive]:
    return [render_drive(frames=FRAMES, index=index) for index in range(len(PARTS))]


@pytest.fixture
def make_config(drives: list[RenderedDrive], tmp_path: Path) -> MakeConfig:
    """Writes a kind's data set, one drive for each part, and gives a tiny configuration for it."""

    def make(kind: str) -> Path:
        names = WRITERS[kind](tmp_path / "data", drives)
        (tmp_path / "lists").mkdir()
        for part, name in zip(PARTS, names, strict=True):
            lines = [f"{name} {frame} l\n" for frame in range(1, FRAMES - 1)]
            # All of training is one epoch: each ends with a validation.
            lines *= STEPS // len(lines) if part == "train" else 1
            (tmp_path / "lists" / f"{part}_files.txt").write_text("".join(lines))
        values = {
            "data": {"kind": kind, "root": str(tmp_path / "data"), "split": str(tmp_path / "lists"), "workers": 0},
            "model": {"objective": "photometric", "depth_layers": 18, "pretrained": False, "decoder_width": 16},
            "optimizer": {"lr": 1e-3},
            "schedule": {"warmup_steps": 0},
            "train": {"epochs": 1, "batch_size": 1, "log_every": 7, "panel_samples": 0},
            "evaluate": {"protocol": next(iter(KINDS[kind].protocols)), "crop": "none"},
        }
        values["data"] |= {"height": 64, "width": 64, "frames": [0, -1, 1], "colour_jitter": 0.0}
        values["data"] |= {"ground_truth_cache": str(tmp_path / "ground_truth")}
        values["model"] |= {"pose_size": None, "metres_per_unit": None, "dropout": 0.0}
        values["run"] = {"directory": str(tmp_path / "run")}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
        return tmp_path / "config.yaml"

    return make


class Outcome(NamedTuple):
    """What became of a run and its evaluation."""

    loss_fell: bool
    validated_with_depth: bool
    scored: bool


def outcome(directory: Path, evaluated: Result) -> Outcome:
    lines = read_metrics(directory)
    losses = [line["loss"] for line in lines if line["split"] == "train"]
    return Outcome(losses[-1] < losses[0], "abs_rel" in lines[-1], "model, median-scaled" in succeeded(evaluated).out)


def test_every_kind_has_a_writer_and_a_configuration() -> None:
    """But for those that nothing is trained on, which have tests of their own."""
    trained = {kind for kind in KINDS if not issubclass(dataset_class(kind), StillImages)}
    assert trained == set(WRITERS)


@pytest.mark.parametrize("kind", sorted(WRITERS))
def test_a_kind_trains_and_is_scored(kind: str, make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(kind)
    succeeded(call_program(train.main, "--config", config))
    has_depth = kind not in WITHOUT_DEPTH
    evaluated = call_program(evaluate.main, "--config", config)
    assert outcome(tmp_path / "run", evaluated) == Outcome(True, has_depth, has_depth)


@pytest.mark.long
def test_two_processes(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config("seven_scenes")
    options = ["train.py", "--cpu", "--config", config, "train.epochs=2"]  # twice as many samples a step
    succeeded(run_program_process(options, processes=2))
    evaluated = run_program_process(["evaluate.py", "--cpu", "--config", config], processes=2)
    assert outcome(tmp_path / "run", evaluated) == Outcome(True, True, True)


def test_training_loads_no_kind_but_its_own() -> None:
    readers = {kind.reader.split(":")[0] for kind in KINDS.values()}
    assert not readers & loaded_by("train") and readers <= set(modules())
