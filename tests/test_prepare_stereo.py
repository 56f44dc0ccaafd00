"""Own stereo to training-ready pairs in metres: paired, rectified, checked, resumable, and trained on."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, call_program, succeeded
from drive_writer import RenderedDrive, render_drive
from PIL import Image

from featdepth.cameras.lenses import Lens, remap, undistort_points
from featdepth.cameras.rig_files import read_pair
from featdepth.config import Config
from featdepth.data import build_dataset
from featdepth.data.baselines import check_baselines
from featdepth.errors import InputError
from featdepth.geometry import pose_from_vector
from featdepth.prepare_stereo import __main__ as prepare_stereo
from featdepth.prepare_stereo.pairing import Sides, pair
from featdepth.prepare_video import preparation
from featdepth.prepare_video.record import write_json
from featdepth.two_view.matching import match_frames

HEIGHT, WIDTH = 96, 144
COEFFICIENTS = (-0.2, 0.05, 0.0, 0.0)  # radtan
TURN = [0.012, 0.008, -0.015]  # of the right camera against the left one, radians
KITTI = REPOSITORY.parent / "shared" / "kitti_mini" / "kitti_raw" / "2011_10_03"


def street() -> RenderedDrive:
    """The one drive of all tests here and of others: 14 frames."""
    return render_drive(14, HEIGHT, WIDTH, 1)


def rotation() -> np.ndarray:
    """right_turned_from_right 3x3."""
    return pose_from_vector(torch.tensor(TURN).double(), torch.zeros(3).double())[:3, :3].numpy()


def bent(images: Sequence[np.ndarray], turned_from_straight: np.ndarray) -> list[np.ndarray]:
    """Pictures as a camera with distortion takes them, turned against the one that took `images`."""
    intrinsics = street().intrinsics
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(float)
    points = undistort_points(np.stack([x, y], axis=-1), Lens("radtan", intrinsics, COEFFICIENTS, (HEIGHT, WIDTH)))
    rays = np.concatenate([points, np.ones_like(points[..., :1])], axis=-1) @ turned_from_straight @ intrinsics.T
    return [remap(image, (rays[..., :2] / rays[..., 2:]).astype(np.float32)) for image in images]


def write_images(folder: Path, images: Sequence[np.ndarray], name: str = "{}.png") -> Path:
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / name.format(number), compress_level=1)
    return folder


def write_calibration(path: Path, coefficients: Sequence[float] = (), pose: np.ndarray | None = None) -> Path:
    """The street's cameras as OpenCV writes them: one K, or with the right camera's pose (in millimetres) a rig."""

    def matrix(values: Any) -> str:
        return f"{{rows: 3, cols: 3, data: {np.ravel(values).tolist()}}}"

    text = f"image_width: {WIDTH}\nimage_height: {HEIGHT}\n"
    for number in ("",) if pose is None else ("1", "2"):
        key = "camera_matrix" if pose is None else f"M{number}"
        distortion = "distortion_coefficients" if pose is None else f"D{number}"
        text += f"{key}: {matrix(street().intrinsics)}\n{distortion}: {matrix([*coefficients, 0.0])}\n"
    if pose is not None:
        text += f"R: {matrix(pose[:3, :3])}\nT: {matrix(1000 * pose[:3, 3])}\n"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def bent_rig(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders left and right of a rig with distortion, its right camera turned; rig.yaml knows that, lens.yaml not."""
    folder = tmp_path_factory.mktemp("bent")
    write_images(folder / "left", bent(street().images[:4], np.eye(3)))
    write_images(folder / "right", bent(street().right_images[:4], rotation()))
    pose = street().right_from_left.copy()
    pose[:3] = rotation() @ pose[:3]
    write_calibration(folder / "rig.yaml", COEFFICIENTS, pose)
    write_calibration(folder / "lens.yaml", COEFFICIENTS)
    return folder


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders left and right of a rectified pair, K in k.yaml, and what is made of them in out."""
    folder = tmp_path_factory.mktemp("straight")
    write_images(folder / "left", street().images[:9], "left_{}.png")
    write_images(folder / "right", street().right_images[:9], "right_{}_b.png")
    write_calibration(folder / "k.yaml")
    told = succeeded(prepare(folder, "--intrinsics", folder / "k.yaml", "--baseline", "0.54", "--out", folder / "out"))
    assert "nothing to do" in told.out and "half of them below" in told.out
    return folder


def prepare(folder: Path, *options: object, sides: tuple[str, str] = ("left", "right")) -> Any:
    left, right = sides
    return call_program(prepare_stereo.main, folder / left, folder / right, *options, "--format", "png")


def rows(left: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> float:
    """Median distance between the rows of points that both cameras show, pixels."""
    grey = [[np.array(Image.fromarray(image).convert("L")) for image in side] for side in (left, right)]
    matches = [match_frames(*images) for images in zip(*grey, strict=True)]
    return float(np.median(np.concatenate([np.abs(each.other - each.one)[:, 1] for each in matches])))


def read_images(folder: Path) -> list[np.ndarray]:
    return [np.array(Image.open(path)) for path in sorted(folder.glob("*.png"))]


@pytest.mark.parametrize(
    ("calibration", "by"), [("rig", "by the calibration"), ("lens", "estimated from the pictures")]
)
def test_a_turned_pair_with_distortion_is_rectified(bent_rig: Path, tmp_path: Path, calibration: str, by: str) -> None:
    before = rows(read_images(bent_rig / "left"), read_images(bent_rig / "right"))
    options = ("--intrinsics", bent_rig / f"{calibration}.yaml", "--baseline", "0.54", "--out", tmp_path / "out")
    assert by in succeeded(prepare(bent_rig, *options)).out
    clip = tmp_path / "out" / "left_00"
    assert before > 0.9 and rows(read_images(clip), read_images(clip / "right")) < 0.3
    (prepared,) = json.loads((tmp_path / "out" / "summary.json").read_text())["prepared"]
    found = np.array(prepared["right_from_left"])
    error = found[:3, :3] @ rotation().T @ street().right_from_left[:3, :3].T
    assert np.degrees(np.arccos((np.trace(error) - 1) / 2)) < (0.6 if calibration == "lens" else 1e-3)
    assert np.linalg.norm(found[:3, 3]) == pytest.approx(0.54) and prepared["rows"] < 0.3
    assert json.loads((clip / "clip.json").read_text())["baseline"] == 0.54


def test_a_calibration_tells_the_baseline_in_metres_or_ends_it(bent_rig: Path, tmp_path: Path) -> None:
    pose = street().right_from_left.copy()
    pose[:3] = rotation() @ pose[:3]
    millimetres = ("--intrinsics", bent_rig / "rig.yaml", "--out", tmp_path / "out")
    assert (
        "540: is no pair's in metres; is it in millimetres? Write metres"
        in prepare(bent_rig, *millimetres).error_line()
    )
    other = prepare(bent_rig, *millimetres, "--baseline", "0.3").error_line()
    assert "--baseline 0.3: the calibration has 540" in other
    pose[:3, 3] /= 1000
    write_calibration(tmp_path / "metres.yaml", COEFFICIENTS, pose)
    told = succeeded(prepare(bent_rig, "--intrinsics", tmp_path / "metres.yaml", "--out", tmp_path / "out")).out
    assert "baseline 0.54 m" in told and "by the calibration" in told


def test_swapped_sides_are_named(straight: Path, bent_rig: Path, tmp_path: Path) -> None:
    options = ("--baseline", "0.54", "--out", tmp_path / "out")
    for folder, calibration in ((straight, "k"), (bent_rig, "lens"), (bent_rig, "rig")):
        known = ("--intrinsics", folder / f"{calibration}.yaml")
        told = prepare(folder, *known, *options, sides=("right", "left")).error_line()
        assert "the sides are swapped; exchange LEFT and RIGHT" in told


@pytest.mark.parametrize(
    ("baseline", "text"),
    [
        ("540", "millimetres? Write metres: --baseline 0.54"),
        ("54", "millimetres or centimetres? Write metres: --baseline 0.054 or 0.54"),
        ("9", "in the median; is it in centimetres? Write metres: --baseline 0.09"),
        ("0.0001", "0.001 m at least"),
        ("nan", "0.001 m at least"),
    ],
)
def test_a_baseline_in_other_units_is_named(straight: Path, tmp_path: Path, baseline: str, text: str) -> None:
    known = ("--intrinsics", straight / "k.yaml", "--out", tmp_path / "out")
    assert text in prepare(straight, *known, "--baseline", baseline).error_line()


def make_config(root: Path, **data: object) -> Config:
    config = Config()
    values = {"kind": "video", "root": str(root), "split": "time", "frames": [0, -1, 1, "s"]}
    for key, value in (values | {"height": HEIGHT, "width": WIDTH} | data).items():
        setattr(config.data, key, value)
    config.evaluate.protocol = "own"
    return config


def test_prepared_pairs_are_read_with_both_cameras_as_targets(straight: Path) -> None:
    dataset = build_dataset(make_config(straight / "out"), "train")
    assert {sample.side for sample in dataset.samples} == {"l", "r"}
    left, right = street().images, street().right_images
    for index, one, other, sign in ((0, left, right, -1), (1, right, left, 1)):
        item = dataset[index]
        for image, expected in zip(item["images"], (one[1], one[0], one[2], other[1]), strict=True):
            np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), expected)
        assert item["stereo_pose"][0, 3] == pytest.approx(sign * 0.54)
        torch.testing.assert_close(item["intrinsics"], torch.from_numpy(street().intrinsics).float())


def test_damaged_pairs_end_in_one_line(straight: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(straight / "out", tmp_path / "out"))
    (root / "left_00" / "right" / "000002.png").unlink()
    with pytest.raises(InputError, match="right: has 8 images for 9 of the left camera"):
        build_dataset(make_config(root), "train")
    record = root / "left_00" / "clip.json"
    write_json(record, json.loads(record.read_text()) | {"baseline": "wide"})
    with pytest.raises(InputError, match=r"clip\.json: baseline should be a number of metres"):
        build_dataset(make_config(root), "train")
    write_json(record, json.loads(record.read_text()) | {"baseline": 540})
    (root / "left_00" / "right" / "000002.png").write_bytes((root / "left_00" / "right" / "000001.png").read_bytes())
    config = make_config(root)
    config.model.metres_per_unit = 30.0
    dataset = build_dataset(config, "train")
    with pytest.raises(InputError, match="is it in millimetres"):
        check_baselines(str(root), dataset.stereo_poses)


def test_training_in_metres_from_prepared_pairs(straight: Path, tmp_path: Path) -> None:
    import train

    options = [f"data.root={straight / 'out'}", f"run.directory={tmp_path / 'run'}", "data.frames=[0,-1,1,s]"]
    options += ["model.metres_per_unit=30", "model.intrinsics=given", "data.field_of_view=null", "train.max_steps=2"]
    options += ["data.workers=0", "data.height=64", "data.width=96", "model.decoder_width=16", "model.pretrained=false"]
    options += ["train.batch_size=1", "train.log_every=1", "train.panel_samples=1", "schedule.warmup_steps=1"]
    told = succeeded(call_program(train.main, "--config", REPOSITORY / "configs" / "video.yaml", *options))
    assert "metres (stereo baseline)" in told.out
    losses = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite([line["loss"] for line in losses]).all()


def test_interrupted_it_ends_with_the_same_bytes(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = preparation.write_frame, []

    def failing(path: Path, pixels: np.ndarray) -> None:
        written.append(path)
        if len(written) == 8:
            path.write_bytes(b"half a picture")
            raise KeyboardInterrupt
        write(path, pixels)

    options = ("--intrinsics", straight / "k.yaml", "--baseline", "0.54", "--out", tmp_path / "out")
    monkeypatch.setattr(preparation, "write_frame", failing)
    assert prepare(straight, *options).code == 130
    with pytest.raises(InputError, match="not finished"):
        build_dataset(make_config(tmp_path / "out"), "train")
    monkeypatch.setattr(preparation, "write_frame", write)
    succeeded(prepare(straight, *options))
    found, whole = (
        {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
        for out in (tmp_path / "out", straight / "out")
    )
    assert found == whole
    assert "already prepared" in succeeded(prepare(straight, *options)).out
    assert "other options" in prepare(straight, *options, "--offset", "0").error_line()


def panorama(frames: int, seed: int = 0) -> list[np.ndarray]:
    """Small pictures of a camera that turns back and forth at random."""
    random = np.random.default_rng(seed)
    scene = random.integers(0, 255, (6, 60, 3), np.uint8)
    scene = np.array(Image.fromarray(scene).resize((600, 48), Image.Resampling.BICUBIC))
    places = (random.random(frames) * 400).astype(int)
    return [scene[:, place : place + 72] for place in places]


def shown(folder: Path, left: Sequence[np.ndarray], right: Sequence[np.ndarray], names: tuple[str, str]) -> Sides:
    """Both folders, their images in files of such names."""
    return Sides(write_images(folder / "l", left, names[0]), write_images(folder / "r", right, names[1]))


def partners(sides: Sides, offset: int | None = None) -> list[float | None]:
    """Grey levels (the mean of the first pixel) of each left picture's partner."""
    pairs = list(pair(sides, offset).pictures())
    return [None if right is None else float(right.pixels[0, 0].mean()) for _, right in pairs]


