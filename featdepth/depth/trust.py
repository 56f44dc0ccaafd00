"""What is there of a film's depth, and what of it is to be trusted, in plain words."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from featdepth.config import load_config
from featdepth.console import command, count
from featdepth.data import build_dataset
from featdepth.data.sets.clips import SUMMARY, read_record
from featdepth.doctor.findings import PROBLEM, WARNING
from featdepth.files import read_object, read_text
from featdepth.models import FeatDepth
from featdepth.models.saved.provenance import TOO_FEW, describe_check
from featdepth.predict.intrinsics import learned_intrinsics
from featdepth.training.learned_check import check_model

FEW_FRAMES = 200
LARGEST_REPORT = 16 << 20  # bytes
TEXT = """# Depth of {name}

## What to trust, and what not

{trust}
- Sky, mirrors, glass and plain walls have no depth that pictures show, and things that move by themselves are too near
  or too far. Another place, or another light, than in the film is a guess.

## What is here

- `clips/*/page.html`: all of it in a browser, offline
- `clips/*/fused_points.ply`, `trajectory_*.txt`: one point cloud, and the way of the camera, where that was found
- `clips/*/*_picture.png`: depth of each frame that was trained on
- `{film}`: the film beside its depth
- `training/model`: the model

## Each stage alone

```
{commands}
```
"""


def judge(out: Path) -> None:
    """Have the trained model checked on frames of its training, where too few were held out for a verdict."""
    directory = out / "training" / "model"
    model = FeatDepth.from_pretrained(directory)
    if (model.provenance.check or {}).get("verdict") != TOO_FEW:
        return
    config = load_config(out / "config.yaml", ["data.flip=0", "data.colour_jitter=0"], training=False)
    data = build_dataset(config, "train")
    data.number_cameras(model.camera_names)
    model.provenance.check = check_model(model, data, config, torch.device("cpu"))
    model.save_pretrained(directory)
    print(f"check of the model on frames of its training: {describe_check(model.provenance.check)}")


def describe(out: Path, stages: dict[str, Any], clips: list[str], camera_height: float | None) -> str:
    """The text of README.md in the folder `out`, whose stages are done; clips: those that were predicted."""
    summary = read_record(out / "frames" / SUMMARY)
    model = FeatDepth.from_pretrained(out / "training" / "model")
    trust = [
        scale_line(camera_height),
        check_line(model),
        training_line(out, model, sum(summary["clips"].values())),
        camera_line(summary["prepared"][0], model),
        *(motion_line(out, clip) for clip in clips),
        *doctor_lines(out),
    ]
    return TEXT.format(
        name=summary["prepared"][0]["source"],
        trust="\n".join(f"- {line}" for line in trust),
        film=next((path.relative_to(out) for path in sorted(out.glob("*/*/side_by_side.mp4"))), "none: no PyAV"),
        commands="\n".join(command(["python", *stage["command"]]) for stage in stages.values()),
    )


def scale_line(camera_height: float | None) -> str:
    if camera_height is None:
        return (
            "**No metres.** One camera does not show how large the world is: depth, points and way have one unknown "
            "scale. `--camera-height METRES` gives metres where the ground is seen."
        )
    return (
        f"Metres by a camera height of {camera_height:g} m: as right as that height, the focal length, and the ground "
        "that the depth shows."
    )


def check_line(model: FeatDepth) -> str:
    """What the check at the end of the training says."""
    check, doubt = model.provenance.check, model.provenance.doubt
    if doubt is not None:
        return f"**The depth is not to be trusted**: {doubt}."
    if check is None or check["verdict"] == TOO_FEW:
        return "**Nothing says whether the depth is right**: there are too few frames to check it."
    return f"The check of the trained model: {describe_check(check)}."


def training_line(out: Path, model: FeatDepth, frames: int) -> str:
    """How much was learned from how much."""
    planned = load_config(out / "config.yaml", training=False).train
    last = FeatDepth.from_pretrained(out / "training" / "model_last")
    done = round(last.provenance.validation["step"])
    cut = f" ({planned.max_steps} were planned, and the machine was slower)" if done < planned.max_steps else ""
    few = ", and so few frames teach little beyond themselves" if frames < FEW_FRAMES else ""
    return (
        f"Trained {count(done, 'step')}{cut} of {count(planned.batch_size, 'image')} of {model.width} x {model.height} "
        f"pixels, of {frames} frames that differ enough; what is finer than that has no depth{few}."
    )


def camera_line(source: dict[str, Any], model: FeatDepth) -> str:
    """Where the intrinsics come from; source: the summary of what was prepared."""
    if model.cameras is None:
        return f"Intrinsics: {source['intrinsics_from'] or 'data.field_of_view of config.yaml'}."
    learned = learned_intrinsics(model.cameras, tuple(source["size"]))
    degrees = 2 * math.degrees(math.atan(source["size"][1] / 2 / learned[0, 0]))
    doubt = model.cameras.warning((model.height, model.width))
    said = f"Intrinsics: learned, a field of view of {degrees:.0f} degrees; shapes and angles are as right as that"
    return f"{said}. **{doubt}.**" if doubt else f"{said}."


def motion_line(out: Path, clip: str) -> str:
    """How scale and motion of a clip were found, which its trajectory says."""
    path = out / "clips" / clip / "trajectory_tum.txt"
    if not path.is_file():
        return f"**{clip}: no motion of the camera was found**, so that there is neither its way nor a point cloud."
    return f"{clip}: {read_text(path, LARGEST_REPORT, 'the trajectory').splitlines()[0].removeprefix('# ')}."


def doctor_lines(out: Path) -> list[str]:
    """The doctor's problems and warnings."""
    path = out / "doctor" / "report.json"
    report = read_object(path, LARGEST_REPORT, "the doctor's report", "cannot be understood; look again")
    bad = [each for each in report["findings"] if each["level"] in (PROBLEM, WARNING)]
    lines = [f"{each['level']} of the doctor, {each['check']}: {each['text']}; {each['advice']}." for each in bad]
    return lines or ["The doctor found nothing wrong with the frames."]
