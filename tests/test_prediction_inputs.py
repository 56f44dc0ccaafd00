"""What is predicted, and how images of any kind become what the network sees."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_config

from featdepth.errors import InputError
from featdepth.models import FeatDepth
from featdepth.predict.frames import LONGEST_VIEW, load_photo, resize, view_size
from featdepth.predict.intrinsics import Cameras, learned_intrinsics
from featdepth.predict.sources import find_inputs, list_sources, name_inputs

KITTI_CALIBRATION = "P2: 700 0 320.5 0 0 710 120.5 0 0 0 1 0\nP3: 701 0 320.5 0 0 710 120.5 0 0 0 1 0\n"


def write_images(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (6, 4), "red").save(folder / name)
    return folder


class TestInputs:
    def test_files_folders_patterns_and_what_is_left_out(self, tmp_path: Path) -> None:
        clip = write_images(tmp_path / "clip", "f10.png", "f9.png", ".hidden.png")
        (clip / "notes.txt").touch()
        photos = write_images(tmp_path / "photos", "a.png", "b.JPG")
        (photos / "readme.md").touch()
        out = write_images(tmp_path / "photos" / "out", "a_picture.png")
        (tmp_path / "film.mp4").touch()
        words = [
            clip,
            f"{photos}/*",
            f"{photos}/**/*.png",
            tmp_path / "film.mp4",
            tmp_path / "gone.png",
            photos / "a.png",
        ]
        inputs = find_inputs(words, out)
        assert inputs.paths == [clip, photos / "a.png", photos / "b.JPG", tmp_path / "film.mp4"]
        assert len(inputs.failures) == 1 and "gone.png: no such image" in inputs.failures[0]
        assert sum(inputs.left_out.values()) == 4  # notes.txt, readme.md, the folder out and the picture in it
        images, folder, video = list_sources(name_inputs(inputs.paths, {}))
        assert list(images.files) == ["a", "b"] and not images.is_clip
        assert list(folder.files) == ["f9", "f10"] and folder.name == "clip"
        assert video.is_video and video.name == "film"

    def test_the_output_folder_is_no_input(self, tmp_path: Path) -> None:
        photos = write_images(tmp_path / "photos", "a.png")
        for word in (photos, photos / "a.png"):
            with pytest.raises(InputError, match=r"nothing to predict: 1 in .*photos, which is for outputs"):
                find_inputs([word], photos)

    @pytest.mark.parametrize("word", ["empty", "none/*.png", "gone.mp4"])
    def test_nothing_at_all_is_refused(self, tmp_path: Path, word: str) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(InputError, match=r"nothing to predict: .*(no png or jpg|no such image)"):
            find_inputs([tmp_path / word], tmp_path / "out")

    def test_equal_names_are_told_apart_by_their_folders(self, tmp_path: Path) -> None:
        paths = [tmp_path / name for name in ("a/x.png", "b/x.png", "b/X.jpg", "c/b/x.png", "a/y.png")]
        named = name_inputs(paths, {})
        assert list(named) == ["x", "b_x", f"{tmp_path.name}_b_X", "c_b_x", "y"]
        # Names that were given before stay, in whatever order and company the inputs come.
        known = {name: str(path) for name, path in named.items()}
        assert name_inputs([paths[1], tmp_path / "d/x.png"], known) == {"b_x": paths[1], "d_x": tmp_path / "d/x.png"}

    def test_accents_apart_or_not_are_one_name_on_some_disks(self, tmp_path: Path) -> None:
        paths = [tmp_path / "a/\u00e9.png", tmp_path / "b/e\u0301.png"]
        assert list(name_inputs(paths, {})) == ["\u00e9", "b_e\u0301"]

    def test_names_fit_into_a_file_system(self, tmp_path: Path) -> None:
        paths = [tmp_path / folder / f"{'ä' * 120}{number}.png" for folder in "ab" for number in (1, 2)]
        named = name_inputs(paths, {})
        assert len(named) == 4 and all(len(name.encode()) <= 200 for name in named)

    def test_frames_that_differ_in_their_ending_only(self, tmp_path: Path) -> None:
        clip = write_images(tmp_path / "clip", "x.png", "x.jpg", "y.png")
        (source,) = list_sources(name_inputs([clip], {}))
        assert list(source.files) == ["x.jpg", "x.png", "y"]


class TestPhotos:
    @pytest.fixture
    def pixels(self) -> np.ndarray:
        """uint8 RGB [12, 20, 3], smooth."""
        coarse = np.random.default_rng(0).integers(0, 256, (3, 4, 3), np.uint8)
        return np.array(Image.fromarray(coarse).resize((20, 12), Image.Resampling.BILINEAR))

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK"])
    def test_any_mode_looks_as_it_should(self, tmp_path: Path, pixels: np.ndarray, mode: str) -> None:
        image = Image.fromarray(pixels).convert(mode)
        path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
        image.save(path, **({"quality": 100} if mode == "CMYK" else {}))
        loaded, expected = load_photo(path), np.array(image.convert("RGB")).astype(int)
        assert loaded.dtype == np.uint8 and abs(loaded - expected).max() <= (8 if mode == "CMYK" else 0)

    def test_16_bits_are_scaled_down(self, tmp_path: Path, pixels: np.ndarray) -> None:
        grey = pixels[:, :, 0]
        Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
        assert (load_photo(tmp_path / "deep.png") == grey[:, :, None]).all()

    def test_transparency_shows_white(self, tmp_path: Path) -> None:
        values = np.array([[[10, 20, 30, 255], [10, 20, 30, 0]]], np.uint8)
        Image.fromarray(values).save(tmp_path / "clear.png")
        assert load_photo(tmp_path / "clear.png").tolist() == [[[10, 20, 30], [255, 255, 255]]]

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_photos_are_upright(self, tmp_path: Path, pixels: np.ndarray, orientation: int) -> None:
        """EXIF's orientation says where the stored first row and column belong."""
        undo = {2: (1, False), 3: (2, False), 4: (3, False), 5: (None, True), 6: (6, True), 7: (7, True), 8: (8, True)}
        stored = pixels
        if orientation in (2, 3, 4):
            stored = {2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1]}[orientation]
        elif orientation in undo:
            turned = pixels.transpose(1, 0, 2)  # 5
            stored = {5: turned, 6: turned[::-1], 7: turned[::-1, ::-1], 8: turned[:, ::-1]}[orientation]
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "photo.png", exif=exif)
        assert (load_photo(tmp_path / "photo.png") == pixels).all()

    def test_too_large_an_image_is_refused_before_it_is_decoded(self, tmp_path: Path) -> None:
        Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
        with pytest.raises(InputError, match=r"huge.png: has more than 100 million pixels"):
            load_photo(tmp_path / "huge.png")

    @pytest.mark.parametrize("content", [b"", b"text", "half"])
    def test_damaged_files_are_named(self, tmp_path: Path, pixels: np.ndarray, content: bytes | str) -> None:
        path = tmp_path / "broken.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:9000] if content == "half" else content)
        with pytest.raises(InputError, match=r"broken.png: the image cannot be read: .*; replace it$"):
            load_photo(path)

    def test_one_pixel_becomes_an_image(self) -> None:
        image = resize(np.full((1, 1, 3), 77, np.uint8), (64, 96))
        assert image.shape == (3, 64, 96) and (image == 77).all()

    def test_views_are_never_long(self) -> None:
        assert view_size((375, 1242)) == (375, 1242)
        assert view_size((4000, 6000)) == (round(4000 * LONGEST_VIEW / 6000), LONGEST_VIEW)
        assert view_size((1, 50_000)) == (1, LONGEST_VIEW)


