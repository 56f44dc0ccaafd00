"""What a launcher and `accelerate config` may choose for a program, and what they may not.

Losses, clipping, the guard against bad steps and checkpoints are made for plain data parallelism: each process holds
the whole model and all of its gradients. Anything else would train otherwise without a word, or wait forever.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import is_torch_xla_available

from featdepth.errors import TERMINATED, InputError
from featdepth.files import read_text

# Accelerate's names for one process, and for several that each hold the whole model, by the device they use.
DEVICES = ("CPU", "GPU", "XPU", "NPU", "MLU", "MUSA", "SDAA", "HPU", "NEURON")
DATA_PARALLEL = {"NO", *(f"MULTI_{device}" for device in DEVICES)}
# Names as in an Accelerate configuration, the variable that a launcher sets for each, and its own option for it.
SHARDED = {
    "FSDP": ("ACCELERATE_USE_FSDP", "--use_fsdp"),
    "DEEPSPEED": ("ACCELERATE_USE_DEEPSPEED", "--use_deepspeed"),
    "MEGATRON_LM": ("ACCELERATE_USE_MEGATRON_LM", "--use_megatron_lm"),
    "TP": ("ACCELERATE_USE_TP", "--use_tp"),
    "parallelism_config": ("ACCELERATE_USE_PARALLELISM_CONFIG", "--use_parallelism_config"),
}
LAUNCHER = re.compile(rb"[^\0]*python[^\0]*\0.*(accelerate|torchrun|torch\.distributed)", re.DOTALL)  # its command line
PR_SET_PDEATHSIG = 1  # of linux/prctl.h
PRECISIONS = ("no", "fp16", "bf16")
LARGEST_CONFIG = 1 << 20  # bytes
INSTEAD = (
    "start with accelerate launch --config_file configs/accelerate/multi_gpu.yaml (one_gpu.yaml for one), or choose "
    "plain data parallelism in accelerate config"
)


def end_with_launcher() -> None:
    """Ask Linux for a SIGTERM when the launcher of this process dies, which would leave it alone and unwatched.

    Launchers start their processes in sessions of their own, and one that was killed takes none of them along. To be
    called first, before anything waits for the launcher; ends the process where that is gone already.
    """
    if sys.platform != "linux":
        return
    parent = command_of_parent()
    is_elastic = "TORCHELASTIC_RUN_ID" in os.environ
    if is_elastic or (parent is not None and LAUNCHER.match(parent)):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    # An orphan's parent is the first process of the system or container; a launcher is a Python program.
    if is_elastic and parent is not None and b"python" not in parent.partition(b"\0")[0]:
        sys.exit(TERMINATED)


def command_of_parent() -> bytes | None:
    """The command line of the process that started this one, its words ended by zero bytes; None where it is hidden.

    In a container it is often outside (process 0), `/proc` may hide other users' processes (`hidepid`) or be no mount
    at all, and other systems have none.
    """
    try:
        return Path(f"/proc/{os.getppid()}/cmdline").read_bytes()
    except OSError:
        return None


def check_choices() -> None:
    """Raise InputError where the launcher, or whoever set its variables, chose what the program is not made for.

    To be called before there is an Accelerator, which would look for libraries of that kind first.
    """
    for name, (variable, option) in SHARDED.items():
        if os.environ.get(variable, "").lower() == "true":
            raise refused(name, chosen_by(name, variable, option))
    sagemaker = os.environ.get("ACCELERATE_SAGEMAKER_DISTRIBUTED_TYPE", "NO")
    if sagemaker == "MODEL_PARALLEL":
        raise refused(sagemaker, chosen_by(sagemaker, "ACCELERATE_SAGEMAKER_DISTRIBUTED_TYPE", "--sagemaker"))
    if is_torch_xla_available():
        raise InputError(
            "distributed type XLA (torch_xla is installed here): the program runs on GPUs and CPUs with plain data "
            f"parallelism; set USE_TORCH_XLA=false, and {INSTEAD}"
        )
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if precision not in PRECISIONS:
        source = chosen_by(precision, "ACCELERATE_MIXED_PRECISION", "--mixed_precision")
        raise InputError(
            f"mixed precision {precision} (from {source}): is not made for these networks; choose bf16, fp16 or no, as "
            "with accelerate launch --mixed_precision bf16"
        )


def check_accelerator(accelerator: Accelerator, accumulate: int) -> None:
    """Raise InputError where Accelerate has set up another training than `train.accumulate` and the launcher mean."""
    name = accelerator.distributed_type.value
    if name not in DATA_PARALLEL:
        raise refused(name, chosen_by(name, "of Accelerate", ""))
    compiler = accelerator.state.dynamo_plugin.backend.value.lower()
    if compiler != "no" and compiler not in torch.compiler.list_backends(exclude_tags=()):
        source = chosen_by(compiler.upper(), "ACCELERATE_DYNAMO_BACKEND", "--dynamo_backend")
        raise InputError(
            f"dynamo backend {compiler} (from {source}): is not installed here; choose inductor or no, as with "
            "accelerate launch --dynamo_backend no"
        )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    # Accelerate's launcher sets an address for several processes, and starts but one of them on CPUs.
    several = {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= os.environ.keys() and "WORLD_SIZE" not in os.environ
    if launched != accelerator.num_processes or (several and accelerator.device.type == "cpu"):
        raise InputError(
            f"launched as {'several' if several else launched} processes, but each runs alone; on CPUs start with "
            "accelerate launch --config_file configs/accelerate/two_cpu.yaml train.py --cpu ..."
        )
    if accelerator.gradient_accumulation_steps != accumulate:
        raise InputError(
            f"ACCELERATE_GRADIENT_ACCUMULATION_STEPS={accelerator.gradient_accumulation_steps} is set, and "
            f"train.accumulate is {accumulate}; unset the variable, the configuration decides"
        )


def refused(name: str, source: str) -> InputError:
    return InputError(
        f"distributed type {name}{parallel_sizes(name)} (from {source}): the program is made for plain data "
        f"parallelism; {INSTEAD}"
    )


def parallel_sizes(name: str) -> str:
    """What a parallelism configuration asks for beyond 1, in words."""
    prefix = "PARALLELISM_CONFIG_"
    sizes = {key.removeprefix(prefix).lower(): value for key, value in os.environ.items() if key.startswith(prefix)}
    asked = [f"{key} {value}" for key, value in sizes.items() if key.endswith("_size") and value not in ("1", "None")]
    return f" with {', '.join(asked)}" if name == "parallelism_config" and asked else ""


def chosen_by(name: str, variable: str, option: str) -> str:
    """Where the launcher has a choice from: its option, the file it was given, the user's default file, a variable."""
    words = [word.decode(errors="replace") for word in (command_of_parent() or b"").split(b"\0")]
    if any(word.split("=")[0].replace("-", "_") == option.replace("-", "_") for word in words if word[:2] == "--"):
        return f"the launcher's {option}"
    for position, word in enumerate(words[:-1]):
        if word.split("=")[0] in ("--config_file", "--config-file"):
            return word.partition("=")[2] or words[position + 1]
    from accelerate.commands.config.config_args import default_config_file

    if mentions(Path(default_config_file), name):
        return default_config_file
    return f"the variable {variable}"


def mentions(path: Path, name: str) -> bool:
    """Whether an Accelerate configuration, if it is there, has the value or section `name`."""
    if not path.is_file():
        return False
    text = read_text(path, LARGEST_CONFIG, "Accelerate's configuration")
    return re.search(rf"\b{re.escape(name)}\b", text) is not None
