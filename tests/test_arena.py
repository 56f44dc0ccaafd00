"""The arena: who competes, what a run leaves, what is never repeated, and what the table says."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import Result, call_program, run_program_process, succeeded

from benchmarks.arena import __main__ as arena
from benchmarks.arena import scoring, training
from benchmarks.arena.competitors import Competitor, read_competitors
from benchmarks.arena.programs import run_command
from benchmarks.arena.table import format_tables, summarise
from benchmarks.arena.training import Ground, Plan, length_overrides
from featdepth.config import load_config
from featdepth.errors import InputError
from featdepth.models import FeatDepth

# Other people's program, which knows the truth: half of it, for it is no metric one.
PEER = """
import sys
from pathlib import Path
import numpy as np
from PIL import Image
images, out = Path(sys.argv[1]).read_text().split(), Path(sys.argv[2])
for number, image in enumerate(images):
    image = Path(image)
    truth = image.parents[2] / "proj_depth/groundtruth" / image.parents[1].name / image.name
    depth = np.asarray(Image.open(truth)) / 256
    np.save(out / f"{number:06d}.npy", np.where(depth > 0, depth, 300) / 2)
"""


@pytest.fixture
def ground(street: Path) -> Ground:
    return Ground("street_0", street, street / "splits", is_dense=True, has_poses=True)


def make_plan(competitor: Competitor, ground: Ground, out: Path, steps: int = 2) -> Plan:
    return Plan(competitor, ground, seed=0, steps=steps, seconds=None, out=out, threads=1, cpu=True)


def test_competitors_are_read_from_words_and_files(tmp_path: Path) -> None:
    file = tmp_path / "more.yaml"
    file.write_text("b: c.yaml\ntheirs: {command: 'run {data} {seed}', predict: 'see {images}', metric: true}\n")
    first, second, theirs = read_competitors(["a: c.yaml optimizer.lr=1e-4 data.frames='[0, -1]'", str(file)])
    assert first == Competitor("a", "c.yaml", ("optimizer.lr=1e-4", "data.frames=[0, -1]"))
    assert (second.config, second.overrides, second.is_ours) == ("c.yaml", (), True)
    assert (theirs.command, theirs.metric, theirs.is_ours) == ("run {data} {seed}", True, False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 3", "competitor a is 3; write NAME: CONFIGURATION"),
        ("a b: c.yaml", "'a b' cannot be the name"),
        ("a: {command: x}", "competitor a needs the texts command and predict"),
        ("a: {command: x, predict: 'y {images', metric: false}", "'y {images' has"),
        ("a: {command: 'x {gpu}', predict: y}", "'x {gpu}' has 'gpu'; known are {data}"),
        ("[a]", "has to be a list of lines"),
    ],
)
def test_a_bad_entry_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "list.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as error:
        read_competitors([str(file)])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a: configs/demo.yaml", "a: configs/demo.yaml"], "a name is there twice"),
        (["a: configs/nowhere.yaml"], "configs/nowhere.yaml: no such configuration file"),
        (["a: configs/demo.yaml optimizer.rate=1"], "competitor a: command line: unknown key 'optimizer.rate'"),
        (["a: configs/demo.yaml", "--streets", "100"], "(100, 101, 102) are for --judge alone"),
        (["a: configs/demo.yaml", "--streets", "0", "--judge"], "(100, 101, 102) are for --judge alone"),
        (["a: configs/demo.yaml", "--steps", "3", "--seconds", "3"], "choose what is equal"),
        (["a: configs/demo.yaml", "--kitti", "x"], "--kitti and --split go together"),
        (["a: configs/demo.yaml", "--seeds", "0"], "--seeds 0: has to be above 0"),
    ],
)
def test_bad_usage_ends_before_a_street_is_rendered(words: list[str], message: str, tmp_path: Path) -> None:
    assert message in call_program(arena.main, *words, "--out", tmp_path).error_line()
    assert list(tmp_path.iterdir()) == []


def link(root: Path, street: Path) -> None:
    root.parent.mkdir(parents=True, exist_ok=True)
    root.symlink_to(street)


def test_milestones_move_with_the_length(config_file: Path) -> None:
    config = load_config(config_file, ["train.accumulate=2"])  # 20 samples in batches of 2: 5 steps an epoch, 3 epochs
    assert length_overrides(config, 15) == ["train.epochs=3", "train.max_steps=15", "schedule.milestones=[1.0]"]
    assert length_overrides(config, 6) == ["train.epochs=2", "train.max_steps=6", "schedule.milestones=[0.4]"]


def test_what_is_finished_is_not_repeated(ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []
    monkeypatch.setattr(arena, "train", lambda plan: done.append(plan.steps) or 3.0)
    monkeypatch.setattr(arena, "score", lambda plan: {"images": {"d 1 l": {"abs_rel": 0.5}}, "sequences": {}})
    plan = make_plan(Competitor("a", "configs/demo.yaml"), ground, tmp_path)
    result = arena.run(plan, 0.5)
    assert arena.run(plan, 0.7) == result  # another measurement of seconds does not matter at equal steps
    assert (result["seconds"], result["images"], done) == (3.0, {"d 1 l": {"abs_rel": 0.5}}, [2])
    (plan.folder / "result.json").unlink()  # interrupted before it was written
    arena.run(plan, 0.5)
    assert done == [2, 2]
    with pytest.raises(InputError, match="seed_0: holds a run with another steps; remove it"):
        arena.run(plan._replace(steps=9), 0.5)
    arena.run(plan._replace(steps=None, seconds=100.0, out=tmp_path / "other"), 0.5)
    assert done == [2, 2, 200]


def test_seconds_of_a_step_are_ratios_within_rounds(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What slows a whole round cancels; a competitor that comes later is compared with what is known of the first."""
    measured = {"a": [1.0, 9.0, 1.2], "b": [2.0, 18.0, 2.4], "c": [0.5, 0.5, 0.5]}
    monkeypatch.setattr(training, "time_steps", lambda plan: measured[plan.competitor.name].pop(0))
    a, b, c = (Competitor(name, "configs/demo.yaml") for name in "abc")
    plan = make_plan(a, ground, tmp_path)
    assert training.step_seconds([a, b], plan, 3) == {"a": 1.2, "b": pytest.approx(2.4)}
    measured["a"] = [5.0, 5.0, 5.0]
    assert training.step_seconds([a, b, c], plan, 3) == {"a": 1.2, "b": pytest.approx(2.4), "c": pytest.approx(0.12)}


