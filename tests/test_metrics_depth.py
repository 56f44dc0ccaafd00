"""Depth scores against the reference numbers, and their conventions one by one."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from featdepth.metrics.depth import (
    METRICS,
    crop_of,
    depth_errors,
    evaluation_mask,
    flip_post_process,
    mean_scores,
    median,
    resize_map,
    score_batch,
    score_image,
)

CASE = np.load(Path(__file__).parent / "data" / "depth_metrics.npz", allow_pickle=False)
EXPECTED = json.loads(bytes(CASE["expected"]))
IMAGES = range(3)
TOLERANCE = 1e-5


def case_image(index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Predicted inverse depth and dense ground truth of one reference image."""
    truth = np.zeros(CASE[f"gt_shape/{index}"], dtype=np.float32)
    truth.ravel()[CASE[f"gt_index/{index}"]] = CASE[f"gt_depth/{index}"]
    return torch.from_numpy(CASE[f"pred_disp/{index}"]), torch.from_numpy(truth)


def assert_reference(protocol: str, rows: torch.Tensor, ratios: torch.Tensor | None) -> None:
    expected = EXPECTED[protocol]
    assert tuple(EXPECTED["columns"]) == METRICS[:7]
    np.testing.assert_allclose(rows[:, :7], expected["per_image"], rtol=TOLERANCE)
    means = mean_scores(rows, torch.ones(len(rows)))
    np.testing.assert_allclose(list(means.values())[:7], expected["mean"], rtol=TOLERANCE)
    if ratios is not None:
        np.testing.assert_allclose(ratios, expected["ratios"], rtol=TOLERANCE)


def test_reference_with_garg_crop_and_cap_for_both_scales():
    scores = [score_image(*case_image(index), scale=5.4) for index in IMAGES]
    ratios = torch.stack([score.ratio for score in scores])
    assert_reference("eigen_median", torch.stack([score.median_scaled for score in scores]), ratios)
    assert_reference("eigen_stereo", torch.stack([score.fixed_scale for score in scores]), None)


def test_reference_without_crop_and_cap():
    scores = []
    for index in IMAGES:
        predicted, truth = case_image(index)
        scores.append(score_image(predicted, truth, evaluation_mask(truth, "none", None)))
    ratios = torch.stack([score.ratio for score in scores])
    assert_reference("full_median", torch.stack([score.median_scaled for score in scores]), ratios)


def test_reference_of_flip_post_processing():
    disparity = torch.from_numpy(CASE["pred_disp/0"])
    blended = flip_post_process(disparity, 1.1 * disparity.flip(-1))
    np.testing.assert_allclose(blended[None], CASE["flip_post_process"], rtol=TOLERANCE)


def test_flip_post_processing_takes_the_side_that_sees():
    ours, mirrored = torch.zeros(2, 1, 3, 101), torch.ones(2, 1, 3, 101)
    blended = flip_post_process(ours, mirrored)
    assert (blended[..., :5] == 1).all() and (blended[..., -5:] == 0).all() and (blended[..., 50] == 0.5).all()


def test_batch_with_padding_equals_single_images_and_counts_pixels():
    pairs = [case_image(index) for index in IMAGES]
    size = [max(truth.shape[axis] for _, truth in pairs) + 3 for axis in (0, 1)]
    depth = torch.full((3, *size), 7.0)  # nonsense in the padding, to see that it is not read
    for row, (_, truth) in zip(depth, pairs, strict=True):
        row[: truth.shape[0], : truth.shape[1]] = truth
    sizes = torch.tensor([truth.shape for _, truth in pairs])
    batch = score_batch(torch.stack([predicted for predicted, _ in pairs])[:, None], depth, sizes, scale=5.4)
    for index, pair in enumerate(pairs):
        single = score_image(*pair, scale=5.4)
        for field, value in single._asdict().items():
            assert torch.equal(getattr(batch, field)[index], value), field
        assert int(single.pixels) == int(evaluation_mask(pair[1]).sum())


def test_errors_of_a_known_case():
    errors = depth_errors(torch.tensor([2.0, 8.0]), torch.tensor([1.0, 8.0]))
    half = math.log(2) / 2
    expected = {"abs_rel": 0.5, "sq_rel": 0.5, "rmse": math.sqrt(0.5), "rmse_log": math.log(2) / math.sqrt(2)}
    expected |= {"a1": 0.5, "a2": 0.5, "a3": 0.5, "silog": 100 * half}
    assert tuple(errors) == METRICS
    assert errors == pytest.approx(expected, rel=1e-12)


