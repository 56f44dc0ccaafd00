"""What the end-to-end tests share: a small street, a small configuration, and ways to run the programs."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import NamedTuple

import pytest
import small_resnet  # noqa: F401  before the networks are imported
import torch
import torchvision
import yaml
from accelerate.state import AcceleratorState, GradientState
from kitti_tree import drive_name, write_calibration, write_drive, write_list
from tiny_models import tiny_config, tiny_model
from warm_processes import PATIENCE, context, run_warm, start_server

import train
from featdepth.data.synthetic import write_street
from featdepth.errors import run_program

REPOSITORY = Path(__file__).parents[1]
SMALL_NETWORKS = REPOSITORY / "tests" / "support" / "small_networks"
TWO_PROCESSES = REPOSITORY / "configs" / "accelerate" / "two_cpu.yaml"
PYTHONPATH = os.pathsep.join(map(str, (REPOSITORY, SMALL_NETWORKS)))
FAULTY = REPOSITORY / "tests" / "support" / "faulty_train.py"
TIME_LIMIT = 300  # seconds for one program

Shared = Callable[[str, Callable[[Path], None]], Path]

# Names that Accelerate and torchrun read; a test decides on them, not the shell it is started from.
LAUNCH_VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Result(NamedTuple):
    """How a program ended."""

    code: int
    out: str
    err: str

    def error_line(self) -> str:
        """The one line on standard error of a program that refused its input."""
        assert self.code == 2, f"exit code {self.code}\n{self.out}\n{self.err}"
        assert self.err.startswith("error: ") and self.err.count("\n") == 1, self.err
        return self.err


def succeeded(result: Result) -> Result:
    assert result.code == 0, f"exit code {result.code}\n{result.out}\n{result.err}"
    return result


def program_environment() -> dict[str, str]:
    """No GPU, one thread, nothing inherited that a launcher would set."""
    kept = {name: value for name, value in os.environ.items() if name not in LAUNCH_VARIABLES}
    kept = {name: value for name, value in kept.items() if not name.startswith("ACCELERATE_")}
    return kept | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": PYTHONPATH}


def program_command(arguments: list[object], processes: int = 1, launcher_options: Sequence[str] = ()) -> list[str]:
    """`arguments`: a script and what it is given; on 2 processes by `accelerate launch`, on more by torchrun."""
    words = [str(argument) for argument in arguments]
    if processes == 1:
        return [sys.executable, *words]
    if processes == 2:
        launcher = ["accelerate.commands.launch", "--config_file", str(TWO_PROCESSES)]
    else:
        launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return [sys.executable, "-m", *launcher, *launcher_options, *words]


def run_program_process(
    arguments: list[object],
    processes: int = 1,
    file_limit: int | None = None,
    launcher_options: Sequence[str] = (),
    patience: float = PATIENCE,
    **variables: object,
) -> Result:
    """Run a program in processes of its own, on the CPU, which start with torch imported.

    file_limit: bytes that no file may exceed, as on a disk that gets full; patience: seconds that a process has to
    notice that another has failed, before it is ended; variables: of the environment.
    """
    words = [str(argument) for argument in arguments]
    environment = program_environment() | {name: str(value) for name, value in variables.items()}
    with tempfile.TemporaryDirectory() as folder:
        return Result(
            *run_warm(words, environment, Path(folder), processes, TIME_LIMIT, launcher_options, file_limit, patience)
        )


def warm_context() -> ForkServerContext:
    """Of functions to be run in processes that start with torch imported."""
    start_server(program_environment())
    return context


def call_program(main: Callable[[], None], *arguments: object, environment: dict[str, str] | None = None) -> Result:
    """Run a program's `main` in this process, where the start of Python and torch is paid for already."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["program", *map(str, arguments)])
        patch.setenv("ACCELERATE_USE_CPU", "true")
        for name in LAUNCH_VARIABLES:
            patch.delenv(name, raising=False)
        for name, value in (environment or {}).items():
            patch.setenv(name, value)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        forget_accelerator()
        try:
            run_program(main)
        except SystemExit as stop:
            code = stop.code
        finally:
            forget_accelerator()
            torch.set_num_threads(threads)
    return Result(code, out.getvalue(), err.getvalue())


def continue_here(config_file: Path, directory: Path, *options: str) -> Result:
    """Resume in this process."""
    arguments = ["--config", config_file, f"run.directory={directory}", *INTERRUPTIBLE, *options]
    return call_program(train.main, *arguments, *([] if "--resume-anyway" in options else ["--resume"]))


