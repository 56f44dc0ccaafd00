"""What causal refinement gains where the world looks unlike that of training, and what it costs.

python benchmarks/refinement.py --checkpoint runs/demo/model [--cpu]

Drives of the synthetic street that no training has seen, in another look (colours, textures, light, a higher camera),
are followed frame by frame, with the model as it is and with `featdepth.evaluation.refinement`: from one camera and
from both. abs_rel is the mean over drives of the mean over their images, median-scaled and at fixed scale.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import measure
import torch
from measure import Column

from featdepth.config import Config, Data
from featdepth.data import build_dataset
from featdepth.data.street.look import LOOKS
from featdepth.data.synthetic import write_street
from featdepth.evaluation.refinement import MONOCULAR_RATE, STEREO_RATE, evaluate_refinement
from featdepth.models import FeatDepth

COLUMNS = [
    Column("median_scaled", "abs_rel", 4), Column("fixed_scale", "fixed scale", 4), Column("wins", "drives won", 0),
    Column("frames_per_second", "frames/s", 2),
]  # fmt: skip
CAMERAS = {"one camera": [0], "stereo": [0, "s"]}


def main() -> None:
    parser = measure.make_parser(__doc__, repeat=1)
    parser.add_argument("--checkpoint", default="runs/demo/model", help="model directory (default: runs/demo/model)")
    parser.add_argument("--data", type=Path, help="folder that keeps the drives (default: a temporary one)")
    parser.add_argument("--drives", type=int, default=5, help="default: 5")
    parser.add_argument("--frames", type=int, default=16, help="of each drive (default: 16)")
    parser.add_argument("--seed", type=int, default=202, help="of the drives; settings were chosen on seed 101")
    parser.add_argument("--look", choices=LOOKS, default="other", help="of the drives (default: other)")
    parser.add_argument("--steps", type=int, default=1, help="gradient steps a frame (default: 1)")
    rates = f"default: {MONOCULAR_RATE:g} from one camera, {STEREO_RATE:g} from two"
    parser.add_argument("--learning-rate", type=float, help=rates)
    arguments = parser.parse_args()
    device = measure.device_of(arguments)
    settings = {
        name: getattr(arguments, name) for name in ("drives", "frames", "seed", "look", "steps", "learning_rate")
    }
    result = measure.start(device, settings)
    model = FeatDepth.from_pretrained(arguments.checkpoint).to(device)
    with tempfile.TemporaryDirectory() as folder:
        root = arguments.data or Path(folder) / "drives"
        options = {name: getattr(arguments, name) for name in ("drives", "frames", "seed", "look")}
        write_street(root, **options)
        print(measure.heading(COLUMNS))
        result["rows"] = {}
        for name, frames in CAMERAS.items():
            config = configuration(root, arguments, model, Path(folder))
            dataset = build_dataset(config, "test", frames=frames, require_depth=True)
            scores = evaluate_refinement(model, dataset, config, arguments.steps, arguments.learning_rate)
            rows = {f"{name}, {part}": row(scores, part) for part in ("without", "with")}
            for title, figures in rows.items():
                print(measure.table_line(title, figures, COLUMNS), flush=True)
            result["rows"] |= rows
            result[name] = scores
    measure.finish(result, arguments)


def configuration(root: Path, arguments: object, model: FeatDepth, folder: Path) -> Config:
    """All frames of all drives of the left camera as the test part."""
    drives = sorted(path.relative_to(root).as_posix() for path in root.glob("*/*_sync"))
    lines = [f"{drive} {frame} l\n" for drive in drives for frame in range(arguments.frames)]
    (folder / "all.txt").write_text("".join(lines))
    data = Data(root=str(root), split=str(root / "splits"), test_files=str(folder / "all.txt"), frames=[0])
    data.height, data.width, data.ground_truth_cache = model.height, model.width, str(folder / "ground_truth")
    return Config(data=data, model=model.settings)


def row(scores: dict, part: str) -> dict[str, float]:
    """Means over drives, the speed, and in how many drives the median-scaled abs_rel is lower with refinement."""
    clips = scores["clips"]
    figures = {"frames_per_second": scores[part]["frames_per_second"]}
    for scale in ("median_scaled", "fixed_scale"):
        values = [clip[part][scale]["abs_rel"] for clip in clips if clip[part][scale]]
        figures |= {scale: statistics.mean(values)} if values else {}
    if part == "with":
        pairs = [(clip["with"]["median_scaled"], clip["without"]["median_scaled"]) for clip in clips]
        figures["wins"] = sum(refined["abs_rel"] < plain["abs_rel"] for refined, plain in pairs)
    return figures


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
