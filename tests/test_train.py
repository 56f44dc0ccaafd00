"""train.py from end to end: what a run leaves, exact resume, several processes, and losses that fall."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from conftest import (
    INTERRUPTIBLE,
    REPOSITORY,
    call_program,
    program_command,
    program_environment,
    run_program_process,
    succeeded,
    write_tiny_config,
)
from PIL import Image
from run_records import differences, interrupted_copy, read_metrics, weights
from safetensors.torch import load_file
from torch.utils.data import default_collate

import train
from featdepth.config import load_config
from featdepth.data import augment, build_dataset
from featdepth.models import FeatDepth, build_model
from featdepth.objective import compute_losses
from featdepth.training.checkpoint import checkpoints


class TestOneProcess:
    def test_leaves_a_complete_run(self, finished_run: Path) -> None:
        config = load_config(finished_run / "config.yaml")
        header = (finished_run / "config.yaml").read_text()
        assert (config.train.max_steps, config.train.accumulate, config.data.frames) == (6, 2, [0, -1, "s"])
        assert "commit" in header and torch.__version__ in header
        assert [path.name for path in checkpoints(finished_run / "checkpoints")] == [
            "step_2",
            "step_4",
            "step_5",
            "step_6",
        ]
        assert not list(finished_run.rglob("*.writing"))
        for name in ("model", "model_last"):
            model = FeatDepth.from_pretrained(finished_run / name)
            assert (model.height, model.width, model.settings.objective) == (64, 96, "photometric")
            assert len(model.provenance.drives) == 4 and model.provenance.contaminated == []
        for step in (5, 6):
            with Image.open(finished_run / "images" / f"step_{step:07}.png") as picture:
                # Two samples; three frames, disparity, reconstruction, error, automask.
                assert picture.size == (7 * 96, 2 * 64)

    def test_metrics(self, finished_run: Path) -> None:
        lines = read_metrics(finished_run)
        assert [(line["split"], line["step"], line["epoch"]) for line in lines] == [
            ("train", 3, 0),
            ("validation", 5, 0),
            ("train", 6, 1),
            ("validation", 6, 1),
        ]
        for line in lines:
            assert math.isclose(line["loss"], line["photometric"] + line["smoothness"], rel_tol=1e-6)
            assert line["loss"] > 0
        for line in (lines[0], lines[2]):
            assert {"lr", "images_per_second", "data_wait", "memory_gb", "replaced"} <= line.keys()
            assert line["replaced"] == 0 and line["images_per_second"] > 0 and 0 <= line["data_wait"] <= 1
        for line in (lines[1], lines[3]):
            assert line["samples"] == 5
            assert {"abs_rel", "sq_rel", "rmse", "rmse_log", "a1", "a2", "a3", "silog", "metric_abs_rel"} <= line.keys()
        # The third step is half-way up the warm-up of four; the sixth is the first of the second epoch.
        assert lines[0]["lr"] == pytest.approx(1e-4 * (0.3333 + 0.6667 * 2 / 4))
        assert lines[2]["lr"] == pytest.approx(0.5e-4)

    def test_best_model_is_the_one_with_the_smallest_validation_loss(self, finished_run: Path) -> None:
        first, last = [line["loss"] for line in read_metrics(finished_run) if line["split"] == "validation"]
        best = load_file(finished_run / "model" / "model.safetensors")
        same = all(torch.equal(best[name], tensor) for name, tensor in weights(finished_run).items())
        assert same == (last < first)

    def test_existing_run_is_refused(self, finished_run: Path, config_file: Path) -> None:
        before = {path: path.stat().st_mtime_ns for path in finished_run.rglob("*")}
        result = call_program(train.main, "--config", config_file, f"run.directory={finished_run}", *INTERRUPTIBLE)
        assert str(finished_run) in result.error_line() and "--resume" in result.error_line()
        assert before == {path: path.stat().st_mtime_ns for path in finished_run.rglob("*")}

    def test_killed_run_continues_as_if_nothing_had_happened(
        self, finished_run: Path, config_file: Path, tmp_path: Path
    ) -> None:
        directory = tmp_path / "killed"
        options = ["--cpu", "--config", config_file, f"run.directory={directory}", *INTERRUPTIBLE]
        # --resume where nothing exists starts the run, so that one command serves for the start and for every restart.
        command = program_command(["train.py", *options, "--resume"])
        process = subprocess.Popen(command, cwd=REPOSITORY, env=program_environment(), stdout=subprocess.DEVNULL)
        started = time.monotonic()
        # In the midst of writing a checkpoint, or as soon after it as a busy machine lets this process see it.
        seen = [directory / "checkpoints" / name for name in (".step_4.writing", "step_4")]
        while not any(path.is_dir() for path in seen) and process.poll() is None:
            assert time.monotonic() - started < 200
            time.sleep(0.001)
        process.kill()
        assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
        result = succeeded(run_program_process(["train.py", *options, "--resume"]))
        assert f"continued from {directory}/checkpoints/step_" in result.out
        assert differences(finished_run, directory) == []
        shutil.rmtree(directory)

    def test_zero_steps_validate_once(self, finished_run: Path, config_file: Path, tmp_path: Path) -> None:
        directory = tmp_path / "run"
        options = ["train.max_steps=0", f"model.init={finished_run}/model_last", f"run.directory={directory}"]
        succeeded(call_program(train.main, "--config", config_file, *options, "--resume"))
        (line,) = read_metrics(directory)
        last = read_metrics(finished_run)[-1]
        assert (line["split"], line["step"], line["samples"]) == ("validation", 0, 5)
        assert line["loss"] == pytest.approx(last["loss"], rel=1e-5)
        assert [
            name
            for name in weights(directory)
            if not torch.equal(weights(directory)[name], weights(finished_run)[name])
        ] == []

    def test_run_that_was_finished_is_continued_by_more_steps(
        self, finished_run: Path, config_file: Path, tmp_path: Path
    ) -> None:
        directory = interrupted_copy(finished_run, tmp_path / "run", step=6)
        options = [*INTERRUPTIBLE, "train.max_steps=7", "data.workers=0", f"run.directory={directory}", "--resume"]
        result = succeeded(call_program(train.main, "--config", config_file, *options))
        assert "\ntraining: 7 of 7 steps, " in result.out and "left 0:00:00 at this pace" in result.out
        steps = [(line["split"], line["step"]) for line in read_metrics(directory)]
        assert steps == [
            ("train", 3),
            ("validation", 5),
            ("train", 6),
            ("validation", 6),
            ("train", 7),
            ("validation", 7),
        ]
        shutil.rmtree(directory)

    def test_more_processes_than_samples_is_explained(self, config_file: Path, tmp_path: Path) -> None:
        options = ["train.batch_size=21", f"run.directory={tmp_path / 'run'}"]
        result = call_program(train.main, "--config", config_file, *options)
        assert "train.batch_size 21" in result.error_line() and "20 training samples" in result.error_line()

    def test_launch_as_several_that_run_alone_is_refused(self, config_file: Path, tmp_path: Path) -> None:
        """Without --cpu, torchrun on a machine without GPUs starts independent jobs; they must not share a folder."""
        directory = tmp_path / "run"
        alone = {"WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "false"}
        result = call_program(train.main, "--config", config_file, f"run.directory={directory}", environment=alone)
        assert "launched as 2 processes" in result.error_line() and "--cpu" in result.error_line()
        assert not directory.exists()


def step_gradients(
    config_file: Path, directory: Path, samples: int, accumulate: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[torch.Tensor], str]:
    """The flat gradient of each step of an epoch of `samples`, one a batch, without any learning; what was printed."""
    directory.mkdir()
    config = load_config(config_file)
    lines = (Path(config.data.split) / "train_files.txt").read_text().splitlines(keepends=True)
    (directory / "train_files.txt").write_text("".join(lines[:samples]))
    found: list[torch.Tensor] = []

    def clip(_accelerator: Accelerator, parameters: list[torch.Tensor], _largest: float) -> torch.Tensor:
        gradient = torch.cat([each.grad.flatten() for each in parameters])
        found.append(gradient)
        return gradient.norm()

    monkeypatch.setattr(Accelerator, "clip_grad_norm_", clip)
    options = ["model.objective=autoencoder", "data.frames=[0]", f"data.train_files={directory}/train_files.txt"]
    options += ["train.batch_size=1", f"train.accumulate={accumulate}", "train.epochs=1", "optimizer.lr=1e-30"]
    options += [f"run.directory={directory}/run", "train.panel_samples=0"]
    out = succeeded(call_program(train.main, "--config", config_file, *options)).out
    return found, out


class TestAccumulation:
    def test_the_last_step_of_an_epoch_weighs_its_samples_like_the_others(
        self, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Three samples are one step of three, or one of two and one of the third alone."""
        (together,), _ = step_gradients(config_file, tmp_path / "one", 3, 3, monkeypatch)
        (first, last), out = step_gradients(config_file, tmp_path / "two", 3, 2, monkeypatch)
        assert "2 steps of 2 samples, 2 an epoch, the last of 1" in out
        scale = together.norm().item()
        torch.testing.assert_close((2 * first + last) / 3, together, rtol=1e-4, atol=1e-6 * scale)
        assert last.norm().item() == pytest.approx(first.norm().item(), rel=0.9)


