"""What interrupts a run, or tries to spoil it: exact resume, signals, lost processes, bad steps, two runs at once."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from conftest import (
    INTERRUPTIBLE,
    REPOSITORY,
    Result,
    call_program,
    forget_accelerator,
    program_command,
    program_environment,
    run_program_process,
    succeeded,
)
from hostile_pickle import Touch
from process_families import family
from run_records import differences, interrupted_copy, read_metrics, weights

import train
from featdepth.errors import InputError
from featdepth.training.bad_steps import BadSteps, spoil_gradient
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

FAULTY = REPOSITORY / "tests" / "support" / "faulty_train.py"
GRACE = 30  # seconds that a scheduler gives a job to save itself
MARKER = "code was run"
NAMESPACES = {"featdepth_a": ("veth_a", "10.77.0.1"), "featdepth_b": ("veth_b", "10.77.0.2")}  # device, address


@pytest.fixture
def run_directory(tmp_path: Path) -> Iterator[Path]:
    """Where a run may go; removed in the end, for checkpoints are large."""
    yield tmp_path / "run"
    shutil.rmtree(tmp_path / "run", ignore_errors=True)


def continue_here(config_file: Path, directory: Path, *options: str) -> Result:
    """Resume in this process."""
    arguments = ["--config", config_file, f"run.directory={directory}", *INTERRUPTIBLE, *options]
    return call_program(train.main, *arguments, *([] if "--resume-anyway" in options else ["--resume"]))


class Started:
    """A program that runs in the background, in a process group of its own."""

    def __init__(self, arguments: list[object], log: Path, processes: int = 1, **environment: str) -> None:
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                program_command(arguments, processes),
                cwd=REPOSITORY,
                env=program_environment() | environment,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def wait_until(self, ready: Callable[[], bool], seconds: float = 200) -> None:
        started = time.monotonic()
        while not ready():
            assert self.process.poll() is None, f"it ended early:\n{self.log.read_text()}"
            assert time.monotonic() - started < seconds, f"it takes too long:\n{self.log.read_text()}"
            time.sleep(0.02)

    def end(self, seconds: float = 200) -> int:
        return self.process.wait(seconds)

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in family(self.process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


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


class TestSignals:
    def test_save_and_go_on_then_stop(self, finished_run: Path, config_file: Path, run_directory: Path) -> None:
        """SIGUSR1, then SIGTERM to everything, loader processes included, as schedulers send it.

        Meanwhile the run directory is locked against a second run; after the end it is free.
        """
        options = [*INTERRUPTIBLE, "train.checkpoint_every=100", "data.workers=1"]
        arguments = ["train.py", "--cpu", "--config", config_file, f"run.directory={run_directory}", *options]
        folder = run_directory / "checkpoints"
        with Started([*arguments, "--resume"], run_directory.parent / "log") as run:
            run.wait_until((run_directory / "metrics.jsonl").exists)  # the third step is done
            line = continue_here(config_file, run_directory).error_line()
            assert f"in use by another run (process {run.process.pid} on " in line
            os.kill(run.process.pid, signal.SIGUSR1)
            run.wait_until(lambda: bool(checkpoints(folder)))
            os.killpg(run.process.pid, signal.SIGTERM)
            assert run.end(GRACE) == 143
            assert "--resume" in run.log.read_text() and "error" not in run.log.read_text()
        assert not list(folder.glob(".*"))
        result = succeeded(continue_here(config_file, run_directory, "train.checkpoint_every=100"))
        assert "continued from" in result.out
        assert differences(finished_run, run_directory) == []

    def test_interrupt_once_and_twice(self, config_file: Path, run_directory: Path) -> None:
        options = ["train.epochs=100", "train.log_every=1", "data.workers=1", "train.checkpoint_every=1000"]
        arguments = ["train.py", "--cpu", "--config", config_file, f"run.directory={run_directory}", *options]
        with Started([*arguments, "train.accumulate=8"], run_directory.parent / "log") as run:
            run.wait_until((run_directory / "metrics.jsonl").exists)
            os.killpg(run.process.pid, signal.SIGINT)
            time.sleep(0.2)
            os.killpg(run.process.pid, signal.SIGINT)  # a launcher sends on what it gets: still the first one
            assert run.end(GRACE) == 130
            assert "Ctrl-C again" in run.log.read_text()
        saved = checkpoints(run_directory / "checkpoints")
        assert len(saved) == 1
        with Started([*arguments, "train.accumulate=8", "--resume"], run_directory.parent / "log") as run:
            lines = len(read_metrics(run_directory))
            run.wait_until(lambda: len(read_metrics(run_directory)) > lines)
            os.kill(run.process.pid, signal.SIGINT)
            time.sleep(1.2)
            if run.process.poll() is None:
                os.kill(run.process.pid, signal.SIGINT)
            # At its very end Python leaves signals to the system, which a shell tells as 130 too.
            assert run.end(10) in (130, -signal.SIGINT)

    @pytest.mark.parametrize(("variable", "code"), [("ACCELERATE_MIXED_PRECISION", 0), ("TORCHELASTIC_RUN_ID", 143)])
    def test_an_orphan_of_a_launcher_ends_and_a_child_of_a_shell_does_not(self, variable: str, code: int) -> None:
        """Accelerate's variables may be set in anybody's shell; those of torchrun come from torchrun."""
        program = "from featdepth.parallel.launcher import end_with_launcher; end_with_launcher()"
        command = ["bash", "-c", f"'{sys.executable}' -c '{program}'; exit $?"]
        environment = program_environment() | {variable: "no"}
        assert subprocess.run(command, env=environment, cwd=REPOSITORY, check=False).returncode == code

    @pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.long), signal.SIGKILL])
    def test_launcher_of_one_process_ends(
        self, config_file: Path, run_directory: Path, tmp_path: Path, number: int
    ) -> None:
        """It passes nothing on, and its process notices that it is gone."""
        options = ["train.epochs=100", "train.log_every=1", f"run.directory={run_directory}", "data.workers=1"]
        command = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines", "1"]
        command += ["--mixed_precision", "no", "--dynamo_backend", "no", FAULTY, "none", 0, 0, "--"]
        with Started(
            [*command, "--cpu", "--config", config_file, *options], tmp_path / "log", EXIT_CODES=tmp_path
        ) as run:
            run.wait_until((run_directory / "metrics.jsonl").exists)
            os.kill(run.process.pid, number)
            run.end(GRACE)
            started = time.monotonic()
            while not (tmp_path / "0").exists():
                assert time.monotonic() - started < GRACE
                time.sleep(0.1)
        assert (tmp_path / "0").read_text() == "143"
        assert len(checkpoints(run_directory / "checkpoints")) == 1

    @pytest.mark.parametrize(
        ("number", "code"), [(signal.SIGTERM, "143"), pytest.param(signal.SIGINT, "130", marks=pytest.mark.long)]
    )
    def test_launcher_of_two_processes_is_told_to_stop(
        self, two_process_run: Path, config_file: Path, run_directory: Path, tmp_path: Path, number: int, code: str
    ) -> None:
        codes = tmp_path / "codes"
        codes.mkdir()
        options = [*INTERRUPTIBLE, "train.checkpoint_every=100", f"run.directory={run_directory}", "train.log_every=1"]
        command = [FAULTY, "none", 0, 0, "--", "--cpu", "--config", config_file, *options]
        with Started(command, tmp_path / "log", processes=2, EXIT_CODES=str(codes)) as run:
            run.wait_until((run_directory / "metrics.jsonl").exists)
            os.kill(run.process.pid, number)
            run.end(GRACE)
        assert {path.name: path.read_text() for path in codes.iterdir()} == {"0": code, "1": code}
        (saved,) = checkpoints(run_directory / "checkpoints")
        assert {path.name for path in saved.iterdir()} >= {"random_states_0.pkl", "random_states_1.pkl"}
        arguments = ["train.py", "--cpu", "--config", config_file, *INTERRUPTIBLE, f"run.directory={run_directory}"]
        succeeded(run_program_process([*arguments, "data.workers=0", "--resume"], processes=2))
        trained = [line for line in read_metrics(two_process_run) if line["split"] == "validation"][-1]["loss"]
        assert [line for line in read_metrics(run_directory) if line["split"] == "validation"][-1]["loss"] == trained
        one, other = weights(two_process_run), weights(run_directory)
        assert [name for name in one if not torch.equal(one[name], other[name])] == []


class TestBadSteps:
    @pytest.mark.parametrize("clip", [1.0, float("inf")])
    @pytest.mark.parametrize("spoilt", ["loss", "infinite loss", "gradient"])
    def test_a_bad_step_leaves_no_trace(self, clip: float, spoilt: str) -> None:
        """Weights, moments, step counts and batch statistics: as if there had been no such step."""
        states = []
        for spoil in (False, True):
            torch.manual_seed(0)
            model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
            optimizer = torch.optim.Adam(model.parameters(), lr=0.1, fused=True)
            guard = BadSteps(model, optimizer, limit=5)
            batches = torch.randn(3, 8, 3)
            for number, batch in enumerate(batches):
                if number == 1 and not spoil:
                    continue
                loss = model(batch).square().mean()
                if number == 1 and spoilt == "loss":
                    loss = loss * torch.nan
                elif number == 1 and spoilt == "infinite loss":
                    loss = loss + torch.inf  # its gradient alone would be finite
                spoil_gradient(loss).backward()
                if number == 1 and spoilt == "gradient":
                    model[0].weight.grad[1, 1] = torch.inf
                bad = guard.judge(torch.nn.utils.clip_grad_norm_(model.parameters(), clip))
                assert bool(bad) == (number == 1)
                optimizer.step()
                optimizer.zero_grad()
                guard.settle(number, bad)
            states.append([*model.state_dict().values(), *flat_state(optimizer)])
            assert int(guard.in_a_row) == 0 and int(guard.longest) == int(spoil)
        assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))

    def test_a_finite_loss_keeps_its_gradient_bit_for_bit(self) -> None:
        values = torch.randn(1000, requires_grad=True)
        (plain,) = torch.autograd.grad((values * values).sum().sin(), values)
        (guarded,) = torch.autograd.grad(spoil_gradient((values * values).sum().sin()), values)
        assert torch.equal(plain, guarded)

    def test_overflow_under_float16_is_no_bad_step(self) -> None:
        """A scaler begins with too large a scale; what is left out for that does not end a run, and weights stay."""
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
        guard, take_step = guarded_step(scaler, limit=2)
        for _ in range(6):
            before = take_step.weights()
            assert not take_step(2.0**10)  # beyond float32, scaled like that
            assert torch.equal(before, take_step.weights())
        assert int(guard.longest) == 0 and scaler.get_scale() == 2.0**121
        scaler.update(2.0**10)
        assert not take_step(1.0) and not torch.equal(before, take_step.weights())

    def test_bad_steps_leave_the_scale_of_float16_alone(self) -> None:
        """Halved at each, it would end below all gradients; and they count, as without a scaler."""
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        guard, take_step = guarded_step(scaler, limit=5)
        for number, factor in enumerate([1.0, *3 * [torch.nan, 1.0], *3 * [torch.nan]]):
            before = take_step.weights()
            assert take_step(factor) == (factor != 1.0)
            assert torch.equal(before, take_step.weights()) == (factor != 1.0), number
        assert int(guard.in_a_row) == int(guard.longest) == 3 and scaler.get_scale() == 2.0**10

    def test_a_scaler_that_does_nothing(self) -> None:
        """Accelerate's for float16 on CPUs."""
        guard, take_step = guarded_step(torch.amp.GradScaler("cpu", enabled=False), limit=5)
        assert [take_step(factor) for factor in (1.0, torch.nan, 1.0)] == [False, True, False]
        assert int(guard.longest) == 1

    def test_gradients_that_no_scale_mends_are_bad_steps(self) -> None:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
        guard, take_step = guarded_step(scaler, limit=5)
        flags = [take_step(1.0, spoil=True) for _ in range(8)]
        assert flags == [False] * 4 + [True] * 4 and int(guard.in_a_row) == 4 and scaler.get_scale() == 1.0

    def test_on_one_of_two_processes(self, config_file: Path, run_directory: Path) -> None:
        """Both skip it, one by one counted as one; all else goes on."""
        options = ["train.max_steps=3", "train.log_every=1", f"run.directory={run_directory}"]
        command = [FAULTY, "nan", 1, 2, "--", "--cpu", "--config", config_file, *options]
        succeeded(run_program_process(command, processes=2))
        lines = [line for line in read_metrics(run_directory) if line["split"] == "train"]
        assert [line["bad_steps"] for line in lines] == [0, 1, 0]
        assert lines[1]["loss"] is None and lines[2]["loss"] > 0
        assert all(tensor.isfinite().all() for tensor in weights(run_directory).values())

    def test_too_many_in_a_row_end_the_run(self, config_file: Path, street: Path, run_directory: Path) -> None:
        options = ["train.max_bad_steps=2", "train.checkpoint_every=1", "train.log_every=100"]
        arguments = ["--cpu", "--config", config_file, f"run.directory={run_directory}", *options]
        result = run_program_process([FAULTY, "nan_on", 0, 3, "--", *arguments])
        line = result.error_line()
        assert "step 4: loss or gradient was not finite 2 times in a row" in line
        assert str(run_directory / "bad_steps.json") in line
        record = json.loads((run_directory / "bad_steps.json").read_text())
        assert [entry["step"] for entry in record] == [3, 4]
        listed = (street / "splits" / "train_files.txt").read_text().split("\n")
        named = [sample for entry in record for sample in entry["samples"]]
        assert len(set(named)) == 4 and set(named) <= set(listed)
        last = checkpoints(run_directory / "checkpoints")[-1]
        assert last.name == "step_3" and read_manifest(last)["progress"]["bad_in_a_row"] == 1


