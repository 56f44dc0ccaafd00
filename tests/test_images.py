"""The one reading of image files: formats, bits, transparency, orientation, and frames that show nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import call_program, succeeded
from PIL import Image

from featdepth.cameras.exif import exif_intrinsics
from featdepth.config import load_config
from featdepth.data import build_dataset
from featdepth.data import cache as cache_program
from featdepth.data.cached.frame_cache import FrameCache
from featdepth.data.films import read_pictures
from featdepth.data.frame_folders import list_sequence
from featdepth.data.images import image_size, load_image
from featdepth.data.listing import IMAGE_FORMATS, list_images
from featdepth.doctor import __main__ as doctor
from featdepth.errors import InputError
from featdepth.predict.frames import load_photo
from featdepth.predict.sources import find_inputs, list_sources, name_inputs
from featdepth.prepare_video import __main__ as prepare_video

SIZE = (48, 72)


def scene(seed: int = 0, channels: int = 3) -> np.ndarray:
    """uint8 [48, 72, channels], smooth, from black to white."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 9, channels), np.uint8)
    coarse[0, 0], coarse[5, 8] = 0, 255
    return np.array(Image.fromarray(coarse.squeeze()).resize(SIZE[::-1], Image.Resampling.NEAREST)).reshape(*SIZE, -1)


