"""Where competitors are compared, and how each is trained: configurations of equal steps, and the seconds of a step."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from benchmarks.arena.competitors import Competitor
from benchmarks.arena.programs import run_script
from benchmarks.measure import REPOSITORY, read_intervals
from featdepth.config import Config, load_config
from featdepth.data import build_dataset
from featdepth.errors import InputError
from featdepth.files import read_object, write_text

FIRST_STEPS, TIMED_STEPS = 3, 10  # of a measurement of seconds: those that do not count, and those that do
LARGEST_RESULT = 1 << 26  # bytes
NEUTRAL = REPOSITORY / "configs/demo.yaml"  # whose test data other people's programs are scored on


class Ground(NamedTuple):
    """Data that competitors are trained and scored on."""

    name: str
    root: Path
    split: Path
    is_dense: bool  # whether there is truth at all pixels
    has_poses: bool

    def overrides(self, out: Path) -> list[str]:
        return [
            f"data.root={self.root}", f"data.split={self.split}", f"data.ground_truth_cache={out / 'ground_truth'}"
        ]  # fmt: skip


class Plan(NamedTuple):
    """A run: who, where, with which seed, how long."""

    competitor: Competitor
    ground: Ground
    seed: int
    steps: int | None  # None: other people's, at equal seconds
    seconds: float | None  # of training, where that is what is equal
    out: Path  # of the arena
    threads: int
    cpu: bool

    @property
    def folder(self) -> Path:
        return self.out / "runs" / self.competitor.name / self.ground.name / f"seed_{self.seed}"

    @property
    def title(self) -> str:
        return f"{self.competitor.name}, {self.ground.name}, seed {self.seed}"

    @property
    def conditions(self) -> dict:
        """All that its result depends on."""
        config = Path(REPOSITORY, self.competitor.config)
        text = hashlib.sha256(config.read_bytes()).hexdigest()[:16] if self.competitor.is_ours else ""
        named = {"competitor": list(self.competitor), "configuration": text, "ground": self.ground.name}
        return named | {"seed": self.seed, "steps": self.steps, "seconds": self.seconds, "threads": self.threads}

    def words(self, *overrides: str) -> list[object]:
        """The command line that its programs share."""
        words = ["--config", self.competitor.config, *self.competitor.overrides, *self.ground.overrides(self.out)]
        return [*words, f"run.directory={self.folder / 'training'}", *overrides, *["--cpu"] * self.cpu]


def configuration(
    competitor: Competitor, ground: Ground, out: Path, training: bool = True, check_files: bool = True
) -> Config:
    """A competitor's configuration on a ground, checked as by `load_config`. Raises InputError, which names it."""
    overrides = [*competitor.overrides, *ground.overrides(out)]
    try:
        config = load_config(REPOSITORY / (competitor.config or NEUTRAL), overrides, check_files, training)
    except InputError as error:
        raise InputError(f"competitor {competitor.name}: {error}") from None
    if config.data.kind != "kitti_raw":
        raise InputError(f"competitor {competitor.name}: data.kind is {config.data.kind}; grounds are kitti_raw")
    return config


def length_overrides(config: Config, steps: int) -> list[str]:
    """Keys by which a run has so many steps, and its learning rate drops at the same parts of it as configured."""
    batches = len(build_dataset(config, "train")) // config.train.batch_size
    per_epoch = max(1, math.ceil(batches / config.train.accumulate))
    part = steps / (per_epoch * config.train.epochs)
    milestones = [round(milestone * part, 3) for milestone in config.schedule.milestones]
    epochs = math.ceil(steps / per_epoch)
    return [f"train.epochs={epochs}", f"train.max_steps={steps}", f"schedule.milestones={milestones}"]


def train(plan: Plan) -> float:
    """Train as the plan says, or go on where it was interrupted; seconds from the start of the last program to its end.

    Raises InputError where the run directory holds a run that was made otherwise.
    """
    config = configuration(plan.competitor, plan.ground, plan.out)
    words = plan.words(f"train.seed={plan.seed}", "train.keep_checkpoints=1", *length_overrides(config, plan.steps))
    return run_script(["train.py", *words, "--resume"], plan.folder / "training.log", plan.threads, plan.title)


def step_seconds(competitors: Sequence[Competitor], plan: Plan, rounds: int) -> dict[str, float]:
    """Seconds of a training step of each competitor of ours: measured once, and kept in the arena's folder.

    Rounds go through all competitors in turn; each is compared with the first within a round, so that what slows a
    whole round cancels. plan: of any run, for ground, threads and device.
    """
    file, known = plan.out / "step_seconds.json", {}
    if file.exists():
        known = read_object(file, LARGEST_RESULT, "the seconds of a step", "damaged; remove it")
    neutral = plan._replace(seed=0, steps=None, seconds=None)
    keys = {each.name: json.dumps(neutral._replace(competitor=each).conditions) for each in competitors}
    new = [each for each in competitors if keys[each.name] not in known]
    if new:
        reference = competitors[0]
        timed = [reference, *(each for each in new if each != reference)]
        taken = {each.name: [] for each in timed}
        for number in range(rounds):
            for each in timed:
                print(f"seconds    of a step, round {number + 1} of {rounds}: {each.name}", flush=True)
                taken[each.name].append(time_steps(plan._replace(competitor=each)))
        first = known.get(keys[reference.name]) or statistics.median(taken[reference.name])
        for each in new:
            pairs = zip(taken[each.name], taken[reference.name], strict=True)
            known[keys[each.name]] = first * statistics.median(own / other for own, other in pairs)
        write_text(file, json.dumps(known, indent=1) + "\n")
    return {each.name: known[keys[each.name]] for each in competitors}


def time_steps(plan: Plan) -> float:
    """The median of the seconds of some steps of a short training."""
    config = configuration(plan.competitor, plan.ground, plan.out)
    length = length_overrides(config, FIRST_STEPS + TIMED_STEPS)
    with TemporaryDirectory(dir=plan.out) as folder:
        words = plan.words(f"run.directory={folder}/training", "train.log_every=1", *length)
        log = plan.out / "timing" / f"{plan.competitor.name}.log"
        run_script(["train.py", *words], log, plan.threads, f"{plan.competitor.name}, timing")
        lines = read_intervals(Path(folder, "training"))
    samples = config.train.batch_size * config.train.accumulate
    return statistics.median(samples / line["images_per_second"] for line in lines[FIRST_STEPS:])
