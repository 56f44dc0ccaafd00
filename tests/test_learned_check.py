"""Whether a model has learned anything, told from what it shows on validation samples."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import call_program, succeeded
from drive_writer import render_drive
from PIL import Image
from tiny_models import tiny_config, tiny_model

import train
from featdepth.errors import InputError
from featdepth.geometry import pose_from_vector
from featdepth.models import FeatDepth
from featdepth.models.saved.provenance import LEARNED, NOTHING, TOO_FEW, Provenance, describe_check
from featdepth.predict import __main__ as predict
from featdepth.training.learned_check import (
    FEWEST_PAIRS,
    Signs,
    alignment_gap,
    judge,
    motion_error,
    photometric_gain,
    row_correlation,
    signs_of,
)

# Medians measured on the synthetic street after 10 steps and after 380.
AFTER_10 = Signs(120.0, 0.25, 0.97, -0.04)
AFTER_380 = Signs(2.2, 0.23, 0.79, 0.47)
UNKNOWN = math.nan


class TestVerdict:
    @pytest.mark.parametrize(
        ("signs", "expected"),
        [
            (AFTER_10, NOTHING),
            (AFTER_380, LEARNED),
            (Signs(90.0, 1.0, -0.8, -0.1), NOTHING),  # upside down and sideways
            (Signs(UNKNOWN, UNKNOWN, 0.8, 0.0), LEARNED),  # the camera stands still
            (Signs(3.0, 0.1, -0.5, 0.3), LEARNED),  # it looks at a ceiling
            (Signs(UNKNOWN, UNKNOWN, -0.9, 0.0), NOTHING),  # stereo alone
            (Signs(UNKNOWN, UNKNOWN, 0.9, 0.4), LEARNED),
            (Signs(UNKNOWN, UNKNOWN, 0.9, UNKNOWN, relief=0.02), NOTHING),  # any motion fits any depth
            (Signs(UNKNOWN, UNKNOWN, -0.2, UNKNOWN, relief=0.3), LEARNED),
        ],
    )
    def test_two_bad_signs_make_it(self, signs: Signs, expected: str) -> None:
        check = judge([signs] * FEWEST_PAIRS)
        assert check["verdict"] == expected and describe_check(check).startswith(expected)
        assert json.loads(json.dumps(check)) == check and not any(map(math.isnan, list(check.values())[1:]))
        assert (Provenance(check=check).doubt is not None) == (expected == NOTHING)

    def test_few_samples_and_no_check_condemn_nobody(self) -> None:
        assert judge([AFTER_10] * (FEWEST_PAIRS - 1)) == {"verdict": TOO_FEW, "samples": FEWEST_PAIRS - 1}
        assert Provenance(check=judge([])).doubt is None and Provenance().doubt is None


class TestSigns:
    def test_motion_is_that_of_matched_points(self) -> None:
        drive = render_drive(frames=3, height=80, width=160)
        grey = [np.array(Image.fromarray(image).convert("L")) for image in drive.images[:2]]
        pose = np.linalg.inv(drive.poses[1]) @ drive.poses[0]
        angle, rotation = motion_error(*grey, drive.intrinsics, pose)
        assert angle < 15 and rotation < 1
        pose[:3, 3] *= -1
        assert motion_error(*grey, drive.intrinsics, pose)[0] > 165
        assert math.isnan(motion_error(grey[0], grey[0], drive.intrinsics, pose)[0])

    def test_the_pose_network_is_compared_with_alignment(self) -> None:
        drive = render_drive(frames=3, height=80, width=160)
        images = torch.from_numpy(np.stack(drive.images[:2])).float().mean(3)[:, None, None] / 255
        seen = (*images, torch.from_numpy(drive.depths[0])[None, None], torch.from_numpy(drive.intrinsics)[None])
        pose = torch.from_numpy(np.linalg.inv(drive.poses[1]) @ drive.poses[0])[None]
        turned, shifted = alignment_gap(*seen, pose)
        assert turned < 0.1 and shifted < 0.05
        turned, shifted = alignment_gap(*seen, pose_from_vector(torch.tensor([[0.0, 0.1, 0.0]]), -pose[:, :3, 3]))
        assert turned == pytest.approx(math.degrees(0.1), rel=0.1) and shifted == pytest.approx(2, rel=0.05)
        assert all(map(math.isnan, alignment_gap(images[0], torch.rand(1, 1, 80, 160), *seen[2:], pose)))
        check = judge([AFTER_380._replace(turned=0.52, shifted=0.31)] * FEWEST_PAIRS)
        assert "its network 0.52 degrees and 31% off alignment" in describe_check(check)

    @pytest.mark.parametrize("is_right", [True, False])
    def test_depth_whose_motion_is_aligned_has_to_beat_a_wall(
        self, is_right: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        drive = render_drive(frames=3, height=80, width=160)
        config = tiny_config("photometric", [0, -1, 1], motion="aligned", metres_per_unit=None)
        images = torch.from_numpy(np.stack([drive.images[place] for place in (1, 0, 2)])).permute(0, 3, 1, 2) / 255
        batch = {"images": images[None], "augmented": images[None]}
        batch["intrinsics"] = torch.from_numpy(drive.intrinsics).float()[None]
        depth = torch.from_numpy(drive.depths[1] / 10).clamp(max=90)[None, None]
        model = tiny_model(config).eval()
        disparity = model.to_disparity(depth if is_right else depth.flip(-2))
        monkeypatch.setattr(FeatDepth, "depth", lambda self, images: (disparity,) * 4)
        signs = signs_of(model, batch, config)
        assert math.isnan(signs.angle) and math.isnan(signs.gain)
        assert signs.relief > 0.3 if is_right else signs.relief < 0.1

    def test_rows_and_gain(self) -> None:
        assert row_correlation(np.arange(9.0) ** 2) == pytest.approx(1) and row_correlation(np.ones(9)) == 0
        assert row_correlation(-np.arange(9.0)) == pytest.approx(-1)
        target, other = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        assert photometric_gain(target, other[None], target[None]) == pytest.approx(1, abs=1e-2)
        assert photometric_gain(target, other[None], other[None]) == 0
        assert math.isnan(photometric_gain(target, target[None], other[None]))


def test_training_prints_and_stores_the_verdict_and_prediction_warns(config_file: Path, tmp_path: Path) -> None:
    options = ["train.max_steps=1", "train.panel_samples=1", f"run.directory={tmp_path / 'run'}"]
    result = succeeded(call_program(train.main, "--config", config_file, *options))
    record = FeatDepth.from_pretrained(tmp_path / "run" / "model").provenance
    assert f"check      last model: {describe_check(record.check)}" in result.out and record.check["samples"] == 5
    assert (
        "check"
        not in succeeded(
            call_program(train.main, "--config", config_file, "train.max_steps=0", f"run.directory={tmp_path / 'none'}")
        ).out
    )


def test_without_opencv_two_signs_decide_and_the_line_says_so(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    options = ["train.max_steps=1", "train.panel_samples=1", f"run.directory={tmp_path / 'run'}"]
    result = succeeded(call_program(train.main, "--config", config_file, *options))
    check = FeatDepth.from_pretrained(tmp_path / "run" / "model").provenance.check
    assert "angle" not in check and "gain" in check
    assert "motion not compared with matched points: no OpenCV; pip install 'opencv-python-headless" in result.out


@pytest.mark.parametrize(("check", "is_warned"), [(AFTER_10, True), (AFTER_380, False), (None, False)])
def test_prediction_page_and_card_say_so(tmp_path: Path, check: Signs | None, is_warned: bool) -> None:
    model = tiny_model(tiny_config("photometric", [0, -1, 1]))
    model.provenance.check = None if check is None else judge([check] * FEWEST_PAIRS)
    model.save_pretrained(tmp_path / "model")
    Image.new("RGB", (96, 64), "grey").save(tmp_path / "photo.png")
    options = ("--checkpoint", tmp_path / "model", "--out", tmp_path / "out", "--save", "page", "--workers", 0)
    result = succeeded(call_program(predict.main, tmp_path / "photo.png", *options))
    texts = [result.out, (tmp_path / "out" / "photo_page.html").read_text(), (tmp_path / "model/README.md").read_text()]
    assert [("learned nothing" in text) for text in texts] == [is_warned] * 3


def test_a_damaged_verdict_is_refused(tmp_path: Path) -> None:
    model = tiny_model(tiny_config("photometric", [0, -1, 1]))
    model.provenance.check = {"verdict": NOTHING, "samples": "many"}
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match="section training is damaged"):
        FeatDepth.from_pretrained(tmp_path / "model")
