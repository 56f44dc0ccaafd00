"""One command from a film to its depth: what its stages are given, what is done before, what is said of the result."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import call_program, run_program_process, succeeded
from drive_writer import render_drive
from PIL import Image
from tiny_models import tiny_config, tiny_model

from featdepth.config import load_config, save_config
from featdepth.depth import __main__ as depth
from featdepth.depth import recipe as recipes
from featdepth.depth.recipe import recipe
from featdepth.depth.stages import Stages
from featdepth.depth.trust import describe
from featdepth.doctor.findings import ok, warning
from featdepth.errors import InputError
from featdepth.models import FeatDepth
from featdepth.models.saved.provenance import LEARNED, NOTHING
from featdepth.prepare_video import __main__ as prepare_video

SECOND = 0.5  # that a step takes
WAIT = "import time; time.sleep(60)"


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 14 frames of a street."""
    folder = tmp_path_factory.mktemp("film") / "street"
    folder.mkdir()
    for number, frame in enumerate(render_drive(14, 96, 144).images):
        Image.fromarray(frame).save(folder / f"{number:03}.png", compress_level=1)
    np.savetxt(folder.parent / "camera.txt", render_drive(14, 96, 144).intrinsics)
    return folder


@pytest.fixture(scope="module")
def prepared(film: Path) -> dict[bool, Path]:
    """The folders of its prepared frames, by whether its intrinsics are known."""
    folders = {is_known: film.parent / f"known_{is_known}" / "frames" for is_known in (True, False)}
    for is_known, folder in folders.items():
        known = ["--intrinsics", film.parent / "camera.txt"] if is_known else []
        succeeded(call_program(prepare_video.main, film, "--out", folder, *known))
    return folders


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step takes half a second for each 15360 pixels of an image, and nothing is measured."""
    per_pixel = SECOND / recipes.SMALLEST
    monkeypatch.setattr(recipes, "step_seconds", lambda config: per_pixel * config.data.height * config.data.width)


@pytest.mark.usefixtures("steady")
class TestRecipe:
    @pytest.mark.parametrize("is_known", [True, False])
    def test_steps_fit_into_the_minutes(self, prepared: dict[bool, Path], tmp_path: Path, is_known: bool) -> None:
        config = recipe(prepared[is_known], tmp_path / "run", None, 4.0, ["model.pretrained=false"])
        assert (config.data.height, config.data.width) == (96, 160) and config.model.motion == "aligned"
        assert config.model.intrinsics == ("given" if is_known else "learned")
        assert config.train.batch_size == 6 and config.train.epochs == config.train.max_steps
        each = SECOND + SECOND * recipes.VALIDATED + recipes.CLOSED  # six samples, one step an epoch
        assert config.train.max_steps == int(4 * 60 * recipes.PLANNED / each)
        assert config.schedule.milestones == [round(0.75 * config.train.max_steps, 3)]
        save_config(config, tmp_path / "config.yaml")
        assert load_config(tmp_path / "config.yaml") == config  # as train.py reads it

    def test_longer_makes_larger_and_what_is_given_stays(self, prepared: dict[bool, Path], tmp_path: Path) -> None:
        config = recipe(prepared[True], tmp_path / "run", None, 40.0, ["model.pretrained=false"])
        pixels = config.data.height * config.data.width
        assert pixels == pytest.approx(40 * 60 * recipes.PLANNED / recipes.ENOUGH_STEPS / SECOND * 15360, rel=0.2)
        given = ["model.pretrained=false", "data.height=64", "data.width=96", "train.batch_size=2", "optimizer.lr=3e-4"]
        config = recipe(prepared[True], tmp_path / "run", None, 4.0, given)
        assert (config.data.height, config.data.width, config.optimizer.lr) == (64, 96, 3e-4)
        assert config.train.batch_size == 2

    def test_a_base_gives_its_networks_and_no_metres(
        self, prepared: dict[bool, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tiny_model(tiny_config("photometric", [0, "s"], max_depth=30.0)).save_pretrained(tmp_path / "base")
        monkeypatch.setattr(recipes, "field_of_view_by", lambda model, config: 71.25)
        config = recipe(prepared[False], tmp_path / "run", str(tmp_path / "base"), 40.0, [])
        assert (config.model.init, config.model.decoder_width, config.model.max_depth) == (
            str(tmp_path / "base"),
            16,
            30.0,
        )
        assert config.model.metres_per_unit is None and config.data.field_of_view == 71.2
        assert config.data.height * config.data.width <= 64 * 96

    def test_a_large_model_is_adapted_on_a_leash(self, prepared: dict[bool, Path], tmp_path: Path) -> None:
        pytest.importorskip("transformers")
        given = ["model.pretrained=false", "loss.prior=0.2"]
        config = recipe(prepared[True], tmp_path / "run", "hf:some/model", 4.0, given)
        assert (config.model.depth, config.model.tune, config.loss.prior) == ("hf:some/model", "lora:8", 0.2)
        assert config.model.init is None and config.model.motion == "aligned"

    def test_what_is_no_base_is_refused(self, tmp_path: Path) -> None:
        tiny_model(tiny_config("autoencoder", [0])).save_pretrained(tmp_path / "features")
        with pytest.raises(InputError, match="objective autoencoder predicts no depth"):
            recipes.open_base(str(tmp_path / "features"))


class TestStages:
    def test_what_is_done_is_not_done_again(self, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
        out = tmp_path / "out"
        words = ["-c", f"open({str(tmp_path / 'log')!r}, 'a').write('x')"]
        for _ in range(2):
            assert Stages(out, {"film": "a"}).run("one", words) == 0
        assert (tmp_path / "log").read_text() == "x" and "[one] done before" in capfd.readouterr().out
        other = ["-c", "import sys; sys.exit(len(sys.argv))"]
        assert Stages(out, {"film": "a"}).run("one", other, good=(2,), otherwise=["--overwrite"]) == 2
        with pytest.raises(InputError, match=r"out: was begun with another film \(was a, is b\); choose another --out"):
            Stages(out, {"film": "b"})
        with pytest.raises(InputError, match="is not empty"):
            Stages(tmp_path, {"film": "a"})

    def test_a_stage_that_fails_ends_all_and_is_run_again(self, tmp_path: Path) -> None:
        words = ["-c", "import sys; sys.exit(3)"]
        for _ in range(2):
            with pytest.raises(SystemExit) as stop:
                Stages(tmp_path / "out", {}).run("one", words)
            assert stop.value.code == 3
        assert Stages(tmp_path / "out", {}).run("one", words, good=(0, 3)) == 3
        assert Stages(tmp_path / "out", {}).run("one", words) == 3  # as it ended

    def test_time_and_signals_end_the_child(self, tmp_path: Path) -> None:
        assert Stages(tmp_path / "out", {}).run("one", ["-c", WAIT], good=(143,), seconds=0.1) == 143
        program = (
            "import os, signal, threading; from featdepth.depth.stages import run_child; import sys\n"
            "threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()\n"
            f"run_child([sys.executable, '-c', {WAIT!r}], None)"
        )
        with pytest.raises(SystemExit) as stop:
            Stages(tmp_path / "other", {}).run("one", ["-c", program])
        assert stop.value.code == 143


class TestTrust:
    @pytest.fixture
    def out(self, prepared: dict[bool, Path], tmp_path: Path) -> Path:
        """A folder as the stages leave it."""
        (tmp_path / "frames").symlink_to(prepared[True])
        model = tiny_model(tiny_config("photometric", [0, -1, 1], metres_per_unit=None))
        model.provenance.check = {"verdict": LEARNED, "samples": 6}
        model.provenance.validation = {"step": 56}
        for name in ("model", "model_last"):
            model.save_pretrained(tmp_path / "training" / name)
        config = tiny_config("photometric", [0, -1, 1], metres_per_unit=None)
        config.train.max_steps = 95
        save_config(config, tmp_path / "config.yaml")
        (tmp_path / "doctor").mkdir()
        bad = warning("exposure", "exposure", "brightness jumps", "no jumps", "lock the exposure")
        report = {"findings": [each.record() for each in (ok("parts", "fine"), bad)]}
        (tmp_path / "doctor" / "report.json").write_text(json.dumps(report))
        (tmp_path / "clips" / "street_00").mkdir(parents=True)
        (tmp_path / "clips" / "street_00" / "trajectory_tum.txt").write_text("# unit: relative; motion: all\n")
        return tmp_path

    def test_what_is_right_and_what_is_not(self, out: Path) -> None:
        text = describe(out, {"check": {"command": ["-m", "featdepth.doctor", "a b"]}}, ["street_00", "lost"], None)
        for line in (
            "- **No metres.** One camera does not show how large the world is",
            "- The check of the trained model: learned (on 6 samples).",
            "- Trained 56 steps (95 were planned, and the machine was slower) of 2 images of 96 x 64 pixels",
            "- street_00: unit: relative; motion: all.",
            "- **lost: no motion of the camera was found**",
            "- WARNING of the doctor, exposure: brightness jumps; lock the exposure.",
            "python -m featdepth.doctor 'a b'",
        ):
            assert line in text
        assert "Metres by a camera height of 1.6 m" in describe(out, {}, ["street_00"], 1.6)

    def test_depth_that_is_not_to_be_trusted(self, out: Path) -> None:
        model = FeatDepth.from_pretrained(out / "training" / "model")
        model.provenance.check = {"verdict": NOTHING, "samples": 6, "gain": -0.5}
        model.save_pretrained(out / "training" / "model")
        (out / "doctor" / "report.json").write_text('{"findings": []}')
        text = describe(out, {}, [], None)
        assert "- **The depth is not to be trusted**: the model seems to have learned nothing" in text
        assert "- The doctor found nothing wrong with the frames." in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["missing.mp4"], "missing.mp4: no such video file or folder of images"),
        (["--minutes", "0", "."], "--minutes 0: has to be above 0"),
        ([".", "--camera-height", "nan"], "--camera-height nan: has to be above 0"),
        ([".", "--base", "nowhere"], "nowhere"),
        (["."], "is not empty; choose a new or empty folder for --out"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    assert message in call_program(depth.main, *options, "--out", tmp_path).error_line()


@pytest.mark.long
def test_from_a_film_to_its_depth(film: Path, tmp_path: Path) -> None:
    tiny_model(tiny_config("photometric", [0, -1, 1])).save_pretrained(tmp_path / "base")
    out = tmp_path / "out"
    words = ["-m", "featdepth.depth", film, "--out", out, "--minutes", 1.0, "--base", tmp_path / "base"]
    words += ["--field-of-view", 80]
    result = succeeded(run_program_process(words))
    assert "# Depth of street" in result.out and (out / "README.md").read_text() in result.out
    for name in ("page.html", "trajectory_tum.txt", "fused_points.ply", "000000_picture.png"):
        assert (out / "clips" / "street_00" / name).is_file()
    steps = [json.loads(line)["step"] for line in (out / "training" / "metrics.jsonl").read_text().splitlines()]
    again = succeeded(run_program_process(words))
    assert again.out.count("done before") == len(json.loads((out / "depth.json").read_text())["stages"])
    assert len((out / "training" / "metrics.jsonl").read_text().splitlines()) == len(steps)
    other = run_program_process([*words[:-1], 70])
    assert "was begun with another field_of_view (was 80.0, is 70.0)" in other.error_line()
    assert sys.executable not in (out / "README.md").read_text()
