"""This implementation against the numbers of the published ones, and that the comparison can fail."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from check_reference import compare, compare_outputs, compare_terms, main, network_case, reference_tensor
from tiny_models import tiny_config

from featdepth.errors import InputError, run_program
from featdepth.models import Prediction

TESTS = Path(__file__).parent
SHARED = Path(os.environ.get("FEATDEPTH_SHARED", Path(__file__).parents[2] / "shared"))
CASES = {
    "featdepth_mono_r50": ("loss/min_perceptional_loss/0", "grad_norm/total/PoseDecoder", "pose -1"),
    "featdepth_mono_stereo_r50": ("loss/min_reconstruct_loss/3", "grad_norm/total/DepthEncoder", "disparity 0"),
    "featdepth_joint_r50": ("loss/img_reconstruct_loss/0", "grad_norm/total/Decoder", "reconstruction 3"),
    "featdepth_autoencoder_r50": ("loss/img_reconstruct_loss/3", "grad_norm/total/Encoder", "reconstruction 3"),
    "depth_metrics": ("eigen_median mean", "eigen_stereo per_image", "flip_post_process"),
}
COVERED = ("featdepth_mono_r50", "featdepth_mono_stereo_r50")  # by the joint one, but for the second camera


def run_here(monkeypatch, capsys, *arguments: object) -> tuple[int, str, str]:
    """Exit code, output and errors of the program, called in this process."""
    monkeypatch.setattr(sys, "argv", ["check_reference.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        run_program(main)
    return caught.value.code, *capsys.readouterr()


@pytest.mark.usefixtures("whole_resnet18")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if name in COVERED else name for name in CASES]
)
def test_the_case_is_reproduced(name):
    comparisons = compare(TESTS / "data" / f"{name}.npz")
    assert set(CASES[name]) <= {each.quantity for each in comparisons}
    assert [each for each in comparisons if not each.passed] == []


@pytest.mark.usefixtures("whole_resnet18")
def test_frames_and_depth_range_of_a_case_are_those_that_it_says():
    path = TESTS / "data" / "featdepth_mono_r50.npz"
    case = dict(np.load(path))
    meta = json.loads(bytes(case["meta"])) | {"frame_ids": [0, 1, -1], "min_depth": 0.5, "max_depth": 30.0}
    model, batch, config = network_case(case | {"meta": np.frombuffer(json.dumps(meta).encode(), np.uint8)}, path)
    assert model.frames == config.data.frames == [0, 1, -1]
    assert torch.equal(batch["images"][:, 1] * 255, torch.from_numpy(case["image/1"]).float())
    assert (model.settings.min_depth, config.model.max_depth) == (0.5, 30.0)
    with torch.no_grad():
        poses = model.eval()(batch).poses
    for position, frame in enumerate((1, -1)):
        torch.testing.assert_close(poses[:, position], torch.from_numpy(case[f"eval/cam_T_cam/0/{frame}"]))


def test_lidar_depth_is_that_of_the_published_evaluation():
    case, kitti = SHARED / "reference" / "kitti_lidar_depth.npz", SHARED / "kitti_mini" / "kitti_raw"
    if not case.is_file() or not kitti.is_dir():
        pytest.skip("KITTI's scans are not here")
    comparisons = compare(case, kitti)
    assert len(comparisons) == 3 and all(each.passed for each in comparisons)
    with pytest.raises(InputError, match="--kitti"):
        compare(case)


def test_the_program_says_whether_a_case_is_reproduced(tmp_path, monkeypatch, capsys):
    good = TESTS / "data" / "depth_metrics.npz"
    case = dict(np.load(good))
    expected = json.loads(bytes(case["expected"]))
    expected["full_median"]["mean"][0] *= 1.0001
    case["expected"] = np.frombuffer(json.dumps(expected).encode(), dtype=np.uint8)
    np.savez(tmp_path / "altered.npz", **case)
    code, output, _ = run_here(monkeypatch, capsys, good)
    assert code == 0 and "all within tolerance" in output and "BEYOND" not in output
    code, output, _ = run_here(monkeypatch, capsys, good, tmp_path / "altered.npz")
    assert code == 1 and "1 beyond tolerance" in output
    [line] = [line for line in output.splitlines() if "BEYOND TOLERANCE" in line]
    assert "full_median mean" in line


def test_a_file_that_is_no_case_is_refused_in_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "broken.npz").write_bytes(b"no archive")
    np.savez(tmp_path / "other.npz", values=np.zeros(3))
    for name in ("broken.npz", "other.npz", "missing.npz"):
        with pytest.raises(InputError, match=name):
            compare(tmp_path / name)
    code, _, errors = run_here(monkeypatch, capsys, tmp_path / "other.npz")
    assert code == 2 and errors.count("\n") == 1 and "other.npz" in errors


def test_an_output_beyond_its_tolerance_does_not_pass():
    case = dict(np.load(TESTS / "data" / "featdepth_joint_r50.npz"))
    exact = Prediction(
        disparities=tuple(torch.from_numpy(case[f"eval/disp/0/{scale}"]) for scale in range(4)),
        poses=torch.stack([torch.from_numpy(case[f"eval/cam_T_cam/0/{frame}"]) for frame in (-1, 1)], dim=1),
        reconstructions=tuple(torch.from_numpy(case[f"eval/res_img/0/{scale}"]) for scale in range(4)),
    )
    config = tiny_config("joint", [0, -1, 1])
    assert all(each.passed and each.error == 0 for each in compare_outputs(exact, case, config))
    off = Prediction(
        (exact.disparities[0] + 2e-5, *exact.disparities[1:]),
        exact.poses + torch.tensor([2e-6, 0])[None, :, None, None],
        reconstructions=(*exact.reconstructions[:3], exact.reconstructions[3] - 2e-5),
    )
    failed = {each.quantity for each in compare_outputs(off, case, config) if not each.passed}
    assert failed == {"disparity 0", "pose -1", "reconstruction 3"}


def test_a_term_beyond_its_tolerance_does_not_pass():
    case = {"loss/smooth_loss/0": 0.5, "loss/smooth_loss/1": 0.25, "loss/total": 0.75}
    exact = torch.tensor([[0.4, 0.6], [0.2, 0.3]])  # two scales of two samples
    assert all(each.passed for each in compare_terms({"smoothness": exact}, case))
    altered = exact * torch.tensor([[1.0], [1.001]])
    failed = {each.quantity for each in compare_terms({"smoothness": altered}, case) if not each.passed}
    assert failed == {"loss/smooth_loss/1", "loss/total"}


def test_reference_tensors_depend_on_their_name_and_kind():
    shape = [4, 3, 3, 3]
    first, other = reference_tensor("Encoder.encoder.conv1.weight", shape), reference_tensor("a.conv1.weight", shape)
    assert torch.equal(first, reference_tensor("Encoder.encoder.conv1.weight", shape)) and not torch.equal(first, other)
    assert reference_tensor("a.bn1.running_var", [64]).min() >= 1
    assert reference_tensor("a.bn1.num_batches_tracked", []).item() == 0
