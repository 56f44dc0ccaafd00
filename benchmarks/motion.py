"""Motion from the pose network beside motion by alignment with the model's own depth, on a model's test sequences.

python benchmarks/motion.py --config configs/demo.yaml --checkpoint runs/demo/model [--cpu] [key=value ...]

Means over the sequences of the scores of `evaluate.py --odometry` (docs/odometry.md): the 5-frame ATE, single steps as
they are ("none", metres) and with one scale for each sequence ("scale"); what going straight ahead scores; the share of
pairs whose motions forwards and backwards agree; milliseconds of the processor for a pair, depth included.
"""

from __future__ import annotations

import time
from itertools import groupby

import numpy as np
import torch
from measure import Column, device_of, finish, heading, make_parser, start, table_line

from featdepth.config import load_config
from featdepth.data.dataset import FrameDataset
from featdepth.errors import run_program
from featdepth.evaluation.opening import open_sequences
from featdepth.evaluation.trajectories import average, find_stretches, score_stretch
from featdepth.models import FeatDepth
from featdepth.odometry.aligned import align_motions
from featdepth.odometry.egomotion import predict_motions
from featdepth.odometry.table import STRAIGHT_AHEAD

COLUMNS = [
    Column("ate_5_frames", "5-frame ATE", 4),
    Column("rotation", "RPE deg", 4),
    Column("translation", "RPE m", 4),
    Column("scaled_translation", "scaled RPE m", 4),
    Column("aligned", "aligned", 3),
    Column("milliseconds", "ms a pair", 1),
]


def main() -> None:
    parser = make_parser(__doc__, repeat=1)
    parser.add_argument("--config", required=True)
    parser.add_argument("--checkpoint", required=True, help="model directory or hub id")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_args()
    device = device_of(arguments)
    model = FeatDepth.from_pretrained(arguments.checkpoint).to(device).eval()
    overrides = [*arguments.overrides, f"data.height={model.height}", f"data.width={model.width}"]
    dataset = open_sequences(load_config(arguments.config, overrides, training=False))
    result = start(device, {"checkpoint": arguments.checkpoint, "pairs": len(dataset)})
    print(f"\n{heading(COLUMNS)}", flush=True)
    rows = result["rows"] = scored(model, dataset)
    for name, row in rows.items():
        print(table_line(name, row, COLUMNS), flush=True)
    finish(result, arguments)


def scored(model: FeatDepth, dataset: FrameDataset) -> dict[str, dict[str, float]]:
    """The figures of each way to find motion."""
    tables: dict[str, list[np.ndarray]] = {"pose network": [], "alignment": []}
    seconds, agree = dict.fromkeys(tables, 0.0), []
    for places in runs_of_frames(dataset):
        items = [dataset[place] for place in places]
        frames = [*(item["images"][0] for item in items), items[-1]["images"][1]]
        started = time.process_time()
        network = predict_motions(model, frames)
        between = time.process_time()
        aligned = align_motions(model, frames, items[0]["intrinsics"])
        seconds["pose network"] += between - started
        seconds["alignment"] += time.process_time() - between
        agree.append(aligned.is_aligned)
        for name, motions in (("pose network", network), ("alignment", aligned.motions)):
            tables[name].append(np.column_stack([places, motions.reshape(-1, 16)]))
    rows = {}
    for name, parts in tables.items():
        scores = [score_stretch(each, True) for each in find_stretches(dataset, np.concatenate(parts))]
        means = average(scores)
        rows[name] = {**row_of(means), "milliseconds": 1e3 * seconds[name] / len(dataset)}
    rows["alignment"]["aligned"] = float(np.concatenate(agree).mean())
    return {**rows, "straight ahead": row_of(means[STRAIGHT_AHEAD])}


def row_of(means: dict) -> dict[str, float]:
    """What the table shows of mean scores; straight ahead has no metres."""
    row = {"ate_5_frames": means["ate_5_frames"]["mean_m"], "rotation": means["scale"]["rpe_rotation_deg"]}
    row |= {"translation": means["none"]["rpe_translation_m"]} if "none" in means else {}
    return row | {"scaled_translation": means["scale"]["rpe_translation_m"]}


def runs_of_frames(dataset: FrameDataset) -> list[list[int]]:
    """Places of pairs that follow one another, in order."""
    keys = [(sample.drive, sample.frame - place) for place, sample in enumerate(dataset.samples)]
    return [[place for place, _ in run] for _, run in groupby(enumerate(keys), lambda each: each[1])]


if __name__ == "__main__":
    with torch.no_grad():
        run_program(main)
