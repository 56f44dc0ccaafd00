"""Every benchmark at a tiny size: it runs, and writes figures that can be meant."""

from __future__ import annotations

import json
import math
import os
import time
from argparse import Namespace
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch
from conftest import REPOSITORY, call_program, run_program_process, succeeded
from tiny_models import tiny_config

import evaluate
import train
from featdepth.data import cache

Benchmark = Callable[[str], ModuleType]
EXCERPT = Path(os.environ.get("FEATDEPTH_SHARED", Path(__file__).parents[2] / "shared")) / "kitti_mini" / "kitti_raw"
TINY = ("--sizes", "64x96", "--repeat", "1", "--cpu")


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch, street: Path) -> Benchmark:
    """Gives the module of a benchmark; the street that it would write is there already, and its programs start warm."""

    def load(name: str) -> ModuleType:
        monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
        module = import_module(name)
        if hasattr(module, "run_python"):
            monkeypatch.setattr(module, "run_python", run_python)
        if hasattr(module, "write_street"):
            monkeypatch.setattr(module, "write_street", lambda out, **options: Path(out).symlink_to(street))
        return module

    return load


def run_python(words: list[object], threads: int = 1, **variables: str) -> str:
    """As the benchmarks' own; torchrun is left out, for its processes start warm too."""
    words, processes = [str(word) for word in words], 1
    if words[:2] == ["-m", "torch.distributed.run"]:
        processes = int(words[words.index("--nproc_per_node") + 1])
        words = words[words.index("--nproc_per_node") + 2 :]
    assert all(value in ("no", "bf16") for value in variables.values()), "only a precision, which the CPU has"
    return succeeded(run_program_process(words, processes)).out


def rows_of(module: ModuleType, tmp_path: Path, *arguments: object) -> dict[str, dict] | list[dict]:
    """The rows that the benchmark writes; all of its figures are finite and above 0."""
    file = tmp_path / "figures.json"
    result = succeeded(call_program(module.main, *arguments, "--json", file))
    content = json.loads(file.read_text())
    assert content["machine"] in result.out and content["torch"] in result.out
    rows = content["rows"]
    for row in rows.values() if isinstance(rows, dict) else rows:
        numbers = [value for value in row.values() if not isinstance(value, str)]
        assert numbers and all(math.isfinite(number) and number > 0 for number in numbers), row
    return rows