def observed(run: int, scores: dict[str, list[float]]) -> dict:
    images = {f"drive_{place} 1 l": {key: values[place] for key, values in scores.items()} for place in range(4)}
    costs = {"steps": 7, "step_seconds": 0.5, "seconds": 9.0, "parameters": 2_000_000, "gflop": 1.5, "memory_gb": run}
    return {"ground": "street_0", "seed": run, "images": images, "sequences": {}, **costs}


def test_table_and_intervals() -> None:
    base = np.array([0.1, 0.2, 0.3, 0.2])
    runs = {
        "old": [observed(run, {"abs_rel": list(base), "other_sizes": list(base * 1.5)}) for run in (1, 2)],
        "new": [
            observed(run, {"abs_rel": list(base - 0.02 - 0.001 * run), "metric_abs_rel": [math.nan] * 4})
            for run in (1, 2)
        ],
    }
    rows = summarise(runs)
    assert rows["old"]["means"] == pytest.approx({"abs_rel": 0.2, "other_sizes": 1.5})
    assert rows["new"]["means"] == pytest.approx({"abs_rel": 0.1785})
    gain = rows["new"]["differences"]["abs_rel"]
    assert gain["mean"] == pytest.approx(-0.0215) and gain["low"] < -0.0215 < gain["high"] < 0
    text = format_tables(rows, "street_0").splitlines()
    assert "| old | 0.2000 | 1.500 |" in text and "| new | 0.1785 | - |" in text
    assert "| new | **-10.7 [-13.9, -7.6]** |" in text or "| new | **-10.8 [-13.9, -7.6]** |" in text
    assert "| new | 7 | 0.500 | 9 | 2.00 | 2.00 | 1.50 |" in text
    alone = format_tables(summarise({name: own[:1] for name, own in runs.items()}), "street_0")
    assert "| new | -10.5 |" in alone and "at least 2 runs, not 1" in alone
    assert "Difference" not in format_tables(summarise({"old": runs["old"]}), "street_0")


