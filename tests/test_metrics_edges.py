"""Edge errors: closed forms on steps, planes and blurred steps, and what counts as dense."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from featdepth.metrics.edges import depth_edges, distance_to, edge_errors, is_dense

SIZE = (24, 60)
ALL = torch.ones(SIZE, dtype=torch.bool)


def step_at(column: int, near: float = 5.0, far: float = 20.0) -> Tensor:
    """Depth `far` with everything from `column` on at `near`."""
    depth = torch.full(SIZE, far)
    depth[:, column:] = near
    return depth


def ground(height: float = 1.6, horizon: float = -4.0) -> Tensor:
    """A plane below the camera, up to ten times as far at the top of the image as at its bottom."""
    rows = torch.arange(SIZE[0], dtype=torch.float32)[:, None]
    return (60 * height / (rows - horizon)).expand(SIZE)


def test_the_same_map_has_no_errors() -> None:
    found = edge_errors(step_at(30), step_at(30), ALL)
    assert (found.accuracy, found.completeness) == (0, 0)
    assert found.predicted == found.true == SIZE[0] - 4  # a column without its ends


@pytest.mark.parametrize("shift", [-3, 1, 2, 7])
def test_a_shifted_edge_is_off_by_its_shift(shift: int) -> None:
    for predicted, truth in ((step_at(30 + shift), step_at(30)), (step_at(30 + shift).T, step_at(30).T)):
        found = edge_errors(predicted.contiguous(), truth.contiguous(), torch.ones_like(truth, dtype=torch.bool))
        assert (found.accuracy, found.completeness) == pytest.approx((abs(shift), abs(shift)))


def test_scale_and_unit_make_no_difference() -> None:
    assert edge_errors(step_at(32) / 7, step_at(30), ALL) == edge_errors(step_at(32), step_at(30), ALL)


def test_far_edges_count_as_ten_pixels() -> None:
    found = edge_errors(step_at(50), step_at(20), ALL)
    assert (found.accuracy, found.completeness) == (10, 10)


def test_missed_and_invented_edges_show_in_one_score_each() -> None:
    both = step_at(15)
    both[:, 45:] = 1.0  # a second step
    missed, invented = edge_errors(step_at(15), both, ALL), edge_errors(both, step_at(15), ALL)
    assert (missed.accuracy, missed.completeness) == (0, 5)
    assert (invented.accuracy, invented.completeness) == (5, 0)


def test_a_blurred_edge_stays_in_place_and_a_flat_one_is_none() -> None:
    ramp = torch.linspace(0, 1, 7)
    blurred = step_at(33)
    blurred[:, 26:33] = 20 * (5 / 20) ** ramp
    found = edge_errors(blurred, step_at(30), ALL)
    assert found.accuracy <= 4 and found.completeness <= 4 and found.predicted > 0
    slope = (20 * (5 / 20) ** torch.linspace(0, 1, SIZE[1])).expand(SIZE)
    found = edge_errors(slope, step_at(30), ALL)
    assert (found.accuracy, found.completeness, found.predicted) == (10, 10, 0)


def test_planes_have_no_edges() -> None:
    assert not depth_edges(ground()).any()
    assert not depth_edges(torch.rand(SIZE) * 0.04 + 10).any()  # noise of less than a jump
    found = edge_errors(step_at(30), ground(), ALL)
    assert math.isnan(found.accuracy) and math.isnan(found.completeness) and found.true == 0


def test_an_object_on_the_ground_is_outlined() -> None:
    depth = ground().clone()
    depth[3:15, 20:30] = depth[14, 0]  # it stands where row 14 sees the ground
    edges = depth_edges(depth)
    assert edges[5:12, 19:21].any(1).all() and edges[5:12, 29:31].any(1).all() and edges[2:4, 21:29].any(0).all()
    assert not edges[5:12, 22:28].any() and not edges[16:22].any()


def test_only_pixels_of_the_mask_with_truth_count() -> None:
    truth, predicted = step_at(30), step_at(30)
    predicted[:, :8] = 1.0  # an invented edge
    mask = ALL.clone()
    mask[:, :12] = False
    assert edge_errors(predicted, truth, mask)[:2] == (0, 0)
    truth[:, :12] = 0  # no truth there
    assert edge_errors(predicted, truth, ALL)[:2] == (0, 0)
    sky = step_at(30)
    sky[:, 30:] = 0  # the outline before the sky: no depth beyond it
    assert edge_errors(predicted, sky, ALL).true == 0


def test_distances_are_euclidean_and_truncated() -> None:
    edges = torch.zeros(40, 50, dtype=torch.bool)
    edges[10, 12], edges[30, 41], edges[31, 3] = True, True, True
    rows, columns = torch.meshgrid(torch.arange(40.0), torch.arange(50.0), indexing="ij")
    places = edges.nonzero().double()
    expected = torch.stack([(rows - row).square() + (columns - column).square() for row, column in places]).amin(0)
    torch.testing.assert_close(distance_to(edges), expected.sqrt().clamp(max=10).to(distance_to(edges).dtype))
    assert (distance_to(torch.zeros_like(edges)) == 10).all()


def test_what_is_dense() -> None:
    whole = torch.full((60, 200), 7.0)
    assert is_dense(whole)
    sky = whole.clone()
    sky[:24] = 0
    assert is_dense(sky)
    assert not is_dense(torch.zeros(60, 200))
    random = torch.Generator().manual_seed(0)
    for share in (0.05, 0.3, 0.6, 0.9):  # scattered points, even many of them
        assert not is_dense(whole * (torch.rand(60, 200, generator=random) < share))
    lines = whole.clone()
    lines[::3] = 0
    assert not is_dense(lines)
    small = torch.zeros(60, 200)
    small[:20, :50] = 7.0
    assert not is_dense(small)
