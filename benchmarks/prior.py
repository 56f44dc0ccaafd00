"""What a prior of depth brings a small network: its abs_rel on held-out drives with it and without, at equal steps.

python benchmarks/prior.py [--seeds 0 1 2] [--steps 200] [--weight 0.3] [--street DIR] [--out DIR] [--cpu] [--json FILE]

The prior is the street's true inverse depth, smoothed by a Gaussian as wide as SMOOTHING of the image, after an affine
map that is drawn for each frame: right up to scale and shift, and blurred at edges, as that of a large model might be.
Both are train.py with configs/demo.yaml and the OPTIONS below, from the stereo pair; abs_rel is that of the last
validation, median scaled. A seed of 100 steps takes about two minutes of one core where the street is there.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from measure import REPOSITORY, Column, device_of, finish, heading, make_parser, run_python, start, table_line
from torch.nn import functional

from featdepth.config import load_config
from featdepth.data import build_dataset
from featdepth.data.images import load_depth_image
from featdepth.data.prior_maps import map_name
from featdepth.data.synthetic import write_street
from featdepth.metrics.intervals import t_quantile

CONFIG = REPOSITORY / "configs/demo.yaml"
OPTIONS = ["data.frames=[0, s]", "model.decoder_width=32", "train.batch_size=4", "train.epochs=1000", "data.workers=0"]
SMOOTHING = 0.01  # standard deviation, in widths of the image
COLUMNS = [Column("without", "without", 4), Column("with_prior", "with", 4), Column("change", "change, %", 1)]


def main() -> None:
    parser = make_parser(__doc__, repeat=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the training")
    parser.add_argument("--steps", type=int, default=200, help="of each training")
    parser.add_argument("--weight", type=float, default=0.3, help="loss.prior")
    parser.add_argument("--street", type=Path, help="one that is there already (default: it is made)")
    parser.add_argument("--out", type=Path, help="where maps and runs are left (default: nowhere)")
    arguments = parser.parse_args()
    device = device_of(arguments)
    settings = {"steps": arguments.steps, "loss.prior": arguments.weight}
    result = start(device, settings) | {"rows": {}}
    print(heading(COLUMNS))
    with tempfile.TemporaryDirectory() as folder:
        out = (arguments.out or Path(folder)).resolve()
        street = (arguments.street or out / "street").resolve()
        if arguments.street is None:
            write_street(street)
        words = [f"data.root={street}", f"data.split={street}/splits", *OPTIONS]
        words += [f"data.ground_truth_cache={out}/ground_truth", f"train.max_steps={arguments.steps}"]
        write_maps(words, out / "maps")
        prior = [f"data.prior={out}/maps", "data.prior_kind=disparity", f"loss.prior={arguments.weight}"]
        for seed in arguments.seeds:
            row = {}
            for name, more in (("without", []), ("with_prior", prior)):
                run = [f"run.directory={out}/{name}_{seed}", f"train.seed={seed}", *words, *more]
                run_python(["train.py", "--config", CONFIG, *run, *["--cpu"] * (device.type == "cpu")], threads=1)
                row[name] = last_error(out / f"{name}_{seed}")
            row["change"] = 100 * (row["with_prior"] / row["without"] - 1)
            result["rows"][f"seed {seed}"] = row
            print(table_line(f"abs_rel, seed {seed}", row, COLUMNS), flush=True)
    changes = [row["change"] for row in result["rows"].values()]
    if len(changes) > 1:
        width = t_quantile(0.975, len(changes) - 1) * statistics.stdev(changes) / math.sqrt(len(changes))
        result["change"] = [statistics.mean(changes), width]
        print(f"change with the prior: {statistics.mean(changes):+.1f} % +- {width:.1f} (95 %, {len(changes)} seeds)")
    finish(result, arguments)


def write_maps(words: list[str], folder: Path) -> None:
    """The maps of all frames of training and validation."""
    config, random = load_config(CONFIG, words), np.random.default_rng(0)
    for part in ("train", "validation"):
        dataset = build_dataset(config, part)
        for sample in dataset.samples:
            image = Path(dataset.image_path(sample, 0))
            drive, camera = image.parents[2], image.parents[1].name
            truth = drive / "proj_depth/groundtruth" / camera / f"{image.stem}.png"
            depth = load_depth_image(truth, dataset.native_sizes[dataset.camera_of(sample)])
            inverse = np.divide(1.0, depth, out=np.zeros_like(depth), where=depth > 0)  # 0 in the sky
            scale, shift = np.exp(random.uniform(-1, 1)), random.uniform(0, 0.2)
            place = folder / f"{map_name(str(image), config.data.root)}.npy"
            place.parent.mkdir(parents=True, exist_ok=True)
            np.save(place, scale * (smoothed(inverse) + shift))


def smoothed(values: np.ndarray) -> np.ndarray:
    """`values` `[h, w]` after the Gaussian."""
    deviation = SMOOTHING * values.shape[1]
    reach = math.ceil(3 * deviation)
    offsets = torch.arange(-reach, reach + 1)
    kernel = torch.exp(-0.5 * (offsets / deviation) ** 2)
    kernel = kernel / kernel.sum()
    padded = functional.pad(torch.from_numpy(values)[None, None], (reach,) * 4, mode="replicate")
    rows = functional.conv2d(padded, kernel[None, None, None, :])
    return functional.conv2d(rows, kernel[None, None, :, None])[0, 0].numpy()


def last_error(run: Path) -> float:
    """abs_rel, median scaled, of a run's last validation."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["split"] == "validation"][-1]["abs_rel"]


if __name__ == "__main__":
    main()