class TestSeveralProcesses:
    def test_interrupted_run_continues_as_if_nothing_had_happened(
        self, two_process_run: Path, config_file: Path, tmp_path: Path
    ) -> None:
        lines = read_metrics(two_process_run)
        assert [(line["split"], line["step"]) for line in lines] == [
            ("train", 3),
            ("validation", 3),
            ("train", 6),
            ("validation", 6),
        ]
        # Warm-up and milestones count optimizer steps, whatever the number of processes.
        assert [line["lr"] for line in lines if line["split"] == "train"] == pytest.approx(
            [1e-4 * (0.3333 + 0.6667 * 2 / 3), 0.5e-4]
        )
        assert [line["samples"] for line in lines if line["split"] == "validation"] == [5, 5]

        interrupted = interrupted_copy(two_process_run, tmp_path / "interrupted", step=2)
        options = ["train.py", "--cpu", "--config", config_file, *INTERRUPTIBLE, "data.workers=3"]
        options += [f"run.directory={interrupted}", "--resume"]
        result = succeeded(run_program_process(options, processes=2))
        assert "continued from" in result.out and "2 x cpu" in result.out
        assert "6 steps of 8 samples, 3 an epoch" in result.out
        assert differences(two_process_run, interrupted) == []

        # The same checkpoint on another number of processes would be another run.
        line = call_program(train.main, *options[2:]).error_line()
        assert "processes was 2, is 1" in line and "other samples" in line and "--resume-anyway" in line
        shutil.rmtree(interrupted)

    def test_validation_loss_is_the_same_on_any_number_of_processes(
        self, finished_run: Path, config_file: Path, tmp_path: Path
    ) -> None:
        """Five samples in batches of two: the last batch is short, or some processes would get none."""
        lines = {1: read_metrics(finished_run)[-1]}
        for processes in (2, 3):
            directory = tmp_path / f"run_{processes}"
            options = ["train.max_steps=0", f"model.init={finished_run}/model_last", f"run.directory={directory}"]
            command = ["train.py", "--cpu", "--config", config_file, *options]
            succeeded(run_program_process(command, processes))
            (lines[processes],) = read_metrics(directory)
            shutil.rmtree(directory)
        for processes in (2, 3):
            assert lines[processes]["samples"] == 5
            for name in ("loss", "photometric", "smoothness", "abs_rel", "metric_abs_rel", "silog"):
                assert lines[processes][name] == pytest.approx(lines[1][name], rel=1e-5), (processes, name)

    def test_what_is_gathered(self, street_copy: Path, tmp_path: Path) -> None:
        """Sums, shuffling and gathered values on two processes, seen from inside."""
        config = load_config(write_tiny_config(tmp_path / "tiny.yaml", street_copy))
        validation = build_dataset(config, "validation", frames=[0])
        spoilt = validation.samples[2]
        Path(validation.image_path(spoilt, 0)).write_bytes(b"no image")
        script = tmp_path / "probe.py"
        script.write_text(PROBE)
        out = tmp_path / "answers.json"
        succeeded(run_program_process([script, tmp_path / "tiny.yaml", out], processes=2))
        answers = json.loads(out.read_text())

        # Process 0 added 2 samples of 1, process 1 then 2 samples of 2 and 1 of 6: a mean over 5 samples.
        assert answers["first"]["photometric"] == pytest.approx((2 * 1 + 2 * 2 + 6) / 5)
        assert answers["first"]["smoothness"] == pytest.approx(5 * 0.5 / 5)
        assert answers["first"]["loss"] == pytest.approx(12 / 5 + 0.5)
        assert answers["first"]["replaced"] == 3
        assert answers["second"]["photometric"] == pytest.approx(7.0)  # a new interval starts from nothing
        assert answers["second"]["replaced"] == 0

        orders = answers["orders"]  # [epoch][process]
        for first, second in orders:
            assert sorted(first + second) == list(range(20))
        assert orders[0] != orders[1]
        assert orders[0] == orders[2]  # epoch 0 again: the order depends on seed and epoch alone

        assert answers["validation"] == [[0.0, 1.0], [1.0, 1.0], [3.0, 1.0], [4.0, 1.0]]
        assert answers["mode"] == [True, False, True]


