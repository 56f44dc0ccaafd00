"""From a film to depth with one command: prepare, look at the data, train or adapt within some minutes, predict.

python -m featdepth.depth FILM --out DIR [--minutes 10] [--base MODEL] [key=value ...]

FILM is a video file or a folder of images of one moving camera. Each stage is one of the other programs; its command is
printed as it starts, and can be repeated alone:

DIR/frames      python -m featdepth.prepare_video: frames far enough apart
DIR/config.yaml the training that fits into the minutes, by a measured step
DIR/doctor      python -m featdepth.doctor: what is wrong with the data
DIR/training    train.py: the model
DIR/clips       python -m featdepth.predict: page, point cloud, way of the camera, depth of each frame
DIR/film        python -m featdepth.predict: the film beside its depth
DIR/README.md   what of it is to be trusted, and what not

Interrupted, the same command goes on. docs/film.md tells more.
"""

from __future__ import annotations

from featdepth.errors import InputError, end_at_interrupt, run_program

# Before the imports that take seconds.
if __name__ == "__main__":
    end_at_interrupt()

import argparse
import math
import sys
from importlib.util import find_spec
from pathlib import Path

from featdepth.config import Parser, save_config
from featdepth.data.sets.clips import SUMMARY, read_record
from featdepth.depth.recipe import REPOSITORY, open_base, recipe
from featdepth.depth.stages import Stages
from featdepth.depth.trust import describe, judge
from featdepth.files import write_text
from featdepth.training.checkpoint import checkpoints
from featdepth.two_view.opencv import opencv

STOPPED, TERMINATED = 0.9, 143  # of the minutes, after which the training is to end; how it ends then
SAVED = "page,trajectory,fused_points,picture"


def main() -> None:
    arguments = parse_arguments()
    opencv()  # said before any work
    out = arguments.out
    open_base(arguments.base)  # refused before any work
    stages = Stages(out, asked_for(arguments))

    known = [["--intrinsics", arguments.intrinsics], ["--field-of-view", arguments.field_of_view]]
    known = [str(word) for option in known if option[1] is not None for word in option]
    stages.run("prepare", ["-m", "featdepth.prepare_video", str(arguments.film), "--out", str(out / "frames"), *known])
    config_file = out / "config.yaml"
    if not config_file.is_file():
        print("\n[plan] which networks and how many steps fit")
        words = [out / "frames", out / "training", arguments.base, arguments.minutes, arguments.overrides]
        save_config(recipe(*words), config_file)
    doctor = ["-m", "featdepth.doctor", "--config", str(config_file), "--out", str(out / "doctor")]
    stages.run("check", doctor, (0, 1))  # 1: it has found problems, which README.md tells
    train(stages, config_file, out / "training" / "checkpoints", 60 * arguments.minutes)
    judge(out)

    summary = read_record(out / "frames" / SUMMARY)
    clips = list(summary["clips"])
    is_undistorted = summary["prepared"][0]["undistorted"]
    can_film = find_spec("av") is not None
    saved = SAVED + (",video" if can_film and is_undistorted else "")
    height = [] if arguments.camera_height is None else ["--camera-height", f"{arguments.camera_height:g}"]
    predict = ["-m", "featdepth.predict", "--checkpoint", str(out / "training" / "model")]
    words = [*predict, *(str(out / "frames" / clip) for clip in clips), "--out", str(out / "clips"), *height]
    words += ["--save", saved]
    # 2: something could not be made, of which it has said what.
    stages.run("predict", words, (0, 2), otherwise=["--overwrite"])
    clips = [clip for clip in clips if (out / "clips" / clip / "page.html").is_file()]
    if not clips:
        sys.exit(2)
    if can_film and not is_undistorted:
        words = [*predict, str(arguments.film), "--out", str(out / "film"), *known, *height, "--save", "video"]
        stages.run("film", words, otherwise=["--overwrite"])
    text = describe(out, stages.done, clips, arguments.camera_height)
    write_text(out / "README.md", text)
    print(f"\n{text}\nThis is also in {out / 'README.md'}")


def train(stages: Stages, config_file: Path, folder: Path, seconds: float) -> None:
    """Train for so long at most: what is not done by then is left out, and the model is what has been learned."""
    script = "train.py" if Path.cwd() == REPOSITORY else str(REPOSITORY / "train.py")
    words = [script, "--config", str(config_file), "--resume"]
    if stages.run("train", words, (0, TERMINATED), STOPPED * seconds) == 0:
        return
    reached = checkpoints(folder)
    if not reached:
        del stages.done["train"]
        stages.write()
        raise InputError(f"{folder}: no step was done in the time; call again, or give more --minutes to another --out")
    stages.run("end training", [*words, f"train.max_steps={reached[-1].name.rpartition('_')[2]}"])


def asked_for(arguments: argparse.Namespace) -> dict[str, object]:
    """All that the stages before the prediction depend on, ready for JSON."""
    names = ("film", "intrinsics", "field_of_view", "base", "minutes", "overrides")
    given = {name: getattr(arguments, name) for name in names}
    return given | {"film": str(arguments.film)}


def parse_arguments() -> argparse.Namespace:
    parser = Parser(
        prog="python -m featdepth.depth",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("film", type=Path, metavar="FILM", help="video file or folder of images, of one camera")
    add("overrides", nargs="*", metavar="key=value", help="of the training's configuration, as model.pretrained=false")
    add("--out", required=True, type=Path, metavar="DIR", help="new or empty folder, or one that this command began")
    add("--minutes", type=float, default=10.0, metavar="N", help="for the training alone (default: %(default)g)")
    add("--base", metavar="MODEL", help="to adapt: the directory of a model, or hf:NAME; if not given, one is trained")
    known = parser.add_mutually_exclusive_group()
    known.add_argument("--intrinsics", metavar="FILE", help="calibration of upright frames; learned if not given")
    known.add_argument("--field-of-view", type=float, metavar="DEGREES", help="horizontal, of upright frames")
    add("--camera-height", type=float, metavar="METRES", help="above the ground that is seen: gives metres")
    arguments = parser.parse_intermixed_args()
    if not arguments.film.exists():
        raise InputError(f"{arguments.film}: no such video file or folder of images")
    for name in ("minutes", "camera_height"):
        value = getattr(arguments, name)
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"--{name.replace('_', '-')} {value:g}: has to be above 0")
    return arguments


if __name__ == "__main__":
    run_program(main)
