"""Motion by alignment: known motions of rendered frames, closed forms, and pairs that have no motion to find."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from featdepth import alignment, geometry
from featdepth.alignment import Alignment, align
from featdepth.data.synthetic import Drive, Street, render_frame

SIZE = (64, 192)


class Pair(NamedTuple):
    """A rendered pair, all `[B, ...]`."""

    target: Tensor  # grey [B, 1, H, W]
    source: Tensor
    depth: Tensor
    intrinsics: Tensor
    truth: Tensor  # source_from_target [B, 4, 4]


@pytest.fixture(scope="module")
def pair() -> Pair:
    """Two pairs of neighbouring frames of two drives, with exact depth."""
    street = Street(drives=4, frames=3, height=SIZE[0], width=SIZE[1])
    drives = [Drive(street, index) for index in (0, 3)]
    frames = [render_frame(drive, 0) for drive in drives]
    truths = [np.linalg.inv(drive.camera_pose(1)) @ drive.camera_pose(0) for drive in drives]
    return Pair(
        grey([frame.image for frame in frames]),
        grey([drive.image(1, 2) for drive in drives]),
        torch.from_numpy(np.stack([frame.depth for frame in frames]))[:, None],
        torch.from_numpy(np.stack([drive.rig.intrinsics for drive in drives])).float(),
        torch.from_numpy(np.stack(truths)).float(),
    )


def grey(images: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(images)).float().mean(-1)[:, None] / 255


def of_pair(pair: Pair, **changes: object) -> Alignment:
    """The alignment of a pair with some of its arguments changed."""
    arguments = pair._asdict() | changes
    del arguments["truth"]
    return align(**arguments)


def errors(pose: Tensor, truth: Tensor) -> tuple[float, float]:
    """The largest errors: of translations, in parts of the true ones, and of rotations, in degrees."""
    difference = geometry.invert_pose(truth.double()) @ pose.double()
    axis = difference[:, [2, 0, 1], [1, 2, 0]] - difference[:, [1, 2, 0], [2, 0, 1]]
    translation = (pose - truth)[:, :3, 3].norm(dim=1) / truth[:, :3, 3].norm(dim=1)
    return float(translation.max()), math.degrees(float(axis.norm(dim=1).max() / 2))


def noisy(image: Tensor, noise: float, seed: int) -> Tensor:
    return image + noise * torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.05])
def test_motions_of_rendered_frames(pair, noise):
    found = of_pair(pair, target=noisy(pair.target, noise, 0), source=noisy(pair.source, noise, 1))
    translation, rotation = errors(found.pose, pair.truth)
    assert translation < 0.03 and rotation < 0.06
    assert found.is_known.all() and (found.used > 0.7).all()
    # Bilinear samples between pixels have less noise than the pixels.
    assert (found.residual > noise).all() and (found.residual < math.sqrt(2) * noise + 0.02).all()


def test_every_start_leads_there(pair):
    found = of_pair(pair)
    starts = [pair.truth, torch.linalg.inv(pair.truth)]
    turned = geometry.pose_from_vector(torch.tensor([[0.01, -0.02, 0.01]]), torch.tensor([[0.2, 0.0, -0.5]]))
    for start in [*starts, turned.expand(2, 4, 4)]:
        again = of_pair(pair, start=start)
        translation, rotation = errors(again.pose, found.pose)
        assert translation < 1e-3 and rotation < 1e-3


def test_the_unit_of_depth_is_that_of_the_motion(pair):
    found = of_pair(pair)
    doubled = of_pair(pair, depth=2 * pair.depth)
    assert torch.equal(doubled.pose[:, :3, :3], found.pose[:, :3, :3])
    assert torch.equal(doubled.pose[:, :3, 3], 2 * found.pose[:, :3, 3])
    # Rotation and translation are coupled by one length, and translations by its square.
    assert torch.equal(doubled.information[:, :3, :3], found.information[:, :3, :3])
    assert torch.equal(doubled.information[:, 3:, 3:], found.information[:, 3:, 3:] / 4)
    started = of_pair(pair, depth=1000 * pair.depth, start=geometry.scale_translation(pair.truth, 1000.0))
    translation, rotation = errors(geometry.scale_translation(started.pose, 1e-3), pair.truth)
    assert translation < 0.03 and rotation < 0.06


def test_another_exposure(pair):
    darker = 0.7 * pair.source + 0.1
    translation, rotation = errors(of_pair(pair, source=darker).pose, pair.truth)
    assert translation < 0.03 and rotation < 0.06
    fixed = of_pair(pair, source=darker, free_tone=False)
    assert fixed.residual.min() > 2 * of_pair(pair, source=darker).residual.max()


def test_colours_and_features(pair):
    """Channels are residuals of their own; one that says nothing changes nothing."""
    found = of_pair(pair, free_tone=False)
    channels = [torch.cat([image, 0 * image, 1 - image], dim=1) for image in (pair.target, pair.source)]
    features = of_pair(pair, target=channels[0], source=channels[1], free_tone=False)
    translation, rotation = errors(features.pose, pair.truth)
    assert translation < 0.03 and rotation < 0.06
    assert found.used.allclose(features.used, atol=0.01)


def test_what_is_masked_or_has_no_depth_does_not_count(pair):
    mask = torch.ones_like(pair.depth, dtype=torch.bool)
    mask[..., 60:100] = False
    spoilt = torch.where(mask, pair.depth, torch.rand(pair.depth.shape) * 100)
    masked = of_pair(pair, mask=mask)
    for changes in ({"depth": spoilt, "mask": mask}, {"depth": torch.where(mask, pair.depth, torch.nan)}):
        for one, other in zip(of_pair(pair, **changes), masked, strict=True):
            assert torch.equal(one, other)
    assert errors(masked.pose, pair.truth)[0] < 0.05


def test_something_large_that_moves_with_the_camera_is_masked(pair):
    """A quarter of the picture that stands still asks for no motion, unless it is left out."""
    target, source = pair.target.clone(), pair.source.clone()
    texture = torch.rand(1, 1, 20, 30, generator=torch.Generator().manual_seed(0))
    texture = texture.repeat_interleave(2, 2).repeat_interleave(2, 3)
    target[..., 24:, 60:120] = source[..., 24:, 60:120] = texture
    mask = torch.ones_like(target)
    mask[..., 20:, 56:124] = 0
    translation, _ = errors(of_pair(pair, target=target, source=source, mask=mask).pose, pair.truth)
    fooled, _ = errors(of_pair(pair, target=target, source=source).pose, pair.truth)
    assert translation < 0.1 and translation < fooled / 3


def test_sparse_depth(pair):
    is_kept = torch.rand(pair.depth.shape, generator=torch.Generator().manual_seed(0)) < 0.1
    found = of_pair(pair, depth=torch.where(is_kept, pair.depth, 0.0))
    translation, rotation = errors(found.pose, pair.truth)
    assert translation < 0.03 and rotation < 0.1 and found.is_known.all()


def test_infinite_depth_knows_the_rotation_alone(pair):
    """Pictures turned by a homography: with nothing near, no translation shows, and the result says so."""
    rotation = geometry.pose_from_vector(torch.tensor([[0.004, 0.015, -0.01]]), torch.zeros(1, 3)).expand(2, 4, 4)
    far = torch.full_like(pair.depth, torch.inf)
    source = geometry.warp(pair.target, torch.ones_like(far), pair.intrinsics, geometry.invert_pose(rotation))
    found = of_pair(pair, source=source, depth=far)
    assert errors(found.pose, rotation)[1] < 0.03
    assert (found.pose[:, :3, 3] == 0).all() and not found.is_known.any()
    # On a plane, turning and sliding look alike but for the corners: what is left is some tenth of a pixel.
    near = of_pair(pair, source=source, depth=torch.full_like(far, 10.0))
    assert near.is_known.all() and near.pose[:, :3, 3].abs().max() < 0.05


@pytest.mark.parametrize("free_tone", [True, False])
def test_pairs_without_a_motion_to_find(pair, free_tone):
    """All end finite, say that nothing is known, and leave the start where nothing speaks for another pose."""
    flat = torch.full_like(pair.target, 0.5)
    nothing, near = torch.zeros_like(pair.depth), pair.depth.clamp(max=80)  # the sky is seen from everywhere
    away = pair.truth.clone()
    away[:, 0, 3] = 1e4
    behind = pair.truth.clone()
    behind[:, 2, 3] = -1e6
    noise = [torch.rand(flat.shape, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    start = pair.truth
    cases = {
        "no texture": {"target": flat, "source": flat, "start": start},
        "nothing in the source": {"source": flat},
        "no depth": {"depth": nothing, "start": start},
        "all masked": {"mask": nothing, "start": start},
        "no overlap": {"start": away, "depth": near},
        "behind the camera": {"start": behind, "depth": near},
        "two other pictures": {"target": noise[0], "source": noise[1]},
    }
    for name, changes in cases.items():
        found = of_pair(pair, free_tone=free_tone, **changes)
        assert not found.is_known.any(), name
        assert all(values.isfinite().all() for values in found), name
        if "start" in changes:
            torch.testing.assert_close(found.pose, changes["start"], msg=name)


def test_samples_do_not_touch_each_other(pair):
    """A batch gives what its samples give alone, also beside one without texture."""
    blank = Pair(*(torch.cat([values, values[:1]]) for values in pair))
    blank.target[2] = 0.5
    together = of_pair(blank)
    assert together.is_known.tolist() == [True, True, False]
    for index in range(2):
        alone = of_pair(Pair(*(values[index : index + 1] for values in pair)))
        torch.testing.assert_close(alone.pose, together.pose[index : index + 1], rtol=0, atol=1e-3)


def test_jacobian_is_the_derivative():
    """Against autograd, of a picture a x + b y + c x y, whose central differences and bilinear samples are exact."""
    intrinsics = torch.tensor([[[31.0, 0.3, 18.3], [0.0, 29.0, 12.4], [0.0, 0.0, 1.0]]], dtype=torch.float64)
    pixels = geometry.pixel_grid(24, 40, like=intrinsics)[None]
    rays = geometry.invert_intrinsics(intrinsics) @ pixels
    inverse_depth = 0.1 + torch.rand(1, 1, pixels.shape[2], dtype=torch.float64)

    def picture(pixels: Tensor) -> Tensor:
        x, y = pixels[:, :1], pixels[:, 1:2]
        return torch.cat([0.3 * x - 0.2 * y + 0.01 * x * y, 0.1 * x + 0.5 * y], dim=1)

    # An increment for each pixel, so that one backward pass gives the derivatives of all.
    increments = torch.zeros(pixels.shape[2], 6, dtype=torch.float64, requires_grad=True)
    poses = geometry.pose_from_vector(increments[:, :3], increments[:, 3:])
    points = (rays / inverse_depth)[0].T[..., None]
    seen = picture(geometry.project(points, intrinsics.expand(len(points), 3, 3), poses))[..., 0]
    expected = [torch.autograd.grad(seen[:, channel].sum(), increments, retain_graph=True)[0].T for channel in (0, 1)]

    values = picture(pixels).unflatten(2, (24, 40))
    weight = torch.ones(1, 1, 24, 40, dtype=torch.float64)
    gradient_x, gradient_y, inside = alignment.image_gradients(values, weight)
    fx, skew, fy = 31.0, 0.3, 29.0
    over_rays = [(fx * gradient_x).flatten(2), (skew * gradient_x + fy * gradient_y).flatten(2)]
    found = alignment.pose_jacobian(*over_rays, rays, inverse_depth)[0]
    is_inside = inside.flatten() > 0
    assert is_inside.sum() == 22 * 38
    torch.testing.assert_close(found[..., is_inside], torch.stack(expected, dim=1)[..., is_inside])


def test_the_level_has_the_jacobian_of_its_pictures(pair):
    """A small increment changes the residuals of equal pictures as the level's Jacobian says."""
    smooth = functional.interpolate(pair.target[:, :, ::8, ::8], SIZE, mode="bicubic", align_corners=True)
    level = alignment.make_level(
        smooth, smooth, 1 / pair.depth.clamp(max=100), torch.ones_like(smooth), pair.intrinsics, True, 2.0
    )
    increment = torch.tensor([[2e-3, -3e-3, 4e-3, 0.05, 0.03, -0.1]]).expand(2, 6)
    pose = geometry.pose_from_vector(increment[:, :3], increment[:, 3:])
    residuals, in_view = alignment.compare(level, pose, torch.zeros(2, 2))
    predicted = (increment[:, None] @ level.jacobian[:, :6])[:, 0]
    both = torch.stack([(residuals * in_view)[:, 0], predicted * in_view[:, 0]])
    correlation = (both[0] * both[1]).sum() / both.square().sum((1, 2)).prod().sqrt()
    assert correlation > 0.97
    assert float((both[0] * both[1]).sum() / both[1].square().sum()) == pytest.approx(1, abs=0.05)