PROBE = """
import json, sys
from pathlib import Path
import torch
from accelerate.utils import gather_object
from featdepth.config import load_config
from featdepth.data import build_dataset
from featdepth.parallel.accelerator import make_accelerator
from featdepth.training.steps import IntervalLog
from featdepth.parallel.processes import gather_values
from featdepth.parallel.loaders import make_loader

config = load_config(sys.argv[1], ["data.skip_bad_frames=true"])
accelerator = make_accelerator(config, cpu=True)
assert accelerator.num_processes == 2
rank = accelerator.process_index
answers = {}

def add(photometric, replaced):
    count = len(photometric)
    losses = {"photometric": torch.tensor(photometric), "smoothness": torch.full((count,), 0.5)}
    interval.add(losses, torch.tensor(replaced), 0.0)
    interval.settle(torch.tensor(False))

interval = IntervalLog(accelerator)
if rank == 0:
    add([1.0, 1.0], [0, 1])
else:
    add([2.0, 2.0], [1, 1])
    add([6.0], [0])
answers["first"] = interval.close()
add([7.0], [0])
answers["second"] = interval.close()

train_data = build_dataset(config, "train", frames=[0])
loader = accelerator.prepare(make_loader(train_data, config, shuffle=True))
answers["orders"] = []
for epoch in (0, 1, 0):
    train_data.set_epoch(epoch)
    loader.set_epoch(epoch)
    mine = [index for batch in loader for index in batch["index"].tolist()]
    answers["orders"].append(gather_object([mine]))

validation = build_dataset(config, "validation", with_depth=False, frames=[0])
loader = accelerator.prepare(make_loader(validation, config, shuffle=False))
model = torch.nn.Linear(1, 1).train()
modes = [model.training]

def values(batch):
    modes.append(model.training)
    return torch.stack([batch["index"].float(), torch.ones(len(batch["index"]))], dim=1)

answers["validation"] = gather_values(accelerator, model, loader, values).tolist()
answers["mode"] = [*modes[:2], model.training]
if accelerator.is_main_process:
    Path(sys.argv[2]).write_text(json.dumps(answers))
accelerator.end_training()
"""


