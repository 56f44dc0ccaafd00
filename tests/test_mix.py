"""Several data sets in one run: how often each is drawn, what its samples are, and exact continuation."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml
from conftest import call_program, run_program_process, succeeded, write_tiny_config
from kitti_tree import drive_name, make_config, write_calibration, write_drive, write_list
from run_records import differences, interrupted_copy, read_metrics
from torch.utils.data import DataLoader

import train
from featdepth.config import Config, load_config, save_config
from featdepth.data import build_dataset, cache, leaked_drives
from featdepth.data.mix import MixedDataset
from featdepth.errors import InputError
from featdepth.models import FeatDepth

OTHER_SIZE = (60, 100)
FIRST, SECOND, HELD_OUT, TESTED = (drive_name(number) for number in (1, 2, 3, 4))
ELSEWHERE, SHARED_NAME = drive_name(5), drive_name(1)


@pytest.fixture
def trees(tmp_path: Path) -> Path:
    """`own`: a drive of 6 and one of 2 samples; `other`: 4 samples of another camera. Configurations beside them."""
    write_calibration(tmp_path / "own" / "raw")
    for drive, frames in ((FIRST, 8), (SECOND, 4), (HELD_OUT, 3), (TESTED, 3)):
        write_drive(tmp_path / "own" / "raw", drive, range(frames), sides="l")
    write_calibration(tmp_path / "other" / "raw", size=OTHER_SIZE)
    write_drive(tmp_path / "other" / "raw", ELSEWHERE, range(6), sides="l", size=OTHER_SIZE)
    lists = {"own": {"train": {FIRST: 6, SECOND: 2}, "val": {HELD_OUT: 1}, "test": {TESTED: 1}}}
    lists["other"] = {"train": {ELSEWHERE: 4}}
    for name, parts in lists.items():
        for part, drives in parts.items():
            lines = [f"{drive} {frame} l" for drive, count in drives.items() for frame in range(1, count + 1)]
            write_list(tmp_path / name / "split" / f"{part}_files.txt", lines)
        config = make_config(tmp_path / name, height=64)
        config.model.objective, config.model.metres_per_unit = "photometric", None
        save_config(config, tmp_path / f"{name}.yaml")
    return tmp_path


def mixed(trees: Path, **data: object) -> Config:
    """The own configuration with the other mixed in."""
    config = load_config(trees / "own.yaml", training=False)
    for key, value in {"mix": [str(trees / "other.yaml")], **data}.items():
        setattr(config.data, key, value)
    return config


def drawn(dataset: MixedDataset, epochs: int = 1) -> Counter[str]:
    """How often each drive is drawn."""
    orders = [dataset.draw_order(epoch) for epoch in range(epochs)]
    return Counter(dataset.samples[index].drive for order in orders for index in order)


class TestOrder:
    def test_by_default_an_epoch_has_every_sample_once(self, trees: Path) -> None:
        dataset = build_dataset(mixed(trees), "train")
        assert len(dataset) == len(dataset.samples) == 12
        for epoch in range(20):
            assert sorted(dataset.draw_order(epoch)) == list(range(12))

    def test_weights(self, trees: Path) -> None:
        """One third of the other data set's four samples becomes three quarters."""
        dataset = build_dataset(mixed(trees, mix_weights=[1.0, 3.0]), "train")
        for epoch in range(20):
            order = dataset.draw_order(epoch)
            assert len(order) == 12
            counts = Counter(order)
            assert sum(counts[index] for index in range(8, 12)) == 9
            # None comes a third time before all have come twice.
            assert sorted(counts[index] for index in range(8, 12)) == [2, 2, 2, 3]

    def test_drives_alike(self, trees: Path) -> None:
        alike = build_dataset(mixed(trees, mix=[], drive_balance=1.0), "train")
        assert drawn(alike) == {FIRST: 4, SECOND: 4}
        by_samples = build_dataset(mixed(trees, mix=[], drive_balance=0.0), "train")
        assert not isinstance(by_samples, MixedDataset) and len(by_samples) == 8

    def test_shares_are_exact_over_many_epochs(self, trees: Path) -> None:
        dataset = build_dataset(mixed(trees, drive_balance=0.5, mix_weights=[1.0, 1.0]), "train")
        counts = drawn(dataset, epochs=400)
        share = 6**0.5 / (6**0.5 + 2**0.5)
        assert counts[ELSEWHERE] == 6 * 400
        assert counts[FIRST] / 400 == pytest.approx(6 * share, abs=0.08)
        assert counts[SECOND] / 400 == pytest.approx(6 * (1 - share), abs=0.08)

    def test_depends_on_seed_and_epoch_alone(self, trees: Path) -> None:
        config = mixed(trees, mix_weights=[1.0, 3.0])
        one, other = build_dataset(config, "train"), build_dataset(config, "train")
        orders = [list(one.draw_order(epoch)) for epoch in range(3)]
        assert orders == [list(other.draw_order(epoch)) for epoch in range(3)]
        assert orders[0] != orders[1] != orders[2]
        config.train.seed = 1
        assert list(build_dataset(config, "train").draw_order(0)) != orders[0]