def test_images_are_paired_by_numbers_and_times_in_their_names(tmp_path: Path) -> None:
    grey = [np.full((8, 8, 3), 10 * level, np.uint8) for level in range(6)]
    numbers = shown(tmp_path / "numbers", grey[:5], grey[:5], ("cam2_{}.png", "cam3_{}_x.png"))
    (numbers.right / "cam3_2_x.png").unlink()
    assert partners(numbers) == [0, 10, None, 30, 40]
    times = Sides(tmp_path / "times_l", tmp_path / "times_r")
    for folder, late in ((times.left, 0), (times.right, 3)):  # milliseconds
        folder.mkdir()
        for index in (0, 1, 2, 3) if late else (1, 2, 3, 4):
            Image.fromarray(grey[index]).save(folder / f"{1400000000000 + 50 * index + late}.png")
    assert partners(times) == [10, 20, 30, None]
    assert "times in their names" in pair(times, None).describe()
    order = shown(tmp_path / "order", grey[:3], grey[1:4], ("a{}.png", "b{}.png"))
    assert partners(order, 1) == [20, 30, None] and partners(order, -1) == [None, 10, 20]
    for path in order.right.iterdir():
        path.rename(path.with_stem(f"{path.stem}7"))
    (order.right / "b27.png").unlink()
    with pytest.raises(InputError, match=r"has 3 images, .* 2, and no numbers in their names tell .*--offset"):
        pair(order, None)


