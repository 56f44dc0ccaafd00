"""Own video to training-ready frames: what is kept, what is dropped and why, upright, undistorted, resumable."""

from __future__ import annotations

import importlib.util
import json
import math
import shlex
import shutil
import struct
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, call_program, run_program_process, succeeded
from drive_writer import render_drive
from PIL import Image, ImageFilter

from featdepth.cameras.lenses import Lens, remap, undistort_points
from featdepth.data.films import read_pictures
from featdepth.data.listing import list_images
from featdepth.prepare_video import __main__ as prepare_video
from featdepth.prepare_video import preparation, record
from featdepth.prepare_video.frame_choice import sharpness
from featdepth.prepare_video.speed import odometer, read_speeds

HEIGHT, WIDTH = 96, 144
RATE = 10  # frames a second
TURN = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)  # display matrix: by 90 degrees, clockwise

needs_pyav = pytest.mark.skipif(importlib.util.find_spec("av") is None, reason="PyAV is not installed")


def ffmpeg_program() -> str | None:
    """An ffmpeg to test with, if there is any."""
    if shutil.which("ffmpeg") or importlib.util.find_spec("imageio_ffmpeg") is None:
        return shutil.which("ffmpeg")
    import imageio_ffmpeg

    return imageio_ffmpeg.get_ffmpeg_exe()


def street(index: int, frames: int) -> list[np.ndarray]:
    """The first frames of a drive that moves enough from each to the next, at most 14."""
    return render_drive(14, HEIGHT, WIDTH, index).images[:frames]


def flawed_frames() -> tuple[list[np.ndarray], dict[int, str]]:
    """Frames of two streets with everything that should go, and the expected verdict on each flaw by its index."""
    one, other = street(0, 14), street(1, 10)
    flaws = {
        **{index: "static" for index in range(8, 48)},
        48: "black",
        **{index: "duplicate" for index in (51, 52)},
        54: "blurred",
        57: "cut",
    }
    blurred = np.array(Image.fromarray(one[11]).filter(ImageFilter.BoxBlur(4)))
    frames = [*one[:8], *[one[7]] * 40, np.full_like(one[0], 5), one[8], one[9], one[9], one[9], one[10], blurred]
    return [*frames, one[12], one[13], *other], flaws


def write_images(folder: Path, frames: list[np.ndarray]) -> Path:
    """Images whose names have numbers without leading zeros."""
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"frame{number}.png", compress_level=1)
    return folder


def write_video(path: Path, frames: list[np.ndarray]) -> Path:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "10"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def write_turned_video(path: Path, frames: list[np.ndarray]) -> Path:
    """A video stored on its side whose metadata say so, as phones write them."""
    content = bytearray(write_video(path, [np.rot90(frame) for frame in frames]).read_bytes())
    place = content.index(b"tkhd") + 4 + 40  # of the matrix, in the track header's version 0
    content[place : place + len(TURN)] = TURN
    path.write_bytes(content)
    return path


def prepare(*arguments: object) -> Any:
    return call_program(prepare_video.main, *arguments)