class TestSamples:
    def test_each_has_its_own_camera_at_one_size(self, trees: Path) -> None:
        dataset = build_dataset(mixed(trees), "train")
        members = [
            build_dataset(load_config(trees / f"{name}.yaml", training=False), "train") for name in ("own", "other")
        ]
        seen = set()
        for position in range(12):
            item = dataset[position]
            index = int(item["index"])
            seen.add(index)
            alone = members[index >= 8][index - 8 * (index >= 8)]
            assert dataset.samples[index] in (members[0].samples + members[1].samples)
            assert item["images"].shape == (3, 3, 64, 96)
            assert torch.equal(item["images"], alone["images"])
            assert torch.equal(item["intrinsics"], alone["intrinsics"])
        assert seen == set(range(12))
        assert not torch.allclose(members[0][0]["intrinsics"], members[1][0]["intrinsics"])

    def test_a_sample_that_is_drawn_twice_is_augmented_in_two_ways(self, trees: Path) -> None:
        dataset = build_dataset(mixed(trees, mix_weights=[1.0, 9.0], colour_jitter=1.0), "train")
        items = [dataset[position] for position in range(12)]
        jitters = {tuple(item["jitter"].tolist()) for item in items}
        assert len({int(item["index"]) for item in items}) < 12 and len(jitters) == 12

    def test_loader_processes_follow_the_epoch(self, trees: Path) -> None:
        config = mixed(trees, mix_weights=[1.0, 2.0])
        dataset, alone = build_dataset(config, "train"), build_dataset(config, "train")
        loader = DataLoader(dataset, batch_size=4, num_workers=2, persistent_workers=True)
        jitters = []
        for epoch in (0, 3):
            dataset.set_epoch(epoch)
            alone.set_epoch(epoch)
            batches = list(loader)
            for name in ("index", "jitter", "images"):
                expected = torch.stack([alone[position][name] for position in range(12)])
                assert torch.equal(torch.cat([batch[name] for batch in batches]), expected), name
            assert torch.cat([batch["index"] for batch in batches]).tolist() == list(dataset.draw_order(epoch))
            jitters.append(torch.cat([batch["jitter"] for batch in batches]))
        assert not torch.equal(*jitters)

    def test_surface(self, trees: Path) -> None:
        dataset = build_dataset(mixed(trees, mix_weights=[1.0, 3.0]), "train")
        assert dataset.drives == dataset.recordings() == [FIRST, SECOND, ELSEWHERE]
        header = dataset.describe().splitlines()
        assert header[0] == "12 samples of 3 drives; an epoch draws"
        assert "25.0%  kitti_raw" in header[1] and "8 samples of 2 drives" in header[1]
        assert "75.0%  kitti_raw" in header[2] and "4 samples of 1 drive" in header[2]
        with pytest.raises(IndexError):
            dataset[12]

    def test_only_training_is_mixed(self, trees: Path) -> None:
        config = mixed(trees)
        assert build_dataset(config, "validation").drives == [HELD_OUT]
        assert build_dataset(config, "train", frames=[0]).drives == [FIRST, SECOND]

    def test_selection_is_each_ones_own(self, trees: Path) -> None:
        change(trees / "other.yaml", "data", min_motion=1.0)
        with pytest.raises(InputError, match=r"other\.yaml: data\.min_motion"):
            build_dataset(mixed(trees), "train")

    def test_learned_intrinsics(self, trees: Path) -> None:
        """Both data sets have a camera of one name; learned apart they cannot be."""
        with pytest.raises(InputError, match=r"both have a camera 2011_09_26"):
            build_dataset(mixed(trees), "train").start_intrinsics()