def write_clip(folder: Path, count: int = 6, suffix: str = "png", **options: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.fromarray(scene(index)).save(folder / f"{index}.{suffix}", **options)
    return folder


def video_config(root: Path, **settings: object):
    known = {"root": root, "height": 64, "width": 96, "split": "time", "field_of_view": 60, "train_files": "null"}
    options = [f"data.{name}={value}" for name, value in (known | settings).items()]
    return load_config("configs/video.yaml", [*options, "model.pretrained=false"])


def rgb_everywhere(folder: Path) -> list[np.ndarray]:
    """The first image of a folder as predict, prepare_video and training read it."""
    first = list_images(folder)[0]
    photo, picture = load_photo(first), next(iter(read_pictures(folder))).pixels
    return [photo, picture, load_image(first, photo.shape[:2]).permute(1, 2, 0).numpy()]


class TestBits:
    @pytest.mark.parametrize("white", [255, 1023, 4095, 16383, 65535])
    @pytest.mark.parametrize(
        ("suffix", "kind"),
        [("png", np.uint16), ("tif", np.uint16), ("tif", ">u2"), ("tif", np.int32), ("tif", np.float32)],
    )
    def test_of_any_depth_show_the_same_picture(self, tmp_path: Path, white: int, suffix: str, kind: type) -> None:
        grey = scene(channels=1)[..., 0]
        levels = np.rint(grey / 255.0 * white)
        if kind == ">u2":
            image = Image.frombytes("I;16B", SIZE[::-1], levels.astype(">u2").tobytes())
        else:
            image = Image.fromarray(levels.astype(kind))
        image.save(tmp_path / f"0.{suffix}")
        for pixels in rgb_everywhere(tmp_path):
            assert abs(pixels.astype(int) - grey[..., None]).max() <= 1

    def test_floats_up_to_one(self, tmp_path: Path) -> None:
        grey = scene(channels=1)[..., 0]
        Image.fromarray(np.float32(grey / 255)).save(tmp_path / "0.tif")
        for pixels in rgb_everywhere(tmp_path):
            assert abs(pixels.astype(int) - grey[..., None]).max() <= 1

    def test_dark_frames_of_a_folder_are_scaled_like_bright_ones(self, tmp_path: Path) -> None:
        grey = scene(channels=1)[..., 0].astype(np.uint16)
        for index, factor in enumerate([257, 10, 257, 10]):
            Image.fromarray(grey * factor).save(tmp_path / f"{index}.png")
        assert load_photo(tmp_path / "1.png").max() == round(2550 / 257)
        for index in (0, 2):
            (tmp_path / f"{index}.png").unlink()
        assert load_photo(tmp_path / "1.png").max() == round(2550 / 4095 * 255)  # a folder of 12 bits

    @pytest.mark.parametrize("levels", [-1.0, 70_000.0, np.nan, np.inf])
    def test_what_is_no_brightness_is_refused(self, tmp_path: Path, levels: float) -> None:
        values = scene(channels=1)[..., 0].astype(np.float32)
        values[3, 3] = levels
        Image.fromarray(values).save(tmp_path / "0.tif")
        with pytest.raises(InputError, match=r"0.tif: levels from .* depth map"):
            load_photo(tmp_path / "0.tif")


class TestOneReading:
    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "transparent palette"])
    def test_of_all_modes_by_all_programs(self, tmp_path: Path, mode: str) -> None:
        image = Image.fromarray(scene())
        options = {}
        if mode == "I;16":
            image = Image.fromarray(scene(channels=1)[..., 0].astype(np.uint16) * 257)
        elif mode == "transparent palette":
            image, options = image.convert("P"), {"transparency": 3}
        else:
            image = image.convert(mode)
        if mode in ("LA", "RGBA"):
            image.putalpha(Image.fromarray(scene(1, 1)[..., 0]))
        image.save(tmp_path / f"0.{'tif' if mode == 'CMYK' else 'png'}", **options)
        photo, *others = rgb_everywhere(tmp_path)
        assert photo.std() > 20 and all((other == photo).all() for other in others)

    def test_transparency_is_white_in_training(self, tmp_path: Path) -> None:
        pixels = np.concatenate([scene(), np.full((*SIZE, 1), 255, np.uint8)], axis=2)
        pixels[:20, :, 3] = 0
        Image.fromarray(pixels).save(tmp_path / "0.png")
        assert (load_image(tmp_path / "0.png", SIZE)[:, :20] == 255).all()

    def test_a_transparent_colour_is_white(self, tmp_path: Path) -> None:
        pixels = scene()
        pixels[:20] = 10, 20, 30
        Image.fromarray(pixels).save(tmp_path / "0.png", transparency=(10, 20, 30))
        for photo in rgb_everywhere(tmp_path):
            assert (photo[:20] == 255).all() and (photo[20:] == pixels[20:]).all()

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
    def test_turned_photos(self, tmp_path: Path, orientation: int, suffix: str) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        exif.get_ifd(0x8769)[0xA405] = 28  # focal length for 35 mm film
        write_clip(tmp_path / "clip", suffix=suffix, exif=exif)
        photo, *others = rgb_everywhere(tmp_path / "clip")
        assert all((other == photo).all() for other in others)
        upright = SIZE[::-1] if orientation >= 5 else SIZE
        first = list_images(tmp_path / "clip")[0]
        assert photo.shape[:2] == image_size(first) == upright
        if suffix != "tif":  # Pillow writes no focal length there
            assert exif_intrinsics(first).size == upright
        dataset = build_dataset(video_config(tmp_path), "train")
        assert set(dataset.native_sizes.values()) == {upright}
        expected = load_image(first, (64, 96), upright)
        assert (dataset.load_frame(first, dataset.camera_of(dataset.samples[0])) == expected).all()
        assert (FrameCache(tmp_path / "cache", (64, 96)).load(first, upright) == expected).all()

    def test_a_stored_principal_point_of_a_turned_picture_is_told(self, tmp_path: Path, capsys) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        write_clip(tmp_path / "clip", exif=exif)
        (tmp_path / "intrinsics.txt").write_text("60 0 23.5\n0 60 35.5\n0 0 1\n")
        build_dataset(video_config(tmp_path), "train")
        assert capsys.readouterr().err == ""
        (tmp_path / "intrinsics.txt").write_text("60 0 35.5\n0 60 23.5\n0 0 1\n")
        build_dataset(video_config(tmp_path), "train")
        (line,) = capsys.readouterr().err.splitlines()
        assert "intrinsics.txt: the principal point (35.5, 23.5)" in line and "turned" in line


