"""How long a run needs to save itself: the seconds between the end of a step and a checkpoint that is on the disk.

python benchmarks/stop_time.py [--config configs/kitti.yaml] [--repeat 5] [--cpu]
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from accelerate import Accelerator

sys.path.insert(0, str(Path(__file__).parents[1]))

from featdepth.checkpoint import Progress, save_checkpoint
from featdepth.config import load_config
from featdepth.models import FeatDepth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/kitti.yaml"))
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--folder", help="disk to write to; default: the system's temporary folder")
    parser.add_argument("--cpu", action="store_true")
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
    seconds = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for step in range(arguments.repeat):
            started = time.perf_counter()
            conditions = {"processes": 1, "train.batch_size": config.train.batch_size}
            save_checkpoint(accelerator, Path(folder), Progress(step=step), conditions, keep=1)
            seconds.append(time.perf_counter() - started)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    print(
        f"{arguments.config.stem}: {sum(map(torch.numel, parameters)) / 1e6:.1f} million parameters, checkpoint "
        f"{size / 1e6:.0f} MB, saved in {statistics.median(seconds):.1f} s (median; longest {max(seconds):.1f} s)"
    )


if __name__ == "__main__":
    main()
