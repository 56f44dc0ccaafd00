"""Images per second of training, validation and evaluation with several processes, as a multiple of one process.

python benchmarks/scaling.py [--networks demo photometric feature_metric] [--processes 2] [--steps 10] [--images 64]
    [--precision bfloat16] [--repeat 3] [--cpu] [--json FILE] [key=value ...]

On a CPU 2 processes against 1, each with one thread and loading its frames itself, so that it occupies one core; on
GPUs a process for each of them against 1. All are train.py and evaluate.py themselves, the several started by torchrun,
on a small street whose lists of frames are repeated as often as needed. A training has 2 x --steps steps, the second
half of which is timed (metrics.jsonl); the validation at its end and the evaluation go twice through --images images,
and the second pass is timed. Networks: those of the demo at its batch and size; or ResNet-50 for depth and ResNet-18
for motion at batch 2 of 192x640, with the objective photometric or feature_metric. key=value is for train.py and
evaluate.py. Rounds are interleaved; medians, and ratios within a round.
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import tempfile
from itertools import cycle, islice
from pathlib import Path

import torch
from measure import (
    PRECISIONS,
    REPOSITORY,
    Column,
    device_of,
    finish,
    heading,
    make_parser,
    median_ratio,
    read_intervals,
    run_python,
    start,
    table_line,
)

from featdepth.config import Model, load_config
from featdepth.data.synthetic import write_street
from featdepth.models import FeatDepth

CONFIG = REPOSITORY / "configs/demo.yaml"
LARGE = ["data.frames=[0,-1,1]", "data.height=192", "data.width=640", "model.pose_size=null", "train.batch_size=2"]
LARGE += ["model.depth_layers=50", "model.decoder_width=256", "model.dropout=0.5", "model.metres_per_unit=null"]
NETWORKS = {
    "demo": [],
    "photometric": LARGE,
    "feature_metric": [*LARGE, "model.objective=feature_metric", "model.feature_encoder={folder}/stage_1"],
}
DRIVES = 16  # of the street, six frames each
WORK = ("training", "validation", "evaluation")
COLUMNS = [
    Column("one", "one", 2),
    Column("several", "several", 2),
    Column("ratio", "ratio", 3),
]


def main() -> None:
    parser = make_parser(__doc__, repeat=3)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["demo"])
    parser.add_argument("--processes", type=int, help="default: 2, or the number of GPUs")
    parser.add_argument("--steps", type=int, default=10, help="of training that are timed, after as many to warm up")
    parser.add_argument("--images", type=int, default=64, help="to validate and to evaluate")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the configuration")
    arguments = parser.parse_intermixed_args()
    device = device_of(arguments)
    processes = arguments.processes or (torch.cuda.device_count() if device.type == "cuda" else 2)
    if device.type == "cuda" and not 1 < processes <= torch.cuda.device_count():
        parser.error(f"{processes} processes on {torch.cuda.device_count()} GPUs; give --processes, or --cpu")

    settings = {"processes": processes, "precision": arguments.precision, "steps": arguments.steps}
    settings |= {"images": arguments.images, "rounds": arguments.repeat}
    result = start(device, settings, threads=1)
    result["rows"] = {}
    print(f"\n{heading(COLUMNS)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        write_street(f"{folder}/street", drives=DRIVES)
        stage_1 = Model(objective="autoencoder", feature_layers=18, pretrained=False)  # its first layers are all alike
        FeatDepth(stage_1, [0], 192, 640).save_pretrained(f"{folder}/stage_1")
        for network in arguments.networks:
            words = program_words(network, Path(folder), processes, device, arguments)
            rounds = [
                {count: images_per_second(words, count, Path(folder) / "run", arguments) for count in (1, processes)}
                for _ in range(arguments.repeat)
            ]
            for work in WORK:
                one, several = ([each[count][work] for each in rounds] for count in (1, processes))
                row = {
                    "one": statistics.median(one),
                    "several": statistics.median(several),
                    "ratio": median_ratio(several, one),
                }
                result["rows"][f"{network}, {work}"] = row
                print(table_line(f"{network}, {work}", row, COLUMNS), flush=True)
    finish(result, arguments)


def program_words(
    network: str, folder: Path, processes: int, device: torch.device, arguments: argparse.Namespace
) -> list[object]:
    """What train.py and evaluate.py are both given; writes the lists of frames."""
    words = [f"data.root={folder}/street", f"data.split={folder}/splits", f"run.directory={folder}/run"]
    words += [f"data.ground_truth_cache={folder}/ground_truth", f"train.log_every={arguments.steps}"]
    words += [f"train.max_steps={2 * arguments.steps}", "train.panel_samples=0"]
    words += ["data.workers=0"] if device.type == "cpu" else ["data.workers=4"]
    words += [word.format(folder=folder) for word in NETWORKS[network]] + arguments.overrides
    batch_size = load_config(CONFIG, words, check_files=False).train.batch_size
    # A single epoch: between two of them there would be a validation within the time.
    lengths = {"train": 2 * arguments.steps * batch_size * processes, "val": arguments.images, "test": arguments.images}
    (folder / "splits").mkdir(exist_ok=True)
    for part, length in lengths.items():
        lines = (folder / f"street/splits/{part}_files.txt").read_text().splitlines()
        (folder / f"splits/{part}_files.txt").write_text("\n".join(islice(cycle(lines), length)) + "\n")
    return ["--config", CONFIG, *words, *(["--cpu"] if device.type == "cpu" else [])]


def images_per_second(words: list[object], processes: int, run: Path, arguments: argparse.Namespace) -> dict:
    """The speed of each kind of WORK with so many processes; `run` is the directory that the programs write to."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes] if processes > 1 else []
    speeds = {}
    for program in ("train.py", "evaluate.py"):
        command = [*launcher, REPOSITORY / "benchmarks/second_pass.py", program, *words]
        printed = run_python(command, threads=1, ACCELERATE_MIXED_PRECISION=PRECISIONS[arguments.precision])
        (speed,) = re.findall(r"second pass (\S+) images/s", printed)
        if program == "train.py":
            speeds |= {"training": read_intervals(run)[-1]["images_per_second"], "validation": float(speed)}
        else:
            speeds["evaluation"] = float(speed)
    shutil.rmtree(run)
    return speeds


if __name__ == "__main__":
    main()
