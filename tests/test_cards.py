"""Score cards: their content, two models compared, tables of several cards, and cards that are not what they claim."""

from __future__ import annotations

import copy
import csv
import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import Result, call_program, succeeded

import evaluate
from featdepth.config import load_config
from featdepth.evaluation.cards.blocks import Figures, Table, Text, Title, markdown, page
from featdepth.metrics.breakdown import DETAILS
from featdepth.metrics.depth import METRICS
from featdepth.metrics.intervals import mean_interval, paired_interval
from featdepth.models import FeatDepth

DENSE = "evaluate.protocol=eigen_improved"
PARTS = ("train", "val", "test")
WRONG = ("text", "list", "object", "boolean", "infinite", "not a number", "huge", "null")


def save_model(
    config_file: Path, folder: Path, seed: int, width: int = 96, drives: tuple[str, ...] = ("other",)
) -> Path:
    """An untrained model whose record says that it has seen `drives`."""
    config = load_config(config_file)
    torch.manual_seed(seed)
    model = FeatDepth(config.model, config.data.frames, 64, width)
    model.provenance.add_data(drives, ())
    model.provenance.configuration = {"train": {"seed": seed}}
    model.provenance.configuration_digest = "0123456789abcdef"
    model.save_pretrained(folder)
    return folder


def evaluate_here(config_file: Path, checkpoint: Path, out: Path, *words: object) -> Result:
    arguments = ["--config", config_file, "--checkpoint", checkpoint, "--out", out, *words]
    return call_program(evaluate.main, *arguments)


def compare_here(*cards: object) -> Result:
    return call_program(evaluate.main, "--cards", *cards)


def read_card(out: Path) -> dict:
    return json.loads((out / "card.json").read_text())


