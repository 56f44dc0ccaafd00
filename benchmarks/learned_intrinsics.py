"""Does training find the focal length of a camera that nobody calibrated, and what does it cost the depth?

python benchmarks/learned_intrinsics.py [--init MODEL] [--field-of-view DEGREES] [--steps N] [--out DIR] [key=value ...]

Two runs of configs/video.yaml, small, on folders of images of the synthetic street with one camera, whose drives turn
by 3 degrees a frame or more in a third of their frames: one learns the intrinsics from a wrong field of view and sees
nothing of the true ones, the other is given those. Both are scored on drives that neither has seen; both run on one
thread of the CPU. --init: the model that both start from, such as the demo's (runs/demo/model), which is scored too.
The camera here sees the middle 80 % of the pictures of one of the demo's: its focal length is 1.25 times as long.
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

from featdepth.console import count
from featdepth.data.street.kitti_formats import DATES, Rig
from featdepth.data.synthetic import drive_parts, write_street
from featdepth.files import write_text
from featdepth.models.saved.storage import read_model_directory, write_model_directory

COLUMNS = [
    Column("start", "start, %", 1),
    Column("focal", "focal / W", 4),
    Column("error", "error, %", 1),
    Column("spread", "spread, %", 1),
    Column("abs_rel", "abs_rel", 4),
    Column("a1", "a1", 3),
    Column("cpu_minutes", "CPU minutes", 1),
]
DATE = DATES[0]  # every third drive is of its camera
HEIGHT, WIDTH = 100, 300
CUT = 0.1  # of each side of the pictures
SEED = 1  # of the street: the demo's has other scenes
BATCH = 8
RENUMBERED = 5000  # added to the numbers of the test drives, which in the demo's street are those of other drives
# A small model that learns in minutes; docs/intrinsics.md says why it needs the keys of the loss.
SMALL = (
    "data.height=64",
    "data.width=192",
    f"data.crop=[{CUT},{CUT},{CUT},{CUT}]",
    "data.workers=0",
    "model.pretrained=false",
    "model.dropout=0.0",
    "model.pose_size=[32,96]",
    "optimizer.lr=5.0e-4",
    "schedule.warmup_steps=150",
    "schedule.gamma=0.2",
    "train.checkpoint_every=100000",
    "train.log_every=20",
    "train.panel_samples=2",
    "loss.pyramid=true",
    "loss.automask=false",
)
FROM_NOTHING = ("model.decoder_width=32", "model.initial_depth=2.0")
# The same depth in units a quarter as long, in which translations are four times as many: turning is found first.
FROM_MODEL = ("model.decoder_width=64", "model.min_depth=0.4", "model.max_depth=400.0", "optimizer.lr=4.0e-4")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--init", type=Path, help="model directory that both start from (default: random weights)")
    parser.add_argument("--field-of-view", type=float, help="degrees at the start (default: a quarter below the truth)")
    parser.add_argument("--drives", type=int, default=36, help="of the street, 20 frames each; a third are used")
    parser.add_argument("--steps", type=int, default=600, help="of each run (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder for data and runs, kept (default: removed at the end)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of both runs")
    arguments = parser.parse_intermixed_args()
    intrinsics = Rig.of(DATE, HEIGHT, WIDTH).intrinsics
    truth = intrinsics[0, 0] / WIDTH / (1 - 2 * CUT)
    guess = arguments.field_of_view or 0.75 * field_of_view(truth)
    settings = {"start": f"{guess:.1f} degrees", "truth": f"{field_of_view(truth):.1f} degrees"}
    settings |= {"steps": arguments.steps, "drives": arguments.drives, "init": str(arguments.init)}
    result = start(torch.device("cpu"), settings, threads=1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.out or Path(temporary)).resolve()
        street = folder / "street"
        write_street(street, arguments.drives, frames=20, height=HEIGHT, width=WIDTH, seed=SEED, turning=3.0)
        tests = write_tests(street, arguments.drives, folder / "tests")
        hidden, known = folder / "hidden", folder / "known"
        for root in (hidden, known):
            write_folders(street, arguments.drives, root)
        rows = "\n".join(" ".join(map(str, row)) for row in intrinsics)
        write_text(known / "intrinsics.txt", f"{rows}\n")
        # `data.field_of_view` is that of the uncut pictures.
        focal = 0.5 / math.tan(math.radians(guess / 2))
        option = f"data.field_of_view={field_of_view(focal * (1 - 2 * CUT))}"
        learned = train(folder / "learned", hidden, arguments, [option])
        given = train(folder / "given", known, arguments, ["model.intrinsics=given", "data.field_of_view=null"])
        rows = result["rows"] = {"learned intrinsics": learned, "true intrinsics": given}
        for run, row in (("learned", learned), ("given", given)):
            scores = score(folder / run / "model_last", tests)
            row |= scores["median_scaled"]
        (camera,) = json.loads((folder / "learned/model_last/config.json").read_text())["cameras"].values()
        learned |= {"start": 100 * (focal / truth - 1), "focal": camera["focal"][0]}
        learned |= {"error": 100 * (learned["focal"] / truth - 1), "spread": 100 * camera["focal_spread"][0]}
        given |= {"focal": truth}
        if arguments.init:
            rows["the initial model"] = score(arguments.init.resolve(), tests)["median_scaled"]
        rows |= {"constant depth": scores["constant_depth"], "per-pixel median": scores["pixel_median"]}
    print(f"\n{count(scores['images'], 'image')}\n{heading(COLUMNS)}")
    for name, row in rows.items():
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
                lines += [f"{link.name} {frame} l\n" for frame in range(1, frames - 1, 4 if part == "val" else 1)]
        write_text(root / f"{part}_files.txt", "".join(lines))


def write_tests(street: Path, drives: int, root: Path) -> Path:
    """The test and training drives of the camera in KITTI's layout, under numbers of their own, and lists of them."""
    day = root / DATE
    day.mkdir(parents=True, exist_ok=True)
    for calibration in (street / DATE).glob("*.txt"):
        write_text(day / calibration.name, calibration.read_text())
    for part in ("train", "val", "test"):
        names = []
        for drive in camera_drives(street, drives, part):
            link = day / f"{DATE}_drive_{int(drive.name.split('_')[-2]) + RENUMBERED:04}_sync"
            if not link.exists():
                link.symlink_to(drive)
            names.append(link.relative_to(root))
        write_text(
            root / f"{part}_files.txt", "".join(f"{name} {frame} l\n" for name in names for frame in range(0, 20, 2))
        )
    return root


