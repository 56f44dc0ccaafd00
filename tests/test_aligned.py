"""Motions of a sequence by alignment with a model's depth, and what stands in where they cannot be had."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from itertools import pairwise

import numpy as np
import pytest
import torch
from tiny_models import KnownDepth, tiny_config
from torch.nn import functional

from featdepth.data.synthetic import Drive, Street, render_frame
from featdepth.models import FeatDepth
from featdepth.odometry.aligned import align_motions, halfway
from featdepth.odometry.aligned_focal import focal_by_alignment
from featdepth.odometry.egomotion import chain_motions, predict_motions
from featdepth.predict.network import BY_ALIGNMENT, BY_REPETITION, Launch, Networks

SIZE, FRAMES = (64, 192), 4


@pytest.fixture(scope="module")
def drive() -> Drive:
    return Drive(Street(drives=4, frames=FRAMES, height=SIZE[0], width=SIZE[1]), 3)


@pytest.fixture(scope="module")
def frames(drive: Drive) -> list[np.ndarray]:
    return [drive.image(frame, 2) for frame in range(FRAMES)]


@pytest.fixture(scope="module")
def model(drive: Drive, frames: list[np.ndarray]) -> FeatDepth:
    config = tiny_config("photometric", [0, -1])
    torch.manual_seed(0)
    model = KnownDepth(config.model, config.data.frames, *SIZE).eval()
    depth = [render_frame(drive, frame).depth for frame in range(FRAMES)]
    images = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 255
    model.know(images, torch.from_numpy(np.stack(depth))[:, None])
    return model


@pytest.fixture
def without_pose_network(model: FeatDepth) -> Iterator[FeatDepth]:
    decoder = model.pose_decoder
    del model.pose_decoder
    yield model
    model.pose_decoder = decoder


def true_motions(drive: Drive) -> np.ndarray:
    poses = [drive.camera_pose(frame) for frame in range(FRAMES)]
    return np.stack([np.linalg.inv(after) @ before for before, after in pairwise(poses)])


def check_close(motions: np.ndarray, truth: np.ndarray) -> None:
    lengths = np.linalg.norm(truth[:, :3, 3], axis=1)
    assert (np.linalg.norm(motions[:, :3, 3] - truth[:, :3, 3], axis=1) < 0.03 * lengths).all()
    assert np.allclose(motions[:, :3, :3], truth[:, :3, :3], rtol=0, atol=1e-3)


def test_true_motions_in_metres(drive: Drive, frames: list[np.ndarray], model: FeatDepth) -> None:
    found = align_motions(model, frames, drive.rig.intrinsics)
    assert found.motions.shape == (FRAMES - 1, 4, 4) and found.motions.dtype == np.float64
    assert found.is_aligned.tolist() == [True] * (FRAMES - 1)
    check_close(found.motions, true_motions(drive))


def test_batches_make_no_difference(drive: Drive, frames: list[np.ndarray], model: FeatDepth) -> None:
    found = align_motions(model, frames, drive.rig.intrinsics)
    for size in (1, 3):
        again = align_motions(model, iter(frames), drive.rig.intrinsics, size)
        assert np.allclose(again.motions, found.motions, rtol=0, atol=1e-4)
        assert again.is_aligned.tolist() == found.is_aligned.tolist()


def test_no_motions_of_less_than_two_frames(drive: Drive, frames: list[np.ndarray], model: FeatDepth) -> None:
    for few in ([], frames[:1]):
        assert [len(values) for values in align_motions(model, few, drive.rig.intrinsics)] == [0, 0]


def test_intrinsics_are_those_of_the_frames_as_given(
    drive: Drive, frames: list[np.ndarray], model: FeatDepth, without_pose_network: FeatDepth
) -> None:
    images = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 255
    large = functional.interpolate(images, scale_factor=2, mode="nearest")
    intrinsics = drive.rig.intrinsics * np.array([[2.0], [2.0], [1.0]])
    intrinsics[:2, 2] += 0.5  # the borders stay put
    found = align_motions(model, list(large), intrinsics)
    assert found.is_aligned.all()
    check_close(found.motions, true_motions(drive))


def test_the_pose_network_stands_in(drive: Drive, frames: list[np.ndarray], model: FeatDepth) -> None:
    spoilt = [*frames[:2], np.random.default_rng(0).integers(0, 256, frames[0].shape, dtype=np.uint8), frames[3]]
    found = align_motions(model, spoilt, drive.rig.intrinsics)
    assert found.is_aligned.tolist() == [True, False, False]
    check_close(found.motions[:1], true_motions(drive)[:1])
    assert np.allclose(found.motions[1:], predict_motions(model, spoilt)[1:], atol=1e-6)


@pytest.mark.parametrize("size", [1, 8])
def test_without_a_pose_network_the_motion_before_does(
    drive: Drive, frames: list[np.ndarray], without_pose_network: FeatDepth, size: int
) -> None:
    blank = np.full_like(frames[0], 128)
    found = align_motions(without_pose_network, [blank, *frames[:2], blank, blank], drive.rig.intrinsics, size)
    assert found.is_aligned.tolist() == [False, True, False, False]
    assert np.array_equal(found.motions[0], np.eye(4))
    check_close(found.motions[1:2], true_motions(drive)[:1])
    assert np.allclose(found.motions[2:], found.motions[1], atol=1e-6)


def follow(
    model: FeatDepth, frames: list[np.ndarray], intrinsics: np.ndarray, dtype: torch.dtype | None = None
) -> tuple[np.ndarray, list[str | None]]:
    """Poses of the frames by the program's networks in two batches, and how each motion was found."""
    launch = Launch(
        lambda _: lambda images: (model.predict_disparity(images),),
        nullcontext if dtype is None else lambda: torch.autocast("cpu", dtype),
    )
    networks, found = Networks(launch, model, with_poses=True), []
    for part in (slice(0, 3), slice(3, None)):
        images = torch.from_numpy(np.stack(frames[part])).permute(0, 3, 1, 2)
        found += networks.predict(images, intrinsics[part])
    return np.stack([each.pose for each in found]), [each.motion for each in found]


