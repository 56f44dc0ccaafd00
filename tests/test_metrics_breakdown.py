"""Errors by distance, place and motion: parts with known errors, rows, means, and which model wins where."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from featdepth.config import Config, load_config
from featdepth.data import build_dataset
from featdepth.data.synthetic import Drive, Street, render_frame
from featdepth.errors import InputError
from featdepth.metrics.breakdown import (
    DETAILS,
    PARTS,
    compare_details,
    detail_row,
    mean_details,
    part_errors,
    predicted_depth,
    score_details,
)
from featdepth.metrics.depth import METRICS, score_image

SIZE = (30, 60)
ALL = torch.ones(SIZE, dtype=torch.bool)
INTRINSICS = torch.tensor([[60.0, 0.0, 29.5], [0.0, 60.0, 14.5], [0.0, 0.0, 1.0]])


def value_of(row: Tensor, detail: str) -> tuple[float, float]:
    """A detail's value and count in a row."""
    place = DETAILS.index(detail)
    return float(row[place]), float(row[len(DETAILS) + place])


def test_each_distance_holds_its_own_error() -> None:
    depths, factors = (5.0, 15.0, 30.0, 60.0), (1.1, 0.9, 1.0, 1.5)
    truth = torch.tensor(depths).repeat_interleave(15).expand(SIZE)
    predicted = truth * torch.tensor(factors).repeat_interleave(15)
    found = part_errors(predicted, truth, ALL)
    for part, depth, factor in zip(PARTS, depths, factors, strict=False):
        assert found[part]["abs_rel"] == pytest.approx(abs(factor - 1), abs=1e-6), part
        assert found[part]["rmse"] == pytest.approx(depth * abs(factor - 1), abs=1e-5)
        assert found[part]["a1"] == (factor < 1.25) and found[part]["pixels"] == 15 * SIZE[0]


def test_bounds_belong_to_the_farther_distance_and_80_m_to_none() -> None:
    truth = torch.full(SIZE, 85.0)
    truth[0, 0], truth[0, 1], truth[0, 2] = 10.0, 9.99, 80.0
    found = part_errors(truth, truth, ALL)
    assert [found[part]["pixels"] for part in PARTS[:4]] == [1, 1, 0, 0]
    assert math.isnan(found["20-40 m"]["abs_rel"]) and math.isnan(found["moving"]["a1"])


def test_each_third_and_moving_things_hold_their_own_error() -> None:
    truth = torch.full(SIZE, 10.0)
    rows = truth * torch.tensor([1.1, 1.2, 1.3]).repeat_interleave(10)[:, None]
    columns = truth * torch.tensor([1.1, 1.2, 1.3]).repeat_interleave(20)
    moving = torch.zeros(SIZE, dtype=torch.bool)
    moving[5:9, 10:20] = True
    cars = torch.where(moving, 1.4, 1.05) * truth
    for predicted, parts, errors in (
        (rows, ("upper third", "middle third", "lower third"), (0.1, 0.2, 0.3)),
        (columns, ("left third", "centre third", "right third"), (0.1, 0.2, 0.3)),
        (cars, ("moving", "static"), (0.4, 0.05)),
    ):
        found = part_errors(predicted, truth, ALL, moving)
        assert [found[part]["abs_rel"] for part in parts] == pytest.approx(errors)
        assert sum(found[part]["pixels"] for part in parts) == ALL.sum()


def test_only_pixels_of_the_mask_count_and_parts_add_up() -> None:
    random = torch.Generator().manual_seed(0)
    truth, predicted = (1 + 70 * torch.rand(SIZE, generator=random) for _ in range(2))
    mask = torch.rand(SIZE, generator=random) < 0.4
    found = part_errors(predicted, truth, mask, torch.rand(SIZE, generator=random) < 0.1)
    whole = float(((predicted - truth).abs() / truth)[mask].mean())
    for parts in (PARTS[:4], PARTS[4:7], PARTS[7:10], PARTS[10:]):
        pixels = [found[part]["pixels"] for part in parts]
        assert sum(pixels) == mask.sum()
        assert np.average([found[part]["abs_rel"] for part in parts], weights=pixels) == pytest.approx(whole)


def test_a_row_has_edges_and_points_only_where_truth_is_dense() -> None:
    truth = torch.full(SIZE, 12.0)
    truth[:, 30:] = 6.0
    dense = detail_row(truth, truth, ALL, INTRINSICS)
    assert dense.shape == (2 * len(DETAILS),) and dense.dtype == torch.float32
    assert value_of(dense, "edges/accuracy") == value_of(dense, "edges/completeness") == (0, SIZE[0] - 4)
    assert value_of(dense, "points within 0.5 m/fscore") == (1, ALL.sum())
    assert value_of(dense, "0-10 m/abs_rel") == (0, ALL.sum() / 2)
    sparse_truth = torch.where(torch.rand(SIZE, generator=torch.Generator().manual_seed(0)) < 0.3, truth, 0.0)
    sparse = detail_row(truth, sparse_truth, sparse_truth > 0, INTRINSICS)
    for detail in DETAILS:
        value, count = value_of(sparse, detail)
        assert math.isnan(value) == (count == 0)
        if detail.startswith(("edges", "points", "moving", "20-40 m")):
            assert count == 0, detail


def test_depth_is_that_which_is_scored() -> None:
    random = torch.Generator().manual_seed(0)
    truth, inverse = 1 + 90 * torch.rand(40, 70, generator=random), 0.01 + torch.rand(20, 35, generator=random)
    mask = truth < 80
    scores = score_image(inverse, truth, mask, scale=5.4)
    for scale, expected in ((None, scores.median_scaled), (5.4, scores.fixed_scale)):
        predicted = predicted_depth(inverse, truth, mask, scale, 80.0)
        abs_rel = ((predicted - truth).abs() / truth)[mask].mean()
        assert float(abs_rel) == pytest.approx(float(expected[METRICS.index("abs_rel")]), rel=1e-6)


