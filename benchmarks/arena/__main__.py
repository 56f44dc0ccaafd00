"""Which of several configurations learns more: S training seeds on T streets, paired, with intervals.

python -m benchmarks.arena "now: configs/demo.yaml" "slow: configs/demo.yaml optimizer.lr=1e-4" [--form overnight]
python -m benchmarks.arena FILE.yaml --seconds 300 --judge
python -m benchmarks.arena FILE.yaml --kitti ROOT --split DIR

Each run is train.py in a process of its own, one at a time, then evaluate.py. At equal steps (--steps) all take as
many; at equal seconds (--seconds) each takes as many as fit by its own step, whose seconds are measured before, in turn
with the others', so that a busy machine does not decide. The same command goes on where it was interrupted, and repeats
nothing. docs/accuracy.md has more.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
from pathlib import Path

import torch

from benchmarks.arena.competitors import read_competitors
from benchmarks.arena.scoring import run_program, score
from benchmarks.arena.table import format_tables, summarise
from benchmarks.arena.training import LARGEST_RESULT, Ground, Plan, configuration, step_seconds, train
from benchmarks.measure import machine
from featdepth.config import Parser
from featdepth.console import count
from featdepth.data.synthetic import Street, write_street
from featdepth.errors import TERMINATED, InputError
from featdepth.errors import run_program as run_main
from featdepth.files import read_object, write_text
from featdepth.models.saved.provenance import versions

CHOOSING, JUDGING = (0, 1, 2, 3), (100, 101, 102)  # seeds of streets; nobody looks at the latter before the last run
FORMS = {  # seeds, streets to choose on, steps
    "short": (1, 2, 200),
    "overnight": (3, 4, 572),
}


def main() -> None:
    arguments = parse()
    out, device = arguments.out.resolve(), torch.device("cpu" if arguments.cpu else "cuda")
    torch.set_num_threads(arguments.threads)
    competitors = read_competitors(arguments.competitors)
    grounds = choose_grounds(arguments, out)
    for competitor in competitors:  # a wrong key shows before streets are rendered
        configuration(competitor, grounds[0], out, check_files=False)
    if arguments.kitti is None:
        for seed, ground in zip(arguments.streets, grounds, strict=True):
            write_street(ground.root, drives=arguments.drives, seed=seed)
    plans = [
        Plan(competitor, ground, seed, arguments.steps, arguments.seconds, out, arguments.threads, arguments.cpu)
        for ground in grounds
        for seed in range(arguments.seeds)
        for competitor in competitors
    ]
    for plan in plans:  # and a missing file before hours are spent on the first of them
        configuration(plan.competitor, plan.ground, out)
    ours = [competitor for competitor in competitors if competitor.is_ours]
    seconds = step_seconds(ours, plans[0], arguments.rounds) if ours else {}
    results: dict[str, list[dict]] = {competitor.name: [] for competitor in competitors}
    for number, plan in enumerate(plans, start=1):
        print(f"run        {number} of {len(plans)}: {plan.title}", flush=True)
        results[plan.competitor.name].append(run(plan, seconds.get(plan.competitor.name)))
        if number % len(competitors) == 0:  # of a night that is interrupted, the tables so far remain
            report(results, plans, device)


def report(results: dict[str, list[dict]], plans: list[Plan], device: torch.device) -> None:
    """Write the tables of as many of the runs as there are; after the last one print them too."""
    every = [result for own in results.values() for result in own]
    steps, seconds, threads, out = plans[0].steps, plans[0].seconds, plans[0].threads, plans[0].out
    about = [
        ", ".join(dict.fromkeys(result["ground"] for result in every)),
        f"{count(len({result['seed'] for result in every}), 'seed')}",
        f"{steps} steps" if seconds is None else f"{seconds:g} s of training steps",
        machine(device, threads),
        *sorted({", ".join(result["versions"]) for result in every}),
    ]
    rows = summarise(results)
    tables = format_tables(rows, "; ".join(about))
    write_text(out / "table.json", json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    write_text(out / "table.md", tables)
    if len(every) == len(plans):
        print(f"\n{tables}\nwritten to {out}/table.md and table.json")


def parse() -> argparse.Namespace:
    """The command line. Raises InputError."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    add = parser.add_argument
    add("competitors", nargs="+", metavar="COMPETITOR", help="'NAME: CONFIG [key=value ...]', or FILE.yaml of them")
    add("--form", choices=FORMS, default="short", help="half an hour, or a night (default: short)")
    add("--seeds", type=int, help="training seeds (default: by the form)")
    add("--streets", type=int, nargs="+", help=f"some of {CHOOSING}; with --judge of {JUDGING}")
    add("--judge", action="store_true", help="use the streets that nothing was chosen on; once, at the end")
    add("--steps", type=int, help="optimizer steps of each training (default: by the form)")
    add("--seconds", type=float, help="seconds of each training, in its place")
    add("--rounds", type=int, default=3, help="measurements of the seconds of a step (default: 3)")
    add("--drives", type=int, default=Street.drives, help=f"of each street (default: {Street.drives})")
    add("--kitti", type=Path, metavar="ROOT", help="a root in KITTI's raw layout, in place of streets")
    add("--split", type=Path, metavar="DIR", help="lists of its training, validation and test samples")
    add("--odometry", action="store_true", help="the test drives of --kitti have true poses: score motion too")
    add("--threads", type=int, default=1, help="of the CPU, for each program (default: 1)")
    add("--cpu", action="store_true", help="use no GPU")
    add("--out", type=Path, default=Path("runs/arena"), help="keeps streets, runs and tables (default: runs/arena)")
    arguments = parser.parse_intermixed_args()
    if arguments.steps is not None and arguments.seconds is not None:
        raise InputError("--steps and --seconds: choose what is equal, one of them")
    if (arguments.kitti is None) != (arguments.split is None) or (arguments.kitti and arguments.streets):
        raise InputError("--kitti and --split go together, and without --streets")
    seeds, streets, steps = FORMS[arguments.form]
    known = JUDGING if arguments.judge else CHOOSING
    if arguments.streets is None:
        arguments.streets = known if arguments.judge else known[:streets]
    if not set(arguments.streets) <= set(known):
        raise InputError(
            f"--streets {arguments.streets}: {JUDGING} are for --judge alone, {CHOOSING} for all else; never both"
        )
    if arguments.seeds is None:
        arguments.seeds = seeds
    if arguments.steps is None and arguments.seconds is None:
        arguments.steps = steps
    for name in ("seeds", "steps", "seconds", "rounds", "threads"):
        if (value := getattr(arguments, name)) is not None and value <= 0:
            raise InputError(f"--{name} {value}: has to be above 0")
    arguments.cpu = arguments.cpu or not torch.cuda.is_available()
    return arguments


