"""Does alignment with a model's depth show the focal length of a camera that nobody calibrated?

python benchmarks/aligned_focal.py --checkpoint runs/demo/model [--turning 3 1 0] [--seeds 1 2] [--cpu]

Pairs of frames of the synthetic street whose drives turn by so many degrees a frame, whole and cut to their middle: the
focal length is 0.58, 0.73 and 0.97 widths. `featdepth.odometry.aligned_focal` is asked for it with the depth of the
model, which has seen other streets through a lens of 0.58, and with that of the same networks before any training.
"""

from __future__ import annotations

import time

import measure
import torch
from measure import Column

from featdepth.data.synthetic import Drive, Street
from featdepth.models import FeatDepth
from featdepth.odometry.aligned_focal import focal_by_alignment

COLUMNS = [
    Column("truth", "truth", 3), Column("found", "found", 3), Column("spread", "spread", 3),
    Column("error", "error, %", 1), Column("seconds", "seconds", 1),
]  # fmt: skip
DRIVES, FRAMES, HEIGHT, WIDTH = (0, 3, 6), (3, 5, 7, 9, 11), 100, 300  # drives of one camera; the earlier frames
CUTS = (0.0, 0.1, 0.2)  # of each side


def main() -> None:
    parser = measure.make_parser(__doc__, repeat=1)
    parser.add_argument("--checkpoint", default="runs/demo/model", help="model directory (default: runs/demo/model)")
    parser.add_argument("--turning", type=float, nargs="+", default=[3.0, 1.0, 0.0], help="degrees a frame")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2], help="of the streets")
    arguments = parser.parse_args()
    device = measure.device_of(arguments)
    result = measure.start(device, {"checkpoint": arguments.checkpoint})
    model = FeatDepth.from_pretrained(arguments.checkpoint).eval().to(device)
    torch.manual_seed(0)
    untrained = FeatDepth(model.settings, model.frames, model.height, model.width).eval().to(device)
    result["rows"] = []
    print(measure.heading(COLUMNS))
    for turning in arguments.turning:
        for seed in arguments.seeds:
            street = Street(drives=9, frames=20, height=HEIGHT, width=WIDTH, seed=seed, turning=turning)
            drives = [Drive(street, index) for index in DRIVES]
            frames = [(drive.image(frame, 2), drive.image(frame + 1, 2)) for drive in drives for frame in FRAMES]
            for cut in CUTS:
                for name, network in (("model", model), ("untrained", untrained)):
                    figures = row(network, frames, cut, drives[0].rig.intrinsics[0, 0] / WIDTH)
                    result["rows"].append({"turning": turning, "seed": seed, "depth": name, **figures})
                    print(measure.table_line(f"{turning:g} deg, seed {seed}, {name}", figures, COLUMNS), flush=True)
    measure.finish(result, arguments)


def row(model: FeatDepth, frames: list[tuple], cut: float, whole_truth: float) -> dict[str, float]:
    """The figures of pairs of frames `[h, w, 3]`, cut on all sides by that part of their size."""
    y, x = round(cut * HEIGHT), round(cut * WIDTH)
    height, width = HEIGHT - 2 * y, WIDTH - 2 * x
    earlier, later = (
        [torch.from_numpy(frame[y : y + height, x : x + width]).permute(2, 0, 1) for frame in side]
        for side in zip(*frames, strict=True)
    )
    started, truth = time.perf_counter(), whole_truth * WIDTH / width
    found = focal_by_alignment(model, earlier, later, (height, width))
    figures = {"truth": truth, "seconds": time.perf_counter() - started}
    if found is not None:
        figures |= {"found": found.widths, "spread": found.spread, "error": 100 * (found.widths / truth - 1)}
    return figures


if __name__ == "__main__":
    main()