def guarded_step(scaler: torch.amp.GradScaler, limit: int) -> tuple[BadSteps, Callable[..., bool]]:
    """A guard, and a function that takes a step of a small model with its loss times a factor: whether it was bad."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, fused=True)
    guard = BadSteps(model, optimizer, limit, scaler=scaler)
    batch = torch.randn(8, 3)

    def take_step(factor: float, spoil: bool = False) -> bool:
        """spoil: a gradient becomes infinite whatever the scale is."""
        scaler.scale(guard.watch(factor * model(batch).square().mean())).backward()
        if spoil:
            model[0].weight.grad[1, 1] = torch.inf
        scaler.unscale_(optimizer)
        bad = guard.judge(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        guard.settle(0, bad)
        assert all(tensor.isfinite().all() for tensor in [*model.state_dict().values(), *flat_state(optimizer)])
        return bool(bad)

    take_step.weights = lambda: torch.cat([each.detach().flatten() for each in model.parameters()])
    return guard, take_step


def flat_state(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [tensor for state in optimizer.state.values() for tensor in state.values()]


class TestFailingParts:
    @pytest.mark.parametrize("fault", ["die", "hang"])
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


class TestSeveralMachines:
    @pytest.mark.long
    @pytest.mark.parametrize("network", ["loopback", "namespaces"])
    def test_two_launchers_make_one_run(
        self, two_process_run: Path, config_file: Path, run_directory: Path, network: str, tmp_path: Path
    ) -> None:
        """Two machines with one process each train to the same weights as one machine with two."""
        arguments = ["--cpu", "--config", config_file, f"run.directory={run_directory}", *INTERRUPTIBLE]
        with machines(network) as (address, prefixes):
            launched = [
                subprocess.Popen(
                    [*prefix, *launcher(rank, address), "train.py", *map(str, arguments)],
                    cwd=REPOSITORY,
                    env=program_environment(),
                    stdout=(tmp_path / f"log_{rank}").open("w"),
                    stderr=subprocess.STDOUT,
                )
                for rank, prefix in enumerate(prefixes)
            ]
            codes = [each.wait(200) for each in launched]
        logs = "\n".join((tmp_path / f"log_{rank}").read_text() for rank in range(2))
        assert codes == [0, 0], logs
        assert "2 x cpu" in logs
        assert differences(two_process_run, run_directory) == []


class TestSlurm:
    """The batch script with stand-ins for SLURM's own commands."""

    SCRIPT = REPOSITORY / "configs" / "slurm" / "train.sbatch"

    def run(
        self, folder: Path, srun: str, arguments: list[object], cwd: Path, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        for name, content in (("srun", srun), ("scontrol", f'echo "$@" >> {folder}/calls; echo 127.0.0.1')):
            (folder / name).write_text(f"#!/bin/bash\n{content}\n")
            (folder / name).chmod(0o755)
        path = f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        slurm = {"SLURM_JOB_NODELIST": "two", "SLURM_NNODES": "2", "SLURM_GPUS_PER_NODE": "1", "SLURM_JOB_ID": "7"}
        command = ["bash", self.SCRIPT, *map(str, arguments)]
        environment = program_environment() | {"PATH": path} | slurm | variables
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=200)

    def test_a_launcher_on_each_machine(self, config_file: Path, run_directory: Path, tmp_path: Path) -> None:
        """Two machines with one process each train to the same weights as one machine with two."""
        srun = 'shift; for id in 0 1; do SLURM_NODEID=$id "$@" & done; wait -n; wait -n'
        options, one_machine = [*INTERRUPTIBLE, "train.max_steps=2"], tmp_path / "one_machine"
        command = ["train.py", "--cpu", "--config", config_file, f"run.directory={one_machine}", *options]
        succeeded(run_program_process(command, processes=2, launcher_options=["--mixed_precision", "bf16"]))
        arguments = [config_file, "--cpu", f"run.directory={run_directory}", *options]
        result = self.run(tmp_path, srun, arguments, cwd=REPOSITORY)
        assert result.returncode == 0, result.stderr
        assert "2 x cpu" in result.stdout and differences(one_machine, run_directory) == []

    @pytest.mark.parametrize("gpus", ["4", "a100:4"])
    def test_what_srun_does_not_take_over_is_exported(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: str
    ) -> None:
        """Its cores, without which all processes share one; a kind of GPU is no number."""
        for name, value in (("SLURM_CPUS_PER_TASK", "32"), ("SLURM_EXPORT_ENV", "NONE")):
            monkeypatch.setenv(name, value)
        srun = 'echo "$SRUN_CPUS_PER_TASK cores, $PROCESSES processes, $SLURM_EXPORT_ENV variables"'
        result = self.run(tmp_path, srun, ["config.yaml"], cwd=tmp_path, SLURM_GPUS_PER_NODE=gpus)
        assert (result.returncode, result.stdout) == (0, "32 cores, 8 processes, ALL variables\n"), result.stderr

    @pytest.mark.parametrize("stopped", [True, False])
    def test_what_was_stopped_is_queued_again_and_what_failed_is_not(self, tmp_path: Path, stopped: bool) -> None:
        words = "stopped after step 5 by a signal; the same command with --resume continues" if stopped else "error: no"
        (tmp_path / "featdepth-7.log").write_text(f"{words}\nTraceback of the launcher\n")
        result = self.run(tmp_path, "exit 1", ["config.yaml"], cwd=tmp_path)
        assert result.returncode == 1
        assert ("requeue 7" in (tmp_path / "calls").read_text()) == stopped

    def test_the_words_are_those_of_the_program(self) -> None:
        (words,) = re.findall("^stopped='(.*)'$", self.SCRIPT.read_text(), re.MULTILINE)
        assert words in (REPOSITORY / "train.py").read_text()


