"""evaluate.py from end to end, and the predictors that look at no image."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Result, call_program, run_program_process, succeeded

import evaluate
from featdepth.config import load_config
from featdepth.data import build_dataset
from featdepth.metrics.depth import METRICS
from featdepth.metrics.trivial import BINS, FARTHEST, GRID, NEAREST, depth_histogram, median_depth
from featdepth.models import FeatDepth

BIN_RATIO = (FARTHEST / NEAREST) ** (1 / BINS)


def evaluate_here(config_file: Path, checkpoint: Path, out: Path, *overrides: str) -> Result:
    arguments = ["--config", config_file, "--checkpoint", checkpoint, "--out", out, *overrides]
    return call_program(evaluate.main, *arguments)


def read_scores(out: Path) -> dict:
    return json.loads((out / "metrics.json").read_text())


@pytest.fixture(scope="module")
def evaluated(finished_run: Path, config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    out = tmp_path_factory.mktemp("evaluated") / "evaluation"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("featdepth.console.FIRST_SECONDS", 0.0)  # as if it took long
        return evaluate_here(config_file, finished_run / "model", out), out


class TestScores:
    def test_table(self, evaluated: tuple[Result, Path]) -> None:
        result, out = evaluated
        assert succeeded(result).err == ""
        rows = {line.split("  ")[0]: line for line in result.out.splitlines()}
        scores = read_scores(out)
        for title, name in (
            ("model, median-scaled", "median_scaled"),
            ("model, fixed scale (metres)", "fixed_scale"),
            ("constant depth, median-scaled", "constant_depth"),
            ("per-pixel median, median-scaled", "pixel_median"),
        ):
            printed = [float(number) for number in rows[title].removeprefix(title).split()]
            assert printed == pytest.approx([scores[name][metric] for metric in METRICS], abs=6e-5)
        assert "CONTAMINATED" not in result.out
        assert "of 20 frames of 4 training drives" in result.out
        assert str(out) in result.out
        assert "\nmedian depth: 1 of 20 frames, " in result.out and "\nevaluation: 1 of 2 batches, " in result.out

    def test_metrics_file(self, evaluated: tuple[Result, Path], finished_run: Path) -> None:
        scores = read_scores(evaluated[1])
        assert (scores["protocol"], scores["images"], scores["skipped_images"]) == ("eigen", 3, 0)
        assert scores["contaminated"] == [] and scores["checkpoint"] == str(finished_run / "model")
        for name in ("median_scaled", "fixed_scale", "constant_depth", "pixel_median"):
            assert set(scores[name]) == set(METRICS)
            assert all(np.isfinite(value) for value in scores[name].values())
        assert scores["scale_ratio"]["median"] > 0 and scores["scale_ratio"]["std"] >= 0

    def test_a_row_for_each_image(self, evaluated: tuple[Result, Path], street: Path) -> None:
        with (evaluated[1] / "per_image.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [row["image"] for row in rows] == (street / "splits" / "test_files.txt").read_text().splitlines()
        scores = read_scores(evaluated[1])
        for name in ("median_scaled", "fixed_scale"):
            mean = np.mean([float(row[f"{name}_abs_rel"]) for row in rows])
            assert mean == pytest.approx(scores[name]["abs_rel"], rel=1e-6)
        ratios = [float(row["scale_ratio"]) for row in rows]
        assert np.median(ratios) == pytest.approx(scores["scale_ratio"]["median"])

    def test_constant_depth_is_the_image_median_everywhere(
        self, evaluated: tuple[Result, Path], config_file: Path
    ) -> None:
        """Scaled by the ratio of medians, a constant becomes the median of the image's own ground truth."""
        dataset = build_dataset(load_config(config_file), "test", frames=[0])
        abs_rel, rmse, a1 = [], [], []
        for sample in dataset.samples:
            depth = dataset.load_depth(sample).astype(np.float64)
            truth = depth[(depth > 1e-3) & (depth < 80)]
            constant = np.median(truth)
            abs_rel.append(np.mean(np.abs(truth - constant) / truth))
            rmse.append(np.sqrt(np.mean((truth - constant) ** 2)))
            a1.append(np.mean(np.maximum(truth / constant, constant / truth) < 1.25))
        scores = read_scores(evaluated[1])["constant_depth"]
        assert scores["abs_rel"] == pytest.approx(np.mean(abs_rel), rel=1e-4)
        assert scores["rmse"] == pytest.approx(np.mean(rmse), rel=1e-4)
        assert scores["a1"] == pytest.approx(np.mean(a1), rel=1e-4)

    def test_two_processes_agree(self, finished_run: Path, config_file: Path, street: Path, tmp_path: Path) -> None:
        """Three images in batches of one and one training frame: the second process gets fewer of both, or none."""
        train_list = tmp_path / "train_files.txt"
        train_list.write_text((street / "splits" / "train_files.txt").read_text().splitlines()[0])
        overrides = (f"data.train_files={train_list}", "evaluate.batch_size=1")
        succeeded(evaluate_here(config_file, finished_run / "model", tmp_path / "one", *overrides))
        options = ["--config", config_file, "--checkpoint", finished_run / "model", "--out", tmp_path / "two"]
        succeeded(run_program_process(["evaluate.py", "--cpu", *options, *overrides], processes=2))
        one, two = read_scores(tmp_path / "one"), read_scores(tmp_path / "two")
        assert one["images"] == two["images"] == 3
        for name in ("median_scaled", "fixed_scale", "constant_depth", "pixel_median", "scale_ratio"):
            assert two[name] == pytest.approx(one[name], rel=1e-5), name
        images = [
            [line.split(",")[0] for line in (tmp_path / name / "per_image.csv").open()] for name in ("one", "two")
        ]
        assert images[0] == images[1]
        cards = [json.loads((tmp_path / name / "card.json").read_text()) for name in ("one", "two")]
        assert cards[0]["test"] == cards[1]["test"] and cards[0]["model"] == cards[1]["model"]
        for variant in ("plain", "flip"):
            scores = [card["scores"]["fixed_scale"][variant]["abs_rel"] for card in cards]
            assert [score.pop("drives") for score in scores] == [None, None]  # one drive has no interval over drives
            assert scores[0].pop("images") == pytest.approx(scores[1].pop("images"), rel=1e-5)
            assert scores[0] == pytest.approx(scores[1], rel=1e-5)
        worst = [[entry["image"] for entry in card["extremes"]["worst"]] for card in cards]
        assert worst[0] == worst[1] and len(worst[0]) == 3

    def test_flip_post_processing(
        self, evaluated: tuple[Result, Path], finished_run: Path, config_file: Path, tmp_path: Path
    ) -> None:
        result = succeeded(evaluate_here(config_file, finished_run / "model", tmp_path, "evaluate.flip=true"))
        assert "flip post-processing" in result.out
        flipped, plain = read_scores(tmp_path), read_scores(evaluated[1])
        assert flipped["flip"] is True and plain["flip"] is False
        assert flipped["constant_depth"] == plain["constant_depth"]
        assert flipped["median_scaled"]["abs_rel"] != plain["median_scaled"]["abs_rel"]

    def test_training_drives_without_scans_have_no_pixel_median(
        self, finished_run: Path, street_copy: Path, tmp_path: Path
    ) -> None:
        for line in (street_copy / "splits" / "train_files.txt").read_text().splitlines():
            shutil.rmtree(street_copy / line.split()[0] / "velodyne_points", ignore_errors=True)
        result = succeeded(evaluate_here(tmp_path / "tiny.yaml", finished_run / "model", tmp_path / "out"))
        scores = read_scores(tmp_path / "out")
        assert scores["pixel_median"] is None and scores["constant_depth"] is not None
        assert "no per-pixel median" in result.out and "ground truth" in result.out
        assert "per-pixel median, median-scaled" not in result.out

    def test_images_without_valid_truth_are_counted(
        self, finished_run: Path, street_copy: Path, tmp_path: Path
    ) -> None:
        drive, frame, _ = (street_copy / "splits" / "test_files.txt").read_text().split("\n")[0].split()
        scan = street_copy / drive / "velodyne_points" / "data" / f"{int(frame):010}.bin"
        scan.write_bytes(np.array([-10, 0, 0, 0], np.float32).tobytes())  # behind the camera
        result = succeeded(evaluate_here(tmp_path / "tiny.yaml", finished_run / "model", tmp_path / "out"))
        assert "1 of 3 images had no valid ground truth" in result.out
        scores = read_scores(tmp_path / "out")
        assert scores["without_truth"] == 1 and scores["images"] == 2

    def test_model_without_scale(self, config_file: Path, tmp_path: Path) -> None:
        config = load_config(config_file, ["data.frames=[0, -1, 1]", "model.metres_per_unit=null"])
        FeatDepth(config.model, config.data.frames, 64, 96).save_pretrained(tmp_path / "model")
        result = succeeded(evaluate_here(config_file, tmp_path / "model", tmp_path / "out"))
        scores = read_scores(tmp_path / "out")
        assert scores["fixed_scale"] is None and scores["median_scaled"]["abs_rel"] > 0
        assert "has no known scale" in result.out

    def test_autoencoder_has_no_depth_to_score(self, config_file: Path, tmp_path: Path) -> None:
        config = load_config(config_file, ["model.objective=autoencoder"])
        FeatDepth(config.model, config.data.frames, 64, 96).save_pretrained(tmp_path / "model")
        result = evaluate_here(config_file, tmp_path / "model", tmp_path / "out")
        assert "predicts no depth" in result.error_line()
        assert not (tmp_path / "out").exists()