def manifest(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def files(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def check_flaws(out: Path, flaws: dict[int, str]) -> None:
    """The manifest names all flaws, and every other frame of the rendered streets is kept or was too close."""
    lines = manifest(out)
    assert [line["index"] for line in lines] == list(range(len(lines)))
    found = {line["index"]: line["verdict"] for line in lines}
    assert {index: found[index] for index in flaws} == flaws
    assert {verdict for index, verdict in found.items() if index not in flaws} <= {"first", "kept", "close"}
    for line in lines:
        assert line["verdict"] == "first" or "limit" in line
        assert (line["verdict"] in ("first", "cut", "kept")) == ("clip" in line)


@needs_pyav
def test_a_turned_video_with_every_flaw_is_mended_and_trains(tmp_path: Path) -> None:
    import train

    frames, flaws = flawed_frames()
    video = write_turned_video(tmp_path / "my street.mp4", frames)
    out = tmp_path / "out"
    told = succeeded(prepare(video, "--out", out)).out
    assert "40 static" in told and "turned by -90 degrees" in told and "2 clips" in told
    check_flaws(out, flaws)
    assert {line["turned"] for line in manifest(out)} == {-90}
    assert manifest(out)[20]["seconds"] == pytest.approx(2.0)

    # Upright, and the right frame: as the rendered one but for the compression.
    place = next(line for line in manifest(out) if line["verdict"] == "cut")
    stored = np.array(Image.open(out / place["clip"] / f"{place['frame']:06}.jpg"))
    assert stored.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(stored.astype(int) - frames[place["index"]]).mean() < 6

    options = [f"data.root={out}", f"run.directory={tmp_path / 'run'}", "train.max_steps=20", "data.workers=0"]
    options += ["data.height=64", "data.width=96", "model.decoder_width=16", "model.pretrained=false"]
    options += ["train.batch_size=1", "train.log_every=1", "train.panel_samples=1", "schedule.warmup_steps=1"]
    succeeded(call_program(train.main, "--config", REPOSITORY / "configs" / "video.yaml", *options))
    losses = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    trained = [line["loss"] for line in losses if line["split"] == "train"]
    assert len(trained) == 20 and np.isfinite(trained).all()


def test_a_folder_of_images_has_the_same_verdicts(tmp_path: Path) -> None:
    frames, flaws = flawed_frames()
    out = tmp_path / "out"
    succeeded(prepare(write_images(tmp_path / "street", frames), "--out", out, "--format", "png"))
    check_flaws(out, flaws)
    clip = json.loads((out / "street_00" / "clip.json").read_text())
    assert clip["size"] == [HEIGHT, WIDTH] and clip["intrinsics"] is None and clip["camera"] == "camera 144x96"
    for number, index in enumerate(clip["index"]):
        stored = np.array(Image.open(out / "street_00" / f"{number:06}.png"))
        np.testing.assert_array_equal(stored, frames[index])
    summary = json.loads((out / "summary.json").read_text())
    assert summary["complete"] and sum(summary["clips"].values()) == sum("clip" in line for line in manifest(out))


def test_interrupted_anywhere_it_ends_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blurred = np.array(Image.fromarray(street(0, 7)[6]).filter(ImageFilter.BoxBlur(4)))
    folder = write_images(tmp_path / "street", [*street(0, 6), *[street(0, 6)[5]] * 3, blurred, *street(1, 4)])
    monkeypatch.chdir(tmp_path)
    succeeded(prepare("street", "--out", "whole"))
    lines = manifest(tmp_path / "whole")
    assert {line["verdict"] for line in lines} >= {"first", "kept", "duplicate", "blurred", "cut"}
    write, judge = preparation.write_frame, preparation.judge
    judged = []

    def count(*arguments: Any) -> Any:
        judged.append(arguments)
        return judge(*arguments)

    monkeypatch.setattr(preparation, "judge", count)
    for stop in (1, 3, 5, 7):
        written = []

        def failing(path: Path, pixels: np.ndarray, written: list[Path] = written, stop: int = stop) -> None:
            written.append(path)
            if len(written) == stop:
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(b"half a picture")
                raise KeyboardInterrupt
            write(path, pixels)

        monkeypatch.setattr(preparation, "write_frame", failing)
        assert prepare("street", "--out", f"part{stop}").code == 130
        with open(tmp_path / f"part{stop}" / "journal.jsonl", "a") as journal:
            journal.write('{"source": "street", "ind')
        before = (tmp_path / f"part{stop}" / "journal.jsonl").read_text().count('"verdict"')
        monkeypatch.setattr(preparation, "write_frame", write)
        judged.clear()
        succeeded(prepare("street", "--out", f"part{stop}"))
        assert len(judged) == len(lines) - before
        assert files(tmp_path / f"part{stop}") == files(tmp_path / "whole")
    assert "already prepared" in succeeded(prepare("street", "--out", "whole")).out
    assert "options" in prepare("street", "--out", "whole", "--height", "64").error_line()
    (folder / "frame99.png").write_bytes((folder / "frame1.png").read_bytes())
    assert "inputs" in prepare("street", "--out", "whole").error_line()


def test_a_killed_preparation_goes_on(tmp_path: Path) -> None:
    """The last step of it too: manifest, clips, lists and summary are made again from the journal."""
    folder = write_images(tmp_path / "street", street(1, 4))
    succeeded(prepare(folder, "--out", tmp_path / "whole"))
    with pytest.MonkeyPatch.context() as patch:

        def killed(*arguments: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(record, "write_lists", killed)
        assert prepare(folder, "--out", tmp_path / "part").code == 130
    succeeded(prepare(folder, "--out", tmp_path / "part"))
    assert files(tmp_path / "part") == files(tmp_path / "whole")


@needs_pyav
@pytest.mark.skipif(ffmpeg_program() is None, reason="there is no ffmpeg")
def test_the_ffmpeg_program_reads_the_same_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = write_turned_video(tmp_path / "a.mp4", street(0, 6))
    with_pyav = list(read_pictures(video))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ffmpeg").symlink_to(ffmpeg_program())
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr("featdepth.data.films.video_reader", lambda: "ffmpeg")
    with_ffmpeg = list(read_pictures(video, 2))
    assert len(with_pyav) == 6 and len(with_ffmpeg) == 4
    for one, other in zip(with_pyav[2:], with_ffmpeg, strict=True):
        assert (one.seconds, one.turned) == pytest.approx((other.seconds, other.turned))
        assert np.abs(one.pixels.astype(int) - other.pixels).max() <= 3  # two versions convert colours
    (tmp_path / "bad.mp4").write_bytes(b"no video" * 100)
    assert "cannot be read as a video" in prepare(tmp_path / "bad.mp4", "--out", tmp_path / "out").error_line()


def test_images_are_turned_as_their_exif_data_say(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, frame in enumerate(street(1, 4)):
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned clockwise
        exif.get_ifd(0x8769)[0xA405] = 28  # focal length for 35 mm film
        Image.fromarray(np.ascontiguousarray(np.rot90(frame))).save(folder / f"{number}.jpg", exif=exif, quality=98)
    succeeded(prepare(folder, "--out", tmp_path / "out"))
    stored = np.array(Image.open(tmp_path / "out" / "photos_00" / "000000.jpg"))
    assert stored.shape == (HEIGHT, WIDTH, 3) and np.abs(stored.astype(int) - street(1, 4)[0]).mean() < 4
    assert manifest(tmp_path / "out")[0]["turned"] == -90
    clip = json.loads((tmp_path / "out" / "photos_00" / "clip.json").read_text())
    diagonals = np.hypot(HEIGHT, WIDTH) / np.hypot(24, 36)
    np.testing.assert_allclose(clip["intrinsics"][0], [28 * diagonals, 0, (WIDTH - 1) / 2], rtol=1e-6)


def test_lens_distortion_is_undone_and_intrinsics_follow_the_size(tmp_path: Path) -> None:
    drive = render_drive(14, HEIGHT, WIDTH, 1)
    lens = Lens("radtan", drive.intrinsics, (-0.2, 0.05, 0.0, 0.0), (HEIGHT, WIDTH))
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(float)
    directions = undistort_points(np.stack([x, y], axis=-1), lens)
    straight = directions @ drive.intrinsics[:2, :2].T + drive.intrinsics[:2, 2]  # where a pinhole shows the same
    folder = write_images(tmp_path / "bent", [remap(image, straight) for image in drive.images[:4]])
    fx, fy, cx, cy = drive.intrinsics[[0, 1, 0, 1], [0, 1, 2, 2]]
    (tmp_path / "lens.yaml").write_text(
        f"image_width: {WIDTH}\nimage_height: {HEIGHT}\ndistortion_model: plumb_bob\n"
        f"camera_matrix: {{rows: 3, cols: 3, data: [{fx}, 0, {cx}, 0, {fy}, {cy}, 0, 0, 1]}}\n"
        "distortion_coefficients: {rows: 1, cols: 5, data: [-0.2, 0.05, 0.0, 0.0, 0.0]}\n"
    )
    options = ("--intrinsics", tmp_path / "lens.yaml", "--format", "png")
    succeeded(prepare(folder, "--out", tmp_path / "same", *options))
    clip = json.loads((tmp_path / "same" / "bent_00" / "clip.json").read_text())
    intrinsics = np.array(clip["intrinsics"])
    # A pinhole of these intrinsics shows what the rendered one does, at other pixels.
    rays = np.stack([x, y, np.ones_like(x)], axis=-1) @ np.linalg.inv(intrinsics).T @ drive.intrinsics.T
    expected = remap(drive.images[0], rays[..., :2]).astype(int)
    stored = np.array(Image.open(tmp_path / "same" / "bent_00" / "000000.png")).astype(int)
    inside = expected.sum(-1) > 0
    assert np.abs(stored - expected)[inside].mean() < 4 and inside.mean() > 0.8
    assert np.abs(np.array(Image.open(folder / "frame0.png")).astype(int) - expected)[inside].mean() > 8

    succeeded(prepare(folder, "--out", tmp_path / "half", *options, "--height", HEIGHT // 2))
    half = json.loads((tmp_path / "half" / "bent_00" / "clip.json").read_text())
    assert half["size"] == [HEIGHT // 2, WIDTH // 2]
    assert half["intrinsics"][0][0] == pytest.approx(intrinsics[0, 0] / 2)
    assert half["intrinsics"][0][2] == pytest.approx((intrinsics[0, 2] + 0.5) / 2 - 0.5)


def test_ten_clips_are_divided_and_short_ones_dropped(tmp_path: Path) -> None:
    scenes = [
        street(1, 3),
        *([change(frame) for frame in street(1, 3)] for change in (np.fliplr, np.flipud, np.invert)),
    ]
    scenes += [[np.flipud(frame) for frame in scene] for scene in (scenes[1], scenes[3])]
    frames = [frame for scene in [*scenes, *scenes[:4]] for frame in scene] + [scenes[5][0]]
    out = tmp_path / "out"
    told = succeeded(prepare(write_images(tmp_path / "walk", frames), "--out", out)).out
    assert "10 clips" in told and f"data.split={out / 'splits'}" in told
    last = manifest(out)[-1]
    assert (last["verdict"], last["frames"], last["limit"]) == ("short", 1, 3) and "clip" not in last
    lists = {
        part: (out / "splits" / f"{part}_files.txt").read_text().split("\n")[:-1] for part in ("train", "val", "test")
    }
    assert lists["val"] == ["walk_04 1 l"] and lists["test"] == ["walk_09 1 l"] and len(lists["train"]) == 8
    assert not (out / "walk_10").exists()


def test_a_standstill_is_named_wherever_it_begins() -> None:
    """Also where the camera has moved since the last frame that was kept, and noise makes all frames differ."""

    def line(index: int, verdict: str, motion: float, **more: object) -> dict[str, Any]:
        return {"source": "a", "index": index, "seconds": None, "verdict": verdict, "motion": motion, **more}

    creeping = [line(index, "close", 0.0008 * index) for index in range(1, 5)]
    stopped = [line(index, "close", 0.004 + 0.0001 * (index % 3)) for index in range(5, 11)]
    lines = [
        line(0, "kept", 0.006, clip="a_00", frame=0),
        *creeping,
        *stopped,
        line(11, "kept", 0.006, clip="a_00", frame=1),
    ]
    settled = list(record.settled(lines, Counter({"a_00": 2}), set()))
    assert [each["verdict"] for each in settled] == ["kept", *["close"] * 4, *["static"] * 6, "kept"]
    assert settled[6] == {
        "source": "a",
        "index": 6,
        "seconds": None,
        "verdict": "static",
        "change": 0.0002,
        "limit": 0.001,
    }
    assert [each["verdict"] for each in record.settled(lines[5:9], Counter(), set())] == ["close"] * 4
    dropped = list(record.settled(lines[-1:], Counter({"a_00": 2}), {"a_00"}))
    assert dropped == [{"source": "a", "index": 11, "seconds": None, "verdict": "short", "frames": 2, "limit": 3}]


def test_sharpness_tells_blur_from_content(tmp_path: Path) -> None:
    for index in (0, 1):
        grey = Image.fromarray(street(index, 6)[0]).convert("L")
        sharp, soft = sharpness(np.array(grey)), sharpness(np.array(grey.filter(ImageFilter.GaussianBlur(2))))
        assert soft < 0.65 * sharp
        dimmed = np.array(grey) // 2
        assert sharpness(dimmed) == pytest.approx(sharp, abs=0.03)


def test_the_odometer_is_the_integral_of_the_speed(tmp_path: Path) -> None:
    (tmp_path / "speed.csv").write_text("# seconds, metres a second\n0, 2\n1, 4\n3, 0\n")
    speeds = read_speeds(str(tmp_path / "speed.csv"))
    assert [odometer(speeds, time) for time in (0, 0.5, 1, 2, 3)] == pytest.approx([0, 1.25, 3, 6, 7])
    assert odometer(speeds, -0.1) is None and odometer(speeds, 3.1) is None


@needs_pyav
def test_speeds_become_distances(tmp_path: Path) -> None:
    (tmp_path / "speed.csv").write_text("0.1,10\n0.3,10\n")
    video = write_video(tmp_path / "a.mp4", street(1, 5))
    succeeded(prepare(video, "--out", tmp_path / "out", "--speed", tmp_path / "speed.csv"))
    clip = json.loads((tmp_path / "out" / "a_00" / "clip.json").read_text())
    known = {0.0: None, 0.1: 0.0, 0.2: 1.0, 0.3: 2.0, 0.4: None}
    assert len(clip["seconds"]) == 5
    assert clip["odometer"] == [
        value if (value := known[time]) is None else pytest.approx(value) for time in clip["seconds"]
    ]


def test_bad_input_ends_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    assert "no such video file or folder" in prepare(tmp_path / "nothing.mp4", "--out", out).error_line()
    (tmp_path / "empty").mkdir()
    assert "no png or jpg image" in prepare(tmp_path / "empty", "--out", out).error_line()
    other = write_images(tmp_path / "other", street(1, 4))
    told = prepare(other, "--out", out, "--field-of-view", "300").error_line()
    assert "300 degrees" in told
    succeeded(prepare(other, "--out", out, "--field-of-view", "90"))  # nothing was done with the wrong one
    assert "options" in prepare(other, "--out", out, "--field-of-view", "80").error_line()
    out = tmp_path / "out2"
    still = write_images(tmp_path / "still", [street(0, 6)[0]] * 8)
    assert "0 of 8 frames" in prepare(still, "--out", tmp_path / "none").error_line()
    mixed = write_images(tmp_path / "mixed", [street(0, 6)[0], street(0, 6)[1][:64]])
    assert "frame 1 has 144 x 64 pixels" in prepare(mixed, "--out", tmp_path / "a").error_line()
    assert "--height 5" in prepare(still, "--out", out, "--height", "5").error_line()
    assert "one video file" in prepare(still, "--out", out, "--speed", "speed.csv").error_line()
    assert "not empty" in prepare(still, "--out", tmp_path).error_line()
    damaged = write_images(tmp_path / "damaged", street(1, 4))
    (damaged / "frame2.png").write_bytes(b"no picture")
    assert "frame2.png" in prepare(damaged, "--out", tmp_path / "b").error_line()
    (tmp_path / "c.mp4").write_bytes(b"no video" * 100)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    refused = prepare(tmp_path / "c.mp4", "--out", tmp_path / "c").error_line()
    assert "PyAV" in refused and "ffmpeg" in refused


def test_without_opencv_it_says_so_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    told = prepare(write_images(tmp_path / "street", street(1, 4)), "--out", tmp_path / "out").error_line()
    assert "pip install 'opencv-python-headless" in told and not (tmp_path / "out").exists()


@needs_pyav
def test_broken_videos_end_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_bytes(b"no video" * 100)
    assert "cannot be read as a video" in prepare(tmp_path / "text.mp4", "--out", tmp_path / "a").error_line()
    whole = write_video(tmp_path / "whole.mp4", street(0, 6)).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    assert "cut.mp4" in prepare(tmp_path / "cut.mp4", "--out", tmp_path / "b").error_line()


@pytest.mark.parametrize(
    ("gap", "text"), [("0,1\n0,2\n", "increase"), ("0,1\n9,2\n", "no speed for 9"), ("0,1\n", "two")]
)
def test_bad_speeds_end_in_one_line(tmp_path: Path, gap: str, text: str) -> None:
    (tmp_path / "speed.csv").write_text(gap)
    (tmp_path / "a.mp4").write_bytes(b"")
    told = prepare(tmp_path / "a.mp4", "--out", tmp_path / "out", "--speed", tmp_path / "speed.csv").error_line()
    assert "speed.csv" in told and text in told


def test_the_printed_command_can_be_pasted_and_fits_the_frames(tmp_path: Path) -> None:
    frames = [np.ascontiguousarray(np.rot90(frame)) for frame in street(0, 5)]
    out = tmp_path / "my holiday (1)"
    told = succeeded(prepare(write_images(tmp_path / "Ausflug über Land", frames), "--out", out)).out
    assert "in 1 clip;" in told
    words = shlex.split(told.splitlines()[-1])
    assert words[:3] == ["accelerate", "launch", "train.py"] and f"data.root={out}" in words
    values = dict(word.split("=", 1) for word in words if "=" in word)
    height, width = int(values["data.height"]), int(values["data.width"])
    assert height % 32 == width % 32 == 0
    assert height / width == pytest.approx(WIDTH / HEIGHT, rel=0.1)  # the frames stand upright
    assert height * width == pytest.approx(288 * 512, rel=0.15)
    assert [path.parent.name for path in out.glob("*/clip.json")] == ["Ausflug_über_Land_00"]


def test_intrinsics_of_some_inputs_are_where_learning_starts(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 28  # focal length for 35 mm film
    for name, options in (("phone", {"exif": exif}), ("123", {})):
        (tmp_path / name).mkdir()
        for index, frame in enumerate(street(0, 4)):
            Image.fromarray(frame).save(tmp_path / name / f"{index}.jpg", quality=95, **options)
    told = succeeded(prepare(tmp_path / "phone", tmp_path / "123", "--out", tmp_path / "out")).out.splitlines()
    degrees = 2 * math.degrees(math.atan(math.hypot(36, 24) / 28 / 2 * WIDTH / math.hypot(WIDTH, HEIGHT)))
    assert (
        f"intrinsics of 123 are unknown, so that all are learned, from the known field of view of {degrees:.1f}"
        in told[-2]
    )
    assert told[-1].endswith(f" data.field_of_view={degrees:.1f}")
    told = succeeded(prepare(tmp_path / "phone", "--out", tmp_path / "known")).out.splitlines()
    assert told[-1].endswith(" model.intrinsics=given data.field_of_view=null")


def test_names_keep_all_letters_and_never_collide(tmp_path: Path) -> None:
    names = ["北京.mp4", "上海.mp4", "हिन्दी.mp4", "Über 1.mp4", "über_1.mp4", "a b.mp4", "a?b.mp4", "x" * 250 + ".mp4"]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    sources = prepare_video.name_sources([tmp_path / name for name in names])
    assert list(sources)[:7] == ["北京", "上海", "हिन्दी", "Über_1", "über_1-2", "a_b", "a_b-2"]
    assert max(len(name.encode()) for name in sources) < 200


def test_small_work_runs_on_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []
    judge = preparation.judge

    def judged(*arguments: Any) -> Any:
        threads.append(torch.get_num_threads())
        return judge(*arguments)

    monkeypatch.setattr(preparation, "judge", judged)
    monkeypatch.setattr(
        "sys.argv", ["x", str(write_images(tmp_path / "a", street(0, 4))), "--out", str(tmp_path / "b")]
    )
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        prepare_video.main()
        assert set(threads) == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_images_come_in_natural_order(tmp_path: Path) -> None:
    for name in ("frame10.png", "frame9.PNG", "Frame.jpg", ".hidden.png", "notes.txt", "frame2.jpeg"):
        (tmp_path / name).write_bytes(b"")
    names = [Path(path).name for path in list_images(tmp_path)]
    assert names == ["Frame.jpg", "frame2.jpeg", "frame9.PNG", "frame10.png"]


def test_it_runs_as_a_program(tmp_path: Path) -> None:
    done = run_program_process(["-m", "featdepth.prepare_video", tmp_path / "nothing", "--out", tmp_path / "out"])
    assert "no such video file or folder" in done.error_line()


def test_a_photo_without_an_ending_is_no_film(tmp_path: Path) -> None:
    Image.fromarray(street(0, 1)[0]).save(tmp_path / "frame", format="png")
    assert "a single photo, no video" in prepare(tmp_path / "frame", "--out", tmp_path / "out").error_line()
