"""python -m featdepth.predict from end to end."""

from __future__ import annotations

import importlib.util
import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Result, call_program, run_program_process, succeeded
from PIL import Image
from tiny_models import HEIGHT, WIDTH, tiny_config, tiny_model

from featdepth.cameras.pinhole import field_of_view_intrinsics
from featdepth.evaluation.refinement import refine_stream
from featdepth.models import FeatDepth
from featdepth.odometry.aligned import align_motions
from featdepth.odometry.egomotion import chain_motions
from featdepth.odometry.trajectory_files import read_trajectory
from featdepth.predict import __main__ as predict
from featdepth.predict import outputs
from featdepth.predict.frames import load_photo
from featdepth.predict.settings import Settings
from featdepth.predict.sources import FrameSource
from featdepth.predict.work import share

SIZE = (50, 81)  # height, width of the frames: another than the model's
FRAMES = 5
EVERY_FRAME_KIND = ("depth_png", "npz", "tiff", "picture", "points")
WHOLE_CLIP = ("trajectory", "fused_points", "page")

needs_pyav = pytest.mark.skipif(importlib.util.find_spec("av") is None, reason="PyAV is not installed")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "metric")


def save_model(path: Path, seed: int = 0, **settings: object) -> Path:
    tiny_model(tiny_config("photometric", [0, -1, 1], **settings), seed).save_pretrained(path)
    return path