def test_a_lag_is_seen_from_how_pictures_change(tmp_path: Path) -> None:
    scene = panorama(30)
    order = shown(tmp_path / "order", scene[:26], scene[4:], ("{}.png", "{}.png"))
    for path in sorted(order.right.iterdir(), reverse=True):
        path.rename(path.with_stem(f"{int(path.stem) + 1000}"))
    pairing = pair(order, None)
    assert pairing.lag == -4 and pairing.describe().endswith("left frame 4 with right frame 0")
    assert sum(right is not None for _, right in pairing.pictures()) == 22
    numbers = shown(tmp_path / "numbers", scene[:26], scene[4:], ("{}.png", "{}.png"))
    with pytest.raises(InputError, match=r"taken 4 frames later, judging by how both change; give --offset -4, or"):
        pair(numbers, None)
    assert pair(numbers, 0).lag == 0
    other = shown(tmp_path / "other", scene[:26], panorama(26, 1), ("{}.png", "{}.png"))
    assert pair(other, None).lag == 0  # nothing tells


@pytest.mark.skipif(importlib.util.find_spec("av") is None, reason="PyAV is not installed")
def test_films_are_paired_by_a_time_offset(tmp_path: Path) -> None:
    import av

    def write(name: str, frames: Sequence[np.ndarray], rate: int) -> Path:
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream("libx264", rate=rate, options={"crf": "10"})
            stream.height, stream.width, stream.pix_fmt = 48, 72, "yuv420p"
            for frame in frames:
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                container.mux(stream.encode(picture))
            container.mux(stream.encode())
        return tmp_path / name

    scene = panorama(30)
    left, right = write("l.mp4", scene[3:], 10), write("r.mp4", scene[:27], 10)
    pairing = pair(Sides(left, right), None)
    assert pairing.lag == pytest.approx(0.3) and "left frame 0 with right frame 3 (+0.300 s)" in pairing.describe()
    with pytest.raises(InputError, match=r"have 10\.00 and 25\.00 frames a second; convert"):
        pair(Sides(left, write("fast.mp4", scene, 25)), None)
    with pytest.raises(InputError, match="one is a folder and the other a film"):
        pair(Sides(left, tmp_path), None)