def change(path: Path, section: str, **values: object) -> None:
    """Set keys of a configuration file."""
    content = yaml.safe_load(path.read_text())
    content[section] |= values
    path.write_text(yaml.safe_dump(content))


class TestErrors:
    def refused(self, trees: Path, *options: str) -> str:
        options = (f"data.mix=[{trees}/other.yaml]", f"run.directory={trees}/run", *options)
        return call_program(train.main, "--config", trees / "own.yaml", *options).error_line()

    def test_no_such_file(self, trees: Path) -> None:
        line = self.refused(trees, "data.mix=[nowhere.yaml]")
        assert "data.mix names nowhere.yaml: no such configuration file" in line

    @pytest.mark.parametrize("weights", ["[1.0]", "[1.0, 2.0, 3.0]", "[1.0, 0.0]"])
    def test_weights(self, trees: Path, weights: str) -> None:
        line = self.refused(trees, f"data.mix_weights={weights}")
        assert "data.mix_weights" in line and "2 numbers above 0" in line

    def test_paths(self, trees: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(trees))
        assert load_config(trees / "own.yaml", ["data.mix=[~/other.yaml]"]).data.mix == [str(trees / "other.yaml")]
        assert "no path can be" in self.refused(trees, 'data.mix=["a\\0b"]')

    def test_balance(self, trees: Path) -> None:
        assert "data.drive_balance is 1.5" in self.refused(trees, "data.drive_balance=1.5")

    def test_mix_of_mixes(self, trees: Path) -> None:
        change(trees / "other.yaml", "data", mix=[str(trees / "own.yaml")])
        assert "other.yaml mixes data sets itself" in self.refused(trees)

    def test_no_second_camera(self, trees: Path) -> None:
        """Frames are the mixing configuration's; a kind without stereo cannot follow."""
        (trees / "other.yaml").write_text(
            yaml.safe_dump(
                {
                    "data": {"kind": "seven_scenes", "root": str(trees), "split": "time", "frames": [0, 1]},
                    "model": {"objective": "photometric", "metres_per_unit": None},
                    "evaluate": {"protocol": "own"},
                }
            )
        )
        write_drive(trees / "own" / "raw", FIRST, range(8), sides="r")
        line = self.refused(trees, "data.frames=[0, -1, s]", "model.metres_per_unit=36")
        assert "data.mix" in line and "other.yaml" in line and "one camera" in line

    def test_no_stereo_images(self, trees: Path) -> None:
        write_drive(trees / "own" / "raw", FIRST, range(8), sides="r")
        line = self.refused(trees, "data.frames=[0, s]", "model.metres_per_unit=36")
        assert "other.yaml: train: none of 4 samples has all of its frames" in line

    def test_a_drive_that_is_held_out_here(self, trees: Path) -> None:
        shutil.copytree(trees / "other" / "raw" / ELSEWHERE, trees / "other" / "raw" / TESTED)
        write_list(trees / "other" / "split" / "train_files.txt", [f"{TESTED} 1 l", f"{ELSEWHERE} 1 l"])
        line = self.refused(trees)
        assert f"{trees}/other.yaml trains on drives that validation or test" in line and TESTED in line
        config = mixed(trees, allow_leakage=True)
        assert leaked_drives(config, build_dataset(config, "train").recordings()) == [TESTED]

    def test_a_leak_of_its_own(self, trees: Path) -> None:
        write_list(trees / "other" / "split" / "test_files.txt", [f"{ELSEWHERE} 1 l"])
        line = self.refused(trees)
        assert "other.yaml: train" in line and f"share drives: {ELSEWHERE}" in line
        assert leaked_drives(mixed(trees, allow_leakage=True)) == [ELSEWHERE]