def write_depth_network(source: Path, directory: Path) -> Path:
    """A copy of the model in `source` without its pose network, which has learned other motions."""
    content, state = read_model_directory(source)
    depth = {key: state[key] for key in state if key.startswith("depth_")}
    write_model_directory(directory, content, depth, f"The depth network of {source}, without its pose network.\n")
    return directory


def train(directory: Path, root: Path, arguments: argparse.Namespace, options: list[str]) -> dict[str, float]:
    """Train into `directory`; the CPU minutes that it took."""
    lists = [f"data.root={root}", f"data.split={root}", f"run.directory={directory}"]
    epoch = len((root / "train_files.txt").read_text().splitlines()) // BATCH
    length = [f"train.max_steps={arguments.steps}", f"train.epochs={-(-arguments.steps // epoch)}"]
    length += [f"schedule.milestones=[{max(1, round(0.75 * arguments.steps / epoch))}]", f"train.batch_size={BATCH}"]
    weights = FROM_NOTHING
    if arguments.init:
        weights = [*FROM_MODEL, f"model.init={write_depth_network(arguments.init, directory.parent / 'initial')}"]
    words = ["--config", REPOSITORY / "configs/video.yaml", *lists, *SMALL, *length, *weights, *options]
    before = cpu_seconds()
    run_python(["train.py", "--cpu", *words, *arguments.overrides], threads=1)
    return {"cpu_minutes": (cpu_seconds() - before) / 60}


def cpu_seconds() -> float:
    """Of all programs that this one has run."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def score(model: Path, tests: Path) -> dict:
    """What evaluate.py finds of `model` on the test drives of the camera."""
    with tempfile.TemporaryDirectory() as out:
        data = [f"data.root={tests}", f"data.split={tests}", "data.workers=0", f"data.crop=[{CUT},{CUT},{CUT},{CUT}]"]
        words = ["--config", REPOSITORY / "configs/demo.yaml", *data, "--checkpoint", model, "--out", out]
        run_python(["evaluate.py", "--cpu", *words], threads=1)
        return json.loads((Path(out) / "metrics.json").read_text())


if __name__ == "__main__":
    main()