def test_other_peoples_programs_are_scored_like_ours(ground: Ground, tmp_path: Path) -> None:
    peer = tmp_path / "peer.py"
    peer.write_text(PEER)
    predict = f"{sys.executable} {peer} {{images}} {{predictions}}"
    competitor = Competitor("theirs", command="echo {steps} > {run}", predict=predict, metric=False)
    plan = make_plan(competitor, ground, tmp_path)
    seconds, scores = scoring.run_program(plan)
    assert (plan.folder / "training").read_text() == "2\n" and seconds > 0
    assert len(scores["images"]) == 3
    for row in scores["images"].values():
        assert row["abs_rel"] < 0.06 and math.isnan(row["metric_abs_rel"])
        assert row["edge_accuracy"] < 0.1 > row["edge_completeness"] and row["fscore"] > 0.95
    (plan.folder / "predictions/000001.npy").unlink()
    with pytest.raises(InputError, match="000001: the competitor has written neither"):
        scoring.run_program(plan._replace(competitor=competitor._replace(predict="true")))
    with pytest.raises(InputError, match="theirs, street_0, seed 0: its command ended with code 7: alas"):
        scoring.run_program(plan._replace(competitor=competitor._replace(command="echo alas; exit 7")))


@pytest.mark.long
def test_a_model_is_scored_at_other_sizes(finished_run: Path, config_file: Path) -> None:
    assert scoring.other_sizes(192, 640) == [(128, 416), (160, 512), (256, 832), (320, 1024)]
    assert scoring.other_sizes(64, 192) == [(64, 128), (64, 160), (96, 256), (96, 320)]
    model = FeatDepth.from_pretrained(finished_run / "model")
    scores = scoring.score_other_sizes(model, load_config(config_file))
    assert len(scores) == 3 and all(0 < value < 2 for value in scores.values())
    costs = scoring.count_operations(model)
    assert costs["parameters"] == sum(each.numel() for each in model.parameters())
    weights = sum(each.numel() for each in model.depth_encoder.layer4.parameters())
    assert 1e9 * costs["gflop"] > 2 * weights * 2 * 3  # each at least once a pixel of the deepest map, 2 x 3


def test_a_program_in_progress_ends_with_the_arena(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told so, and has the time to save what it has."""
    wait, begun = subprocess.Popen.wait, tmp_path / "begun"

    def interrupted(process: subprocess.Popen) -> int:
        monkeypatch.undo()
        while not begun.exists():
            with pytest.raises(subprocess.TimeoutExpired):
                wait(process, 0.02)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "wait", interrupted)
    script = f"trap 'echo saved > {tmp_path}/done; exit 143' TERM; touch {begun}; while true; do sleep 0.05; done"
    with pytest.raises(KeyboardInterrupt):
        run_command(script, tmp_path / "log", 1, "it")
    assert (tmp_path / "done").read_text() == "saved\n"


@pytest.mark.long
def test_two_competitors_end_in_a_table(
    config_file: Path, street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def run_warm(words: list[object], log: Path, threads: int, what: str) -> float:
        calls.append(what)
        result = succeeded(run_program_process(words))
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(result.out)
        return 1.0

    def main(*more: str) -> Result:
        words = [f"a: {config_file}", f"b: {config_file} optimizer.lr=1e-3", "--seeds", 2, "--streets", 0, "--steps", 3]
        return call_program(arena.main, *words, *more, "--rounds", 1, "--out", tmp_path, "--cpu")

    for module in (training, scoring):
        monkeypatch.setattr(module, "run_script", run_warm)
    monkeypatch.setattr(arena, "write_street", lambda root, **options: root.exists() or link(root, street))
    succeeded(main())
    assert len(calls) == 2 + 2 * 2 * 4  # seconds of a step; a training and three evaluations of each run
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert {"abs_rel", "metric_abs_rel", "other_sizes", "ate", "network_rotation"} < rows["a"]["means"].keys()
    assert (
        rows["b"]["differences"]["abs_rel"]["reason"] is None
        or "drives" in rows["b"]["differences"]["abs_rel"]["reason"]
    )
    assert all(math.isfinite(value) and value > 0 for row in rows.values() for value in row["costs"].values())
    again = succeeded(main())
    assert len(calls) == 18 and "written to" in again.out
