"""Flicker: none where depth is true, as much as was put in, and nothing from what is hidden or out of the picture."""

from __future__ import annotations

import math

import numpy as np
import torch
from drive_writer import render_drive
from torch import Tensor

from featdepth.geometry import pose_from_vector
from featdepth.metrics.flicker import flicker, log_ratios


def street_pairs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """True depths of neighbouring frames of a drive, intrinsics and motion."""
    drive = render_drive(14, 96, 144, 1)
    depth = torch.from_numpy(np.stack(drive.depths[:5]))[:, None].clamp(max=1e4)
    poses = np.stack(drive.poses[:5])
    motions = torch.from_numpy(np.linalg.inv(poses[1:]) @ poses[:-1]).float()
    return depth[:-1], depth[1:], torch.from_numpy(drive.intrinsics).float().expand(4, 3, 3), motions


def test_true_depth_of_a_street_does_not_flicker() -> None:
    scale, points = flicker(*street_pairs()).unbind(1)
    assert scale.abs().max() < 2e-3 and points.max() < 5e-3


def test_a_changing_scale_is_measured() -> None:
    earlier, later, intrinsics, motions = street_pairs()
    factors = torch.tensor([1.05, 0.9, 1.0, 1.2])
    scale, points = flicker(earlier, later * factors[:, None, None, None], intrinsics, motions).unbind(1)
    torch.testing.assert_close(scale, factors.log(), atol=5e-3, rtol=0)
    torch.testing.assert_close(points, factors.log().abs(), atol=8e-3, rtol=0)


def test_points_that_jump_without_a_change_of_scale() -> None:
    """On a wall, half of which comes nearer by what the other half recedes."""
    wall = torch.full((1, 1, 8, 10), 5.0)
    jumps = torch.where(torch.arange(10) < 5, math.exp(0.1), math.exp(-0.1)).expand(1, 1, 8, 10)
    intrinsics = torch.tensor([[[10.0, 0, 4.5], [0, 10.0, 3.5], [0, 0, 1]]])
    scale, points = flicker(wall, wall * jumps, intrinsics, torch.eye(4)[None])[0]
    assert abs(abs(scale.item()) - 0.1) < 1e-5  # the lower of two middle values
    assert abs(points.item() - 0.1) < 1e-5


def test_a_wall_that_comes_nearer_and_leaves_the_picture() -> None:
    wall = torch.full((1, 1, 8, 10), 5.0)
    intrinsics = torch.tensor([[[10.0, 0, 4.5], [0, 10.0, 3.5], [0, 0, 1]]])
    ahead = pose_from_vector(torch.zeros(1, 3), torch.tensor([[0.0, 0, -1.0]]))  # towards the wall by one metre
    ratios = log_ratios(wall, wall - 1.0, intrinsics, ahead)
    torch.testing.assert_close(ratios[~ratios.isnan()], torch.zeros(int((~ratios.isnan()).sum())))
    assert ratios[..., 0, :].isnan().all() and ratios[..., 3:5, 4:6].isfinite().all()
    behind = pose_from_vector(torch.zeros(1, 3), torch.tensor([[0.0, 0, -6.0]]))
    assert flicker(wall, wall, intrinsics, behind).isnan().all()