def forget_accelerator() -> None:
    """Let the next Accelerator of this process start afresh."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def write_tiny_config(path: Path, root: Path) -> Path:
    """A configuration whose networks and images are as small as can be, for the street in `root`."""
    values = {
        "data": {"root": str(root), "split": str(root / "splits"), "frames": [0, -1, "s"], "height": 64, "width": 96},
        "model": {"objective": "photometric", "depth_layers": 18, "pose_layers": 18, "feature_layers": 18},
        "schedule": {"warmup_steps": 4, "milestones": [1]},
        "train": {"epochs": 3, "batch_size": 2, "log_every": 3, "checkpoint_every": 100, "panel_samples": 2},
        "evaluate": {"crop": "none", "batch_size": 2},
    }
    values["data"] |= {"workers": 0, "ground_truth_cache": str(path.parent / "ground_truth")}
    values["model"] |= {"decoder_width": 16, "pretrained": False, "pose_size": None}
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """`shared(name, make)`: the folder `name`, made by the first test process that asks for it, for all of them."""
    base = tmp_path_factory.getbasetemp()
    # Each of several test processes has a folder of its own in one that belongs to them all.
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made(name: str, make: Callable[[Path], None]) -> Path:
        folder = base / f"shared_{name}"
        with (base / f"shared_{name}.done").open("a+") as done:
            fcntl.flock(done, fcntl.LOCK_EX)
            if os.fstat(done.fileno()).st_size == 0:
                shutil.rmtree(folder, ignore_errors=True)  # of one who failed
                make(folder)
                done.write("made")
        return folder

    return made


@pytest.fixture
def whole_resnet18(monkeypatch: pytest.MonkeyPatch) -> None:
    """ResNet-18 as it is, not as small as in all other tests."""
    monkeypatch.setattr(torchvision.models, "resnet18", torchvision.models.resnet.resnet18)


@pytest.fixture(scope="session")
def street(shared: Shared) -> Path:
    """Six drives: four to train on (20 samples), one to validate (5 samples), one to test (3 samples)."""

    def make(folder: Path) -> None:
        root = folder / "data"
        write_street(root, drives=6, frames=7, height=64, width=192, workers=1)
        train_list = root / "splits" / "train_files.txt"
        left = [line for line in train_list.read_text().splitlines() if line.endswith(" l")]
        train_list.write_text("\n".join(left) + "\n")
        write_tiny_config(folder / "tiny.yaml", root)

    return shared("street", make) / "data"


@pytest.fixture(scope="session")
def wide_street(shared: Shared) -> Path:
    """Four drives (two to train, one to validate, one to test), of a size at which frames can be matched."""

    def make(folder: Path) -> None:
        write_street(folder / "street", drives=4, frames=11, height=96, width=320, seed=1, workers=1)

    return shared("wide_street", make) / "street"


@pytest.fixture
def wide_street_copy(wide_street: Path, tmp_path: Path) -> Path:
    """One of the test's own, to be damaged."""
    return Path(shutil.copytree(wide_street, tmp_path / "street"))


@pytest.fixture(scope="session")
def config_file(street: Path) -> Path:
    """The tiny configuration for `street`."""
    return street.parent / "tiny.yaml"


@pytest.fixture
def street_copy(street: Path, tmp_path: Path) -> Path:
    """A street of the test's own, to be damaged; its configuration is `tiny.yaml` beside it."""
    root = tmp_path / "data"
    shutil.copytree(street, root)
    write_tiny_config(tmp_path / "tiny.yaml", root)
    return root


@pytest.fixture(scope="session")
def finished_run(config_file: Path, shared: Shared) -> Path:
    """A run of 6 steps on one process: five make an epoch; checkpoints after 2, 4, 5 and 6. Not to be changed."""

    def make(folder: Path) -> None:
        options = [f"run.directory={folder}", *INTERRUPTIBLE]
        succeeded(run_program_process(["train.py", "--cpu", "--config", config_file, *options]))

    return shared("finished_run", make)


@pytest.fixture(scope="session")
def two_process_run(config_file: Path, shared: Shared) -> Path:
    """The same on two processes: three steps make an epoch; checkpoints after 2, 3, 4 and 6."""

    def make(folder: Path) -> None:
        options = [f"run.directory={folder}", *INTERRUPTIBLE]
        succeeded(run_program_process(["train.py", "--cpu", "--config", config_file, *options], processes=2))

    return shared("two_process_run", make)


@pytest.fixture
def run_directory(tmp_path: Path) -> Iterator[Path]:
    """Where a run may go; removed in the end, for checkpoints are large."""
    yield tmp_path / "run"
    shutil.rmtree(tmp_path / "run", ignore_errors=True)


@pytest.fixture
def forget_compiled() -> Iterator[None]:
    """Each test compiles for itself."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a tiny model. Not to be changed."""
    directory = tmp_path_factory.mktemp("saved") / "model"
    tiny_model(tiny_config("photometric", [0, "s"])).save_pretrained(directory)
    return directory


@pytest.fixture
def model_copy(saved_model: Path, tmp_path: Path) -> Path:
    """A model directory to damage; its weights are a link to the whole ones."""
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "model.safetensors").symlink_to(saved_model / "model.safetensors")
    (directory / "config.json").write_text((saved_model / "config.json").read_text())
    return directory


@pytest.fixture
def raw_tree(tmp_path: Path) -> Path:
    """A drive of three frames with scans, `drive_name(1)`, and its list."""
    write_calibration(tmp_path / "raw")
    write_drive(tmp_path / "raw", drive_name(1), range(3), scans=True)
    write_list(tmp_path / "split" / "train_files.txt", [f"{drive_name(1)} 1 l"])
    return tmp_path


# Gradient accumulation, loader processes, dropout and a log interval that is open at the checkpoints: all of it has to
# survive an interruption.
INTERRUPTIBLE = (
    "train.max_steps=6",
    "train.accumulate=2",
    "train.checkpoint_every=2",
    "train.keep_checkpoints=9",
    "data.workers=1",
)
