"""Stereo baselines that cannot be: refused for every kind of data, or named by the doctor with their likely unit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import call_program

import train
from featdepth.data.baselines import check_stereo_pose, likely_units
from featdepth.doctor import __main__ as doctor
from featdepth.errors import InputError


def moved(x: float, y: float = 0.0, z: float = 0.0) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, 3] = x, y, z
    return pose


def test_poses_of_true_pairs_are_taken() -> None:
    """KITTI's, EuRoC's, Cityscapes' and those of small cameras, from both sides."""
    for length in (0.537, 0.11, 0.209, 0.004):
        check_stereo_pose("here", moved(-length, 0.003 * length), "l")
        check_stereo_pose("here", moved(length), "r")


@pytest.mark.parametrize(
    ("pose", "message"),
    [
        (moved(0.0), "here: .* a stereo baseline of 0 m shows no depth; correct the calibration"),
        (moved(-0.0005), "baseline of 0.0005 m shows no depth"),
        (moved(float("nan")), "shows no depth"),
        (moved(0.0, -0.5), "not beside the first one along x"),
        (moved(-0.5, 0.0, 0.2), "not beside the first one along x"),
        (moved(0.5), "the right camera is to the left .* sides are swapped; exchange the two cameras"),
        (moved(-0.5) @ np.diag([-1.0, -1.0, 1.0, 1.0]), "turned against each other"),
    ],
)
def test_impossible_poses_are_refused(pose: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_stereo_pose("here", pose, "l")


def test_units_in_which_a_baseline_is_a_usual_one() -> None:
    assert likely_units(120.0) == ["millimetres"]
    assert likely_units(540.0) == ["millimetres"]
    assert likely_units(12.0) == ["centimetres"]
    assert likely_units(0.5) == []


def write_baseline(root: Path, offset: list[float]) -> None:
    """Put the right camera of a street in KITTI's layout `offset` (x, y, z in metres) from the left one."""
    for path in root.glob("*/calib_cam_to_cam.txt"):
        rows = dict(line.split(": ", 1) for line in path.read_text().splitlines())
        left = np.array(rows["P_rect_02"].split(), dtype=float).reshape(3, 4)
        left[:, 3] = 0
        rows["P_rect_02"] = " ".join(map(str, left.ravel()))
        left[:, 3] = left[:, :3] @ -np.array(offset)
        rows["P_rect_03"] = " ".join(map(str, left.ravel()))
        path.write_text("".join(f"{name}: {values}\n" for name, values in rows.items()))


def settings(street: Path, folder: Path) -> list[object]:
    return [
        *("--config", "configs/demo.yaml", f"data.root={street}", f"data.split={street}/splits"),
        *(f"run.directory={folder}/run", "data.height=64", "data.width=96", "data.workers=0", "train.max_steps=0"),
    ]


@pytest.mark.parametrize("offset", [[0.0, 0.0, 0.0], [0.0, 0.5, 0.0], [-0.5, 0.0, 0.0], [120.0, 0.0, 0.0]])
def test_training_refuses_them(wide_street_copy: Path, tmp_path: Path, offset: list[float]) -> None:
    write_baseline(wide_street_copy, offset)
    line = call_program(train.main, *settings(wide_street_copy, tmp_path), "--cpu").error_line()
    assert str(wide_street_copy) in line and not (tmp_path / "run").exists()
    assert ("millimetres" in line) == (offset[0] == 120)


def test_doctor_names_the_unit(wide_street_copy: Path, tmp_path: Path) -> None:
    write_baseline(wide_street_copy, [540.0, 0.0, 0.0])
    result = call_program(doctor.main, *settings(wide_street_copy, tmp_path), "--samples", 4)
    (line,) = [line for line in result.out.splitlines() if "with the baseline of" in line]
    assert line.startswith("PROBLEM") and "probably in millimetres: write it in metres" in line
    assert result.code == 1