def write_frame(path: Path, number: int, size: tuple[int, int] = SIZE) -> Path:
    """A smooth picture that moves to the left from frame to frame."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(7).integers(0, 256, (6, 12, 3), np.uint8)
    wide = Image.fromarray(coarse).resize((2 * size[1], size[0]), Image.Resampling.BICUBIC)
    wide.crop((2 * number, 0, 2 * number + size[1], size[0])).save(path)
    return path


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    for number in range(FRAMES):
        write_frame(tmp_path / "clip" / f"{number}.png", number)
    return tmp_path / "clip"


@pytest.fixture
def predict_here(checkpoint: Path, tmp_path: Path) -> Callable[..., Result]:
    """Runs the program, with the output folder "out" and the model above unless told otherwise."""

    def run(*arguments: object, model: Path = checkpoint) -> Result:
        options = ["--checkpoint", model, "--out", tmp_path / "out", "--cpu", "--workers", 0, "--batch-size", 2]
        return call_program(predict.main, *options, *arguments)

    return run


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestDepth:
    def test_is_the_models_at_the_size_of_the_input(
        self, predict_here: Callable[..., Result], checkpoint: Path, clip: Path, tmp_path: Path
    ) -> None:
        """On three sizes in one batch. Frames are resized as 8-bit images, which rounds."""
        big = write_frame(tmp_path / "big.png", 0, (150, 300))
        small = write_frame(tmp_path / "small.jpg", 0, (20, 31))
        result = succeeded(predict_here(big, small, clip / "0.png", "--save", "npz", "--batch-size", 3))
        assert "3 images" in result.out and "3 written" in result.out
        model = FeatDepth.from_pretrained(checkpoint)
        for path in (big, small, clip / "0.png"):
            image = torch.from_numpy(load_photo(path)).permute(2, 0, 1)[None].float() / 255
            expected = model.predict_depth(image)[0, 0].numpy()
            saved = np.load(tmp_path / "out" / f"{path.stem}_depth.npz", allow_pickle=False)
            assert saved["depth"] == pytest.approx(expected, rel=0.01) and saved["unit"] == "metres"

    def test_all_outputs_of_a_clip_agree(
        self, predict_here: Callable[..., Result], checkpoint: Path, clip: Path, tmp_path: Path
    ) -> None:
        kinds = ",".join(EVERY_FRAME_KIND + WHOLE_CLIP)
        succeeded(predict_here(clip, "--save", kinds, "--field-of-view", "80"))
        made = tmp_path / "out" / "clip"
        for number in range(FRAMES):
            with np.load(made / f"{number}_depth.npz") as saved:
                depth, intrinsics = saved["depth"], saved["intrinsics"]
            assert depth.shape == SIZE
            assert (np.array(Image.open(made / f"{number}_depth.tiff")) == depth).all()
            png = np.array(Image.open(made / f"{number}_depth.png")) / 256
            assert png == pytest.approx(np.clip(depth, 1 / 256, 65535 / 256), abs=1 / 511)
            assert Image.open(made / f"{number}_picture.png").height > SIZE[0]
            header, _, body = (made / f"{number}_points.ply").read_bytes().partition(b"end_header\n")
            points = np.frombuffer(body, np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3)]))
            assert b"comment unit: metres" in header and len(points) > 0.5 * depth.size
            # Each point is seen in a pixel that has its depth and its colour.
            pixels = points["xyz"] @ intrinsics.T
            x, y = np.rint(pixels[:, :2] / pixels[:, 2:]).astype(int).T
            assert points["xyz"][:, 2] == pytest.approx(depth[y, x], rel=1e-5)
            assert (points["rgb"] == load_photo(clip / f"{number}.png")[y, x]).all()
        frames = [load_photo(clip / f"{number}.png") for number in range(FRAMES)]
        motions, _ = align_motions(FeatDepth.from_pretrained(checkpoint).eval(), frames, intrinsics)
        expected = chain_motions(motions)
        kitti, tum = (read_trajectory(made / f"trajectory_{name}.txt") for name in ("kitti", "tum"))
        assert kitti.poses == pytest.approx(expected, abs=1e-5) and tum.poses == pytest.approx(expected, abs=1e-5)
        assert tum.times == pytest.approx(np.arange(FRAMES) / 10)
        assert (made / "fused_points.ply").stat().st_size > 1000
        assert "2.png" not in (page := (made / "page.html").read_text()) and "stereo" not in page and '"4"' in page

    def test_refinement_is_causal_and_begins_each_clip_anew(
        self, predict_here: Callable[..., Result], checkpoint: Path, clip: Path, tmp_path: Path
    ) -> None:
        """On frames of the model's size, which nobody resizes, it is `refine_stream`, in batches of any size."""
        for folder, first in (("one", 0), ("two", 3)):
            for number in range(FRAMES):
                write_frame(tmp_path / folder / f"{number}.png", first + number, (HEIGHT, WIDTH))
        save = ("--save", "npz", "--field-of-view", 80, "--refine", 3)
        succeeded(predict_here(tmp_path / "one", tmp_path / "two", *save))
        model, intrinsics = FeatDepth.from_pretrained(checkpoint), field_of_view_intrinsics(80.0, (HEIGHT, WIDTH))
        for folder in ("one", "two"):
            frames = [load_photo(tmp_path / folder / f"{number}.png") for number in range(FRAMES)]
            images = [torch.from_numpy(frame).permute(2, 0, 1).float() / 255 for frame in frames]
            expected = torch.cat(list(refine_stream(model, images, torch.from_numpy(intrinsics).float(), 3))).numpy()
            saved = [np.load(tmp_path / "out" / folder / f"{number}_depth.npz")["depth"] for number in range(FRAMES)]
            effect = abs(expected[-1] / model.predict_depth(images[-1][None])[0, 0].numpy() - 1).max()
            assert effect > 1e-5 and abs(np.stack(saved) / expected - 1).max() < 0.1 * effect
        # A frame that is missing needs all before it.
        (tmp_path / "out" / "one" / "2_depth.npz").unlink()
        result = succeeded(predict_here(tmp_path / "one", tmp_path / "two", *save))
        assert "5 written, 5 skipped as already there" in result.out

    def test_a_model_that_knows_no_metres_names_none(
        self, predict_here: Callable[..., Result], clip: Path, tmp_path: Path
    ) -> None:
        model = save_model(tmp_path / "relative", metres_per_unit=None)
        kinds = "depth_png,npz,points,trajectory,page"
        result = succeeded(predict_here(clip, "--save", kinds, "--field-of-view", "80", model=model))
        assert "has no metric scale" in result.out and "up to scale" in result.out
        made = tmp_path / "out" / "clip"
        assert Image.open(made / "0_depth.png").text["depth unit"] == "relative"
        assert np.load(made / "0_depth.npz")["unit"] == "relative"
        assert b"comment unit: relative" in (made / "0_points.ply").read_bytes()
        assert (made / "trajectory_tum.txt").read_text().startswith("# unit: relative")
        assert "Distances are relative" in (made / "page.html").read_text()

    def test_far_pixels_are_told(self, predict_here: Callable[..., Result], clip: Path, tmp_path: Path) -> None:
        model = save_model(tmp_path / "far", metres_per_unit=1e5)
        result = succeeded(predict_here(clip / "0.png", model=model))
        assert f"{SIZE[0] * SIZE[1]} pixels of 1 frame farther than 256 m" in result.out
        assert (np.array(Image.open(tmp_path / "out" / "0_depth.png")) == 65535).all()

    def test_two_processes_write_what_one_writes(
        self, predict_here: Callable[..., Result], checkpoint: Path, clip: Path, tmp_path: Path
    ) -> None:
        photo = write_frame(tmp_path / "photo.png", 3)
        (tmp_path / "broken.png").write_bytes(b"no image")
        words = [clip, photo, tmp_path / "broken.png", "--save", "depth_png", "--batch-size", 1]
        one = predict_here(*words)
        program = ["-m", "featdepth.predict", "--checkpoint", checkpoint, "--out", tmp_path / "two", "--cpu", *words]
        two = run_program_process([*program, "--workers", 0], processes=2)
        assert one.code == 2 and two.code != 0  # launchers have codes of their own
        for result in (one, two):
            assert "6 written, 1 failed" in result.out and "broken.png: the image cannot be read" in result.err
        assert "2 x cpu" in two.out and files_in(tmp_path / "out") == files_in(tmp_path / "two")

    def test_whole_clips_go_to_one_process(self, clip: Path, tmp_path: Path) -> None:
        photos = {str(number): tmp_path / f"{number}.png" for number in range(5)}
        names = {str(number): clip / f"{number}.png" for number in range(FRAMES)}
        sources = [FrameSource("", None, photos), FrameSource("one", clip, names), FrameSource("two", clip, names)]
        for kinds, is_split in ((["depth_png"], True), (["depth_png", "trajectory"], False)):
            shares = [share(sources, rank, 3, Settings(tmp_path / "out", kinds)) for rank in range(3)]
            for source in sources:
                parts = [each.files for own in shares for each in own if each.name == source.name]
                assert sorted(name for part in parts for name in part) == sorted(source.files)
                assert len(parts) == (3 if is_split or not source.is_clip else 1)


