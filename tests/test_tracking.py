"""What a run leaves: metrics.jsonl, interval means, pictures."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from tiny_models import HEIGHT, WIDTH, tiny_batch, tiny_config, tiny_model

from featdepth.tracking import (
    DEPTH_COLOURS,
    IntervalLog,
    MetricsFile,
    colour,
    colour_disparity,
    log_line,
    panel,
    picture,
    save_picture,
)


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
    metrics.forget_after(0)
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_run_forgets_what_it_will_write_again(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl", enabled=True)
    for step in (10, 20, 20, 30):
        metrics.write({"step": step})
    with metrics.path.open("a") as file:
        file.write('{"step": 40, "lo')
    metrics.forget_after(20)
    assert lines(metrics.path) == [{"step": 10}, {"step": 20}, {"step": 20}]
    metrics.write({"step": 30})
    assert lines(metrics.path)[-1] == {"step": 30}
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_forgetting_needs_no_file(tmp_path):
    MetricsFile(tmp_path / "metrics.jsonl", enabled=True).forget_after(0)
    assert list(tmp_path.iterdir()) == []


def add(log: IntervalLog, first: list[float], second: list[float], replaced: int = 0, waited: float = 0.0) -> None:
    flags = torch.zeros(len(first), dtype=torch.int64)
    flags[:replaced] = 1
    log.add({"first": torch.tensor(first), "second": torch.tensor(second)}, flags, waited)


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
    monkeypatch.setattr("featdepth.tracking.time.perf_counter", lambda: now[0])
    log = IntervalLog(Accelerator(cpu=True))
    now[0] += 8.0
    add(log, [1.0, 1.0], [0.0, 0.0], waited=1.5)
    add(log, [1.0, 1.0], [0.0, 0.0], waited=0.5)
    values = log.close()
    assert values["data_wait"] == pytest.approx(0.25) and values["images_per_second"] == pytest.approx(0.5)


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
