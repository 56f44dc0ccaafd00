"""Training and evaluation on a few real KITTI frames; skipped where they are not at hand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from conftest import call_program, succeeded, write_tiny_config

import evaluate
import train

SHARED = Path(os.environ.get("FEATDEPTH_SHARED", Path(__file__).parents[2] / "shared"))
KITTI = SHARED / "kitti_mini"

pytestmark = pytest.mark.skipif(not KITTI.is_dir(), reason=f"no KITTI excerpt in {KITTI}")


@pytest.fixture(scope="module")
def kitti_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_config(tmp_path_factory.mktemp("kitti") / "kitti.yaml", KITTI / "kitti_raw")


def data_options(frames: str, lists: str) -> list[str]:
    files = KITTI / "splits" / lists
    options = ["data.split=eigen", f"data.train_files={files}", f"data.val_files={files}", f"data.frames={frames}"]
    return [*options, "data.height=64", "data.width=192"]


def test_mono_then_evaluation_against_lidar(kitti_config: Path, tmp_path: Path) -> None:
    """The only drive with scans is one of the Eigen test drives: allowed on demand, and marked everywhere."""
    options = [*data_options("[0, -1, 1]", "mono_files.txt"), f"run.directory={tmp_path / 'run'}"]
    options += ["train.max_steps=2", "model.metres_per_unit=null"]
    refused = call_program(train.main, "--config", kitti_config, *options).error_line()
    assert "2011_09_26_drive_0013_sync" in refused and "data.allow_leakage" in refused

    options.append("data.allow_leakage=true")
    trained = succeeded(call_program(train.main, "--config", kitti_config, *options))
    assert "CONTAMINATED" in trained.out
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["split"], line["step"]) for line in lines] == [("train", 2), ("validation", 2)]
    assert lines[1]["samples"] == 22 and 0 < lines[1]["abs_rel"] < 5

    evaluated = succeeded(call_program(evaluate.main, "--config", kitti_config, *options, "evaluate.crop=garg"))
    assert "CONTAMINATED" in evaluated.out and "model, median-scaled" in evaluated.out
    scores = json.loads((tmp_path / "run" / "evaluation" / "metrics.json").read_text())
    # Drive 0034 is no test drive, but it was trained on and validated with.
    assert scores["contaminated"] == [
        "2011_09_26/2011_09_26_drive_0013_sync",
        "2011_10_03/2011_10_03_drive_0034_sync",
    ]
    listed = (KITTI / "splits" / "eigen_test_subset.txt").read_text().splitlines()
    assert scores["images"] == len(listed)
    # The excerpt's description has 0.452 for constant depth on all of its frames.
    assert scores["constant_depth"]["abs_rel"] == pytest.approx(0.45, abs=0.05)


def test_stereo_with_a_calibration_of_cameras_alone(kitti_config: Path, tmp_path: Path) -> None:
    options = [*data_options("[0, -1, s]", "stereo_files.txt"), f"run.directory={tmp_path / 'run'}"]
    succeeded(
        call_program(train.main, "--config", kitti_config, *options, "train.max_steps=2", "data.allow_leakage=true")
    )
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["split"] == "validation" and last["loss"] > 0 and "abs_rel" not in last