def test_a_batch_has_a_row_for_each_image_without_its_padding() -> None:
    truth = torch.full((2, 34, 70), 7.0)  # nonsense in the padding
    truth[:, :30, :60] = 12.0
    truth[:, :30, 30:60] = 6.0
    sizes = torch.tensor([[30, 60], [30, 40]])
    inverse = torch.full((2, 1, 30, 60), 1 / 12.0)
    inverse[0, 0, :, 30:] = 1 / 6.0
    moving = [None, np.zeros((30, 40), dtype=bool)]
    rows = score_details(inverse, truth, sizes, INTRINSICS.expand(2, 3, 3), moving, crop="none")
    assert rows.shape == (2, 2 * len(DETAILS))
    assert value_of(rows[0], "edges/accuracy")[0] == 0 and value_of(rows[0], "points within 0.1 m/fscore")[0] == 1
    assert value_of(rows[0], "static/abs_rel")[1] == 0 and value_of(rows[1], "static/abs_rel")[1] == 30 * 40
    assert value_of(rows[1], "0-10 m/abs_rel") == (pytest.approx(1.0), 30 * 10)
    nothing = score_details(inverse[:1], 0 * truth[:1], sizes[:1], INTRINSICS[None], scale=None)[0]
    assert nothing[: len(DETAILS)].isnan().all() and not nothing[len(DETAILS) :].any()


def table_of(errors: np.ndarray, detail: str, counts: np.ndarray) -> Tensor:
    """Rows with nothing but `errors` `[N]` of one detail."""
    table = torch.zeros(len(errors), 2 * len(DETAILS))
    table[:, : len(DETAILS)] = math.nan
    table[:, DETAILS.index(detail)] = torch.from_numpy(errors)
    table[:, len(DETAILS) + DETAILS.index(detail)] = torch.from_numpy(counts)
    return table


@pytest.mark.parametrize(("detail", "best"), [("20-40 m/abs_rel", "a"), ("static/a1", "b"), ("edges/accuracy", "a")])
def test_who_wins_where(detail: str, best: str) -> None:
    rng = np.random.default_rng(0)
    drives, counts = [f"drive {image // 5}" for image in range(40)], np.ones(40)
    counts[::7] = 0
    one = rng.normal(1, 0.2, 40)
    one[::7] = math.nan
    less, alike = table_of(one, detail, counts), table_of(one + 0.01 * (-1) ** np.arange(40), detail, counts)
    more = table_of(one + 0.1 + rng.normal(0, 0.01, 40), detail, counts)
    (found,) = compare_details(less, more, drives)
    assert (found.detail, found.winner) == (detail, best)
    assert found.difference.mean == pytest.approx(-0.1, abs=0.01) == found.mean_a - found.mean_b
    assert (found.difference.count, found.difference.groups) == (34, 8)
    (turned,) = compare_details(more, less, drives)
    assert turned.winner == {"a": "b", "b": "a"}[best]
    (open_,) = compare_details(less, alike, drives)
    assert open_.winner == "" and open_.difference.low < 0 < open_.difference.high
    assert mean_details(less, drives).keys() == {detail}
    assert mean_details(less)[detail].mean == pytest.approx(np.nanmean(one))


def test_a_prediction_that_is_not_finite_shows() -> None:
    errors = np.array([1.0, math.nan, 2.0])
    table = table_of(errors, "static/abs_rel", np.ones(3))
    found = mean_details(table, ["a", "b", "c"])["static/abs_rel"]
    assert math.isnan(found.mean) and "1 of 3 values are not finite" in found.reason
    with pytest.raises(ValueError, match="cannot be compared"):
        compare_details(table, table[:2])


@pytest.fixture(scope="module")
def config(config_file: Path) -> Config:
    return load_config(config_file, [])


def test_the_street_has_exact_depth_and_masks_of_moving_cars(config: Config) -> None:
    config.evaluate.protocol, config.data.crop = "eigen_improved", [0.0, 0.0, 0.0, 0.0]
    dataset = build_dataset(config, "test", frames=[0], require_depth=True)
    moving_pixels = 0
    for sample in dataset.samples:
        drive = Drive(Street(drives=6, frames=7, height=64, width=192), int(sample.drive.split("_")[-2]) - 1)
        frame = render_frame(drive, sample.frame)
        depth, known = dataset.load_depth(sample), frame.depth < 255
        np.testing.assert_allclose(depth[known], frame.depth[known], atol=1 / 256)
        assert not depth[np.isinf(frame.depth)].any()
        moving = dataset.moving_mask(sample)
        np.testing.assert_array_equal(moving, frame.moving)
        moving_pixels += moving.sum()
    assert moving_pixels > 0


def test_the_mask_is_cropped_like_the_depth_and_a_bad_one_is_named(config: Config, street_copy: Path) -> None:
    config.data.root, config.data.split = str(street_copy), str(street_copy / "splits")
    config.data.crop = [0.25, 0.0, 0.0, 0.5]
    dataset = build_dataset(config, "test", frames=[0])
    sample = dataset.samples[0]
    assert dataset.moving_mask(sample).shape == dataset.load_depth(sample).shape == (48, 96)
    path = Path(dataset.moving_path(sample))
    path.write_bytes(Path(dataset.image_path(sample, 0)).read_bytes())
    with pytest.raises(InputError, match=f"{path}: not an 8-bit grey mask"):
        dataset.moving_mask(sample)
    path.unlink()
    dataset = build_dataset(config, "test", frames=[0])
    assert dataset.moving_mask(sample) is None