@pytest.mark.parametrize("path", sorted((REPOSITORY / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_imports_what_there_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all benchmarks, for some of them run only among the long tests."""
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    import_module(path.stem)


@pytest.mark.long
def test_step_time(benchmark: Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = benchmark("step_time")
    monkeypatch.setattr(module, "memory_of", lambda *arguments: 1.0)  # a process for each row would take long
    words = ["--objectives", "joint", "--layers", 18, "--levers", "--motion", "--precisions", "float32"]
    rows = rows_of(module, tmp_path, *TINY, *words)
    steps = ["step", "step, recomputed", "step, accumulated", "step, aligned", "step, taught"]
    assert [row["name"] for row in rows] == ["bare, plain", "bare", *steps]
    assert rows[0]["times_bare"] == 1


@pytest.mark.long
def test_memory_of_a_row_is_that_of_a_process_of_its_own(benchmark: Benchmark) -> None:
    module = benchmark("step_time")
    case = module.Case(height=64, width=96, batch=1, objective="photometric", precision="float32", layers=18)
    assert 0.1 < module.memory_of("step", case, Namespace(cpu=True)) < 10


@pytest.mark.long
def test_prediction(benchmark: Benchmark, tmp_path: Path) -> None:
    module = benchmark("prediction")
    words = ["--layers", 18, "--batches", 1, 2, "--precisions", "float32", "bfloat16"]
    rows = rows_of(module, tmp_path, *TINY, *words)
    assert [(row["name"], row["batch"]) for row in rows] == [
        (f"ResNet-18, {precision}", batch) for batch in (1, 2) for precision in ("float32", "bfloat16")
    ]


@pytest.mark.long
def test_prior(benchmark: Benchmark, tmp_path: Path) -> None:
    words = ["--cpu", "--seeds", 0, 1, "--steps", 2, "--json", tmp_path / "figures.json"]
    assert "(95 %, 2 seeds)" in succeeded(call_program(benchmark("prior").main, *words)).out
    rows = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert all(row["without"] > 0 and row["without"] != row["with_prior"] for row in rows.values()) and len(rows) == 2


@pytest.mark.long
def test_low_rank(benchmark: Benchmark, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    words = ["--cpu", "--size", "112x112", "--batch", 1, "--tune", "all", "lora:8"]
    rows = rows_of(benchmark("low_rank"), tmp_path, *words)
    assert rows["all"]["learned"] > 20 * rows["lora:8"]["learned"] and rows["lora:8"]["part"] < 0.9


def test_loading(benchmark: Benchmark, tmp_path: Path) -> None:
    module = benchmark("loading")
    rows = rows_of(module, tmp_path, "--size", "64x96", "--repeat", 1)
    assert rows.keys() == {"png, as KITTI's", "png, as Pillow's", "jpg"}


def test_alignment(benchmark: Benchmark, tmp_path: Path) -> None:
    module = benchmark("alignment")
    rows = rows_of(module, tmp_path, *TINY, "--batches", 2, "--iterations", 4)
    assert [(row["name"], row["batch"]) for row in rows] == [("grey", 2), ("colour", 2)]


@pytest.mark.skipif(not EXCERPT.is_dir(), reason=f"no KITTI excerpt in {EXCERPT}")
def test_alignment_of_real_frames(benchmark: Benchmark, tmp_path: Path) -> None:
    """With depth from laser scans no pair is lost, whichever way it goes, from the identity."""
    module = benchmark("alignment")
    words = ["--sizes", "96x320", "--batches", 1, "--repeat", 1, "--cpu", "--kitti", EXCERPT]
    rows = [row for row in rows_of(module, tmp_path, *words) if "drive" in row]
    assert [row["name"] for row in rows] == ["forwards", "backwards", "mean of both"]
    for row in rows:
        assert row["known"] == row["pairs"] == 18
        assert row["translation_median"] < 4 and row["translation_worst"] < 15 and row["rotation_median"] < 0.04


def test_stereo_matching_finds_a_shift(benchmark: Benchmark) -> None:
    module = benchmark("alignment")
    picture = torch.rand(1, 1, 40, 120, generator=torch.Generator().manual_seed(0))
    disparity = module.match(picture[..., :100], picture[..., 7:107])
    inside = disparity[..., 10:-10, 20:-20]
    assert (inside > 0).float().mean() > 0.95
    assert inside[inside > 0].sub(7).abs().max() < 0.5


def test_stop_time(benchmark: Benchmark, tmp_path: Path, config_file: Path) -> None:
    module = benchmark("stop_time")
    (row,) = rows_of(module, tmp_path, "--config", config_file, "--repeat", 1).values()
    assert row["parameters"] > 1e6 and row["megabytes"] > 4 * 3 * row["parameters"] / 1e6  # weights and two moments


@pytest.mark.long
def test_start_up(benchmark: Benchmark, tmp_path: Path, config_file: Path) -> None:
    module = benchmark("start_up")
    rows = rows_of(module, tmp_path, "--config", config_file, "--cpu", "--repeat", 1)
    parts = [rows[name]["seconds"] for name in ("libraries", "own code", "first step")]
    assert rows["in all"]["seconds"] == pytest.approx(sum(parts))


def test_library_imports_are_those_of_others(benchmark: Benchmark, tmp_path: Path) -> None:
    module = benchmark("start_up")
    file = tmp_path / "program.py"
    file.write_text("import os, torch\nimport sys\nfrom featdepth import geometry\nfrom PIL import Image\nx = 1\n")
    assert module.library_imports([file]) == "from PIL import Image\nimport os, torch"


@pytest.mark.long
def test_data_wait(benchmark: Benchmark, tmp_path: Path, config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = benchmark("data_wait")

    def run_here(words: list[object]) -> str:
        """`run_python`, without a new process."""
        main, words = (cache.main, words[2:]) if words[0] == "-m" else (train.main, words[1:])
        return succeeded(call_program(main, *words)).out

    monkeypatch.setattr(module, "run_python", run_here)
    rows = rows_of(module, tmp_path, "--config", config_file, "--steps", 5, "--repeat", 1, "--cpu")
    assert rows.keys() == {"from files", "from the cache"}
    for row in rows.values():
        assert min(row["first"], row["later"]) <= row["all"] <= max(row["first"], row["later"]) < 100


def test_waiting_is_weighted_by_time(benchmark: Benchmark, tmp_path: Path) -> None:
    module = benchmark("data_wait")
    lines = [  # 4 images in 2 s, of which 1 s; then 2 images in 8 s, of which 0.8 s
        {"split": "train", "step": 2, "images_per_second": 2.0, "data_wait": 0.5},
        {"split": "validation", "step": 2},
        {"split": "train", "step": 3, "images_per_second": 0.25, "data_wait": 0.1},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert module.waiting(tmp_path, batch_size=2) == pytest.approx(
        {"first": 50, "later": 10, "all": 18, "images_per_second": 0.6}
    )


@pytest.mark.long
def test_scaling(benchmark: Benchmark, tmp_path: Path) -> None:
    module = benchmark("scaling")
    tiny = ["data.height=64", "data.width=96", "model.depth_layers=18", "model.decoder_width=16", "train.batch_size=1"]
    words = ["--networks", "feature_metric", "--steps", 1, "--images", 3, "--repeat", 1, "--cpu"]
    rows = rows_of(module, tmp_path, *words, *tiny)
    assert [name.split(", ")[1] for name in rows] == ["training", "validation", "evaluation"]


@pytest.mark.long
def test_speed_supervision(benchmark: Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = benchmark("speed_supervision")
    programs = {"train.py": train.main, "evaluate.py": evaluate.main}
    monkeypatch.setattr(module, "run_python", lambda words: succeeded(call_program(programs[words[0]], *words[1:])))
    tiny = ["data.width=96", "model.pose_size=null", "model.decoder_width=16", "data.workers=0", "train.max_steps=1"]
    file = tmp_path / "figures.json"
    result = succeeded(call_program(module.main, "--cpu", "--out", tmp_path, "--json", file, *tiny))
    rows = json.loads(file.read_text())["rows"]
    one, other = (rows[name]["abs_rel"] for name in ("known speed, unscaled", "known speed, median-scaled"))
    assert "metres from known speed" in result.out and f"is {100 * (one / other - 1):.1f} % above" in result.out


class TestGpuCheck:
    def test_a_check_on_the_cpu(self, gpu_check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """One row for each precision; the table and the file tell the same, and the exit code is that of the rows."""
        monkeypatch.setattr(
            gpu_check, "run_apart", lambda name, check, context: run_check_here(gpu_check, name, context)
        )
        check = gpu_check.CHECKS["numbers"]
        one = check._replace(parts=lambda context: {"autoencoder": check.parts(context)["autoencoder"]})
        monkeypatch.setitem(gpu_check.CHECKS, "numbers", one)
        file = tmp_path / "rows.json"
        result = succeeded(call_program(gpu_check.main, "--cpu", "--only", "numbers", "--out", file))
        rows = {row["name"]: row for row in json.loads(file.read_text())["rows"]}
        statuses = {name: row["status"] for name, row in rows.items()}
        names = [f"autoencoder, {precision}" for precision in ("float32", "bfloat16", "float16")]
        assert statuses == dict(zip(names, ("PASS", "PASS", "not run"), strict=True))
        assert all(name in result.out for name in names) and rows[names[2]]["note"] in result.out

    def test_what_fails_is_a_row_and_hides_nothing(
        self, gpu_check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail() -> list:
            raise ValueError("broken\nindeed")

        parts = {"one": fail, "other": lambda: [gpu_check.Row("fine", "PASS")]}
        check = gpu_check.Check(lambda context: parts, 1, 1)
        monkeypatch.setattr(
            gpu_check, "CHECKS", {"numbers": check, "late": gpu_check.Check(lambda context: {}, 900, 900)}
        )
        monkeypatch.setattr(
            gpu_check, "run_apart", lambda name, check, context: run_check_here(gpu_check, name, context)
        )
        file = tmp_path / "rows.json"
        result = call_program(gpu_check.main, "--cpu", "--only", "numbers", "late", "--out", file)
        rows = {row["name"]: row for row in json.loads(file.read_text())["rows"]}
        assert result.code == 1
        assert [row["status"] for row in rows.values()] == ["FAIL", "PASS", "not run"]
        assert rows["one"]["note"] == "ValueError: broken indeed" and "--only late" in rows["late"]["note"]

    def test_what_ends_without_a_word_or_not_at_all_is_a_row(self, gpu_check: ModuleType, tmp_path: Path) -> None:
        context = gpu_check.Context(torch.device("cpu"), tmp_path, time.monotonic() + 0.1)  # too short to import torch
        row, _ = gpu_check.run_apart("numbers", gpu_check.CHECKS["numbers"], context)
        assert row["status"] == "FAIL" and row["note"].startswith("did not end in 0 s")

    @pytest.mark.parametrize("options", [{"intrinsics": "learned"}, {"velocity": 0.1}], ids=["learned", "velocity"])
    def test_no_step_makes_the_host_wait(self, waiting: ModuleType, options: dict[str, object]) -> None:
        """Found by tensors that only say that they are on a GPU."""
        assert waiting.blocking_calls(tiny_config("photometric", [0, -1, 1], **options)) == []

    def test_waiting_is_seen(self, waiting: ModuleType) -> None:
        """So the test above can fail."""
        with waiting.FakeTensorMode(), waiting.watched() as found:
            values = waiting.on_gpu(torch.ones(3))
            values[:, None].expand(3, 2)[:, [0, 1]]  # a list of positions is copied
            values.new_tensor([1.0, 2.0])
            values + 1.0
            torch.ones(3).to("cuda", non_blocking=True)
        assert len(found) == 2


@pytest.fixture
def gpu_check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    return import_module("gpu_check")


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    return import_module("waiting")


def run_check_here(module: ModuleType, name: str, context: object) -> list[dict]:
    """What a check says, run in this process."""
    module.run_here(name, context)
    return [json.loads(line) for line in (context.folder / f"{name}.rows").read_text().splitlines()]
