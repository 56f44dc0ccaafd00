"""Containers have little shared memory, and Linux kills what writes beyond it: noticed before the first batch."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from conftest import Result, call_program, forget_accelerator, succeeded
from PIL import Image
from tiny_models import tiny_model
from torch.utils.data import DataLoader

import evaluate
import train
from featdepth.config import Config, Data, load_config
from featdepth.data import build_dataset
from featdepth.errors import InputError, explain_loss
from featdepth.parallel import loaders
from featdepth.parallel.loaders import check_shared_memory, sample_bytes
from featdepth.predict import __main__ as predict

MIB = 1 << 20


@pytest.fixture
def docker(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 MiB."""
    give(monkeypatch, 64 * MIB)


def give(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(loaders, "free_shared_memory", lambda: free)


def check(batch_bytes: int, workers: int = 4, batches: int = 1000, beside: int = 0) -> None:
    forget_accelerator()
    check_shared_memory(Accelerator(cpu=True), "training", batch_bytes, batches, workers, beside=beside)
    forget_accelerator()


@pytest.mark.usefixtures("docker")
class TestCheck:
    def test_too_much_is_told_with_sizes_and_options(self) -> None:
        """What `kitti.yaml` has in flight: four loader processes, two batches each, two of four images 320x1024."""
        with pytest.raises(InputError) as raised:
            check(2 * 4 * 3 * 320 * 1024)
        line = str(raised.value)
        assert "training: the loader processes (4) have up to 75 MiB of batches (7.5 MiB each)" in line
        assert "/dev/shm has 64 MiB free" in line and "--shm-size=1g" in line and "data.workers=3" in line

    def test_the_option_that_is_named_fits(self) -> None:
        check(2 * 4 * 3 * 320 * 1024, workers=3)
        with pytest.raises(InputError, match=r"--shm-size=64g.* data\.workers=0$"):
            check(2 << 30)

    def test_what_fits_passes(self) -> None:
        check(6 * MIB)
        check(10 * MIB, batches=6)
        check(1 << 40, workers=0)

    def test_another_loader_that_waits_with_its_batches_counts(self) -> None:
        check(6 * MIB, workers=2, beside=7 * MIB)
        with pytest.raises(InputError, match=r"72 MiB of batches \(6 MiB each, beside 4 of 9 MiB\).* data\.workers=1$"):
            check(6 * MIB, workers=2, beside=9 * MIB)

    def test_processes_of_a_machine_share_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
        with pytest.raises(InputError, match=r"\(4 of each of 2 processes\) have up to 120 MiB"):
            check(6 * MIB)


@pytest.mark.parametrize("change", [None, "another system", "no such folder", "no limit"])
def test_where_nothing_can_be_said_nothing_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str | None
) -> None:
    full = SimpleNamespace(f_bavail=0, f_frsize=4096, f_blocks=0 if change == "no limit" else 16384)
    monkeypatch.setattr(loaders, "SHARED_MEMORY", str(tmp_path / ("none" if change == "no such folder" else "")))
    monkeypatch.setattr(os, "statvfs", lambda _path: full)
    monkeypatch.setattr(sys, "platform", "darwin" if change == "another system" else "linux")
    assert loaders.free_shared_memory() == (None if change else 0)
    if change:
        check(1 << 40)


@pytest.mark.parametrize("part", ["train", "validation"])
def test_samples_are_as_large_as_is_said(config_file: Path, part: str) -> None:
    dataset = build_dataset(load_config(config_file, []), part)
    batch = next(iter(DataLoader(dataset, 2)))
    largest = sum(values.nbytes for values in batch.values() if values.numel() > 1000)
    assert largest == 2 * sample_bytes(dataset) and ("depth" in batch) == (part == "validation")


class TestPrograms:
    def refused(self, result: Result, what: str, option: str) -> None:
        line = result.error_line()
        assert line.startswith(f"error: {what}: the loader processes (") and option in line

    @pytest.mark.parametrize("free", [0, 300 * 1024])
    def test_training_before_its_first_batch(
        self, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int
    ) -> None:
        """Four samples in flight: 55,296 bytes of images each; in validation 49,152 of ground truth besides."""
        give(monkeypatch, free)
        arguments = ["--config", config_file, f"run.directory={tmp_path / 'run'}", "data.workers=1"]
        result = call_program(train.main, *arguments, "train.batch_size=1")
        self.refused(result, "validation" if free else "training", "data.workers=")
        assert not (tmp_path / "run").exists()

    def test_training_that_stops_within_an_epoch_keeps_its_batches_while_it_validates(
        self, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Validation has four samples of 104,448 bytes in flight, and two of 55,296 bytes of the training wait."""
        give(monkeypatch, 500_000)
        arguments = ["--config", config_file, f"run.directory={tmp_path / 'run'}", "data.workers=1"]
        result = call_program(train.main, *arguments, "train.batch_size=1", "train.max_steps=1")
        self.refused(result, "validation", "beside 2 of 0.0527 MiB")
        succeeded(call_program(train.main, *arguments, "train.batch_size=1", "train.max_steps=0"))

    def test_prediction_and_evaluation(
        self, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        give(monkeypatch, 4096)
        tiny_model(Config(data=Data(height=64, width=96))).save_pretrained(tmp_path / "model")
        for number in range(9):
            (tmp_path / "photos").mkdir(exist_ok=True)
            Image.new("RGB", (96, 64)).save(tmp_path / "photos" / f"{number}.png")
        words = [tmp_path / "photos", "--checkpoint", tmp_path / "model", "--out", tmp_path / "out"]
        result = call_program(predict.main, *words, "--batch-size", 1, "--workers", 4)
        self.refused(result, "inputs", "or set --workers 0")
        succeeded(call_program(predict.main, *words, "--batch-size", 1, "--workers", 0, "--overwrite"))
        words = ["--config", config_file, "--checkpoint", tmp_path / "model", "--out", tmp_path / "scores"]
        self.refused(call_program(evaluate.main, *words, "data.workers=4"), "test", "data.workers=0")


def test_a_loader_process_that_ran_out_of_it_is_explained() -> None:
    killed = "DataLoader worker (pid 12) is killed by signal: Bus error. It is possible that workers are out of it"
    assert "--shm-size" in explain_loss(RuntimeError(killed))
    missing = "unable to open shared memory object </torch_1_2> in read-write mode: No such file or directory (2)"
    assert "data.workers=0" in explain_loss(RuntimeError(missing))
    assert torch.multiprocessing.get_sharing_strategy() in ("file_descriptor", "file_system")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of ..."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: ..."),
    ],
)
def test_too_little_memory_for_a_batch_is_explained(error: RuntimeError) -> None:
    assert "train.batch_size" in explain_loss(error) and "train.gradient_checkpointing" in explain_loss(error)