class TestContamination:
    def test_training_drives_are_refused_or_marked(
        self, finished_run: Path, config_file: Path, street: Path, tmp_path: Path
    ) -> None:
        train_list = street / "splits" / "train_files.txt"
        drives = sorted({line.split()[0] for line in train_list.read_text().splitlines()})
        arguments = (config_file, finished_run / "model", tmp_path / "out", f"data.test_files={train_list}")

        refused = evaluate_here(*arguments).error_line()
        assert all(drive in refused for drive in drives) and "data.allow_leakage=true" in refused
        assert not (tmp_path / "out").exists()

        marked = succeeded(evaluate_here(*arguments, "data.allow_leakage=true"))
        assert "CONTAMINATED" in marked.out
        scores = read_scores(tmp_path / "out")
        assert scores["contaminated"] == drives and scores["images"] == 20


class TestPixelMedian:
    def test_median_of_each_cell(self) -> None:
        """Against a median of the values themselves; the histogram's bins are 2 % wide."""
        random = np.random.default_rng(0)
        size = (2 * GRID[0], 3 * GRID[1])  # a cell is 2 x 3 pixels
        maps = np.exp(random.uniform(np.log(2), np.log(80), (5, *size)))
        maps[random.random(maps.shape) < 0.3] = 0
        computed = median_depth(sum(depth_histogram(depth) for depth in maps)).numpy()
        cells = maps.reshape(5, GRID[0], 2, GRID[1], 3).transpose(1, 3, 0, 2, 4).reshape(*GRID, 30)
        for row, column in [(0, 0), (0, 159), (20, 77), (47, 3), (47, 159)]:
            values = np.sort(cells[row, column][cells[row, column] > 0])
            expected = values[(len(values) - 1) // 2]  # the lower of the two middle ones
            assert computed[row, column] == pytest.approx(expected, rel=BIN_RATIO - 1)

    def test_empty_cells_take_after_their_neighbours(self) -> None:
        depth = np.zeros(GRID)
        depth[40:, :] = 5.0
        depth[8:16, 16:24] = 50.0
        computed = median_depth(depth_histogram(depth))
        assert bool(torch.isfinite(computed).all())
        near, far = computed[44, 80], computed[12, 20]
        assert near == pytest.approx(5.0, rel=BIN_RATIO - 1) and far == pytest.approx(50.0, rel=BIN_RATIO - 1)
        assert computed[7, 20] == far  # in the same block of 16 as the far patch
        assert computed[0, 159] == near  # nothing near it: the median of everything

    def test_depth_beyond_the_bins_is_kept(self) -> None:
        depth = np.full(GRID, 200.0)
        depth[:, :80] = 0.1
        computed = median_depth(depth_histogram(depth))
        assert computed[0, 0] == pytest.approx(NEAREST, rel=BIN_RATIO - 1)
        assert computed[0, 159] == pytest.approx(FARTHEST, rel=BIN_RATIO - 1)