KALIBR = """
cam0: {{camera_model: pinhole, intrinsics: [90, 90, 71.5, 47.5], distortion_model: radtan,
  distortion_coeffs: [0, 0, 0, 0], resolution: [144, 96]}}
cam1: {{camera_model: pinhole, intrinsics: [91, 91, 70.5, 47.5], distortion_model: radtan,
  distortion_coeffs: [0, 0, 0, 0], resolution: [144, 96], T_cn_cnm1: {}}}
"""


def test_poses_of_the_right_camera_in_calibrations(tmp_path: Path) -> None:
    pose = street().right_from_left.copy()
    pose[:3] = rotation() @ pose[:3]
    size = (HEIGHT, WIDTH)
    (tmp_path / "camchain.yaml").write_text(KALIBR.format(pose.tolist()))
    chain = tmp_path / "camchain.yaml"
    found = read_pair([str(chain)], None, size)
    np.testing.assert_allclose(found.right_from_left, pose, atol=1e-12)
    assert [lens.intrinsics[0, 0] for lens in found.lenses] == [90, 91]
    swapped = read_pair([f"{chain}#cam1", f"{chain}#cam0"], None, size)
    np.testing.assert_allclose(swapped.right_from_left, np.linalg.inv(pose), atol=1e-12)
    k = str(write_calibration(tmp_path / "k.yaml"))
    assert read_pair([k], None, size).right_from_left is None
    (tmp_path / "pose.txt").write_text("\n".join(" ".join(map(str, row)) for row in pose))
    np.testing.assert_allclose(read_pair([k, k], str(tmp_path / "pose.txt"), size).right_from_left, pose, atol=1e-12)
    mounts = [np.linalg.inv(pose), np.eye(4)]
    for name, mount in zip(("a", "b"), mounts, strict=True):
        text = Path(k).read_text() + f"T_BS: {{rows: 4, cols: 4, data: {np.ravel(mount).tolist()}}}\n"
        (tmp_path / f"{name}.yaml").write_text(text)
    found = read_pair([str(tmp_path / "b.yaml"), str(tmp_path / "a.yaml")], None, size)
    np.testing.assert_allclose(found.right_from_left, pose, atol=1e-12)
    (tmp_path / "bad.yaml").write_text(KALIBR.format((2 * pose).tolist()))
    with pytest.raises(InputError, match=r"cam1: T_cn_cnm1: is no rigid transform"):
        read_pair([str(tmp_path / "bad.yaml")], None, size)
    with pytest.raises(InputError, match=r"k\.yaml: no pose of a right camera"):
        read_pair([k], k, size)


