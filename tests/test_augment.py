"""Flip and colour jitter of batches: geometry, sameness within a sample, exact identity."""

from __future__ import annotations

import colorsys

import pytest
import torch
from torch import Tensor

from featdepth.data import augment
from featdepth.geometry import project

IDENTITY = [0.0, 1.0, 1.0, 1.0, 0.0]


def make_batch(jitter: list[list[float]], frames: int = 3, height: int = 6, width: int = 10) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    size = len(jitter)
    intrinsics = torch.tensor([[8.0, 0, 3.7], [0, 7.0, 2.2], [0, 0, 1]]).repeat(size, 1, 1)
    pose = torch.eye(4).repeat(size, 1, 1)
    pose[:, :3, 3] = torch.tensor([-0.54, 0.02, 0.01])
    return {
        "images": torch.randint(0, 256, (size, frames, 3, height, width), dtype=torch.uint8, generator=generator),
        "intrinsics": intrinsics,
        "stereo_pose": pose,
        "jitter": torch.tensor(jitter),
        "index": torch.arange(size),
    }


def test_identity_changes_nothing_but_the_type():
    batch = make_batch([IDENTITY] * 2)
    result = augment(batch)
    assert torch.equal(result["images"], batch["images"].float() / 255)
    assert torch.equal(result["augmented"], result["images"])
    for key in ("intrinsics", "stereo_pose", "index"):
        assert torch.equal(result[key], batch[key])
    assert result["images"].dtype == result["augmented"].dtype == torch.float32


def test_flip_mirrors_the_chosen_samples_and_leaves_the_given_batch():
    batch = make_batch([[1, *IDENTITY[1:]], IDENTITY])
    before = {key: value.clone() for key, value in batch.items()}
    result = augment(batch)
    plain = batch["images"].float() / 255
    assert torch.equal(result["images"][0], plain[0].flip(-1)) and torch.equal(result["images"][1], plain[1])
    assert result["intrinsics"][:, 0, 2].tolist() == pytest.approx([10 - 1 - 3.7, 3.7])
    assert result["stereo_pose"][:, 0, 3].tolist() == pytest.approx([0.54, -0.54])
    assert torch.equal(result["stereo_pose"][0, 1:], batch["stereo_pose"][0, 1:])
    assert all(torch.equal(batch[key], before[key]) for key in before)


def test_a_point_is_seen_at_the_mirrored_pixel_of_the_mirrored_cameras():
    batch = make_batch([[1, *IDENTITY[1:]]])
    batch["stereo_pose"][0, :3, :3] = torch.linalg.matrix_exp(
        torch.tensor([[0, -0.1, 0.2], [0.1, 0, 0.05], [-0.2, -0.05, 0]])
    )
    result = augment(batch)
    point = torch.tensor([[[0.4], [-0.3], [5.0]]])
    mirrored = point * torch.tensor([-1.0, 1, 1])[:, None]
    pixel = project(point, batch["intrinsics"], batch["stereo_pose"])
    mirrored_pixel = project(mirrored, result["intrinsics"], result["stereo_pose"])
    torch.testing.assert_close(mirrored_pixel[:, 0], 9 - pixel[:, 0])
    torch.testing.assert_close(mirrored_pixel[:, 1], pixel[:, 1])


def test_all_frames_of_a_sample_get_the_same_colour_map():
    batch = make_batch([[0, 1.2, 0.8, 1.1, 0.07], [1, 0.9, 1.1, 0.8, -0.1]])
    batch["images"] = batch["images"][:, :1].expand(-1, 3, -1, -1, -1)
    augmented = augment(batch)["augmented"]
    assert torch.equal(augmented[:, 0], augmented[:, 1]) and torch.equal(augmented[:, 0], augmented[:, 2])
    different = augment(make_batch([[0, 1.2, 0.8, 1.1, 0.07], [0, 0.9, 1.1, 0.8, -0.1]]))
    assert not torch.equal(different["augmented"], different["images"])


def test_losses_see_images_without_jitter():
    plain = augment(make_batch([IDENTITY]))["images"]
    assert torch.equal(augment(make_batch([[0, 1.2, 0.8, 1.2, 0.1]]))["images"], plain)


def colour(rgb: tuple[float, float, float], jitter: list[float]) -> list[float]:
    """What becomes of an image of one colour."""
    images = torch.tensor(rgb)[None, None, :, None, None].expand(1, 2, 3, 4, 4)
    batch = make_batch([jitter]) | {"images": images}
    return augment(batch)["augmented"][0, 0, :, 0, 0].tolist()


def test_each_factor_does_what_its_name_says():
    rgb = (0.5, 0.3, 0.2)
    luma = 0.299 * 0.5 + 0.587 * 0.3 + 0.114 * 0.2
    assert colour(rgb, [0, 1.2, 1, 1, 0]) == pytest.approx([0.6, 0.36, 0.24])
    assert colour(rgb, [0, 1, 1, 0.5, 0]) == pytest.approx([luma + 0.5 * (value - luma) for value in rgb])
    assert colour((1.0, 1.0, 1.0), [0, 1.2, 1, 1.2, 0.1]) == [1, 1, 1]
    images = torch.tensor([0.2, 0.6]).view(1, 2, 1, 1, 1).expand(1, 2, 3, 4, 4)
    contrasted = augment(make_batch([[0, 1, 0.5, 1, 0]]) | {"images": images})["augmented"]
    assert contrasted[0, :, 0, 0, 0].tolist() == pytest.approx([0.3, 0.5])


def test_hue_turns_like_the_colour_circle_and_keeps_luma():
    for rgb in ((0.6, 0.4, 0.4), (0.4, 0.6, 0.4), (0.4, 0.4, 0.6)):
        before = colorsys.rgb_to_hsv(*rgb)[0]
        for turn in (0.1, -0.1):
            turned = colour(rgb, [0, 1, 1, 1, turn])
            difference = (colorsys.rgb_to_hsv(*turned)[0] - before + 0.5) % 1 - 0.5
            assert difference == pytest.approx(turn, abs=0.06)
            luma = sum(
                weight * (new - old) for weight, new, old in zip((0.299, 0.587, 0.114), turned, rgb, strict=True)
            )
            assert luma == pytest.approx(0, abs=1e-6)
    assert colour((0.5, 0.5, 0.5), [0, 1, 1, 1, 0.1]) == pytest.approx([0.5] * 3, abs=1e-6)


def test_values_stay_within_range():
    augmented = augment(make_batch([[0, 1.2, 1.2, 1.2, 0.1]]))["augmented"]
    assert augmented.min() >= 0 and augmented.max() <= 1


def test_float_images_keep_their_values():
    batch = make_batch([IDENTITY])
    batch["images"] = torch.rand(1, 2, 3, 4, 6)
    assert torch.equal(augment(batch)["images"], batch["images"])


def test_monocular_batches_and_the_meta_device():
    batch = make_batch([[1, 1.1, 1, 1, 0.1]])
    del batch["stereo_pose"]
    meta = {key: value.to("meta") for key, value in batch.items()}
    result = augment(meta)
    assert "stereo_pose" not in result
    assert all(value.is_meta for value in result.values())
    assert result["augmented"].shape == batch["images"].shape