class TestFormats:
    @pytest.mark.parametrize("suffix", sorted({suffix for suffixes in IMAGE_FORMATS.values() for suffix in suffixes}))
    def test_are_read_by_all_programs(self, tmp_path: Path, suffix: str) -> None:
        kinds = {"dib": "DIB", "jpf": "JPEG2000", "sgi": "SGI", "pcx": "PCX", "apng": "PNG", "jfif": "JPEG"}
        if suffix == "ras":
            pytest.skip("Pillow writes none")
        folder = tmp_path / "clip"
        folder.mkdir()
        for index in range(3):
            image = Image.fromarray(scene(index))
            if suffix == "pbm":
                image = image.convert("1")
            if suffix in ("pgm", "pfm"):
                image = image.convert("L" if suffix == "pgm" else "F")
            image.save(folder / f"{index}.{suffix.upper() if index else suffix}", format=kinds.get(suffix))
        photo, *others = rgb_everywhere(folder)
        assert photo.std() > 20 and all((other == photo).all() for other in others)
        assert len(build_dataset(video_config(tmp_path, frames="[0,1]"), "train")[0]["images"]) == 2
        inputs = find_inputs([folder, folder / f"0.{suffix}"], tmp_path / "out")
        single, clip = list_sources(name_inputs(inputs.paths, {}))
        assert not inputs.failures and not single.is_clip and len(clip.files) == 3 and not clip.is_video

    @pytest.mark.parametrize("name", ["a.heic", "a.CR2", "a.nef", "a.dng", "a.psd", "a.pdf", "unnamed"])
    def test_others_are_photos_to_convert_and_never_films(self, tmp_path: Path, name: str) -> None:
        path = tmp_path / "clip" / name
        path.parent.mkdir()
        path.write_bytes(b"\0\0\0\x18ftypheic" + bytes(200))
        (tmp_path / "film.mp4").touch()
        inputs = find_inputs([path, tmp_path / "film.mp4"], tmp_path / "out")
        assert inputs.paths == [tmp_path / "film.mp4"] and "convert it to png or jpg" in inputs.failures[0]
        with pytest.raises(InputError, match="convert it to png or jpg"):
            next(read_pictures(path))
        with pytest.raises(InputError, match="convert it to png or jpg"):
            load_photo(path)

    def test_photos_to_convert_among_frames_are_named(self, tmp_path: Path) -> None:
        folder = write_clip(tmp_path / "clip")
        (folder / "7.HEIC").write_bytes(bytes(100))
        with pytest.raises(InputError, match=r"7.HEIC: a photo .* convert"):
            build_dataset(video_config(tmp_path), "train")
        assert find_inputs([folder], tmp_path / "out").left_out == {
            "in folders, photos in formats to convert to png or jpg": 1
        }

    def test_an_image_without_an_ending_is_an_image(self, tmp_path: Path) -> None:
        Image.fromarray(scene()).save(tmp_path / "photo", format="PNG")
        (source,) = list_sources(name_inputs(find_inputs([tmp_path / "photo"], tmp_path / "out").paths, {}))
        assert not source.is_clip


class TestFolders:
    def test_with_frames_in_two_formats_are_refused(self, tmp_path: Path) -> None:
        folder = write_clip(tmp_path / "clip")
        write_clip(folder, suffix="jpg")
        for read in (lambda: build_dataset(video_config(tmp_path), "train"), lambda: next(read_pictures(folder))):
            with pytest.raises(InputError, match=r"0.jpg and 0.png are the same frame twice \(6 such pairs "):
                read()
        with pytest.raises(InputError, match=r"0.jpg and 0.png are one frame twice"):
            find_inputs([folder], tmp_path / "out")

    @pytest.mark.parametrize("name", ["{}_depth.png", "depth{}.png", "{:06}.png"])
    def test_with_depth_among_pictures_are_refused_or_sorted_out(self, tmp_path: Path, name: str) -> None:
        folder = write_clip(tmp_path / "clip", suffix="jpg")
        for index in range(6):
            Image.fromarray(np.full(SIZE, 256 * index + 999, np.uint16)).save(folder / name.format(index))
        with pytest.raises(InputError, match=r"16 bits or more, as depth has.*6 images of 12"):
            list_sequence(folder)
        with pytest.raises(InputError, match=r"as depth has"):
            build_dataset(video_config(tmp_path), "train")
        inputs = find_inputs([folder], tmp_path / "out")
        assert inputs.left_out == {"in folders, depth or other levels of 16 bits": 6}
        (source,) = list_sources(name_inputs(inputs.paths, {}))
        assert [path.suffix for path in source.files.values()] == [".jpg"] * 6