class TestObjectives:
    def test_each_learns_one_batch(self, config_file: Path, tmp_path: Path) -> None:
        """Stage 1 comes first: stage 2 and the joint objective start from its feature encoder."""
        stage_one = tmp_path / "autoencoder"
        for objective in ("autoencoder", "feature_metric", "joint", "photometric"):
            options = [f"model.objective={objective}", "model.dropout=0", "data.frames=[0, -1, 1, s]"]
            if objective in ("feature_metric", "joint"):
                options.append(f"model.feature_encoder={stage_one}")
            config = load_config(config_file, options)
            model = build_model(config)
            first, smallest = overfit(model, config)
            assert smallest <= first - 0.1 * abs(first), f"{objective}: from {first} to {smallest}"
            if objective == "autoencoder":
                model.save_pretrained(stage_one)

    def test_frozen_features_stay_as_stage_one_left_them(self, config_file: Path, tmp_path: Path) -> None:
        stage_one, directory = tmp_path / "autoencoder", tmp_path / "run"
        source = build_model(load_config(config_file, ["model.objective=autoencoder"]))
        source.save_pretrained(stage_one)
        options = ["model.objective=feature_metric", f"model.feature_encoder={stage_one}", "train.max_steps=1"]
        result = call_program(train.main, "--config", config_file, *options, f"run.directory={directory}")
        succeeded(result)
        learned = weights(directory)
        for name, tensor in source.state_dict().items():
            assert name not in learned or torch.equal(learned[name], tensor), name
        assert {name for name in learned if name.startswith("feature_encoder.")} >= {"feature_encoder.conv1.weight"}
        assert {"photometric", "smoothness", "feature_metric"} <= read_metrics(directory)[0].keys()


def overfit(model: FeatDepth, config) -> tuple[float, float]:
    """Train on one fixed batch until the loss has fallen by a tenth, at most 30 steps: first and smallest loss."""
    torch.manual_seed(0)
    dataset = build_dataset(config, "train")
    batch = augment(default_collate([dataset[0], dataset[7]]))
    optimizer = torch.optim.Adam([each for each in model.parameters() if each.requires_grad], lr=3e-4)
    values = []
    for _ in range(31):
        losses = compute_losses(model(batch), batch, config)
        loss = torch.stack(list(losses.values())).sum(0).mean()
        values.append(float(loss.detach()))
        if values[-1] <= values[0] - 0.12 * abs(values[0]):
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return values[0], min(values)
