"""What programs meet when they start: containers, launchers, and users who change their mind."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate import Accelerator, DistributedType
from conftest import REPOSITORY, call_program, forget_accelerator, program_environment, write_tiny_config

import evaluate
import train
from featdepth.errors import InputError
from featdepth.parallel.accelerator import precision
from featdepth.parallel.launcher import check_accelerator, end_with_launcher
from featdepth.predict import __main__ as predict

PROGRAMS = (
    *(["train.py"], ["evaluate.py"]),
    *(["-m", f"featdepth.{name}"] for name in ("predict", "doctor", "export", "prepare_video", "prepare_euroc")),
    *(["-m", f"featdepth.{name}"] for name in ("prepare_stereo", "import_weights", "score_trajectory")),
    *(["-m", f"featdepth.data.{name}"] for name in ("cache", "motion", "synthetic")),
)
# Python looks here before it looks for the installed library.
INTERRUPTED_IMPORT = """import os, signal, time
try:
    os.kill(os.getpid(), {number})
    time.sleep(1)
except BaseException as error:
    raise ImportError("libraries make another error of it") from error
"""


class TestParent:
    """Whoever started the program may be out of sight."""

    @pytest.mark.parametrize("error", [PermissionError, FileNotFoundError, ProcessLookupError])
    def test_one_that_cannot_be_read_is_no_launcher(
        self, monkeypatch: pytest.MonkeyPatch, error: type[OSError]
    ) -> None:
        """`hidepid` hides it, a container leaves it outside as process 0, and it may end meanwhile."""

        def refuse(_path: Path) -> bytes:
            raise error

        monkeypatch.setattr(Path, "read_bytes", refuse)
        for elastic in (False, True):
            if elastic:
                monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
            end_with_launcher()

    def test_in_a_process_namespace_of_its_own(self) -> None:
        container = ["unshare", "--pid", "--fork", "--mount-proc"]
        if sys.platform != "linux" or subprocess.run([*container, "true"], capture_output=True, check=False).returncode:
            pytest.skip("needs the right to make a process namespace")
        program = (
            "import os; from featdepth.parallel import launcher; launcher.end_with_launcher(); print(os.getppid())"
        )
        done = subprocess.run(
            [*container, sys.executable, "-c", program],
            cwd=REPOSITORY,
            env=program_environment(),
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


@pytest.mark.parametrize("program", PROGRAMS, ids=" ".join)
def test_interrupt_in_the_midst_of_imports_ends_without_a_traceback(program: list[str], tmp_path: Path) -> None:
    for library in ("numpy", "torch", "yaml", "PIL"):
        (tmp_path / f"{library}.py").write_text(INTERRUPTED_IMPORT.format(number=int(signal.SIGINT)))
    environment = program_environment() | {"PYTHONPATH": f"{tmp_path}:{REPOSITORY}"}
    done = subprocess.run(
        [sys.executable, *program], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


SHARDED = {
    "FSDP": "ACCELERATE_USE_FSDP",
    "DEEPSPEED": "ACCELERATE_USE_DEEPSPEED",
    "MEGATRON_LM": "ACCELERATE_USE_MEGATRON_LM",
    "TP": "ACCELERATE_USE_TP",
    "parallelism_config": "ACCELERATE_USE_PARALLELISM_CONFIG",
}
PLAIN = ["NO", *(f"MULTI_{device}" for device in ("CPU", "GPU", "XPU", "NPU", "MLU", "MUSA", "SDAA", "HPU", "NEURON"))]


class TestChoicesOfTheLauncher:
    """Clipping, the guard against bad steps and checkpoints are made for plain data parallelism."""

    @pytest.fixture
    def config(self, tmp_path: Path) -> Path:
        """All is refused before anything is read of the data."""
        for part in ("train", "val", "test"):
            (tmp_path / "splits").mkdir(exist_ok=True)
            (tmp_path / "splits" / f"{part}_files.txt").write_text("")
        return write_tiny_config(tmp_path / "tiny.yaml", tmp_path)

    @pytest.fixture
    def default_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """Where `accelerate config` writes to."""
        path = tmp_path / "default_config.yaml"
        monkeypatch.setattr("accelerate.commands.config.config_args.default_config_file", str(path))
        return path

    @pytest.mark.parametrize("name", SHARDED)
    def test_what_is_not_plain_data_parallelism_is_named_with_its_file(
        self, config: Path, tmp_path: Path, default_file: Path, name: str
    ) -> None:
        arguments = ["--config", config, f"run.directory={tmp_path / 'run'}"]
        line = call_program(train.main, *arguments, environment={SHARDED[name]: "true"}).error_line()
        assert f"distributed type {name} (from the variable {SHARDED[name]})" in line and "multi_gpu.yaml" in line
        default_file.write_text(f"distributed_type: {name}\n{name}:\n  size: 2\n")
        line = call_program(train.main, *arguments, environment={SHARDED[name]: "true"}).error_line()
        assert f"distributed type {name} (from {default_file})" in line
        assert not (tmp_path / "run").exists()

    def test_a_file_that_the_launcher_was_given_comes_first(
        self, config: Path, default_file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        default_file.write_text("distributed_type: FSDP\n")
        for words, source in (
            (b"python\0accelerate\0launch\0--config_file\0own.yaml\0train.py", "own.yaml"),
            (b"python\0accelerate\0launch\0--config_file=own.yaml\0train.py", "own.yaml"),
            (b"python\0accelerate\0launch\0--use_fsdp\0train.py", "the launcher's --use_fsdp"),
            (b"python\0accelerate\0launch\0--use-fsdp\0train.py", "the launcher's --use_fsdp"),
        ):
            monkeypatch.setattr("featdepth.parallel.launcher.command_of_parent", lambda words=words: words)
            environment = {"ACCELERATE_USE_FSDP": "true"}
            line = call_program(train.main, "--config", config, environment=environment).error_line()
            assert f"distributed type FSDP (from {source})" in line

    def test_sizes_of_a_parallelism_configuration_are_named(self, config: Path) -> None:
        environment = {"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_TP_SIZE": "2"}
        environment |= {"PARALLELISM_CONFIG_CP_SIZE": "1"}
        line = call_program(train.main, "--config", config, environment=environment).error_line()
        assert "distributed type parallelism_config with tp_size 2 (" in line

    def test_evaluation_and_prediction_refuse_it_too(self, config: Path, tmp_path: Path) -> None:
        words = ["--checkpoint", tmp_path, tmp_path, "--out", tmp_path / "out"]
        for main, arguments in ((evaluate.main, ["--config", config]), (predict.main, words)):
            line = call_program(main, *arguments, environment={"ACCELERATE_USE_FSDP": "true"}).error_line()
            assert "distributed type FSDP" in line

    def test_a_tpu_is_refused(self, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("featdepth.parallel.launcher.is_torch_xla_available", lambda: True)
        line = call_program(train.main, "--config", config).error_line()
        assert "distributed type XLA (torch_xla is installed here)" in line and "USE_TORCH_XLA=false" in line

    @pytest.mark.parametrize("kind", DistributedType)
    def test_every_type_that_accelerate_knows(self, kind: DistributedType, default_file: Path) -> None:
        forget_accelerator()
        accelerator = Accelerator(cpu=True)
        accelerator.state.distributed_type = kind
        if kind.value in PLAIN:
            check_accelerator(accelerator, 1)
        else:
            with pytest.raises(InputError, match=f"distributed type {kind.value} "):
                check_accelerator(accelerator, 1)
        forget_accelerator()

    @pytest.mark.parametrize(
        ("variable", "value", "words"),
        [
            ("ACCELERATE_MIXED_PRECISION", "fp8", "mixed precision fp8"),
            ("ACCELERATE_MIXED_PRECISION", "bfloat16", "mixed precision bfloat16"),
            ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "train.accumulate is 1"),
            ("ACCELERATE_DYNAMO_BACKEND", "nonsense", "nonsense"),
            ("ACCELERATE_DYNAMO_BACKEND", "TENSORRT", "dynamo backend tensorrt (from the variable ACCELERATE_DYNAMO_B"),
        ],
    )
    def test_what_would_change_the_training_in_silence(
        self, config: Path, default_file: Path, variable: str, value: str, words: str
    ) -> None:
        line = call_program(train.main, "--config", config, environment={variable: value}).error_line()
        assert words in line.replace("NONSENSE", "nonsense")

    def test_several_processes_on_cpus_of_which_the_launcher_starts_one(self, config: Path) -> None:
        """What `accelerate launch --cpu --num_processes 2` and a configuration MULTI_CPU come to."""
        environment = {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
        line = call_program(train.main, "--config", config, environment=environment).error_line()
        assert "launched as several processes" in line and "two_cpu.yaml" in line

    @pytest.mark.parametrize(
        ("chosen", "found"), [("no", "no"), ("bf16", "bf16"), ("fp16", "no (fp16 is not for cpu)")]
    )
    def test_half_precision_on_a_cpu_is_not_claimed(self, chosen: str, found: str) -> None:
        """Accelerate computes in float32 then, and says nothing."""
        forget_accelerator()
        assert precision(Accelerator(cpu=True, mixed_precision=chosen)) == found
        forget_accelerator()