def choose_grounds(arguments: argparse.Namespace, out: Path) -> list[Ground]:
    """The data to compare on."""
    if arguments.kitti is not None:
        root, split = arguments.kitti.resolve(), arguments.split.resolve()
        return [Ground(split.name, root, split, is_dense=False, has_poses=arguments.odometry)]
    roots = {seed: out / f"streets/{seed}" for seed in arguments.streets}
    return [
        Ground(f"street_{seed}", root, root / "splits", is_dense=True, has_poses=True) for seed, root in roots.items()
    ]


def run(plan: Plan, step_seconds: float | None) -> dict:
    """The result of a run: read where it is finished, else made, or continued. Raises InputError."""
    file = plan.folder / "result.json"
    if plan.seconds is not None and step_seconds is not None:
        plan = plan._replace(steps=max(1, round(plan.seconds / step_seconds)))
    conditions = json.loads(json.dumps(plan.conditions))
    begun = plan.folder / "conditions.json"
    if begun.exists():
        known = read_object(begun, LARGEST_RESULT, "what a run is made with", "damaged; remove its folder")
        if known != conditions:
            other = ", ".join(key for key in conditions if known.get(key) != conditions[key])
            raise InputError(f"{plan.folder}: holds a run with another {other}; remove it, or choose another --out")
    if file.exists():
        return read_object(file, LARGEST_RESULT, "the result of a run", "damaged; remove it")
    write_text(begun, json.dumps(conditions, indent=1) + "\n")
    if plan.competitor.is_ours:
        seconds, scores = train(plan), score(plan)
    else:
        seconds, scores = run_program(plan)
    result = {"ground": plan.ground.name, "seed": plan.seed, "steps": plan.steps, "step_seconds": step_seconds}
    result |= {"seconds": seconds, "versions": versions(), **scores}
    write_text(file, json.dumps(result) + "\n")
    shutil.rmtree(plan.folder / "training/checkpoints", ignore_errors=True)  # hundreds of megabytes that have served
    return result


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))  # so that a training in progress is ended too
    run_main(main)
