"""Runs on several machines, and the batch script that starts one on each."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import (
    INTERRUPTIBLE,
    REPOSITORY,
    program_environment,
    run_program_process,
    succeeded,
)
from run_records import differences

NAMESPACES = {"featdepth_a": ("veth_a", "10.77.0.1"), "featdepth_b": ("veth_b", "10.77.0.2")}  # device, address


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

    @pytest.mark.long  # two launchers, each with a process
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