def test_perfect_and_rescaled_predictions():
    truth = torch.rand(50, 60, generator=torch.Generator().manual_seed(0)) * 40 + 2
    perfect = score_image(1 / truth, truth)
    scaled = score_image(1 / (3 * truth), truth, scale=None)
    for row in (perfect.median_scaled, perfect.fixed_scale, scaled.median_scaled):
        errors = dict(zip(METRICS, row.tolist(), strict=True))
        assert errors["abs_rel"] < 1e-6 and errors["silog"] < 1e-3 and errors["a1"] == 1
    assert float(scaled.ratio) == pytest.approx(1 / 3) and scaled.fixed_scale.isnan().all()
    tripled = dict(zip(METRICS, score_image(1 / (3 * truth), truth, cap=1000).fixed_scale.tolist(), strict=True))
    assert tripled["abs_rel"] == pytest.approx(2) and tripled["silog"] < 1e-3


def test_predictions_are_clamped_to_the_cap():
    truth = torch.full((40, 40), 40.0)
    far = score_image(torch.full((10, 10), 1e-9), truth)
    assert dict(zip(METRICS, far.fixed_scale.tolist(), strict=True))["abs_rel"] == pytest.approx(1)


def test_mask_bounds():
    assert crop_of(375, 1242, "garg") == (slice(153, 371), slice(44, 1197))
    truth = torch.full((375, 1242), 10.0)
    truth[200, 300:304] = torch.tensor([0.0, 1e-3, 80.0, 79.9])
    mask = evaluation_mask(truth)
    assert mask[200, 300:304].tolist() == [False, False, False, True]
    assert int(mask.sum()) == (371 - 153) * (1197 - 44) - 3 and not mask[152].any() and mask[153, 44]
    assert int(evaluation_mask(truth, "none").sum()) == 375 * 1242 - 3
    assert int(evaluation_mask(truth, "none", None).sum()) == 375 * 1242 - 1
    with pytest.raises(ValueError, match=r"unknown crop"):
        evaluation_mask(truth, "eigen")


def test_the_crop_of_cityscapes_in_images_without_their_lower_quarter():
    assert crop_of(768, 2048, "cityscapes") == (slice(256, 768), slice(192, 1856))


def test_truth_beyond_the_clamp_counts_and_predictions_stop_there():
    truth, sizes = torch.tensor([[[100.0, 40.0]]]), torch.tensor([[1, 2]])
    predicted = torch.tensor([[[1 / 200, 1 / 40]]])
    scores = score_batch(predicted, truth, sizes, "none", cap=None, clamp=80.0)
    assert int(scores.pixels) == 2 and float(scores.fixed_scale[0, 0]) == pytest.approx((20 / 100 + 0) / 2)
    assert int(score_batch(predicted, truth, sizes, "none", cap=80.0).pixels) == 1


def test_median_of_even_and_odd_counts():
    assert float(median(torch.tensor([4.0, 1.0, 3.0, 2.0]))) == 2.5
    assert float(median(torch.tensor([4.0, 1.0, 3.0]))) == 3


def test_resize_keeps_pixel_borders_in_place():
    assert resize_map(torch.tensor([[0.0, 1.0]]), (1, 4)).tolist() == [[0.0, 0.25, 0.75, 1.0]]


def test_images_without_valid_ground_truth_are_marked_and_left_out_of_the_mean():
    predicted, truth = case_image(0)
    depth = torch.stack([truth, torch.zeros_like(truth), torch.full_like(truth, 100.0)])
    sizes = torch.tensor([truth.shape] * 3)
    scores = score_batch(predicted.expand(3, 1, -1, -1), depth, sizes)
    assert (scores.pixels > 0).tolist() == [True, False, False]
    assert scores.median_scaled[1:].isnan().all() and scores.ratio[1:].isnan().all()
    means = mean_scores(scores.median_scaled, scores.pixels)
    assert list(means.values()) == pytest.approx(scores.median_scaled[0].tolist())
    assert mean_scores(scores.median_scaled[1:], scores.pixels[1:]) is None


def test_a_prediction_that_is_not_a_number_shows_in_the_mean():
    predicted, truth = case_image(0)
    scores = score_image(torch.full_like(predicted, torch.nan), truth)
    assert math.isnan(mean_scores(scores.fixed_scale[None], scores.pixels[None])["abs_rel"])
