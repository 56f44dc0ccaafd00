"""What programs meet when they start: containers, launchers, and users who change their mind."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, program_environment

from featdepth.processes import end_with_launcher

PROGRAMS = (
    *(["train.py"], ["evaluate.py"]),
    *(["-m", f"featdepth.{name}"] for name in ("predict", "doctor", "export", "prepare_video", "prepare_euroc")),
    *(["-m", f"featdepth.{name}"] for name in ("import_weights", "score_trajectory")),
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
            "import os; from featdepth.processes import end_with_launcher; end_with_launcher(); print(os.getppid())"
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
