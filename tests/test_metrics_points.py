"""Point-cloud F-score: planes before and beyond the threshold, parts, and a search by brute force."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from featdepth.geometry import backproject
from featdepth.metrics import points
from featdepth.metrics.points import is_near, point_scores

INTRINSICS = torch.tensor([[60.0, 0.0, 31.5], [0.0, 60.0, 15.5], [0.0, 0.0, 1.0]])
SIZE = (32, 64)
ALL = torch.ones(SIZE, dtype=torch.bool)


def wall(distance: float) -> Tensor:
    return torch.full(SIZE, distance)


def test_the_same_map_is_perfect() -> None:
    depth = 2 + 30 * torch.rand(SIZE, generator=torch.Generator().manual_seed(0))
    assert point_scores(depth, depth, ALL, INTRINSICS, 0.1) == (1, 1, 1)


@pytest.mark.parametrize("threshold", [0.1, 0.5])
def test_a_displaced_wall_is_near_or_it_is_not(threshold: float) -> None:
    for factor, expected in ((0.8, 1), (-0.8, 1), (1.05, 0), (-1.05, 0)):
        found = point_scores(wall(4 + factor * threshold), wall(4.0), ALL, INTRINSICS, threshold)
        # The border of the wider wall is beyond that of the narrower one too, in all by less than the threshold.
        assert found == pytest.approx((expected, expected, expected)), factor


def test_precision_and_recall_are_told_apart() -> None:
    truth, predicted = wall(4.0), wall(4.0)
    predicted[:, 32:] = 9.0  # half of the prediction is nowhere near, and half of the truth is not found
    found = point_scores(predicted, truth, ALL, INTRINSICS, 0.1)
    assert found.precision == pytest.approx(0.5) and found.recall == pytest.approx(0.5, abs=0.03)
    truth[:, 48:] = 9.0  # of the predicted at 9 m half is right, and of the truth three quarters are found
    found = point_scores(predicted, truth, ALL, INTRINSICS, 0.1)
    assert found.precision == pytest.approx(0.75, abs=0.02) and found.recall == pytest.approx(0.75, abs=0.03)
    assert found.fscore == pytest.approx(2 * found.precision * found.recall / (found.precision + found.recall))


def test_only_pixels_of_the_mask_count() -> None:
    predicted, mask = wall(4.0), ALL.clone()
    predicted[:, :20], mask[:, :20] = 50.0, False
    assert point_scores(predicted, wall(4.0), mask, INTRINSICS, 0.1) == (1, 1, 1)
    assert all(map(math.isnan, point_scores(predicted, wall(4.0), ~ALL, INTRINSICS, 0.1)))


def test_focal_length_and_unit_matter_as_in_space() -> None:
    one = point_scores(wall(4.3) + torch.linspace(0, 1, 64), wall(4.0), ALL, INTRINSICS, 0.5)
    tenfold = point_scores(10 * (wall(4.3) + torch.linspace(0, 1, 64)), wall(40.0), ALL, INTRINSICS, 5.0)
    assert one == pytest.approx(tenfold, abs=2e-3) and 0 < one.fscore < 1


@pytest.mark.parametrize("threshold", [0.1, 0.5, 3.0])
def test_neighbours_are_those_of_a_search_by_brute_force(threshold: float) -> None:
    """On ground and walls at every distance, one of the two wrong by 4 %: points at all distances from each other."""
    random = torch.Generator().manual_seed(1)
    rows = torch.arange(48.0)[:, None].expand(48, 80)
    truth = (100 / (rows + 2)).clamp(max=25)
    truth = torch.where(torch.rand(48, 80, generator=random) < 0.1, truth / 2, truth)
    camera = torch.tensor([[[80.0, 0.0, 40.0], [0.0, 80.0, -2.0], [0.0, 0.0, 1.0]]], dtype=torch.float64)
    these, others = (backproject(depth[None, None].double(), camera)[0].T for depth in (truth * 1.04, truth))
    distance = torch.cdist(these, others, compute_mode="donot_use_mm_for_euclid_dist").amin(1)
    found = is_near(these, others, threshold)
    assert 0 < found.double().mean() <= 1
    assert not found[distance > threshold].any()
    assert found[distance < 0.8 * threshold].all()  # thinning can miss what is at the very threshold
    assert float(found.double().mean()) == pytest.approx(float((distance <= threshold).double().mean()), abs=0.01)


def test_large_maps_are_looked_up_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    predicted = wall(4.0) + torch.linspace(0, 1, 64)
    whole = point_scores(predicted, wall(4.0), ALL, INTRINSICS, 0.3)
    monkeypatch.setattr(points, "MOST_POINTS", 300)
    assert point_scores(predicted, wall(4.0), ALL, INTRINSICS, 0.3) == pytest.approx(whole, abs=0.05)
