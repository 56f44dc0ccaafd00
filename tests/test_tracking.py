"""What a run leaves: metrics.jsonl, interval means, pictures."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from tiny_models import HEIGHT, WIDTH, tiny_batch, tiny_config, tiny_model

from featdepth.drawing import DEPTH_COLOURS, colour, colour_disparity, picture, save_picture
from featdepth.errors import InputError
from featdepth.training.journal import MetricsFile, log_line
from featdepth.training.panels import panel
from featdepth.training.steps import IntervalLog


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_metrics_are_one_object_a_line_and_at_once_on_disk(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl", enabled=True)
    for step in (10, 20):
        metrics.write({"split": "train", "step": step, "loss": 0.5})
        assert lines(metrics.path)[-1] == {"split": "train", "step": step, "loss": 0.5}
    assert len(lines(metrics.path)) == 2


def test_other_processes_write_no_metrics(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl", enabled=False)
    metrics.write({"step": 1})
    metrics.forget_after(0, validated=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("torn", ['{"split": "train", "step": 40, "lo', '{"split": "train", "step": 40}\n[', ""])
def test_a_resumed_run_forgets_what_it_will_write_again(tmp_path, torn):
    metrics = MetricsFile(tmp_path / "metrics.jsonl", enabled=True)
    written = [{"split": "train", "step": step, "loss": 0.5} for step in (10, 20)]
    written += [{"split": "validation", "step": 20, "loss": 0.25}]
    for line in (*written, {"split": "train", "step": 30}):
        metrics.write(line)
    with metrics.path.open("a") as file:
        file.write(torn)
    metrics.forget_after(20, validated=True)
    assert lines(metrics.path) == written
    metrics.forget_after(20, validated=False)
    assert lines(metrics.path) == written[:2]
    metrics.write({"split": "train", "step": 30})
    assert lines(metrics.path)[-1] == {"split": "train", "step": 30}
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_last_line_without_its_end_is_kept(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl", enabled=True)
    metrics.path.write_text('{"split": "train", "step": 10}')
    metrics.forget_after(20, validated=True)
    metrics.write({"split": "train", "step": 30})
    assert [line["step"] for line in lines(metrics.path)] == [10, 30]


@pytest.mark.parametrize(
    "line", ["[1]", "{}", '{"step": "x", "split": "train"}', "what", '{"step": 1, "split": "train"']
)
def test_a_record_that_is_damaged_in_the_middle_is_refused_and_left_alone(tmp_path, line):
    metrics = MetricsFile(tmp_path / "metrics.jsonl", enabled=True)
    content = f'{{"split": "train", "step": 10}}\n{line}\n{{"split": "train", "step": 30}}\n'
    metrics.path.write_text(content)
    with pytest.raises(InputError, match=r"metrics.jsonl:2: .* repair it"):
        metrics.forget_after(20, validated=True)
    assert metrics.path.read_text() == content


def test_what_is_not_finite_is_null(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl", enabled=True)
    metrics.write({"split": "validation", "step": 1, "loss": float("nan"), "a1": float("inf"), "a2": 0.5})
    assert lines(metrics.path) == [{"split": "validation", "step": 1, "loss": None, "a1": None, "a2": 0.5}]


def test_a_link_in_the_place_of_the_record_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "metrics.jsonl").symlink_to(tmp_path / "precious")
    with pytest.raises(InputError, match=r"metrics\.jsonl"):
        MetricsFile(tmp_path / "metrics.jsonl", enabled=True).write({"step": 1})
    assert (tmp_path / "precious").read_text() == "precious"


def test_forgetting_needs_no_file(tmp_path):
    MetricsFile(tmp_path / "metrics.jsonl", enabled=True).forget_after(0, validated=True)
    assert list(tmp_path.iterdir()) == []


def add(log: IntervalLog, first: list[float], second: list[float], replaced: int = 0, waited: float = 0.0, bad=False):
    flags = torch.zeros(len(first), dtype=torch.int64)
    flags[:replaced] = 1
    log.add({"first": torch.tensor(first), "second": torch.tensor(second)}, flags, waited)
    log.settle(torch.tensor(bad))


def test_interval_means_weigh_every_sample_alike():
    log = IntervalLog(Accelerator(cpu=True))
    add(log, [1.0, 2.0, 3.0], [0.0, 0.0, 3.0], replaced=2)
    add(log, [10.0], [1.0], replaced=1)
    values = log.close()
    assert values["first"] == pytest.approx(16 / 4) and values["second"] == pytest.approx(4 / 4)
    assert values["loss"] == pytest.approx(values["first"] + values["second"])
    assert values["replaced"] == 3 and values["images_per_second"] > 0 and values["memory_gb"] > 0.01


def test_an_interval_starts_afresh_after_it_was_closed():
    log = IntervalLog(Accelerator(cpu=True))
    add(log, [100.0], [100.0], replaced=1)
    log.close()
    add(log, [1.0, 3.0], [0.0, 0.0])
    values = log.close()
    assert values["first"] == pytest.approx(2) and values["replaced"] == 0


def test_the_time_spent_waiting_for_data_is_a_share_of_the_interval(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("featdepth.training.steps.time.perf_counter", lambda: now[0])
    log = IntervalLog(Accelerator(cpu=True))
    now[0] += 8.0
    add(log, [1.0, 1.0], [0.0, 0.0], waited=1.5)
    add(log, [1.0, 1.0], [0.0, 0.0], waited=0.5)
    values = log.close()
    assert values["data_wait"] == pytest.approx(0.25) and values["images_per_second"] == pytest.approx(0.5)


def test_bad_steps_are_counted_and_their_losses_are_not():
    log = IntervalLog(Accelerator(cpu=True))
    add(log, [1.0, 3.0], [0.0, 0.0])
    add(log, [float("nan"), 100.0], [float("inf"), 0.0], replaced=1, bad=True)
    values = log.close()
    assert values["loss"] == values["first"] == pytest.approx(2) and values["second"] == 0
    assert values["bad_steps"] == 1 and values["replaced"] == 1
    add(log, [float("nan")], [0.0], bad=True)
    values = log.close()
    assert values["loss"] is None and values["first"] is None and values["bad_steps"] == 1
    assert log_line(values)


def test_the_sums_of_processes_that_are_no_more_go_to_the_main_one():
    log = IntervalLog(Accelerator(cpu=True))
    state = [[1.0, 2.0, 2.0, 2.0, 0.0, 0.0, 0.0], [5.0, 4.0, 1.0, 1.0, 1.0, 0.0, 0.0]]
    log.restore(state)
    log.names = ["first", "second"]
    values = log.close()
    assert values["first"] == pytest.approx(6 / 3) and values["second"] == pytest.approx(6 / 3)
    assert values["replaced"] == 1


def test_an_interval_goes_on_after_a_resume():
    accelerator = Accelerator(cpu=True)
    interrupted, whole = IntervalLog(accelerator), IntervalLog(accelerator)
    for log in (interrupted, whole):
        add(log, [1.0, 2.0], [0.5, 0.25], replaced=1, waited=0.125)
    resumed = IntervalLog(accelerator)
    resumed.restore(json.loads(json.dumps(interrupted.state())))
    for log in (resumed, whole):
        add(log, [7.0], [3.0])
    first, second = resumed.close(), whole.close()
    for key in ("loss", "first", "second", "replaced"):
        assert first[key] == pytest.approx(second[key])
    fresh = IntervalLog(accelerator)
    fresh.restore(IntervalLog(accelerator).state())  # saved right after a log line
    add(fresh, [4.0], [2.0])
    assert fresh.close()["loss"] == pytest.approx(6.0)


def test_logging_keeps_no_graph():
    log = IntervalLog(Accelerator(cpu=True))
    log.add({"first": torch.ones(2, requires_grad=True) * 2}, torch.zeros(2, dtype=torch.int64), 0.0)
    log.settle(torch.tensor(False))
    assert not log.sums.requires_grad


def test_log_lines_are_short():
    assert log_line({"split": "train", "step": 12, "loss": 0.123456}) == "split train  step 12  loss 0.1235"


@pytest.mark.parametrize(
    "objective, frames, columns",
    [
        ("photometric", [0, -1, 1], 3 + 4),
        ("photometric", [0, "s"], 2 + 4),
        ("feature_metric", [0, -1, 1, "s"], 4 + 4),
        ("autoencoder", [0], 1 + 1),
        ("joint", [0, -1, 1], 3 + 1 + 4),
    ],
)
def test_a_panel_has_a_row_for_each_sample_and_a_column_for_each_picture(objective, frames, columns):
    config = tiny_config(objective, frames)
    model, batch = tiny_model(config).eval(), tiny_batch(config, size=2)
    with torch.no_grad():
        image = panel(model(batch), batch, config)
    assert image.mode == "RGB" and image.size == (columns * WIDTH, 2 * HEIGHT)
    pixels = np.asarray(image).astype(int)
    for sample in range(2):
        for position in range(len(frames)):
            shown = pixels[sample * HEIGHT : (sample + 1) * HEIGHT, position * WIDTH : (position + 1) * WIDTH]
            expected = batch["images"][sample, position].permute(1, 2, 0).numpy() * 255
            assert np.abs(shown - expected).max() <= 0.51
    assert all(pixels[:, start : start + WIDTH].std() > 0 for start in range(0, (len(frames) + 1) * WIDTH, WIDTH))


def test_pictures_are_clamped_to_what_can_be_shown():
    image = torch.tensor([-1.0, 0.0, 0.5, 2.0]).reshape(1, 2, 2).expand(3, -1, -1)
    assert picture(image)[..., 0].tolist() == [[0, 0], [128, 255]]


def test_near_is_bright():
    near_below = torch.linspace(0.1, 0.9, 8).reshape(1, 8, 1).expand(1, 8, 12)
    shown = colour_disparity(near_below, (16, 24)).astype(int).sum(-1)
    assert shown.shape == (16, 24) and (np.diff(shown[:, 0]) >= 0).all() and shown[-1, 0] > shown[0, 0] + 300
    assert colour(torch.tensor([[0.0, 1.0, 9.0]]), DEPTH_COLOURS)[0].tolist() == [
        DEPTH_COLOURS[0].tolist(),
        DEPTH_COLOURS[-1].tolist(),
        DEPTH_COLOURS[-1].tolist(),
    ]
    assert colour_disparity(torch.zeros(1, 4, 4), (8, 8)).shape == (8, 8, 3)  # no division by zero


def test_pictures_are_written_whole(tmp_path):
    image = Image.fromarray(np.full((4, 6, 3), 7, dtype=np.uint8))
    save_picture(image, tmp_path / "images" / "step_1.png")
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["step_1.png"]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "images" / "step_1.png")), np.asarray(image))