class TestResuming:
    def test_what_is_there_is_not_made_again(
        self, predict_here: Callable[..., Result], clip: Path, tmp_path: Path
    ) -> None:
        photo = write_frame(tmp_path / "photo.png", 2)
        assert "6 written" in succeeded(predict_here(clip, photo)).out
        made, times = tmp_path / "out", {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.png")}
        (made / "clip" / "3_picture.png").unlink()
        write_frame(clip / "5.png", 5)
        result = succeeded(predict_here(clip, photo))
        assert "2 written, 5 skipped as already there" in result.out
        again = {path for path, time in times.items() if path.stat().st_mtime_ns != time}
        assert again == {made / "clip" / "3_picture.png", made / "clip" / "3_depth.png"}
        # Another kind needs all frames once more; and an input that is newer than its depth is predicted again.
        assert "7 written" in succeeded(predict_here(clip, photo, "--save", "tiff")).out
        (clip / "1.png").touch()
        assert "1 written, 6 skipped" in succeeded(predict_here(clip, photo, "--save", "tiff")).out
        assert "7 written" in succeeded(predict_here(clip, photo, "--save", "tiff", "--overwrite")).out

    def test_a_clip_is_whole_or_made_again(
        self, predict_here: Callable[..., Result], clip: Path, tmp_path: Path
    ) -> None:
        save = ("--save", "depth_png,trajectory")
        assert "5 written" in succeeded(predict_here(clip, *save)).out
        assert "0 written, 5 skipped" in succeeded(predict_here(clip, *save)).out
        (tmp_path / "out" / "clip" / "trajectory_tum.txt").unlink()
        assert "5 written" in succeeded(predict_here(clip, *save)).out
        write_frame(clip / "5.png", 5)
        assert "6 written" in succeeded(predict_here(clip, *save)).out
        assert len(read_trajectory(tmp_path / "out" / "clip" / "trajectory_tum.txt").poses) == 6

    def test_two_models_are_never_mixed(self, predict_here: Callable[..., Result], clip: Path, tmp_path: Path) -> None:
        other = save_model(tmp_path / "other", seed=1)
        succeeded(predict_here(clip))
        before = files_in(tmp_path / "out")
        line = predict_here(clip, model=other).error_line()
        assert "was made with another model" in line and "choose another --out, or replace all" in line
        assert files_in(tmp_path / "out") == before
        succeeded(predict_here(clip, "--save", "npz", "--field-of-view", "50"))
        line = predict_here(clip, "--field-of-view", "60").error_line()
        assert "was made with another field of view (50.0, now 60.0)" in line
        # Replacing has to leave nothing behind of the first one.
        photo = write_frame(tmp_path / "photo.png", 0)
        assert "also holds what another model made of" in predict_here(photo, "--overwrite", model=other).error_line()
        assert "5 written" in succeeded(predict_here(clip, "--overwrite", "--save", "tiff", model=other)).out
        assert {path.suffix for path in (tmp_path / "out" / "clip").iterdir()} == {".tiff"}

    def test_outputs_are_no_inputs_and_keep_their_names(
        self, predict_here: Callable[..., Result], tmp_path: Path
    ) -> None:
        one, other = (write_frame(tmp_path / folder / "x.png", index) for index, folder in enumerate("ab"))
        succeeded(predict_here(other, "--save", "tiff"))
        assert "2 written" in succeeded(predict_here(f"{tmp_path}/**/*.png", "--save", "depth_png")).out
        result = succeeded(predict_here(f"{tmp_path}/**/*.png", "--save", "depth_png"))
        assert "0 written, 2 skipped" in result.out and "left out   2 files in" in result.out
        names = json.loads((tmp_path / "out" / "prediction.json").read_text())["inputs"]
        assert names == {"x": str(other), "a_x": str(one)}


class TestBadInput:
    def test_the_other_files_are_processed(
        self, predict_here: Callable[..., Result], clip: Path, tmp_path: Path
    ) -> None:
        (clip / "2.png").write_bytes((clip / "1.png").read_bytes()[:200])
        (clip / "notes.txt").touch()
        Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
        (tmp_path / "text.mp4").write_text("no video")
        Image.new("L", (1, 1)).save(tmp_path / "dot.png")
        inputs = [clip, tmp_path / "huge.png", tmp_path / "gone.png", tmp_path / "text.mp4", tmp_path / "dot.png"]
        result = predict_here(*inputs, "--save", "depth_png,trajectory")
        assert result.code == 2 and "5 written, 4 failed" in result.out
        lines = result.err.splitlines()
        assert len(lines) == 4 and all(line.startswith("error: ") for line in lines)
        for name in ("2.png", "huge.png", "gone.png", "text.mp4"):
            assert sum(f"{name}: " in line for line in lines) == 1
        assert Image.open(tmp_path / "out" / "dot_depth.png").size == (1, 1)
        # The way goes on over the gap.
        times = read_trajectory(tmp_path / "out" / "clip" / "trajectory_tum.txt").times
        assert times == pytest.approx([0, 0.1, 0.3, 0.4])

    @needs_pyav
    def test_frames_before_the_damage_of_a_video_are_kept(
        self, predict_here: Callable[..., Result], tmp_path: Path
    ) -> None:
        import av

        film = tmp_path / "film.mkv"
        with av.open(str(film), "w") as container:
            stream = container.add_stream("mjpeg", rate=20)
            stream.width, stream.height, stream.pix_fmt = 96, 64, "yuvj420p"
            for number in range(8):
                pixels = np.array(Image.open(write_frame(tmp_path / "frame.png", number, (64, 96))))
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
            container.mux(stream.encode())
        result = succeeded(predict_here(film, "--save", "depth_png,video", "--workers", 2))
        assert "8 written" in result.out and "1 video" in result.out
        made = tmp_path / "out" / "film"
        assert sorted(path.name for path in made.glob("*.png")) == [f"{number:06}_depth.png" for number in range(8)]
        with av.open(str(made / "side_by_side.mp4")) as container:
            assert container.streams.video[0].average_rate == 20
            assert sum(1 for _ in container.decode(video=0)) == 8
        assert "0 written, 8 skipped" in succeeded(predict_here(film, "--save", "depth_png,video")).out
        (made / "000005_depth.png").unlink()
        whole = (made / "side_by_side.mp4").read_bytes()
        assert "3 written, 5 skipped" in succeeded(predict_here(film, "--save", "depth_png,video")).out
        assert (made / "side_by_side.mp4").read_bytes() == whole  # not made anew of three frames

        damaged = bytearray(film.read_bytes())
        damaged[int(0.6 * len(damaged)) :] = bytes(len(damaged) - int(0.6 * len(damaged)))
        (tmp_path / "damaged.mkv").write_bytes(damaged)
        result = predict_here(tmp_path / "damaged.mkv", film, "--save", "depth_png")
        kept = len(list((tmp_path / "out" / "damaged").glob("*_depth.png")))
        assert kept >= 3 and f"{kept} written, 8 skipped as already there" in result.out

    def test_intrinsics_are_asked_for_once_a_clip(
        self, predict_here: Callable[..., Result], clip: Path, tmp_path: Path
    ) -> None:
        photo = write_frame(tmp_path / "photo.png", 0)
        np.savetxt(tmp_path / "photos.txt", [[60, 0, 40], [0, 60, 25], [0, 0, 1]])
        result = predict_here(clip, photo, "--save", "points")
        assert result.code == 2 and result.err.count("its camera's intrinsics are unknown") == 2
        assert "0 written, 2 failed" in result.out
        succeeded(predict_here(clip, photo, "--save", "depth_png"))  # they are no matter here

    def test_a_loader_process_tells_the_same(
        self, predict_here: Callable[..., Result], clip: Path, tmp_path: Path
    ) -> None:
        (clip / "4.png").write_bytes(b"no image")
        result = predict_here(clip, "--workers", 1)
        assert "4 written, 1 failed" in result.out and result.err.count("\n") == 1

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--save", "depth"], "--save depth: can be depth_png, npz"),
            (["--batch-size", "0"], "--batch-size 0: has to be at least 1"),
            (["--nearest", "-1"], "--nearest -1: has to be above 0"),
            (["--field-of-view", "200"], "field of view of 200 degrees is impossible"),
            (["--save", "video"], "--save video: is for folders and videos"),
            (["--refine", "1"], "--refine 1: is for folders and videos"),
        ],
    )
    def test_options_without_sense(
        self, predict_here: Callable[..., Result], clip: Path, arguments: list[str], message: str
    ) -> None:
        assert message in predict_here(clip / "0.png", *arguments).error_line()

    def test_models_that_cannot_do_it(
        self, predict_here: Callable[..., Result], checkpoint: Path, clip: Path, tmp_path: Path
    ) -> None:
        tiny_model(tiny_config("autoencoder", [0])).save_pretrained(tmp_path / "autoencoder")
        assert "predicts no depth" in predict_here(clip, model=tmp_path / "autoencoder").error_line()
        shutil.copytree(checkpoint, tmp_path / "newer")
        content = json.loads((tmp_path / "newer" / "config.json").read_text())
        (tmp_path / "newer" / "config.json").write_text(json.dumps(content | {"format": 99}))
        assert "model format 99, this version reads" in predict_here(clip, model=tmp_path / "newer").error_line()
        assert not (tmp_path / "out").exists()

    def test_folders_that_are_not_for_outputs(
        self, predict_here: Callable[..., Result], clip: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.txt").touch()
        assert "holds other files; choose a new or empty folder" in predict_here(clip).error_line()
        (tmp_path / "out" / "thesis.txt").unlink()
        (tmp_path / "out" / "prediction.json").write_text('{"version": 0}')
        assert "not a record of a prediction of this version" in predict_here(clip).error_line()
        result = predict_here(clip, "--out", clip)
        assert "which is for outputs" in result.error_line() and len(list(clip.iterdir())) == FRAMES

    def test_a_full_disk_is_told_and_leaves_no_half_file(
        self, predict_here: Callable[..., Result], clip: Path, tmp_path: Path
    ) -> None:
        """A limit on the size of files, below a tiff's, is to a program what a full disk is."""
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8 << 10, limits[1]))
        try:
            result = predict_here(clip, "--save", "tiff")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert "out: cannot be written (File too large); free some space" in result.error_line()
        assert not list((tmp_path / "out" / "clip").iterdir())


def test_depth_that_is_not_finite_fails(
    predict_here: Callable[..., Result], clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = outputs.depth_at
    monkeypatch.setattr(outputs, "depth_at", lambda *arguments: whole(*arguments) * np.nan)
    result = predict_here(clip / "0.png")
    assert result.code == 2 and "the network's depth is not finite" in result.err and "1 failed" in result.out
