"""The share of its time that a demo run waits for data, from image files and from a filled cache of frames.

python benchmarks/data_wait.py [--config configs/demo.yaml] [--steps 100] [--frame-size 80x240] [--drives 80]
    [--repeat 3] [--cpu] [--json FILE] [key=value ...]

train.py itself, with one loader process (data.workers=2 for another number), on a street like the demo's or with larger
frames; the cache is filled by its command before. Of each run the first interval of metrics.jsonl, in which the loader
starts, all that come after it, and both together, weighted by their time, which includes validations and checkpoints.
Runs from files and from the cache take turns; medians.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from pathlib import Path

from measure import (
    REPOSITORY,
    Column,
    device_of,
    finish,
    heading,
    make_parser,
    read_intervals,
    run_python,
    size,
    start,
    table_line,
)

from featdepth.config import load_config
from featdepth.data.synthetic import write_street

COLUMNS = [
    Column("first", "first, %", 2),
    Column("later", "later, %", 2),
    Column("all", "all, %", 2),
    Column("images_per_second", "images/s", 2),
]


def main() -> None:
    parser = make_parser(__doc__, repeat=3)
    parser.add_argument("--config", type=Path, default=REPOSITORY / "configs/demo.yaml")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--frame-size", type=size, default=(80, 240), metavar="HEIGHTxWIDTH", help="of the street")
    parser.add_argument("--drives", type=int, default=80, help="of the street, six frames each")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the configuration")
    arguments = parser.parse_intermixed_args()
    height, width = arguments.frame_size
    with tempfile.TemporaryDirectory() as folder:
        street, run, cache = Path(folder) / "street", Path(folder) / "run", f"data.cache={folder}/cache"
        write_street(street, drives=arguments.drives, height=height, width=width)
        options = [f"data.root={street}", f"data.split={street}/splits", f"run.directory={run}", "data.workers=1"]
        options += [f"data.ground_truth_cache={folder}/ground_truth", f"train.max_steps={arguments.steps}"]
        options += arguments.overrides
        words = ["--config", arguments.config.resolve(), *options]
        config = load_config(arguments.config, options)
        if arguments.steps <= config.train.log_every:
            parser.error(f"--steps {arguments.steps}: has to be more than the first interval, {config.train.log_every}")
        settings = {
            "configuration": f"{arguments.config.stem} ({config.data.height}x{config.data.width})",
            "frames": f"{height}x{width}",
            "workers": config.data.workers,
            "steps": arguments.steps,
            "rounds": arguments.repeat,
        }
        result = start(device_of(arguments), settings)
        run_python(["-m", "featdepth.data.cache", *words, cache])
        programs = {"from files": ["train.py", *words], "from the cache": ["train.py", *words, cache]}
        rounds = {name: [] for name in programs}
        for _ in range(arguments.repeat):
            for name, command in programs.items():
                run_python([*command, *["--cpu"] * arguments.cpu])
                rounds[name].append(waiting(run, config.train.batch_size))
                shutil.rmtree(run)

    result["rows"] = {
        name: {key: statistics.median(each[key] for each in runs) for key in runs[0]} for name, runs in rounds.items()
    }
    print(f"\n{heading(COLUMNS)}")
    for name, row in result["rows"].items():
        print(table_line(name, row, COLUMNS))
    finish(result, arguments)


def waiting(run: Path, batch_size: int) -> dict[str, float]:
    """The shares, in percent, and the speed of a run of one process."""
    lines = read_intervals(run)
    steps = [line["step"] - before for line, before in zip(lines, [0, *(line["step"] for line in lines)], strict=False)]
    seconds = [batch_size * count / line["images_per_second"] for count, line in zip(steps, lines, strict=True)]
    waited = [line["data_wait"] * duration for line, duration in zip(lines, seconds, strict=True)]
    return {
        "first": 100 * waited[0] / seconds[0],
        "later": 100 * sum(waited[1:]) / sum(seconds[1:]),
        "all": 100 * sum(waited) / sum(seconds),
        "images_per_second": batch_size * sum(steps) / sum(seconds),
    }


if __name__ == "__main__":
    main()
