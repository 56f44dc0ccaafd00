"""Does training find the focal length of a camera that nobody calibrated, and what does it cost the depth?

python benchmarks/learned_intrinsics.py [--field-of-view DEGREES] [--steps N] [--out DIR] [--json FILE] [key=value ...]

Two runs of configs/video.yaml, small, on folders of images of the synthetic street with one camera, whose drives turn
by 3 degrees a frame or more in a third of their frames: one learns the intrinsics from a wrong field of view and sees
nothing of the true ones, the other is given those. Both are scored on drives that neither has seen; both run on one
thread of the CPU.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import tempfile
from pathlib import Path

import torch
from measure import REPOSITORY, Column, finish, heading, run_python, start, table_line

from featdepth.data.synthetic import drive_parts, write_street
from featdepth.data.synthetic_kitti import DATES, Rig
from featdepth.files import write_text

COLUMNS = [
    Column("focal", "focal / W", 4),
    Column("error", "error, %", 1),
    Column("spread", "spread, %", 1),
    Column("abs_rel", "abs_rel", 4),
    Column("cpu_minutes", "CPU minutes", 1),
]
DATE = DATES[0]  # every third drive is of its camera
HEIGHT, WIDTH = 80, 240
# A small model that learns in minutes; docs/intrinsics.md says why it needs the keys of the last line.
SMALL = (
    *("data.height=64", "data.width=192", "data.workers=0", "model.pretrained=false", "model.decoder_width=32"),
    *("model.dropout=0.0", "model.pose_size=[32,96]", "optimizer.lr=5.0e-4", "train.batch_size=8"),
    *("schedule.warmup_steps=50", "schedule.gamma=0.2", "train.log_every=50", "train.panel_samples=2"),
    *("loss.pyramid=true", "loss.automask=false", "model.initial_depth=2.0"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--field-of-view", type=float, help="degrees at the start (default: a quarter below the truth)")
    parser.add_argument("--drives", type=int, default=36, help="of the street, 20 frames each; a third are used")
    parser.add_argument("--steps", type=int, default=1100, help="of each run (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder for data and runs, kept (default: removed at the end)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of both runs")
    arguments = parser.parse_args()
    truth = Rig.of(DATE, HEIGHT, WIDTH).intrinsics
    focal = truth[0, 0] / WIDTH
    arguments.field_of_view = arguments.field_of_view or 0.75 * field_of_view(focal)
    settings = {"start": f"{arguments.field_of_view:.1f} degrees", "truth": f"{field_of_view(focal):.1f} degrees"}
    settings |= {"steps": arguments.steps, "drives": arguments.drives}
    result = start(torch.device("cpu"), settings, threads=1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.out or Path(temporary)).resolve()
        street = folder / "street"
        write_street(street, drives=arguments.drives, frames=20, height=HEIGHT, width=WIDTH, turning=3.0)
        hidden, known = folder / "hidden", folder / "known"
        for root in (hidden, known):
            write_folders(street, arguments.drives, root)
        rows = "\n".join(" ".join(map(str, row)) for row in truth)
        write_text(known / "intrinsics.txt", f"{rows}\n")
        guess = f"data.field_of_view={arguments.field_of_view}"
        learned = train(folder / "learned", hidden, arguments, [guess])
        given = train(folder / "given", known, arguments, ["model.intrinsics=given", "data.field_of_view=null"])
        for run, row in (("learned", learned), ("given", given)):
            row["abs_rel"] = score(folder / run, street, arguments.drives)
        (camera,) = json.loads((folder / "learned/model_last/config.json").read_text())["cameras"].values()
        learned |= {"focal": camera["focal"][0], "spread": 100 * camera["focal_spread"][0]}
        learned["error"] = 100 * (learned["focal"] / focal - 1)
        given |= {"focal": focal}
    result["rows"] = {"learned intrinsics": learned, "true intrinsics": given}
    print(f"\n{heading(COLUMNS)}")
    for name, row in result["rows"].items():
        print(table_line(name, row, COLUMNS))
    print(f"abs_rel with learned intrinsics / with true ones: {learned['abs_rel'] / given['abs_rel']:.3f}")
    finish(result, arguments)


def field_of_view(focal: float) -> float:
    """Degrees, of a focal length in widths of the image."""
    return 2 * math.degrees(math.atan(0.5 / focal))


def camera_drives(street: Path, drives: int, part: str) -> list[Path]:
    """The folders of a part's drives that were taken with the camera of DATE."""
    names = [f"{DATE}_drive_{index + 1:04}_sync" for index in drive_parts(drives)[part]]
    return [street / DATE / name for name in names if (street / DATE / name).is_dir()]


def write_folders(street: Path, drives: int, root: Path) -> None:
    """The pictures of both cameras of the training and validation drives as plain folders, and lists of them."""
    for part in ("train", "val"):
        lines = []
        for drive in camera_drives(street, drives, part):
            for camera in ("image_02", "image_03"):
                link = root / f"{drive.name}_{camera}"
                link.parent.mkdir(parents=True, exist_ok=True)
                if not link.exists():
                    link.symlink_to(drive / camera / "data")
                frames = len(list(link.iterdir()))
                lines += [f"{link.name} {frame} l\n" for frame in range(1, frames - 1)]
        write_text(root / f"{part}_files.txt", "".join(lines))


def train(directory: Path, root: Path, arguments: argparse.Namespace, options: list[str]) -> dict[str, float]:
    """Train into `directory`; the CPU minutes that it took."""
    epoch = len((root / "train_files.txt").read_text().splitlines()) // 8
    lists = [f"data.root={root}", f"data.split={root}", f"run.directory={directory}"]
    length = [f"train.max_steps={arguments.steps}", f"train.epochs={-(-arguments.steps // epoch)}"]
    drops = [f"schedule.milestones=[{max(1, round(0.75 * arguments.steps / epoch))}]", "train.checkpoint_every=100000"]
    words = ["--config", REPOSITORY / "configs/video.yaml", *lists, *SMALL, *length, *drops, *options]
    before = cpu_seconds()
    run_python(["train.py", "--cpu", *words, *arguments.overrides], threads=1)
    return {"cpu_minutes": (cpu_seconds() - before) / 60}


def cpu_seconds() -> float:
    """Of all programs that this one has run."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def score(directory: Path, street: Path, drives: int) -> float:
    """Median-scaled abs_rel on the test drives of the camera."""
    tests = directory / "test_files.txt"
    names = [drive.relative_to(street) for drive in camera_drives(street, drives, "test")]
    write_text(tests, "".join(f"{name} {frame} l\n" for name in names for frame in range(0, 20, 2)))
    data = [f"data.root={street}", f"data.split={street}/splits", f"data.test_files={tests}", "data.workers=0"]
    words = ["--config", REPOSITORY / "configs/demo.yaml", *data, "--checkpoint", directory / "model_last"]
    run_python(["evaluate.py", "--cpu", *words, "--out", directory / "evaluation"], threads=1)
    return json.loads((directory / "evaluation/metrics.json").read_text())["median_scaled"]["abs_rel"]


if __name__ == "__main__":
    main()