def read_rows(out: Path) -> list[dict[str, str]]:
    with (out / "per_image.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def two_drives(street: Path, config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration that trains on three drives and tests on 8 images of two."""
    folder = tmp_path_factory.mktemp("two_drives")
    lists = {name: (street / "splits" / f"{name}_files.txt").read_text().splitlines() for name in PARTS}
    first = lists["train"][0].split()[0]
    parts = {
        "train": [line for line in lists["train"] if line.split()[0] != first],
        "val": [line for line in lists["train"] if line.split()[0] == first],
        "test": lists["test"] + lists["val"],
    }
    for name, lines in parts.items():
        (folder / f"{name}_files.txt").write_text("\n".join(lines) + "\n")
    values = yaml.safe_load(config_file.read_text())
    values["data"]["split"] = str(folder)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    return folder / "tiny.yaml"


@pytest.fixture(scope="module")
def compared(two_drives: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path, Path]:
    """Two models of different size in one evaluation with dense ground truth; the second also in one of its own.

    The second does not know what it was trained on.
    """
    folder = tmp_path_factory.mktemp("compared")
    one = save_model(two_drives, folder / "one", 0)
    two = save_model(two_drives, folder / "two", 1, width=128, drives=())
    result = evaluate_here(two_drives, one, folder / "this", "--against", two, DENSE)
    succeeded(evaluate_here(two_drives, two, folder / "other", DENSE))
    return succeeded(result), folder / "this", folder / "other"


class TestCard:
    def test_test_list_and_protocol(self, compared: tuple[Result, Path, Path], two_drives: Path) -> None:
        test = read_card(compared[1])["test"]
        lines = sorted((two_drives.parent / "test_files.txt").read_text().splitlines())
        assert test["sha256"] == hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()
        assert (test["images"], test["drives"], test["skipped_images"]) == (8, 2, 0)
        assert (test["protocol"], test["crop"], test["cap"], test["flip"]) == ("eigen_improved", "none", None, False)
        assert test["clamp"] == 80

    def test_scores_are_those_of_the_images(self, compared: tuple[Result, Path, Path]) -> None:
        """Both scales, with and without flip, with the intervals of the numbers in per_image.csv."""
        card, rows = read_card(compared[1]), read_rows(compared[1])
        drives = [row["image"].split()[0] for row in rows]
        for scale in ("median_scaled", "fixed_scale"):
            for metric in METRICS:
                values = [float(row[f"{scale}_{metric}"]) for row in rows]
                score = card["scores"][scale]["plain"][metric]
                over_images, over_drives = mean_interval(values), mean_interval(values, drives)
                assert score["images"] == pytest.approx([over_images.low, over_images.high], rel=1e-6)
                assert score["drives"] == pytest.approx([over_drives.low, over_drives.high], rel=1e-6)
                assert score["mean"] == pytest.approx(np.mean(values), rel=1e-6)
                assert score["mean"] != card["scores"][scale]["flip"][metric]["mean"]
        metrics = json.loads((compared[1] / "metrics.json").read_text())
        for name in ("constant_depth", "pixel_median"):
            assert {metric: score["mean"] for metric, score in card["scores"][name].items()} == pytest.approx(
                metrics[name]
            )

    def test_flip_of_the_headline_is_the_flip_of_the_card(
        self, compared: tuple[Result, Path, Path], two_drives: Path, tmp_path: Path
    ) -> None:
        plain = read_card(compared[1])
        checkpoint = plain["model"]["checkpoint"]
        succeeded(evaluate_here(two_drives, checkpoint, tmp_path, DENSE, "evaluate.flip=true"))
        assert read_card(tmp_path)["scores"] == plain["scores"]
        metrics = json.loads((tmp_path / "metrics.json").read_text())
        assert metrics["median_scaled"]["rmse"] == pytest.approx(
            plain["scores"]["median_scaled"]["flip"]["rmse"]["mean"], rel=1e-6
        )

    def test_details_of_dense_ground_truth(self, compared: tuple[Result, Path, Path]) -> None:
        rows, found = read_rows(compared[1]), {}
        for detail in read_card(compared[1])["details"]:
            found |= {row["name"]: row for row in detail["rows"]}
        assert {"10-20 m/abs_rel", "left third/a1", "static/rmse", "edges/accuracy"} < found.keys() <= set(DETAILS)
        for name, row in found.items():
            values = [float(line[name]) for line in rows if line[name]]
            assert (row["count"], row["mean"]) == (len(values), pytest.approx(np.mean(values), rel=1e-6))

    def test_worst_and_best_images(self, compared: tuple[Result, Path, Path]) -> None:
        """With 8 images all are among the ten worst; the page shows each, and nothing from elsewhere."""
        card, rows = read_card(compared[1]), read_rows(compared[1])
        ranked = sorted(rows, key=lambda row: -float(row["fixed_scale_abs_rel"]))
        assert [entry["image"] for entry in card["extremes"]["worst"]] == [row["image"] for row in ranked]
        assert card["extremes"]["best"] == [] and card["extremes"]["ranked_by"].startswith("abs_rel, fixed scale")
        text = (compared[1] / "card.html").read_text()
        sources = re.findall(r'src="([^"]*)"', text)
        assert len(sources) == 8 and all(source.startswith("data:image/jpeg;base64,") for source in sources)
        assert not re.search(r"<script|<link|https?://|url\(", text) and len(text) < 1 << 20

    def test_forms_for_people(self, compared: tuple[Result, Path, Path]) -> None:
        card = read_card(compared[1])
        score = card["scores"]["fixed_scale"]["flip"]["rmse"]
        for name in ("card.md", "card.html"):
            text = (compared[1] / name).read_text()
            assert f"{score['mean']:.4f}" in text and f"{score['drives'][0]:.4f} to {score['drives'][1]:.4f}" in text
            assert "do not contain the spread over training seeds, nor do intervals over drives" in text
            assert card["test"]["sha256"] in text and "--against" in text and "CONTAMINATED" not in text
            assert "no test drive is among its 1 training drive." in text

    def test_model_that_remembers_no_drive(self, compared: tuple[Result, Path, Path]) -> None:
        assert read_card(compared[2])["leakage"]["training_drives"] is None
        assert "Leakage unknown: this model has no record" in (compared[2] / "card.md").read_text()
        assert "Leakage unknown: the other model has no record" in (compared[1] / "card.md").read_text()
        assert "| **leakage unknown** " in succeeded(compare_here(compared[2])).out

    def test_without_ground_truth_the_card_has_the_loss(self, street_copy: Path, tmp_path: Path) -> None:
        for line in (street_copy / "splits" / "test_files.txt").read_text().splitlines():
            shutil.rmtree(street_copy / line.split()[0] / "velodyne_points", ignore_errors=True)
        checkpoint = save_model(tmp_path / "tiny.yaml", tmp_path / "model", 0)
        succeeded(evaluate_here(tmp_path / "tiny.yaml", checkpoint, tmp_path / "out"))
        card, metrics = read_card(tmp_path / "out"), json.loads((tmp_path / "out" / "metrics.json").read_text())
        assert card["kind"] == "loss" and card["losses"]["loss"]["mean"] == pytest.approx(metrics["loss"], rel=1e-6)
        assert card["losses"]["loss"]["drives"] is None  # of one drive there is no interval
        assert "src=" in (tmp_path / "out" / "card.html").read_text()
        refused = evaluate_here(
            tmp_path / "tiny.yaml", checkpoint, tmp_path / "no", "--against", checkpoint
        ).error_line()
        assert "--against" in refused and "ground truth" in refused and not (tmp_path / "no").exists()
        assert "no depth scores" in compare_here(tmp_path / "out").error_line()


class TestRefinement:
    def test_gain_and_cost_are_on_the_card(self, two_drives: Path, tmp_path: Path) -> None:
        """Learning changes the scores of what comes after it; the scores beside it are of an evaluation without."""
        checkpoint = save_model(two_drives, tmp_path / "model", 0)
        result = succeeded(evaluate_here(two_drives, checkpoint, tmp_path / "out", "--refine", 2))
        card = read_card(tmp_path / "out")
        found = card["refinement"]
        assert (found["kind"], found["steps"], found["stereo"]) == ("causal", 2, True)
        assert (found["images"], len(found["clips"])) == (card["test"]["images"], card["test"]["drives"])
        before, after = (found[name]["median_scaled"]["abs_rel"] for name in ("without", "with"))
        assert before == pytest.approx(card["scores"]["median_scaled"]["plain"]["abs_rel"]["mean"], rel=1e-4)
        assert after != before and found["gain"]["median_scaled"] == pytest.approx(before - after)
        assert found["without"]["frames_per_second"] > found["with"]["frames_per_second"] > 0
        text = (tmp_path / "out" / "card.md").read_text()
        assert "## Causal refinement" in text and f"{before:.4f}" in text and f"{after:.4f}" in text
        assert "causal refinement from two cameras, 2 steps" in result.out

    def test_bad_usage(self, two_drives: Path, tmp_path: Path) -> None:
        for words, reason in ((("--refine", 0), "at least 1"), (("--refine", 1, "--odometry"), "--odometry")):
            assert reason in evaluate_here(two_drives, tmp_path, tmp_path / "out", *words).error_line()


def test_model_trained_on_a_test_drive(two_drives: Path, tmp_path: Path) -> None:
    """Refused unless leakage is allowed, and then marked on top of every form, also as the model compared with."""
    drive = (two_drives.parent / "test_files.txt").read_text().split()[0]
    clean = save_model(two_drives, tmp_path / "clean", 0)
    dirty = save_model(two_drives, tmp_path / "dirty", 0, drives=("other", drive))
    refused = evaluate_here(two_drives, dirty, tmp_path / "out").error_line()
    assert drive in refused and not (tmp_path / "out").exists()
    assert drive in evaluate_here(two_drives, clean, tmp_path / "out", "--against", dirty).error_line()

    allowed = "data.allow_leakage=true"
    result = succeeded(evaluate_here(two_drives, dirty, tmp_path / "out", "--against", clean, allowed))
    card = read_card(tmp_path / "out")
    assert card["contaminated"] == [drive] and card["leakage"]["shared"] == [drive]
    assert (
        list(card)[2] == "contaminated"
        and f"CONTAMINATED: trained on drives that it should not have seen: {drive}" in result.out
    )
    title, mark = (tmp_path / "out" / "card.md").read_text().split("\n\n")[:2]
    assert (
        title.startswith("# CONTAMINATED: Score card of ")
        and mark.startswith("> **CONTAMINATED: this model was trained on drives")
        and drive in mark
    )
    assert '</h1>\n<p class="alarm">CONTAMINATED' in (tmp_path / "out" / "card.html").read_text()

    result = succeeded(evaluate_here(two_drives, clean, tmp_path / "other", "--against", dirty, allowed))
    assert read_card(tmp_path / "other")["contaminated"] == []
    assert "CONTAMINATED: the other model" in (tmp_path / "other" / "card.md").read_text()
    assert "CONTAMINATED" in result.out
    marked = succeeded(compare_here(tmp_path / "out", tmp_path / "other")).out
    assert marked.count("**CONTAMINATED**") == marked.count(r"\textbf{CONTAMINATED}") == 4


class TestAgainst:
    def test_differences(self, compared: tuple[Result, Path, Path]) -> None:
        """What one evaluation of both says is what two evaluations say, paired image by image."""
        against, (this, other) = read_card(compared[1])["against"], map(read_rows, compared[1:])
        assert [row["image"] for row in this] == [row["image"] for row in other]
        drives = [row["image"].split()[0] for row in this]
        parts = {part["name"]: {row["name"]: row for row in part["rows"]} for part in against["parts"]}
        for scale in ("median_scaled", "fixed_scale"):
            for metric in METRICS:
                values = [[float(row[f"{scale}_{metric}"]) for row in rows] for rows in (this, other)]
                check_row(parts[scale][metric], values, drives, metric in ("a1", "a2", "a3"))
        detail = parts["By true distance"]["20-40 m/a1"]
        check_row(detail, [[float(row["20-40 m/a1"]) for row in rows] for rows in (this, other)], drives, True)
        assert (against["images"], against["drives"]) == (8, 2)

    def test_output(self, compared: tuple[Result, Path, Path]) -> None:
        out, markdown_text = compared[0].out, (compared[1] / "card.md").read_text()
        row = read_card(compared[1])["against"]["parts"][0]["rows"][0]
        printed = out[out.index("against ") :].splitlines()[2].split()
        assert printed[:4] == ["abs_rel", *(f"{row[key]:.4f}" for key in ("this", "other", "mean"))]
        assert "By true distance: which is better where" in markdown_text and "takes several seeds" in markdown_text


def check_row(row: dict, values: list[list[float]], drives: list[str], higher_is_better: bool) -> None:
    over_images, over_drives = paired_interval(*values), paired_interval(*values, drives)
    assert row["images"] == pytest.approx([over_images.low, over_images.high], rel=1e-4, abs=1e-6)
    assert row["drives"] == pytest.approx([over_drives.low, over_drives.high], rel=1e-4, abs=1e-6)
    assert [row["this"], row["other"]] == pytest.approx(np.mean(values, axis=1), rel=1e-5)
    expected = "undecided"
    if over_drives.excludes_zero:
        expected = "this" if (over_drives.mean > 0) == higher_is_better else "other"
    assert row["better"] == expected


class TestCards:
    """Tables of cards that are copies of a real one, changed where it matters."""

    @pytest.fixture
    def card(self, compared: tuple[Result, Path, Path]) -> dict:
        return read_card(compared[2])

    def write(self, folder: Path, card: dict, seed: int | None, abs_rel: float, **model: object) -> Path:
        card = copy.deepcopy(card)
        card["model"] |= {"seed": seed, "checkpoint": f"runs/seed_{seed}/model", **model}
        card["scores"]["fixed_scale"]["plain"]["abs_rel"]["mean"] = abs_rel
        folder.mkdir(exist_ok=True)
        (folder / "card.json").write_text(json.dumps(card))
        return folder

    def test_seeds_of_one_configuration(self, card: dict, tmp_path: Path) -> None:
        values = (0.1, 0.14, 0.12)
        folders = [self.write(tmp_path / str(seed), card, seed, value) for seed, value in enumerate(values)]
        folders.append(self.write(tmp_path / "x", card, None, 0.2, configuration=None))
        out = succeeded(compare_here(*folders)).out
        line = next(line for line in out.splitlines() if "3 seeds | fixed | off" in line)
        assert "| 0.1200 ± 0.0200 |" in line and "0.1200 $\\pm$ 0.0200" in out
        rows = [line for line in out.splitlines() if re.match(r"\| .*runs/seed_\d+/model \| \d \| fixed \| off", line)]
        assert [float(row.split("|")[5]) for row in rows] == list(values)
        assert "takes several seeds" in out

    def test_one_seed_twice_is_not_grouped(self, card: dict, tmp_path: Path) -> None:
        folders = [self.write(tmp_path / str(number), card, 0, 0.1) for number in range(2)]
        out = succeeded(compare_here(*folders)).out
        assert " seeds |" not in out and "one seed has several cards" in out
        assert all(f"({folder}/card.json)" in out for folder in folders)

    def test_what_differs_is_refused(self, card: dict, tmp_path: Path) -> None:
        one = self.write(tmp_path / "one", card, 0, 0.1)
        for name, value in (
            ("crop", "garg"), ("cap", 50.0), ("clamp", 50.0), ("protocol", "eigen"), ("sha256", "0" * 64),
        ):  # fmt: skip
            other = copy.deepcopy(card)
            other["test"][name] = value
            line = compare_here(one, self.write(tmp_path / "two", other, 1, 0.1)).error_line()
            assert "two/card.json" in line and "cannot be compared" in line and str(value).removesuffix(".0") in line

    def test_cards_without_a_clamp_clamped_to_the_cap(self, card: dict, tmp_path: Path) -> None:
        older, newer = copy.deepcopy(card), copy.deepcopy(card)
        older["test"]["cap"] = newer["test"]["cap"] = newer["test"]["clamp"] = 80.0
        del older["test"]["clamp"]
        folders = [self.write(tmp_path / str(number), each, number, 0.1) for number, each in enumerate((older, newer))]
        assert "cap 80 m, predictions up to 80 m" in succeeded(compare_here(*folders)).out

    def test_names_are_escaped(self, card: dict, tmp_path: Path) -> None:
        name = "a|b_c & 100% <i>\x1b[31m\nx"
        out = succeeded(compare_here(self.write(tmp_path / "one", card, 0, 0.1, checkpoint=name))).out
        assert "\x1b" not in out
        assert r"\|b_c & 100% \<i\>" in out and r"\textbar{}b\_c \& 100\% \textless{}i\textgreater{}" in out

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "not valid JSON"),
            ("[" * 100000, "not valid JSON"),
            ("[]", "the card is not a JSON object"),
            ("{}", "format"),
            ('{"format": 99, "kind": "depth"}', "card format 99"),
            ('{"format": 1, "kind": "depth", "model": 3}', "model is not a JSON object"),
        ],
    )
    def test_damaged_card(self, tmp_path: Path, text: str, message: str) -> None:
        (tmp_path / "card.json").write_text(text)
        line = compare_here(tmp_path).error_line()
        assert str(tmp_path / "card.json") in line and message in line

    @pytest.mark.parametrize("value", ["text", [], {}, True, 1e999, float("nan"), -(10**400), None], ids=WRONG)
    def test_damaged_entry(self, card: dict, tmp_path: Path, value: object) -> None:
        """Wherever it is, a value of the wrong kind is named in one line, or does no harm."""
        for place in (
            ("model", "seed"), ("model", "configuration"), ("test", "cap"), ("test", "sha256"), ("contaminated",),
            ("scores", "median_scaled", "flip"), ("scores", "fixed_scale", "plain", "a1", "mean"),
            ("scores", "fixed_scale", "plain", "abs_rel", "drives"),
        ):  # fmt: skip
            damaged = copy.deepcopy(card)
            entry = damaged
            for key in place[:-1]:
                entry = entry[key]
            entry[place[-1]] = value
            (tmp_path / "card.json").write_text(json.dumps(damaged))
            result = compare_here(tmp_path)
            assert result.code == 0 or str(tmp_path / "card.json") in result.error_line(), place
        assert compare_here(tmp_path / "nothing").error_line()


def test_documents_take_text_for_text() -> None:
    hostile = '<script>alert(1)</script> | **x** [a](javascript:b) "quoted"'
    blocks = [Title(hostile), Text(hostile), Table(("", hostile), [(hostile, "1")]), Figures([(hostile, "key")])]
    text = page(blocks, {"key": 'data:image/jpeg;base64,AA" onerror="x'})
    assert "<script" not in text and 'onerror="' not in text and text.count("&lt;script&gt;") == 7
    table = markdown(blocks).split("\n\n")[2].splitlines()
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in table)
    assert not re.search(r"(?<!\\)[<*\[]", markdown(blocks))