def test_information_is_of_increments_on_the_left():
    """An increment on the left costs what the same one costs that is carried to the right."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(2, 6, 6, generator=generator)
    vectors = 0.3 * torch.randn(2, 2, 3, generator=generator)
    pose, unit = geometry.pose_from_vector(*vectors), torch.tensor([2.0, 7.0])
    one = torch.ones(2)
    hessian = root @ root.transpose(1, 2)
    state = alignment.Estimate(pose, torch.zeros(2, 2), hessian, root[:, 0], one, one, 0.5 * one, one, one, one)
    information = alignment.left_information(state, pose, unit)
    increment = 1e-3 * torch.randn(2, 6, generator=generator, dtype=torch.float64)
    exact = pose.double()
    left = geometry.pose_from_vector(increment[:, :3], increment[:, 3:])
    right = torch.linalg.inv(exact) @ left @ exact
    turned = (right[:, [2, 0, 1], [1, 2, 0]] - right[:, [1, 2, 0], [2, 0, 1]]) / 2
    carried = torch.cat([turned, right[:, :3, 3] / unit[:, None]], dim=1)
    own = torch.einsum("bi,bij,bj->b", increment, information.double(), increment)
    expected = torch.einsum("bi,bij,bj->b", carried, hessian.double(), carried) / 0.25
    torch.testing.assert_close(own, expected, rtol=0.01, atol=0)


def test_free_tone_lowers_the_information():
    """What gain and offset take up is left out of it, in closed form."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(1, 8, 12, generator=generator)
    hessian, one, pose = root @ root.transpose(1, 2), torch.ones(1), torch.eye(4)[None]
    state = alignment.Estimate(pose, torch.zeros(1, 2), hessian, root[:, :, 0], one, one, one, one, one, one)
    expected = torch.linalg.inv(torch.linalg.inv(hessian)[:, :6, :6])
    torch.testing.assert_close(alignment.left_information(state, pose, one), expected, rtol=1e-2, atol=1e-2)


