"""What encoders cost: parameters, and time of the depth network as a multiple of that with ResNet-18.

python benchmarks/encoder_cost.py [--encoders resnet18 convnext_tiny timm:efficientnet_lite0 ...] [--size 192x640]
    [--batch 1] [--repeat 5] [--cpu] [--json FILE]

Forward and backward of a trivial sum, channels-last, no optimizer; all encoders in turn, the median of the ratios
within a round. On a CPU the processor's time is compared, which other programs disturb less than the clock's.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from measure import Column, device_of, finish, heading, interleaved, make_parser, median_ratio, size, start, table_line

from featdepth.config import Model
from featdepth.models import FeatDepth

ENCODERS = ["resnet18", "resnet50", "mobilenet_v3_large", "efficientnet_b0", "efficientnet_v2_s", "regnet_y_800mf"]
ENCODERS += ["convnext_tiny", "swin_v2_t"]
COLUMNS = [
    Column("encoder_millions", "encoder, M", 1),
    Column("millions", "network, M", 1),
    Column("milliseconds", "ms", 0),
    Column("times_resnet18", "x resnet18", 2),
]


def main() -> None:
    parser = make_parser(__doc__, repeat=5)
    parser.add_argument("--encoders", nargs="+", default=ENCODERS, help="the first is compared with")
    parser.add_argument("--size", type=size, default=(192, 640))
    parser.add_argument("--batch", type=int, default=1)
    arguments = parser.parse_args()
    device = device_of(arguments)
    result = start(device, {"size": arguments.size, "batch": arguments.batch, "repeat": arguments.repeat})
    image = torch.rand(arguments.batch, 3, *arguments.size, device=device)
    models = {name: network(name, arguments.size).to(device) for name in arguments.encoders}
    runs = {name: processor_seconds(model, image) for name, model in models.items()}
    seconds = interleaved({name: run for name, (run, _) in runs.items()}, arguments.repeat, device)
    if device.type == "cpu":
        seconds = {name: taken[-arguments.repeat :] for name, (_, taken) in runs.items()}
    print(heading(COLUMNS))
    result["encoders"] = {}
    for name, model in models.items():
        row = {
            "encoder_millions": parameters(model.depth_encoder),
            "millions": parameters(model),
            "milliseconds": 1000 * statistics.median(seconds[name]),
            "times_resnet18": median_ratio(seconds[name], seconds[arguments.encoders[0]]),
        }
        result["encoders"][name] = row
        print(table_line(name, row, COLUMNS))
    finish(result, arguments)


def network(name: str, image_size: tuple[int, int]) -> FeatDepth:
    """A depth network with the encoder `name` and random weights."""
    settings = Model(objective="photometric", encoder=name, pretrained=False)
    return FeatDepth(settings, [0, "s"], *image_size).to(memory_format=torch.channels_last)


def processor_seconds(model: FeatDepth, image: torch.Tensor) -> tuple[Callable[[], None], list[float]]:
    """A call that runs the network forward and backward, and the seconds of the processor that each call took."""
    taken: list[float] = []

    def run() -> None:
        started = time.process_time()
        sum(disparity.sum() for disparity in model.depth(image)).backward()
        model.zero_grad()
        taken.append(time.process_time() - started)

    return run, taken


def parameters(network: torch.nn.Module) -> float:
    """Millions of them."""
    return sum(each.numel() for each in network.parameters()) / 1e6


if __name__ == "__main__":
    main()