def test_prediction_follows_the_camera_in_any_precision(
    drive: Drive, frames: list[np.ndarray], model: FeatDepth
) -> None:
    intrinsics = np.stack([drive.rig.intrinsics] * FRAMES)
    expected = chain_motions(align_motions(model, frames, drive.rig.intrinsics).motions)
    for dtype in (None, torch.bfloat16):
        poses, how = follow(model, frames, intrinsics, dtype)
        assert how == [None, *[BY_ALIGNMENT] * (FRAMES - 1)]
        assert poses == pytest.approx(expected, abs=1e-3)


def test_where_intrinsics_are_missing_another_motion_stands_in(
    drive: Drive, frames: list[np.ndarray], model: FeatDepth, without_pose_network: FeatDepth
) -> None:
    intrinsics = np.stack([drive.rig.intrinsics] * FRAMES)
    intrinsics[3] = np.nan
    poses, how = follow(model, frames, intrinsics)
    assert how == [None, BY_ALIGNMENT, BY_ALIGNMENT, BY_REPETITION]
    steps = np.linalg.inv(poses[:-1]) @ poses[1:]
    assert steps[2] == pytest.approx(steps[1], abs=1e-5)


@pytest.mark.long
def test_the_focal_length_of_a_camera_that_turns(model: FeatDepth) -> None:
    drive = Drive(Street(drives=4, frames=12, height=SIZE[0], width=SIZE[1], turning=3.0), 0)
    rendered = [render_frame(drive, frame) for frame in range(3, 12)]
    images = torch.from_numpy(np.stack([frame.image for frame in rendered])).permute(0, 3, 1, 2)
    depth = torch.from_numpy(np.stack([frame.depth for frame in rendered]))[:, None]
    other = KnownDepth(model.settings, model.frames, *SIZE).eval()
    other.know(images.float() / 255, depth)
    found = focal_by_alignment(other, images[:-1], images[1:], SIZE)
    assert found.widths == pytest.approx(drive.rig.intrinsics[0, 0] / SIZE[1], rel=0.05) and found.spread < 0.05
    other.know(1 - images.float() / 255, depth)  # a wall
    assert focal_by_alignment(other, images[:-1], images[1:], SIZE) is None


def test_few_pairs_show_no_focal_length(frames: list[np.ndarray], model: FeatDepth) -> None:
    assert focal_by_alignment(model, frames[:1], frames[1:2], SIZE) is None


def test_halfway_of_two_poses() -> None:
    angles = torch.tensor([0.1, 0.12, 0.11])
    first, second, middle = torch.eye(4).repeat(3, 1, 1, 1)
    for pose, angle in zip((first, second, middle), angles, strict=True):
        pose[0, 0, 0] = pose[0, 2, 2] = angle.cos()
        pose[0, 2, 0], pose[0, 0, 2] = -angle.sin(), angle.sin()
        pose[0, :3, 3] = torch.tensor([10.0, -20.0, 0.0]) * angle
    torch.testing.assert_close(halfway(first, second), middle, rtol=0, atol=1e-5)
