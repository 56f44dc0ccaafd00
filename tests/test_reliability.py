"""What interrupts a run, or tries to spoil it: exact resume, damaged checkpoints, lost processes, links."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from conftest import (
    FAULTY,
    continue_here,
    forget_accelerator,
    run_program_process,
    succeeded,
)
from hostile_pickle import Touch
from run_records import differences, interrupted_copy

from featdepth.errors import InputError
from featdepth.training.checkpoint import (
    MANIFEST,
    Progress,
    checkpoints,
    digest,
    prune,
    read_manifest,
    resume,
    save_checkpoint,
    write_manifest,
)

MARKER = "code was run"


def flip_byte(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


class TestExactResume:
    def test_damaged_checkpoints_are_put_aside_and_the_one_before_is_used(
        self, finished_run: Path, config_file: Path, run_directory: Path
    ) -> None:
        """Also with no loader process, where the run was begun with one."""
        shutil.copytree(finished_run, run_directory)
        flip_byte(run_directory / "checkpoints" / "step_6" / "optimizer.bin")
        (run_directory / "checkpoints" / "step_5" / "random_states_0.pkl").unlink()
        (run_directory / "checkpoints" / "step_4" / MANIFEST).write_text("{")
        result = succeeded(continue_here(config_file, run_directory, "data.workers=0"))
        assert f"continued from {run_directory}/checkpoints/step_2" in result.out
        for step in (4, 5, 6):
            assert f"damaged checkpoint put aside as {run_directory}/checkpoints/damaged_step_{step}" in result.out
            assert (run_directory / "checkpoints" / f"damaged_step_{step}").is_dir()
        assert "optimizer.bin: not what was written" in result.out
        assert "random_states_0.pkl" in result.out and "not whole" in result.out
        assert differences(finished_run, run_directory) == []

    def test_more_loader_processes(self, finished_run: Path, config_file: Path, run_directory: Path) -> None:
        interrupted_copy(finished_run, run_directory, step=4)
        succeeded(continue_here(config_file, run_directory, "data.workers=3"))
        assert differences(finished_run, run_directory) == []
        assert not list((run_directory / "checkpoints").glob(".*"))

    @pytest.mark.parametrize("step", [5, 6])
    def test_interruption_between_a_checkpoint_and_its_validation(
        self, finished_run: Path, config_file: Path, run_directory: Path, step: int
    ) -> None:
        """At the end of an epoch, and at that of the run."""
        interrupted_copy(finished_run, run_directory, step)
        lines = (run_directory / "metrics.jsonl").read_text().splitlines()[: 1 if step == 5 else 3]
        (run_directory / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        shutil.rmtree(run_directory / "model_last")
        shutil.rmtree(run_directory / "model")
        if step == 6:  # the best model may be that of the first validation
            shutil.copytree(finished_run / "model", run_directory / "model")
        succeeded(continue_here(config_file, run_directory))
        assert differences(finished_run, run_directory) == []

    def test_where_every_checkpoint_is_damaged_nothing_is_begun(
        self, finished_run: Path, config_file: Path, run_directory: Path
    ) -> None:
        interrupted_copy(finished_run, run_directory, step=2)
        flip_byte(run_directory / "checkpoints" / "step_2" / "model.safetensors")
        line = continue_here(config_file, run_directory).error_line()
        assert "every checkpoint is damaged" in line and "model.safetensors: not what was written" in line
        assert (run_directory / "checkpoints" / "step_2").is_dir()

    def test_another_configuration_is_another_run(
        self, finished_run: Path, config_file: Path, run_directory: Path
    ) -> None:
        interrupted_copy(finished_run, run_directory, step=6)
        other = ["train.batch_size=4", "train.accumulate=1", "optimizer.lr=2e-4", "train.max_steps=7"]
        other += ["optimizer.weight_decay=0.01"]
        line = continue_here(config_file, run_directory, *other).error_line()
        assert "train.batch_size was 2, is 4 (each step is made of other samples)" in line
        assert "optimizer.lr was 0.0001, is 0.0002 (other steps from here on)" in line
        assert "train.accumulate" in line and "train.max_steps" not in line and "--resume-anyway" in line

        result = succeeded(continue_here(config_file, run_directory, *other, "--resume-anyway"))
        assert "train.batch_size was 2, is 4" in result.out and "continued from" in result.out
        # Two batches of two samples had been seen of the second epoch, which is one batch of four.
        assert read_manifest(run_directory / "checkpoints" / "step_6")["progress"]["batch"] == 2
        progress = read_manifest(run_directory / "checkpoints" / "step_7")["progress"]
        assert (progress["epoch"], progress["batch"], progress["step"]) == (1, 2, 7)
        state = torch.load(run_directory / "checkpoints" / "step_7" / "optimizer.bin", weights_only=True)
        assert state["param_groups"][0]["weight_decay"] == 0.01

    def test_other_samples_are_another_run(
        self, finished_run: Path, config_file: Path, street: Path, tmp_path: Path, run_directory: Path
    ) -> None:
        interrupted_copy(finished_run, run_directory, step=2)
        fewer = tmp_path / "fewer.txt"
        fewer.write_text("\n".join((street / "splits" / "train_files.txt").read_text().splitlines()[:-2]) + "\n")
        line = continue_here(config_file, run_directory, f"data.train_files={fewer}").error_line()
        assert "training samples was 20 (" in line and "is 18 (" in line

    @pytest.mark.parametrize("name", ["random_states_0.pkl", "optimizer.bin", "custom_checkpoint_0.pkl"])
    def test_nothing_is_unpickled(
        self, finished_run: Path, config_file: Path, run_directory: Path, tmp_path: Path, name: str
    ) -> None:
        """A checkpoint that somebody else has made, with a manifest that fits."""
        interrupted_copy(finished_run, run_directory, step=2)
        folder = run_directory / "checkpoints" / "step_2"
        marker = tmp_path / MARKER
        torch.save(Touch(marker), folder / name)
        manifest = json.loads((folder / MANIFEST).read_text())
        manifest["files"][name] = {"bytes": (folder / name).stat().st_size, "sha256": digest(folder / name)}
        (folder / MANIFEST).write_text(json.dumps(manifest))
        assert str(folder) in continue_here(config_file, run_directory).error_line()
        assert not marker.exists()


class TestCheckpointFolder:
    def write(self, folder: Path, name: str, step: int) -> Path:
        path = folder / name
        path.mkdir(parents=True)
        (path / "model.safetensors").write_bytes(bytes(step))
        conditions = {"processes": 1, "train.batch_size": 2}
        write_manifest(path, Progress(step=step), conditions)
        return path

    def test_order_is_by_content(self, tmp_path: Path) -> None:
        paths = [self.write(tmp_path, name, step) for name, step in (("step_9", 10), ("step_10", 30), ("step_2", 20))]
        os.utime(paths[0], (2e9, 2e9))
        assert checkpoints(tmp_path) == [paths[0], paths[2], paths[1]]

    def test_damaged_ones_do_not_count_and_the_last_good_one_stays(self, tmp_path: Path) -> None:
        good = [self.write(tmp_path, f"step_{step}", step) for step in (1, 2)]
        cut, unlisted = (self.write(tmp_path, f"step_{step}", step) for step in (3, 4))
        (cut / "model.safetensors").write_bytes(b"")
        (unlisted / MANIFEST).unlink()
        prune(tmp_path, keep=1)
        assert not good[0].exists() and good[1].exists()
        assert checkpoints(tmp_path) == [good[1]]
        prune(tmp_path, keep=1)
        assert checkpoints(tmp_path) == [good[1]]

    @pytest.mark.parametrize(
        ("section", "value"),
        [
            ("files", {"../step_1/model.safetensors": {"bytes": 1, "sha256": ""}}),
            ("files", {"/etc/hostname": {"bytes": 1, "sha256": ""}}),
            ("files", []),
            ("progress", {"step": 1}),
            ("progress", {"step": -1}),
            ("conditions", {"processes": 10**20, "train.batch_size": 1}),
            ("conditions", 5),
        ],
    )
    def test_a_forged_manifest_is_refused(self, tmp_path: Path, section: str, value: object) -> None:
        path = self.write(tmp_path, "step_1", 1)
        content = read_manifest(path)
        if section == "progress" and value["step"] < 0:
            value = content["progress"] | value
        (path / MANIFEST).write_text(json.dumps(content | {section: value}))
        with pytest.raises(InputError, match="not whole"):
            read_manifest(path)


class TestOtherPrecision:
    """In fp16 there is a scale of the loss beside weights and moments, and nowhere else."""

    @staticmethod
    def prepared(precision: str) -> tuple[Accelerator, torch.optim.Optimizer, dict[str, object]]:
        forget_accelerator()
        accelerator = Accelerator(cpu=True)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0) if precision == "fp16" else None
        model = torch.nn.Linear(2, 1)
        model, optimizer = accelerator.prepare(model, torch.optim.Adam(model.parameters()))
        accelerator.backward(model(torch.ones(1, 2)).sum())
        optimizer.step()
        conditions = {"processes": 1, "train.batch_size": 1, "train.accumulate": 1, "precision": precision}
        return accelerator, optimizer, conditions

    @pytest.mark.parametrize(
        ("before", "now", "scale"), [("no", "fp16", 8.0), ("bf16", "fp16", 8.0), ("fp16", "no", None)]
    )
    def test_another_run_begins_with_a_scale_of_its_own(
        self, tmp_path: Path, before: str, now: str, scale: float | None
    ) -> None:
        accelerator, optimizer, conditions = self.prepared(before)
        save_checkpoint(accelerator, tmp_path, Progress(step=1), conditions, keep=1)
        moments = optimizer.state_dict()["state"]
        accelerator, optimizer, conditions = self.prepared(now)
        with pytest.raises(InputError, match=f"precision was {before}, is {now}"):
            resume(accelerator, tmp_path, Progress(), conditions)
        assert resume(accelerator, tmp_path, Progress(), conditions, anyway=True) == tmp_path / "step_1"
        assert (accelerator.scaler.get_scale() if accelerator.scaler else None) == scale
        torch.testing.assert_close(optimizer.state_dict()["state"], moments)
        forget_accelerator()

    def test_the_same_run_goes_on_with_its_scale(self, tmp_path: Path) -> None:
        accelerator, _, conditions = self.prepared("fp16")
        accelerator.scaler.update(4.0)
        save_checkpoint(accelerator, tmp_path, Progress(step=1), conditions, keep=1)
        accelerator, _, conditions = self.prepared("fp16")
        resume(accelerator, tmp_path, Progress(), conditions)
        assert accelerator.scaler.get_scale() == 4.0
        forget_accelerator()


class TestFailingParts:
    @pytest.mark.parametrize("fault", ["die", pytest.param("hang", marks=pytest.mark.long)])
    def test_the_others_end_when_a_process_is_lost(
        self, config_file: Path, run_directory: Path, tmp_path: Path, fault: str
    ) -> None:
        options = ["train.timeout=10", "train.checkpoint_every=1", f"run.directory={run_directory}", "data.workers=1"]
        command = [FAULTY, fault, 1, 3, "--", "--cpu", "--config", config_file, *options]
        result = run_program_process(command, processes=2, patience=1 if fault == "hang" else 30, EXIT_CODES=tmp_path)
        assert "process 0 of 2: another process has ended or does not answer" in result.err
        assert "--resume" in result.err and (tmp_path / "0").read_text() == "1"
        assert [path.name for path in checkpoints(run_directory / "checkpoints")] == ["step_1", "step_2"]

    def test_a_loader_process_is_killed(self, config_file: Path, run_directory: Path) -> None:
        options = ["data.workers=1", "train.checkpoint_every=1", f"run.directory={run_directory}"]
        result = run_program_process([FAULTY, "kill_loader", 0, 2, "--", "--cpu", "--config", config_file, *options])
        assert result.code == 1 and result.err.count("\n") == 1
        assert "loader process" in result.err and "killed by signal" in result.err and "--resume" in result.err
        assert checkpoints(run_directory / "checkpoints")

    def test_images_vanish_during_an_epoch(self, street_copy: Path, run_directory: Path) -> None:
        fault = f"remove_images:{street_copy}"
        options = ["--cpu", "--config", street_copy.parent / "tiny.yaml", f"run.directory={run_directory}"]
        options += ["data.workers=1", "train.checkpoint_every=1"]
        line = run_program_process([FAULTY, fault, 0, 2, "--", *options]).error_line()
        assert str(street_copy) in line and ".png" in line
        assert checkpoints(run_directory / "checkpoints")


class TestRunDirectory:
    def test_links_are_not_followed(self, finished_run: Path, config_file: Path, run_directory: Path) -> None:
        interrupted_copy(finished_run, run_directory, step=2)
        precious = run_directory.parent / "precious"
        precious.mkdir()
        (precious / "file").write_text("precious")
        for place in ("images", "checkpoints/step_4", "checkpoints/.step_3.writing", ".lock"):
            path = run_directory / place
            if path.exists():
                shutil.move(path, run_directory.parent / "moved")
            path.symlink_to(precious)
            line = continue_here(config_file, run_directory).error_line()
            assert f"{path}: is a symbolic link" in line
            path.unlink()
        assert [path.read_text() for path in precious.iterdir()] == ["precious"]
