"""What users get wrong or disks do to them: one line, exit code 2, and nothing that was there before is damaged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Result, call_program, run_program_process, succeeded
from PIL import Image
from safetensors.torch import load_file

import evaluate
import train
from featdepth.models import FeatDepth
from featdepth.training.checkpoint import checkpoints

SMALL_DISK = 28 << 20  # bytes: room for a checkpoint of the tiny model (about 16 MB), not for a second one


def train_here(config_file: Path, directory: Path, *options: str) -> Result:
    return call_program(train.main, "--config", config_file, f"run.directory={directory}", *options)


def first_line(root: Path, part: str) -> tuple[str, int]:
    """Drive and frame of the first sample of a part."""
    drive, frame, _ = (root / "splits" / f"{part}_files.txt").read_text().splitlines()[0].split()
    return drive, int(frame)


def image_of(root: Path, part: str) -> Path:
    drive, frame = first_line(root, part)
    return root / drive / "image_02" / "data" / f"{frame:010}.png"


def cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


class TestImages:
    @pytest.mark.parametrize("workers", [0, 1])
    def test_truncated(self, street_copy: Path, run_directory: Path, workers: int) -> None:
        """Met in the main process, and in a loader process."""
        image = image_of(street_copy, "train")
        cut(image, 0.5)
        options = [f"run.directory={run_directory}", f"data.workers={workers}", "train.epochs=1"]
        line = train_here(street_copy.parent / "tiny.yaml", run_directory, *options).error_line()
        assert str(image) in line and "data.skip_bad_frames" in line
        assert not (run_directory / "checkpoints").exists() and not (run_directory / "model").exists()

    def test_truncated_and_skipped(self, street_copy: Path, run_directory: Path) -> None:
        """A single bad frame is counted, and trained around; validation leaves out what it replaces."""
        cut(image_of(street_copy, "train"), 0.5)
        cut(image_of(street_copy, "val"), 0.5)
        options = ["data.skip_bad_frames=true", "data.frames=[0, s]", "train.epochs=1", "train.log_every=10"]
        succeeded(train_here(street_copy.parent / "tiny.yaml", run_directory, *options))
        lines = [json.loads(line) for line in (run_directory / "metrics.jsonl").read_text().splitlines()]
        assert [(line["split"], line["step"]) for line in lines] == [("train", 10), ("validation", 10)]
        assert lines[0]["replaced"] == 1
        assert lines[1]["samples"] == 4

    def test_other_size(self, street_copy: Path, run_directory: Path) -> None:
        image = image_of(street_copy, "val")
        Image.new("RGB", (100, 50)).save(image)
        line = train_here(street_copy.parent / "tiny.yaml", run_directory, "train.max_steps=0").error_line()
        assert str(image) in line and "100 x 50" in line and "192 x 64" in line

    def test_evaluation(self, finished_run: Path, street_copy: Path, tmp_path: Path) -> None:
        image = image_of(street_copy, "test")
        cut(image, 0.5)
        arguments = ["--config", street_copy.parent / "tiny.yaml", "--checkpoint", finished_run / "model"]
        result = call_program(evaluate.main, *arguments, "--out", tmp_path / "out")
        assert str(image) in result.error_line()
        assert not (tmp_path / "out").exists()
        skipped = call_program(evaluate.main, *arguments, "--out", tmp_path / "out", "data.skip_bad_frames=true")
        succeeded(skipped)
        scores = json.loads((tmp_path / "out" / "metrics.json").read_text())
        assert (scores["images"], scores["skipped_images"]) == (2, 1)


class TestDataFolder:
    def test_missing_calibration(self, street_copy: Path, run_directory: Path) -> None:
        date = first_line(street_copy, "train")[0].split("/")[0]
        (street_copy / date / "calib_cam_to_cam.txt").unlink()
        line = train_here(street_copy.parent / "tiny.yaml", run_directory).error_line()
        assert f"{date}/calib_cam_to_cam.txt" in line
        assert not run_directory.exists()

    def test_scan_cut_in_mid_point(self, street_copy: Path, run_directory: Path) -> None:
        drive, frame = first_line(street_copy, "val")
        scan = street_copy / drive / "velodyne_points" / "data" / f"{frame:010}.bin"
        scan.write_bytes(scan.read_bytes()[:-5])
        line = train_here(street_copy.parent / "tiny.yaml", run_directory, "train.max_steps=0").error_line()
        assert str(scan) in line and "download it again" in line

    def test_list_names_a_missing_frame(self, street_copy: Path, run_directory: Path) -> None:
        path = street_copy / "splits" / "train_files.txt"
        drive, _ = first_line(street_copy, "train")
        path.write_text(path.read_text() + f"{drive} 77 l\n")
        line = train_here(street_copy.parent / "tiny.yaml", run_directory).error_line()
        assert f"{path}:21: {drive} 77 l" in line and "remove the line" in line and "by ten digits" in line
        assert not run_directory.exists()

    def test_empty_folder(self, config_file: Path, tmp_path: Path, run_directory: Path) -> None:
        (tmp_path / "empty").mkdir()
        options = [f"data.root={tmp_path / 'empty'}"]
        line = train_here(config_file, run_directory, *options).error_line()
        assert str(tmp_path / "empty") in line and "add it" in line
        line = train_here(config_file, run_directory, *options, "data.split=eigen").error_line()
        assert str(tmp_path / "empty") in line and "no KITTI raw drives" in line and "expected" in line
        assert not run_directory.exists()


class TestConfiguration:
    def test_unknown_key(self, config_file: Path, run_directory: Path) -> None:
        for program in (train.main, evaluate.main):
            result = call_program(
                program, "--config", config_file, "train.batchsize=4", f"run.directory={run_directory}"
            )
            line = result.error_line()
            assert "train.batchsize" in line and "train.batch_size" in line
        assert not run_directory.exists()

    def test_no_configuration(self, tmp_path: Path) -> None:
        assert "--config" in run_program_process(["train.py"]).error_line()
        assert str(tmp_path / "no.yaml") in call_program(train.main, "--config", tmp_path / "no.yaml").error_line()


class TestRunDirectory:
    def test_below_a_file(self, config_file: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("precious")
        for directory in (tmp_path / "file", tmp_path / "file" / "run"):
            line = train_here(config_file, directory, "train.max_steps=0").error_line()
            assert str(tmp_path / "file") in line and "run.directory" in line
        assert (tmp_path / "file").read_text() == "precious"

    def test_read_only(self, config_file: Path, tmp_path: Path) -> None:
        """/proc refuses to be written to even by the superuser, whom permissions do not bind."""
        if os.geteuid() == 0:
            folder = Path("/proc")
        else:
            folder = tmp_path / "closed"
            folder.mkdir(mode=0o500)
        line = train_here(config_file, folder / "run", "train.max_steps=0").error_line()
        assert str(folder / "run") in line and "run.directory" in line

    def test_evaluation_output(self, config_file: Path, finished_run: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("precious")
        arguments = ["--config", config_file, "--checkpoint", finished_run / "model", "--out", tmp_path / "file"]
        line = call_program(evaluate.main, *arguments).error_line()
        assert str(tmp_path / "file") in line and "--out" in line
        assert (tmp_path / "file").read_text() == "precious"


class TestArchitecture:
    def test_checkpoint_of_another(self, config_file: Path, finished_run: Path, run_directory: Path) -> None:
        shutil.copytree(finished_run, run_directory)
        before = contents(run_directory)
        options = ["train.accumulate=2", "train.max_steps=8", "model.decoder_width=24"]
        line = train_here(config_file, run_directory, *options, "--resume").error_line()
        assert str(run_directory / "checkpoints" / "step_6") in line and "decoder_width was 16, is 24" in line
        line = train_here(config_file, run_directory, *options, "--resume-anyway").error_line()
        assert str(run_directory / "checkpoints" / "step_6") in line and "config.yaml" in line
        assert contents(run_directory) == before

    def test_model_that_does_not_fit(self, config_file: Path, finished_run: Path, tmp_path: Path) -> None:
        model = tmp_path / "model"
        shutil.copytree(finished_run / "model", model)
        settings = json.loads((model / "config.json").read_text())
        settings["model"]["decoder_width"] = 24
        (model / "config.json").write_text(json.dumps(settings))
        arguments = ["--config", config_file, "--checkpoint", model, "--out", tmp_path / "out"]
        line = call_program(evaluate.main, *arguments).error_line()
        assert str(model) in line and "another architecture" in line
        line = train_here(config_file, tmp_path / "run", f"model.init={model}", "model.decoder_width=24").error_line()
        assert str(model) in line and "another architecture" in line

    def test_no_model(self, config_file: Path, finished_run: Path, tmp_path: Path) -> None:
        line = call_program(evaluate.main, "--config", config_file, "--checkpoint", tmp_path).error_line()
        assert str(tmp_path) in line and "config.json" in line
        model = tmp_path / "model"
        shutil.copytree(finished_run / "model", model)
        cut(model / "model.safetensors", 0.9)
        line = call_program(evaluate.main, "--config", config_file, "--checkpoint", model).error_line()
        assert str(model / "model.safetensors") in line


class TestFullDisk:
    @pytest.mark.parametrize("room", ["weights", "optimizer"])
    def test_no_room_for_a_checkpoint(
        self, config_file: Path, finished_run: Path, run_directory: Path, room: str
    ) -> None:
        """The disk gets full while the weights are written, or the optimizer's state; the checkpoint before stays."""
        shutil.copytree(finished_run, run_directory, ignore=shutil.ignore_patterns("step_4", "step_5", "step_6"))
        before = contents(run_directory)
        size = (run_directory / "checkpoints" / "step_2" / "model.safetensors").stat().st_size
        limit = size // 2 if room == "weights" else size + size // 2
        options = [f"run.directory={run_directory}", "train.accumulate=2", "train.checkpoint_every=1"]
        command = ["train.py", "--cpu", "--config", config_file, *options, "--resume"]
        line = run_program_process(command, file_limit=limit).error_line()
        assert str(run_directory / "checkpoints" / "step_3") in line and "--resume" in line
        assert still_there(before, run_directory)
        assert [path.name for path in checkpoints(run_directory / "checkpoints")] == ["step_2"]
        assert not list(run_directory.rglob("*.writing"))

    def test_no_room_for_a_model(self, config_file: Path, finished_run: Path, run_directory: Path) -> None:
        """The same at the end of an epoch: the model that was there stays."""
        shutil.copytree(finished_run, run_directory, ignore=shutil.ignore_patterns("step_2", "step_4", "step_5"))
        before = contents(run_directory)
        options = [f"run.directory={run_directory}", "train.accumulate=2", "train.max_steps=6"]
        command = ["train.py", "--cpu", "--config", config_file, *options, "--resume"]
        line = run_program_process(command, file_limit=2 << 20).error_line()
        assert str(run_directory / "model_last") in line and "disk" in line
        assert still_there(before, run_directory)
        FeatDepth.from_pretrained(run_directory / "model_last")

    def test_small_disk(self, config_file: Path, small_disk: Path) -> None:
        """A disk that is really full: the first checkpoint fits, the second does not."""
        options = [f"run.directory={small_disk / 'run'}", "train.checkpoint_every=1"]
        options += ["data.frames=[0, -1]", "model.metres_per_unit=null"]
        command = ["train.py", "--cpu", "--config", config_file, *options]
        line = run_program_process(command).error_line()
        assert str(small_disk) in line and "space" in line
        found = checkpoints(small_disk / "run" / "checkpoints")
        assert [path.name for path in found] == ["step_1"]
        load_file(found[0] / "model.safetensors")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, where we may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def contents(directory: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file but the lock."""
    files = [path for path in directory.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(directory)): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def still_there(before: dict[str, tuple[int, int]], directory: Path) -> bool:
    """Whether every model and checkpoint file of `before` is as it was."""
    after = contents(directory)
    kept = {name: state for name, state in before.items() if name.startswith(("checkpoints/", "model"))}
    return all(after.get(name) == state for name, state in kept.items())
