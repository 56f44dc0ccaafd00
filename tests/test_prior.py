"""Depth of other models as a prior of training: its files, its loss, and the program that writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import call_program, succeeded
from PIL import Image
from run_records import differences, interrupted_copy, read_metrics
from tiny_depth_models import write_depth_model

import train
from featdepth.config import Config, load_config
from featdepth.data import augment, build_dataset
from featdepth.data.prior_maps import load_prior
from featdepth.errors import InputError
from featdepth.losses import affine_error
from featdepth.prior import __main__ as program

WHOLE = [0.0] * 4


def write_map(path: Path, values: np.ndarray) -> Path:
    """`values` float32 `[h, w]` in the format that the ending of `path` names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        np.savez(path, disparity=values)
    elif path.suffix == ".npy":
        np.save(path, values)
    else:
        Image.fromarray(values.astype(np.uint16) if path.suffix == ".png" else values).save(path)
    return path


def write_maps(config: Config, folder: Path, leave_out: int | None = None) -> None:
    """A map for each frame of training and validation: its number in the file's name, rising to the right."""
    for part in ("train", "validation"):
        dataset = build_dataset(config, part)
        for number, sample in enumerate(dataset.samples):
            image = Path(dataset.image_path(sample, 0)).relative_to(config.data.root)
            if (part, number) != ("train", leave_out):
                write_map((folder / image).with_suffix(".npy"), np.arange(32, dtype=np.float32)[None].repeat(16, 0))


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".png", ".tiff"])
def test_every_format_says_the_same(suffix: str, tmp_path: Path) -> None:
    values = np.arange(1, 9, dtype=np.float32)[None].repeat(4, 0)
    found = load_prior(write_map(tmp_path / f"map{suffix}", values), "disparity", WHOLE, (8, 16))
    assert found.shape == (1, 8, 16) and found.dtype == torch.float32
    torch.testing.assert_close(found[0, :, ::2].mean(0) + 0.25, torch.arange(1.0, 9), atol=0.26, rtol=0)
    if suffix != ".npz":
        inverse = load_prior(tmp_path / f"map{suffix}", "depth", WHOLE, (4, 8))
        torch.testing.assert_close(inverse[0, 0], 1 / torch.arange(1.0, 9))


