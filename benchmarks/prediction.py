"""Frames per second of depth prediction, `FeatDepth.predict_depth`.

python benchmarks/prediction.py [--layers 18 50] [--sizes 192x640 320x1024] [--batches 1 8]
    [--precisions float32 bfloat16] [--compile] [--repeat 9] [--cpu] [--json FILE]

From frames in [0, 1] of the network's size, on the device, to depth in metres at that size. The rows of one size and
batch are interleaved; "x first" is a row's speed as a multiple of the first one's, the median of the ratios within a
round. On a GPU bfloat16 and compiled networks are measured unless told otherwise.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from itertools import product

import torch
from measure import (
    Column,
    add_variants,
    choose_variants,
    compiled,
    device_of,
    finish,
    heading,
    interleaved,
    make_parser,
    median_ratio,
    size,
    start,
    table_line,
)
from torch import Tensor

from featdepth.config import Model
from featdepth.models import FeatDepth
from featdepth.parallel.host import keep_freed_memory

COLUMNS = [
    Column("frames_per_second", "frames/s", 2),
    Column("milliseconds", "ms/frame", 2),
    Column("times_first", "x first", 3),
]


def main() -> None:
    parser = make_parser(__doc__, repeat=9)
    parser.add_argument("--layers", nargs="+", type=int, default=[18, 50], help="of the depth network's ResNet")
    parser.add_argument("--sizes", nargs="+", type=size, default=[(192, 640)], metavar="HEIGHTxWIDTH")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    add_variants(parser)
    arguments = parser.parse_args()
    device = device_of(arguments)
    choose_variants(arguments, device)
    if device.type == "cpu":
        keep_freed_memory()  # as the programs do

    result = start(device, {"rounds": arguments.repeat})
    result["rows"] = []
    for (height, width), batch in product(arguments.sizes, arguments.batches):
        print(f"\nbatch {batch} of {height}x{width}\n{heading(COLUMNS)}", flush=True)
        images = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0)).to(device)
        seconds = interleaved(predictors(images, arguments), arguments.repeat, device)
        first = next(iter(seconds.values()))
        for name, values in seconds.items():
            row = {
                "frames_per_second": batch / statistics.median(values),
                "milliseconds": 1e3 * statistics.median(values) / batch,
                "times_first": median_ratio(first, values),
            }
            result["rows"].append({"name": name, "height": height, "width": width, "batch": batch, **row})
            print(table_line(name, row, COLUMNS), flush=True)
    finish(result, arguments)


def predictors(images: Tensor, arguments: argparse.Namespace) -> dict[str, Callable[[], None]]:
    """What is timed, by name: a prediction for all `images` `[B, 3, H, W]` by each network in each of its forms."""
    runs = {}
    for layers, precision in product(arguments.layers, arguments.precisions):
        settings = Model(objective="photometric", depth_layers=layers, pretrained=False)
        model = FeatDepth(settings, [0, -1, 1], *images.shape[-2:])
        model = model.to(images.device, memory_format=torch.channels_last).eval()
        name = f"ResNet-{layers}, {precision}"
        runs[name] = partial(predict, model.predict_depth, images, precision)
        if arguments.compile:
            runs[f"{name}, compiled"] = partial(predict, compiled(model.predict_depth), images, precision)
    return runs


@torch.no_grad()
def predict(predict_depth: Callable[[Tensor], Tensor], images: Tensor, precision: str) -> None:
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        predict_depth(images)


if __name__ == "__main__":
    main()