class TestCameras:
    def test_a_calibration_is_scaled_to_the_frames(self, tmp_path: Path) -> None:
        (tmp_path / "cameras.txt").write_text("1 PINHOLE 640 480 500 510 320 240\n")
        intrinsics = Cameras(str(tmp_path / "cameras.txt")).need(tmp_path / "any.png", (240, 320), "--refine")
        assert intrinsics == pytest.approx(np.array([[250, 0, 159.5], [0, 255, 119.5], [0, 0, 1]]))

    def test_the_field_of_view(self, tmp_path: Path) -> None:
        intrinsics = Cameras(field_of_view=90.0).need(tmp_path / "any.png", (60, 100), "--refine")
        assert intrinsics == pytest.approx(np.array([[50, 0, 49.5], [0, 50, 29.5], [0, 0, 1]]))

    def test_kittis_own_calibrations(self, tmp_path: Path) -> None:
        folder = write_images(tmp_path / "00" / "image_2", "000000.png")
        (tmp_path / "00" / "calib.txt").write_text(KITTI_CALIBRATION)
        expected = np.array([[700, 0, 319.5], [0, 710, 119.5], [0, 0, 1]])  # the file counts from 1
        for path in (folder, folder / "000000.png"):
            assert Cameras().need(path, (240, 640), "--refine") == pytest.approx(expected)
        day = tmp_path / "2011_09_26"
        folder = write_images(day / "drive" / "image_03" / "data", "0000000000.png")
        rows = KITTI_CALIBRATION.replace("P2", "P_rect_02").replace("P3", "P_rect_03")
        (day / "calib_cam_to_cam.txt").write_text(f"{rows}S_rect_02: 640 240\nS_rect_03: 640 240\n")
        assert Cameras().need(folder, (480, 1280), "--refine")[0, 0] == pytest.approx(2 * 701)

    def test_intrinsics_beside_the_frames(self, tmp_path: Path) -> None:
        folder = write_images(tmp_path / "clip", "a.png")
        np.savetxt(tmp_path / "intrinsics.txt", [[30, 0, 20], [0, 30, 10], [0, 0, 1]])
        assert Cameras().need(folder, (20, 40), "--refine")[0, 0] == 30

    def test_exif_of_a_photo(self, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0xA405] = 28  # focal length for 35 mm film
        Image.new("RGB", (360, 240)).save(tmp_path / "photo.jpg", exif=exif)
        focal = 28 * math.hypot(360, 240) / math.hypot(36, 24)
        assert Cameras().need(tmp_path / "photo.jpg", (240, 360), "--refine")[0, 0] == pytest.approx(focal)

    def test_learned_ones_of_a_single_camera(self, tmp_path: Path) -> None:
        config = tiny_config("photometric", [0, -1, 1], intrinsics="learned")
        for names, is_known in ((["camera"], True), (["one", "other"], False)):
            model = FeatDepth(config.model, config.data.frames, 64, 96, names)
            start = torch.tensor([[50.0, 0.0, 40.0], [0.0, 50.0, 30.0], [0.0, 0.0, 1.0]])
            model.cameras.start_from(dict.fromkeys(names, start), (64, 96))
            found = learned_intrinsics(model.cameras, (128, 192))
            assert (found is not None) == is_known
            if is_known:
                assert found == pytest.approx(np.array([[100, 0, 80.5], [0, 100, 60.5], [0, 0, 1]]), abs=1e-4)
                assert Cameras(model=model).need(tmp_path / "film.mp4", (128, 192), "--refine") == pytest.approx(found)

    def test_unknown_ones_say_what_to_do(self, tmp_path: Path) -> None:
        path = write_images(tmp_path, "a.png") / "a.png"
        assert Cameras().find(path, (4, 6)) is None
        with pytest.raises(InputError, match=r"a.png: .* unknown.* --intrinsics FILE or --field-of-view"):
            Cameras().need(path, (4, 6), "--refine")