def launcher(rank: int, address: str) -> list[str]:
    """accelerate launch on one of two machines."""
    options = ["--num_machines", "2", "--num_processes", "2", "--machine_rank", str(rank)]
    options += ["--main_process_ip", address, "--main_process_port", "29555", "--multi_gpu"]
    options += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    return [sys.executable, "-m", "accelerate.commands.launch", *options]


@contextmanager
def machines(network: str) -> Iterator[tuple[str, list[list[str]]]]:
    """The address of machine 0 and what to write before a command to run it on each of two machines.

    The loopback twice, or two network namespaces that a cable (veth) joins.
    """
    if network == "loopback":
        yield "127.0.0.1", [[], []]
        return
    commands = [
        *(f"netns add {name}" for name in NAMESPACES),
        "link add veth_a netns featdepth_a type veth peer name veth_b netns featdepth_b",
        *(f"-n {name} addr add {address}/24 dev {device}" for name, (device, address) in NAMESPACES.items()),
        *(f"-n {name} link set {each} up" for name, (device, _) in NAMESPACES.items() for each in ("lo", device)),
    ]
    try:
        for command in commands:
            if shutil.which("ip") is None or subprocess.run(["ip", *command.split()], capture_output=True).returncode:
                pytest.skip("needs the right to make network namespaces")
        prefixes = [
            ["ip", "netns", "exec", name, "env", f"GLOO_SOCKET_IFNAME={device}"]
            for name, (device, _) in NAMESPACES.items()
        ]
        yield "10.77.0.1", prefixes
    finally:
        for name in NAMESPACES if shutil.which("ip") is not None else ():
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


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