def test_full_precision_under_autocast(pair):
    found = of_pair(pair)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = of_pair(pair)
    for one, other in zip(found, again, strict=True):
        assert torch.equal(one, other) and one.dtype == other.dtype
    assert found.pose.dtype == torch.float32


@pytest.mark.long
def test_compiles_as_one_graph(pair):
    small = [values[:, :, :12, :32] for values in pair[:3]]
    compiled = torch.compile(align, fullgraph=True, backend="eager")
    options = {"iterations": (1, 1)}
    expected = align(*small, pair.intrinsics, **options)
    for one, other in zip(compiled(*small, pair.intrinsics, **options), expected, strict=True):
        torch.testing.assert_close(one, other)


def test_pixels_of_large_pictures_are_chosen(pair, monkeypatch):
    """Those with the strongest gradients of their squares do for the motion."""
    monkeypatch.setattr(alignment, "MOST_CHOSEN", SIZE[0] * SIZE[1] // 4)
    everywhere = torch.ones_like(pair.depth)
    level = alignment.make_levels(pair.target, pair.source, 1 / pair.depth, everywhere, pair.intrinsics, True)[0]
    assert level.points.shape[2] == SIZE[0] * SIZE[1] // 4
    translation, rotation = errors(of_pair(pair).pose, pair.truth)
    assert translation < 0.03 and rotation < 0.06


def test_what_hangs_on_depth_counts_less(pair, monkeypatch):
    """Depth that is too small on the left and too large on the right turns the camera less than if it were believed."""
    depth = pair.depth * torch.linspace(-0.3, 0.3, SIZE[1]).exp()
    _, rotation = errors(of_pair(pair, depth=depth).pose, pair.truth)
    monkeypatch.setattr(alignment, "DEPTH_DEVIATION", 0.0)
    _, believed = errors(of_pair(pair, depth=depth).pose, pair.truth)
    assert rotation < 0.5 * believed