def test_the_cache_is_filled_for_all(trees: Path) -> None:
    """Differently cropped frames are kept apart."""
    change(trees / "other.yaml", "data", crop=[0.0, 0.1, 0.0, 0.0])
    options = [f"data.mix=[{trees}/other.yaml]", f"data.cache={trees}/cache", "data.workers=0"]
    printed = succeeded(call_program(cache.main, "--config", trees / "own.yaml", *options)).out
    assert "15 added" in printed and "6 added" in printed
    assert len(list((trees / "cache").glob("64x96-*"))) == 2
    printed = succeeded(call_program(cache.main, "--config", trees / "own.yaml", *options)).out
    assert "0 added, 15 there before" in printed and "0 added, 6 there before" in printed


OPTIONS = ("train.max_steps=4", "train.checkpoint_every=2", "train.keep_checkpoints=9", "train.log_every=1")


@pytest.fixture
def tiny_mix(trees: Path) -> list[object]:
    """A tiny run on both trees: what train.py is called with."""
    config = write_tiny_config(trees / "tiny.yaml", trees / "own" / "raw")
    change(config, "data", split=str(trees / "own" / "split"), frames=[0, -1], mix=[str(trees / "other.yaml")])
    change(config, "data", mix_weights=[1.0, 2.0], drive_balance=0.5)
    change(config, "model", metres_per_unit=None)
    return ["--config", config, *OPTIONS]


def test_interrupted_run_continues_as_if_nothing_had_happened(tiny_mix: list[object], trees: Path) -> None:
    whole = trees / "whole"
    printed = succeeded(call_program(train.main, *tiny_mix, f"run.directory={whole}")).out
    assert "66.7%" in printed and "33.3%" in printed
    assert FeatDepth.from_pretrained(whole / "model").provenance.drives.count(ELSEWHERE) == 1
    assert [line["samples"] for line in read_metrics(whole) if line["split"] == "validation"] == [1]

    part = interrupted_copy(whole, trees / "part", step=2)
    again = [*tiny_mix, f"run.directory={part}", "--resume"]
    succeeded(call_program(train.main, *again, "data.workers=2"))
    assert differences(whole, part) == []

    # What the other configuration says is part of what a run is made with.
    other = trees / "other.yaml"
    change(other, "data", crop=[0.0, 0.1, 0.0, 0.0])
    line = call_program(train.main, *again).error_line()
    assert "data.mix 1: crop" in line and "other images" in line


PROBE = """
import json, sys
from pathlib import Path
from accelerate.utils import gather_object
from featdepth.config import load_config
from featdepth.data import build_dataset
from featdepth.parallel.accelerator import make_accelerator
from featdepth.parallel.loaders import make_loader

config = load_config(sys.argv[1])
accelerator = make_accelerator(config, cpu=True)
dataset = build_dataset(config, "train")
loader = accelerator.prepare(make_loader(dataset, config, shuffle=True))
answers = []
for epoch, skipped in ((0, 0), (1, 0), (1, 2)):
    dataset.set_epoch(epoch)
    loader.set_epoch(epoch)
    batches = accelerator.skip_first_batches(loader, skipped)
    mine = [[batch["index"].tolist(), batch["jitter"].tolist()] for batch in batches]
    answers.append(gather_object([mine]))
if accelerator.is_main_process:
    Path(sys.argv[2]).write_text(json.dumps(answers))
# A process that ends while it is still connected aborts now and then.
accelerator.end_training()
"""


def test_two_processes_share_an_epoch(tiny_mix: list[object], trees: Path) -> None:
    """Together they see what the epoch draws, and after an interruption the rest of it."""
    (trees / "probe.py").write_text(PROBE)
    out = trees / "answers.json"
    succeeded(run_program_process([trees / "probe.py", tiny_mix[1], out], processes=2))
    whole, later, continued = json.loads(out.read_text())  # [epoch][process][batch][indices, jitters]
    dataset = build_dataset(load_config(tiny_mix[1]), "train")
    for epoch, processes in enumerate((whole, later)):
        seen = [index for batches in processes for indices, _ in batches for index in indices]
        assert sorted(seen) == sorted(dataset.draw_order(epoch))
        jitters = [tuple(numbers) for batches in processes for _, jitters in batches for numbers in jitters]
        assert len(set(jitters)) > 6  # half of the samples have no colour jitter
    assert [len(batches) for batches in continued] == [1, 1]
    assert continued == [batches[2:] for batches in later]