class TestFramesThatShowNothing:
    @pytest.fixture(params=["white", "black", "covered lens"])
    def blank(self, request: pytest.FixtureRequest) -> Image.Image:
        if request.param != "covered lens":
            return Image.new("RGB", SIZE[::-1], request.param)
        return Image.fromarray(np.random.default_rng(0).integers(3, 5, (*SIZE, 3), np.uint8))

    def test_are_an_error_in_training_evaluation_and_cache(self, tmp_path: Path, blank: Image.Image) -> None:
        write_clip(tmp_path / "clip", 40)
        blank.save(tmp_path / "clip" / "3.png")
        blank.save(tmp_path / "clip" / "38.png")
        for part, index in (("train", 2), ("test", 1)):
            with pytest.raises(InputError, match=r"3.?.png: nothing is seen .*data.skip_bad_frames=true"):
                dataset = build_dataset(video_config(tmp_path), part)
                [dataset[index] for index in range(len(dataset))]
        cached = build_dataset(video_config(tmp_path, cache=tmp_path / "cache"), "train")
        with pytest.raises(InputError, match=r"3.png: nothing is seen"):
            [cached[index] for index in range(len(cached))]
        skipping = build_dataset(video_config(tmp_path, skip_bad_frames="true"), "train")
        assert sum(int(item["replaced"]) for item in skipping) == 3

    def test_alone_never_train(self, tmp_path: Path, blank: Image.Image) -> None:
        (tmp_path / "clip").mkdir()
        for index in range(12):
            blank.save(tmp_path / "clip" / f"{index}.png")
        with pytest.raises(InputError, match=r"samples in a row cannot be read.*nothing is seen"):
            build_dataset(video_config(tmp_path, skip_bad_frames="true"), "train")[0]

    def test_are_dropped_by_prepare_video(self, tmp_path: Path, blank: Image.Image) -> None:
        (tmp_path / "clip").mkdir()
        for index in range(3):
            blank.save(tmp_path / "clip" / f"{index}.png")
        result = call_program(prepare_video.main, tmp_path / "clip", "--out", tmp_path / "out")
        assert result.code == 2 and "0 of 3 frames" in result.error_line()

    def test_night_and_fog_are_no_such_frames(self, tmp_path: Path) -> None:
        night = np.zeros((*SIZE, 3), np.uint8)
        night[20, 30] = 40
        fog = np.random.default_rng(0).normal(128, 1.5, (*SIZE, 3)).astype(np.uint8)
        for name, pixels in (("night", night), ("fog", fog)):
            Image.fromarray(pixels).save(tmp_path / f"{name}.png")
            load_image(tmp_path / f"{name}.png", SIZE, needs_texture=True)


def test_the_doctor_names_frames_that_show_nothing(tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    for index in range(12):
        Image.new("L", SIZE[::-1], 255).save(tmp_path / "clip" / f"{index:02}.png")
    data = [f"data.root={tmp_path}", "data.split=time", "data.height=64", "data.width=96", "data.field_of_view=60"]
    result = call_program(doctor.main, "--config", "configs/video.yaml", *data, "--out", tmp_path / "report")
    assert result.code != 0 and "nothing is seen" in result.out + result.err
    lines = {line.split()[1]: line for line in result.out.splitlines() if line.startswith(("PROBLEM", "SKIPPED"))}
    assert lines["texture"].startswith("PROBLEM") and "without texture" in lines["motion"]
    assert "of one colour all over" in lines["files"]


def test_the_cache_counts_frames_that_show_nothing(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip", 12)
    Image.new("L", SIZE[::-1]).save(tmp_path / "clip" / "3.png")
    data = [f"data.root={tmp_path}", "data.split=time", f"data.cache={tmp_path / 'cache'}", "data.field_of_view=60"]
    data += ["data.height=64", "data.width=96", "data.skip_bad_frames=true"]
    result = succeeded(call_program(cache_program.main, "--config", "configs/video.yaml", *data, "--workers", 0))
    assert "1 cannot be read and are left out" in result.out
