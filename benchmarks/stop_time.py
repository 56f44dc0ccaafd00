"""How long a run needs to save itself: the seconds between the end of a step and a checkpoint that is on the disk.

python benchmarks/stop_time.py [--config configs/kitti.yaml] [--folder DISK] [--repeat 5] [--cpu] [--json FILE]

Parameters and a whole optimizer state of the configuration's networks, written as a run writes them; the median and the
longest of several times, after a warm-up.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from measure import REPOSITORY, Column, finish, heading, make_parser, start, table_line

from featdepth.config import load_config
from featdepth.models import FeatDepth
from featdepth.training.checkpoint import Progress, save_checkpoint

COLUMNS = [
    Column("parameters", "parameters", 0),
    Column("megabytes", "MB", 0),
    Column("seconds", "seconds", 2),
    Column("longest", "longest", 2),
]


def main() -> None:
    parser = make_parser(__doc__, repeat=5)
    parser.add_argument("--config", type=Path, default=REPOSITORY / "configs/kitti.yaml")
    parser.add_argument("--folder", help="disk to write to; default: the system's temporary folder")
    arguments = parser.parse_args()
    config = load_config(arguments.config, check_files=False)
    accelerator = Accelerator(cpu=arguments.cpu)
    model = FeatDepth(
        dataclasses.replace(config.model, pretrained=False), config.data.frames, config.data.height, config.data.width
    )
    parameters = [each for each in model.parameters() if each.requires_grad]
    model, optimizer = accelerator.prepare(model, torch.optim.Adam(parameters, fused=True))
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    conditions = {"processes": 1, "train.batch_size": config.train.batch_size}
    seconds = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for step in range(1 + arguments.repeat):
            started = time.perf_counter()
            save_checkpoint(accelerator, Path(folder), Progress(step=step), conditions, keep=1)
            seconds.append(time.perf_counter() - started)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())

    result = start(accelerator.device, {"configuration": arguments.config.stem, "rounds": arguments.repeat})
    result["rows"] = {
        arguments.config.stem: {
            "parameters": sum(map(torch.numel, parameters)),
            "megabytes": size / 1e6,
            "seconds": statistics.median(seconds[1:]),
            "longest": max(seconds[1:]),
        }
    }
    print(f"\n{heading(COLUMNS)}")
    print(table_line(arguments.config.stem, result["rows"][arguments.config.stem], COLUMNS))
    finish(result, arguments)


if __name__ == "__main__":
    main()
