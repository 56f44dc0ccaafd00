"""What int8 costs in accuracy and gains in speed on a CPU, in onnxruntime.

python benchmarks/quantisation.py --config configs/demo.yaml --checkpoint runs/demo/model --calibration FOLDER
    [key=value ...] [--repeat 9] [--json FILE]
python benchmarks/quantisation.py --layers 50 --size 192x640        random weights: speed alone

Each row predicts depth of one image at the model's size. `abs_rel` and `a1` are of the test images at fixed metric
scale, or at median scale where the model knows none. The time is the processor's, of one thread; rows are interleaved
and "x first" is the median of the ratios within a round.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from measure import Column, finish, heading, make_parser, median_ratio, size, start, table_line
from torch import Tensor

from featdepth.config import Config, Model, load_config
from featdepth.data import augment, build_dataset
from featdepth.export.__main__ import (
    DepthNetwork,
    DepthProgram,
    export_program,
    load_predictor,
    natural_images,
    quiet,
    save_onnx,
)
from featdepth.export.quantise import KEPT_FLOAT, load_calibration, quantise
from featdepth.kinds import protocol_of
from featdepth.metrics.depth import METRICS, mean_scores, score_batch
from featdepth.models import FeatDepth
from featdepth.parallel.host import keep_freed_memory

COLUMNS = [
    Column("milliseconds", "ms/image", 1),
    Column("times_first", "x first", 2),
    Column("abs_rel", "abs_rel", 4),
    Column("a1", "a1", 4),
    Column("megabytes", "MB", 1),
]
WARM_UP = 2


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    keep_freed_memory()  # as the programs do
    model = load_model(arguments)
    images = (
        load_calibration(arguments.calibration, (model.height, model.width))
        if arguments.calibration
        else natural_images(4, model.height, model.width, torch.Generator().manual_seed(0))
    )
    result = start(torch.device("cpu"), {"height": model.height, "width": model.width, "rounds": arguments.repeat})
    with tempfile.TemporaryDirectory() as folder:
        predictors, megabytes = build_predictors(model, images, Path(folder))
    seconds = processor_seconds(predictors, images[:1], arguments.repeat)
    first = next(iter(seconds.values()))
    scores = {} if arguments.config is None else score_all(predictors, model, arguments)
    print(heading(COLUMNS))
    result["rows"] = []
    for name, values in seconds.items():
        row = {"milliseconds": 1e3 * statistics.median(values), "times_first": median_ratio(first, values)}
        row |= scores.get(name, {}) | ({"megabytes": megabytes[name]} if name in megabytes else {})
        result["rows"].append({"name": name, **row})
        print(table_line(name, row, COLUMNS))
    finish(result, arguments)


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__, repeat=9, on_gpu=False)
    parser.add_argument("--config", help="whose test images are scored")
    parser.add_argument("--checkpoint", help="model directory or hub id; without it random weights")
    parser.add_argument("--calibration", type=Path, metavar="FOLDER", help="images to quantise by")
    parser.add_argument("--layers", type=int, default=50, help="of the network with random weights")
    parser.add_argument("--size", type=size, default=(192, 640), metavar="HEIGHTxWIDTH", help="of its images")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    return parser.parse_intermixed_args()


def load_model(arguments: argparse.Namespace) -> FeatDepth:
    if arguments.checkpoint:
        return FeatDepth.from_pretrained(arguments.checkpoint)
    torch.manual_seed(0)
    settings = Model(objective="photometric", depth_layers=arguments.layers, pretrained=False)
    return FeatDepth(settings, [0, -1, 1], *arguments.size).eval()


def build_predictors(
    model: FeatDepth, images: Tensor, folder: Path
) -> tuple[dict[str, Callable[[Tensor], Tensor]], dict[str, float]]:
    """Predictors of depth by name, and the size of the files among them in MB."""
    size = model.height, model.width
    model = model.to(memory_format=torch.channels_last)
    predictors: dict[str, Callable[[Tensor], Tensor]] = {"torch float32": model.predict_depth}
    megabytes = {}
    exported = export_program(DepthProgram(model, DepthNetwork(model, torch.float32), size).eval(), model, size)
    names = {"onnxruntime float32": None} | {f"onnxruntime int8, {kept} float": kept for kept in KEPT_FLOAT}
    for name, kept in names.items():
        path = folder / f"{name.replace(' ', '_')}.onnx"
        save_onnx(exported, path, {})
        if kept:
            with quiet():
                quantise(path, images, kept)
        predictors[name] = load_predictor(path)
        megabytes[name] = path.stat().st_size / 1e6
    return predictors, megabytes


def processor_seconds(
    predictors: dict[str, Callable[[Tensor], Tensor]], image: Tensor, repeat: int
) -> dict[str, list[float]]:
    """Processor seconds of a call of every predictor in each of `repeat` rounds, after a warm-up.

    Not the clock on the wall: what else the machine does would count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in predictors}
    for number in range(WARM_UP + repeat):
        for name, predict in predictors.items():
            started = time.process_time()
            predict(image)
            if number >= WARM_UP:
                seconds[name].append(time.process_time() - started)
    return seconds


def score_all(
    predictors: dict[str, Callable[[Tensor], Tensor]], model: FeatDepth, arguments: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """The METRICS of each predictor on the test images of the configuration."""
    config = load_config(arguments.config, arguments.overrides, training=False)
    config.data.height, config.data.width = model.height, model.width
    dataset = build_dataset(config, "test", frames=[0], require_depth=True)
    print(f"test       {dataset.describe()}")
    batches = [augment({key: value[None] for key, value in dataset[index].items()}) for index in range(len(dataset))]
    return {name: score(predict, batches, model, config) for name, predict in predictors.items()}


def score(
    predict: Callable[[Tensor], Tensor], batches: list[dict[str, Tensor]], model: FeatDepth, config: Config
) -> dict[str, float]:
    """The means of METRICS over the images, at the model's own scale where it has one."""
    has_scale = model.settings.metres_per_unit is not None
    rows, pixels = [], []
    for batch in batches:
        scores = score_batch(
            1 / predict(batch["images"][:, 0].contiguous()),
            batch["depth"],
            batch["depth_size"],
            *protocol_of(config),
            scale=1.0 if has_scale else None,
        )
        rows.append(scores.fixed_scale if has_scale else scores.median_scaled)
        pixels.append(scores.pixels)
    means = mean_scores(torch.cat(rows), torch.cat(pixels))
    return {name: means[name] for name in METRICS}


if __name__ == "__main__":
    main()
