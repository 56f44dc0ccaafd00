"""Peak memory of a training step of a large depth network: low-rank layers against all weights.

python benchmarks/low_rank.py [--tune all lora:8 last:2 head] [--size 518x518] [--batch 2] [--cpu] [--json FILE]

Depth Anything in the sizes of its small model (ViT-S, 24.8 million weights), random, a step of Adam in float32; each in
a process of its own, whose memory before the network is made is taken off. Shown are GB, and parts of the first.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch
from measure import (
    REPOSITORY,
    Column,
    device_of,
    finish,
    heading,
    make_parser,
    peak_memory,
    run_python,
    size,
    start,
    table_line,
)

from featdepth.config import Model
from featdepth.models.large_depth import find_base, make_large_depth

COLUMNS = [Column("learned", "learned, M", 2), Column("memory", "memory, GB", 2), Column("part", "part", 2)]


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        measure_step(json.loads(sys.argv[2]))
        return
    parser = make_parser(__doc__, repeat=1)
    parser.add_argument("--tune", nargs="+", default=["all", "lora:8", "last:2", "head"], help="model.tune")
    parser.add_argument("--size", type=size, default=(518, 518), metavar="HxW", help="of the images")
    parser.add_argument("--batch", type=int, default=2, help="images in a step")
    arguments = parser.parse_args()
    device = device_of(arguments)
    height, width = arguments.size
    result = start(device, {"size": f"{height}x{width}", "batch": arguments.batch}) | {"rows": {}}
    print(heading(COLUMNS))
    with tempfile.TemporaryDirectory() as folder:
        write_small_model(Path(folder))
        for tune in arguments.tune:
            row = measured(Path(folder), tune, arguments, device)
            row["part"] = row["memory"] / next(iter(result["rows"].values()), row)["memory"]
            result["rows"][tune] = row
            print(table_line(tune, row, COLUMNS), flush=True)
    finish(result, arguments)


def write_small_model(folder: Path) -> None:
    """The configuration of Depth Anything's small model; no weights are needed."""
    from transformers import DepthAnythingConfig

    DepthAnythingConfig().save_pretrained(folder)


def measured(folder: Path, tune: str, arguments: argparse.Namespace, device: torch.device) -> dict[str, float]:
    """Millions of learned numbers and GB of a step, in a process of its own."""
    asked = {"folder": str(folder), "tune": tune, "size": arguments.size, "batch": arguments.batch}
    words = [REPOSITORY / "benchmarks/low_rank.py", "--child", json.dumps(asked | {"device": device.type})]
    return json.loads(run_python(words).splitlines()[-1])


def measure_step(asked: dict) -> None:
    """Print what `measured` returns."""
    device = torch.device(asked["device"])
    base, _ = find_base(f"hf:{asked['folder']}")
    import transformers

    transformers.DepthAnythingForDepthEstimation  # noqa: B018, its import, which is not the network's memory
    before = peak_memory(device)
    encoder, decoder = (each.to(device) for each in make_large_depth(Model(tune=asked["tune"]), base))
    learned = [each for part in (encoder, decoder) for each in part.parameters() if each.requires_grad]
    optimizer = torch.optim.Adam(learned, fused=True)
    for each in learned:  # a step of nothing, after which the optimiser has its state, as in all steps but the first
        each.grad = torch.zeros_like(each)
    optimizer.step()
    optimizer.zero_grad()
    disparity = decoder(encoder(torch.rand(asked["batch"], 3, *asked["size"], device=device)))[0]
    disparity.mean().backward()
    optimizer.step()
    figures = {"learned": sum(each.numel() for each in learned) / 1e6, "memory": peak_memory(device) - before}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