def test_what_is_unknown_stays_unknown_and_crops_cut(tmp_path: Path) -> None:
    values = np.arange(16, dtype=np.float32)[None].repeat(8, 0)
    path = write_map(tmp_path / "map.png", values)
    assert load_prior(path, "disparity", WHOLE, (8, 16))[0, 0].isnan().tolist() == [True] + [False] * 15
    cut = load_prior(path, "disparity", [0.5, 0.0, 0.25, 0.25], (4, 8))
    torch.testing.assert_close(cut[0, 0], torch.arange(4.0, 12))
    values[:, :8] = np.nan
    halves = load_prior(write_map(tmp_path / "map.npy", values), "depth", WHOLE, (2, 4))
    assert halves[0, 0].isnan().tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"damaged", "holds no map as an array"),
        (np.zeros((3, 4, 5)), r"an array \[3, 4, 5\] is no map"),
        (np.array([[{}]], dtype=object), "holds no map as an array"),
    ],
)
def test_files_that_are_no_maps_are_named(content: bytes | np.ndarray, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "map.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    with pytest.raises(InputError, match=rf"map.npy: {expected}"):
        load_prior(path, "depth", WHOLE, (8, 8))


def test_an_archive_says_which_kind_it_holds(tmp_path: Path) -> None:
    path = write_map(tmp_path / "map.npz", np.ones((4, 4), dtype=np.float32))
    with pytest.raises(InputError, match=r"holds no map as an array depth .*data.prior_kind"):
        load_prior(path, "depth", WHOLE, (8, 8))
    Image.fromarray(np.zeros((4, 4), dtype=np.uint8)).save(tmp_path / "map.png")
    with pytest.raises(InputError, match=r"map.png: mode L is no map; expected a png of 16 bits"):
        load_prior(tmp_path / "map.png", "depth", WHOLE, (8, 8))


def test_scale_and_shift_do_not_count_and_edges_do() -> None:
    torch.manual_seed(0)
    prior = torch.rand(2, 1, 32, 48).cumsum(-1)
    same = affine_error(0.01 * prior + 0.2, prior)
    torch.testing.assert_close(same, torch.zeros(2), atol=1e-4, rtol=0)
    assert (affine_error(-prior, prior) > 1).all()
    noisy, shifted = prior + 0.5 * torch.randn_like(prior), prior.roll(1, -1)
    assert (affine_error(noisy, prior) > 0.05).all() and (affine_error(shifted, prior) > 0.01).all()


def test_the_unknown_has_no_part_in_loss_or_gradient() -> None:
    torch.manual_seed(0)
    disparity, prior = torch.rand(3, 1, 16, 24, requires_grad=True), torch.rand(3, 1, 16, 24)
    prior[0, :, :, :12], prior[1] = torch.nan, torch.nan
    error = affine_error(disparity, prior)
    error.sum().backward()
    assert error.isfinite().all() and error[1] == 0 and disparity.grad.isfinite().all()
    assert not disparity.grad[0, :, :, :12].any() and disparity.grad[0, :, :, 12:].any() and not disparity.grad[1].any()


def test_maps_are_mirrored_with_their_frames(config_file: Path, tmp_path: Path) -> None:
    config = load_config(config_file, [])
    write_maps(config, tmp_path)
    words = [f"data.prior={tmp_path}", "data.prior_kind=disparity", "loss.prior=0.1"]
    dataset = build_dataset(load_config(config_file, words), "train")
    batch = {name: value[None] for name, value in dataset[0].items()}
    assert batch["prior"].shape == (1, 1, 64, 96)
    for flip in (0.0, 1.0):
        batch["jitter"][:, 0] = flip
        mirrored = augment(batch)["prior"]
        assert torch.equal(mirrored, batch["prior"].flip(-1) if flip else batch["prior"])
    assert "prior" not in build_dataset(load_config(config_file, words), "test")[0]
    assert "prior" not in build_dataset(config, "train")[0]


def test_a_frame_without_a_map_is_named(config_file: Path, tmp_path: Path) -> None:
    config = load_config(config_file, [])
    write_maps(config, tmp_path, leave_out=3)
    words = [f"data.prior={tmp_path}", "data.prior_kind=depth", "loss.prior=0.1"]
    dataset = build_dataset(config, "train")
    frame = dataset.image_path(dataset.samples[3], 0)
    with pytest.raises(InputError, match=f"data.prior: the frame {frame} has no map"):
        build_dataset(load_config(config_file, words), "train")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["loss.prior=1"], "loss.prior is 1.0, but there is no prior"),
        (["loss.prior=1", "data.prior=."], "data.prior_kind is null; say what the maps of data.prior are"),
        (["data.prior=.", "data.prior_kind=depth"], "data.prior is ., but loss.prior is 0"),
        (["loss.prior=1", "data.prior=nowhere", "data.prior_kind=depth"], "data.prior is nowhere: no such folder"),
    ],
)
def test_keys_that_belong_together(words: list[str], expected: str, config_file: Path) -> None:
    with pytest.raises(InputError, match=expected):
        load_config(config_file, words)


def test_a_run_with_maps_and_a_cache_continues_bit_for_bit(config_file: Path, tmp_path: Path) -> None:
    write_maps(load_config(config_file, []), tmp_path / "maps")
    words = [f"data.prior={tmp_path / 'maps'}", "data.prior_kind=disparity", "loss.prior=0.5"]
    words += [f"data.cache={tmp_path / 'cache'}", "train.max_steps=3", "train.checkpoint_every=2", "train.log_every=1"]
    words += ["data.frames=[0, s]", "train.panel_samples=1"]
    run = tmp_path / "run"
    succeeded(call_program(train.main, "--cpu", "--config", config_file, f"run.directory={run}", *words))
    continued = interrupted_copy(run, tmp_path / "continued", step=2)
    arguments = ["--cpu", "--config", config_file, f"run.directory={continued}", *words, "--resume"]
    succeeded(call_program(train.main, *arguments))
    assert differences(run, continued) == []
    assert all(line["prior"] > 0 for line in read_metrics(run))


@pytest.mark.parametrize("large", [False, pytest.param(True, marks=pytest.mark.long)])
def test_the_program_writes_what_a_training_reads(
    large: bool, config_file: Path, finished_run: Path, tmp_path: Path
) -> None:
    model = finished_run / "model"
    if large:
        pytest.importorskip("transformers")
        model = write_depth_model(tmp_path / "base")
    words = ["--cpu", "--config", config_file, "--model", model, "--out", tmp_path / "maps"]
    first = succeeded(call_program(program.main, *words)).out
    assert "25 maps written, 0 were there" in first
    assert "0 maps written, 25 were there" in succeeded(call_program(program.main, *words)).out
    options = [f"data.prior={tmp_path / 'maps'}", "data.prior_kind=disparity", "loss.prior=0.5"]
    item = build_dataset(load_config(config_file, options), "validation")[0]
    assert item["prior"].isfinite().all() and item["prior"].std() > 0
