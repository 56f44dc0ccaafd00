"""How well a monocular model that was told its speed knows metres: its scores with and without median scaling.

python benchmarks/speed_supervision.py [--out DIR] [--drives 80] [--seed 5] [--cpu] [--json FILE] [key=value ...]

train.py and evaluate.py with configs/demo.yaml and the OPTIONS below: no stereo, and the distances that the street's
inertial unit measured. The test drives are not among the training drives. --out keeps street and run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from measure import REPOSITORY, Column, device_of, finish, heading, run_python, start, table_line

from featdepth.console import count
from featdepth.data.synthetic import write_street
from featdepth.metrics.depth import METRICS

CONFIG = REPOSITORY / "configs/demo.yaml"
OPTIONS = [
    "data.frames=[0, -1]",
    "loss.velocity=0.02",
    "loss.normalise_disparity=true",
    "model.pose_start=published",  # the other start finds wrong motions first here, and depth with them
    "model.max_depth=3.0",  # units of 36 m: depth cannot escape to infinity, where wrong translations do not show
    "optimizer.lr=5.0e-4",
    "train.epochs=15",
    "schedule.milestones=[12, 14]",
]
ROWS = {
    "median_scaled": "known speed, median-scaled",
    "fixed_scale": "known speed, unscaled",
    "constant_depth": "constant depth, median-scaled",
    "pixel_median": "per-pixel median, median-scaled",
}
COLUMNS = [Column(name, name, 3) for name in METRICS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="use no GPU")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--out", type=Path, help="where street and run are left (default: nowhere)")
    parser.add_argument("--drives", type=int, default=80, help="of the street, six frames each")
    parser.add_argument("--seed", type=int, default=5, help="of the street")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the configuration")
    arguments = parser.parse_intermixed_args()
    device = device_of(arguments)
    result = start(device, {"drives": arguments.drives, "seed": arguments.seed})
    with tempfile.TemporaryDirectory() as folder:
        out = (arguments.out or Path(folder)).resolve()
        write_street(out / "street", drives=arguments.drives, seed=arguments.seed)
        words = ["--config", CONFIG, f"data.root={out}/street", f"data.split={out}/street/splits"]
        words += [f"run.directory={out}/run", f"data.ground_truth_cache={out}/ground_truth"]
        words += [*OPTIONS, *arguments.overrides, *["--cpu"] * (device.type == "cpu")]
        run_python(["train.py", *words])
        run_python(["evaluate.py", *words, "--checkpoint", out / "run/model_last"])
        scores = json.loads((out / "run/evaluation/metrics.json").read_text())

    result["rows"] = {title: scores[name] for name, title in ROWS.items()}
    result["scale_ratio"] = scores["scale_ratio"]
    print(f"\n{count(scores['images'], 'image')}, metres from {scores['scale_source']}\n{heading(COLUMNS)}")
    for title, row in result["rows"].items():
        print(table_line(title, row, COLUMNS))
    scaled, unscaled = (scores[name]["abs_rel"] for name in ("median_scaled", "fixed_scale"))
    print(f"abs_rel without scaling is {100 * (unscaled / scaled - 1):.1f} % above that with median scaling")
    finish(result, arguments)


if __name__ == "__main__":
    main()