def test_what_is_no_pair_ends_in_one_line(straight: Path, tmp_path: Path) -> None:
    options = ("--intrinsics", straight / "k.yaml", "--out", tmp_path / "out")
    metres = ("--baseline", "0.54")
    assert "--baseline: is needed, in metres" in prepare(straight, *options).error_line()
    assert "--intrinsics: metres need" in prepare(straight, *metres, "--out", tmp_path / "out").error_line()
    assert "no such video file or folder" in prepare(straight, *options, *metres, sides=("left", "no")).error_line()
    told = prepare(straight, *options, *metres, sides=("left", "left")).error_line()
    assert "0% of the points that are shifted are farther left" in told
    write_images(tmp_path / "left", [image[:64] for image in street().images[:4]])
    write_images(tmp_path / "right", street().right_images[:4])
    assert "pictures of 144 x 64 and 144 x 96 pixels" in prepare(tmp_path, *options, *metres).error_line()
    noise = np.random.default_rng(0).integers(0, 255, (3, HEIGHT, WIDTH, 3), np.uint8)
    write_images(tmp_path / "noise", list(noise))
    told = prepare(tmp_path, *options, *metres, sides=("noise", "right")).error_line()
    assert "points in common" in told and "one scene" in told


@pytest.mark.long
@pytest.mark.skipif(not KITTI.is_dir(), reason="the excerpt of KITTI is not here")
def test_a_real_pair_of_kitti(tmp_path: Path) -> None:
    images = KITTI / "2011_10_03_drive_0034_sync"
    known = ("--intrinsics", f"{KITTI / 'calib_cam_to_cam.txt'}#02", "--out", tmp_path / "out")
    sides = ("image_02/data", "image_03/data")
    assert "millimetres" in prepare(images, *known, "--baseline", "540", sides=sides).error_line()
    assert "swapped" in prepare(images, *known, "--baseline", "0.54", sides=sides[::-1]).error_line()
    succeeded(prepare(images, *known, "--baseline", "0.54", sides=sides))
    (prepared,) = json.loads((tmp_path / "out" / "summary.json").read_text())["prepared"]
    assert prepared["rectified"] == "nothing to do" and prepared["rows"] < 0.3 and prepared["verdicts"]["kept"] == 5
