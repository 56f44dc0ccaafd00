"""LiDAR depth maps by the field's conventions, scans that are damaged, the cache, improved ground truth."""

from __future__ import annotations

import os
import time
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path

import numpy as np
import pytest
from conftest import warm_context
from kitti_tree import DAY, FOCAL, SIZE, drive_name, write_calibration, write_drive
from safetensors.numpy import save_file

from featdepth.config import Data
from featdepth.data.kitti import ground_truth
from featdepth.data.kitti.calibration import Calibration
from featdepth.data.kitti.ground_truth import cached_lidar_depth, lidar_depth, read_scan, writable_cache_folder
from featdepth.data.motion_record import MotionRecord
from featdepth.errors import InputError

SHARED = Path(os.environ.get("FEATDEPTH_SHARED", Path(__file__).parents[2] / "shared"))


def write_points(path: Path, points: list[tuple[float, float, float]]) -> Path:
    np.array([(*point, 0.5) for point in points], dtype="<f4").tofile(path)
    return path


@pytest.fixture
def calibration(tmp_path):
    write_calibration(tmp_path)
    return Calibration(tmp_path / DAY)


@pytest.mark.skipif(not (SHARED / "kitti_mini").is_dir(), reason="the KITTI excerpt is not here")
@pytest.mark.parametrize("frame", [95, 100, 110])
def test_lidar_depth_is_the_reference(frame):
    reference = np.load(SHARED / "reference" / "kitti_lidar_depth.npz", allow_pickle=False)
    expected = np.zeros(reference[f"shape/{frame}"], dtype=np.float32)
    expected.ravel()[reference[f"index/{frame}"]] = reference[f"depth/{frame}"]
    root = SHARED / "kitti_mini" / "kitti_raw" / DAY
    scan = root / f"{DAY}_drive_0013_sync" / "velodyne_points" / "data" / f"{frame:010d}.bin"
    depth = lidar_depth(scan, Calibration(root), "l")
    wrong = ((depth > 0) != (expected > 0)) | (np.abs(depth - expected) > 1e-4)
    assert depth.dtype == np.float32 and wrong.sum() <= 0.001 * (expected > 0).sum()


def test_points_land_where_the_camera_sees_them(tmp_path, calibration):
    # Camera 2 sees a point at (X + 0.06, Y, Z): with pixels from 0, u = FOCAL * (X + 0.06) / Z + (w - 1) / 2.
    height, width = SIZE
    points = [(10.0, -2.47, 0.05), (20.0, -0.04, -1.5), (-10.0, 0.0, 0.0)]
    depth = lidar_depth(write_points(tmp_path / "scan.bin", points), calibration, "l")
    expected = np.zeros(SIZE, dtype=np.float32)
    for x, y, z in points[:2]:
        column = round(FOCAL * (-y + 0.06) / x + (width + 1) / 2) - 1
        row = round(-FOCAL * z / x + (height + 1) / 2) - 1
        expected[row, column] = x
    assert (depth == expected).all() and (depth > 0).sum() == 2


def test_the_nearest_point_wins_and_its_forward_distance_is_the_value(tmp_path, calibration):
    points = [(20.0, 0.0, 0.1), (10.0, 0.0, 0.1), (30.0, 0.0, 0.1)]
    for order in (points, points[::-1]):
        depth = lidar_depth(write_points(tmp_path / "scan.bin", order), calibration, "r")
        assert depth.max() == 30 and depth[depth > 0].min() == 10
    far = [(40.0, 0.0, 0.1), (40.001, 0.0, 0.1)]
    depth = lidar_depth(write_points(tmp_path / "scan.bin", far), calibration, "l")
    assert depth[depth > 0].tolist() == [40.0]


def test_the_right_camera_sees_points_further_left(tmp_path, calibration):
    scan = write_points(tmp_path / "scan.bin", [(10.0, 0.0, 0.1)])
    left, right = (np.argwhere(lidar_depth(scan, calibration, side))[0] for side in "lr")
    assert left[0] == right[0] and left[1] - right[1] == FOCAL * 0.5 / 10


def test_an_empty_scan_and_points_that_are_not_numbers_give_no_depth(tmp_path, calibration):
    (tmp_path / "empty.bin").write_bytes(b"")
    assert not lidar_depth(tmp_path / "empty.bin", calibration, "l").any()
    scan = write_points(tmp_path / "scan.bin", [(np.nan, 0, 0), (np.inf, 0, 0), (0, 0, 0), (5, np.nan, 0)])
    assert not lidar_depth(scan, calibration, "l").any()


def test_a_scan_cut_in_mid_point_is_refused(tmp_path, calibration):
    path = tmp_path / "scan.bin"
    path.write_bytes(b"\0" * (16 * 3 + 5))
    with pytest.raises(InputError, match=r"scan.bin: 53 bytes .* cut after 3 points"):
        lidar_depth(path, calibration, "l")


def test_missing_and_huge_scans_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"absent.bin: the scan cannot be read"):
        read_scan(tmp_path / "absent.bin")
    with (tmp_path / "huge.bin").open("wb") as file:
        file.truncate(65 << 20)  # sparse: takes no space
    with pytest.raises(InputError, match=r"too many for the scan"):
        read_scan(tmp_path / "huge.bin")


@pytest.mark.parametrize("name", ["calib_cam_to_cam.txt", "calib_velo_to_cam.txt"])
def test_a_missing_calibration_file_is_refused_by_name(tmp_path, calibration, name):
    scan = write_points(tmp_path / "scan.bin", [(10.0, 0.0, 0.0)])
    (tmp_path / DAY / name).unlink()
    with pytest.raises(InputError, match=rf"{name}: the calibration cannot be read"):
        lidar_depth(scan, Calibration(tmp_path / DAY), "l")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("", "row P_rect_02 is missing"),
        ("P_rect_02: 1 2 3", "should have 12 numbers"),
        ("P_rect_02: x" + 11 * " 0", "12"),
    ],
)
def test_a_missing_or_malformed_row_is_refused_only_when_needed(tmp_path, row, message):
    write_calibration(tmp_path)
    path = tmp_path / DAY / "calib_cam_to_cam.txt"
    lines = [line for line in path.read_text().splitlines() if not line.startswith("P_rect_02")]
    path.write_text("\n".join([*lines, row]))
    calibration = Calibration(tmp_path / DAY)
    assert calibration.intrinsics("r")[0, 0] == FOCAL
    with pytest.raises(InputError, match=message):
        calibration.intrinsics("l")


@pytest.fixture
def drive_scan(tmp_path):
    write_drive(tmp_path, drive_name(1), [3], sides="", scans=True)
    return tmp_path / drive_name(1) / "velodyne_points" / "data" / "0000000003.bin"


def cache_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "lock")


def test_the_cache_answers_without_computing_and_follows_changes(tmp_path, calibration, drive_scan, monkeypatch):
    folder = tmp_path / "cache"
    first = cached_lidar_depth(drive_scan, calibration, "l", folder)
    assert (first == lidar_depth(drive_scan, calibration, "l")).all() and first.any()
    with monkeypatch.context() as patch:
        patch.setattr(ground_truth, "lidar_depth", lambda *_: pytest.fail("computed again"))
        assert (cached_lidar_depth(drive_scan, calibration, "l", folder) == first).all()
    assert len(cache_files(folder)) == 1
    assert (cached_lidar_depth(drive_scan, calibration, "r", folder) == lidar_depth(drive_scan, calibration, "r")).all()
    write_points(drive_scan, [(10.0, 0.0, 0.0)])
    assert (cached_lidar_depth(drive_scan, calibration, "l", folder) > 0).sum() == 1


def write_map(path: Path, index: list[int], depth: list[float]) -> None:
    """A cache file with a right checksum, whatever is in it."""
    arrays = {"index": np.array(index, dtype=np.int32), "depth": np.array(depth, dtype=np.float32)}
    check = np.array([ground_truth.checksum(arrays["index"], arrays["depth"])], dtype=np.uint32)
    save_file({**arrays, "check": check}, path)


@pytest.mark.parametrize("damage", [b"", b"\x08\0\0\0\0\0\0\0not JSON", "cut", "flip", "other", "nan"])
def test_a_damaged_cache_file_is_made_anew(tmp_path, calibration, drive_scan, damage):
    folder = tmp_path / "cache"
    first = cached_lidar_depth(drive_scan, calibration, "l", folder)
    (path,) = cache_files(folder)
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "flip":
        middle = len(whole) // 2
        path.write_bytes(
            whole[:middle] + bytes(byte ^ 255 for byte in whole[middle : middle + 40]) + whole[middle + 40 :]
        )
    elif damage == "other":
        write_map(path, [10**7], [1.0])
    elif damage == "nan":
        write_map(path, [5], [np.nan])
    else:
        path.write_bytes(damage)
    assert (cached_lidar_depth(drive_scan, calibration, "l", folder) == first).all()
    assert path.read_bytes() == whole and cache_files(folder) == [path]


def test_a_cache_that_cannot_be_written_to_is_refused_when_chosen_and_left_out_by_default(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"data.ground_truth_cache: .* cannot be written to"):
        writable_cache_folder(str(tmp_path / "file" / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert writable_cache_folder(None) is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert writable_cache_folder(None) == tmp_path / "home" / "featdepth" / "ground_truth"


def test_a_user_without_a_home_has_no_cache_unless_one_is_chosen(tmp_path, monkeypatch):
    """As in a container that runs under a number which the system has no name for."""
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    assert writable_cache_folder(None) is None
    assert writable_cache_folder(str(tmp_path / "chosen")) == tmp_path / "chosen"
    with pytest.raises(InputError, match=r"data.cache: is not set, and this user has no home"):
        MotionRecord(Data(root=str(tmp_path)))


def test_a_full_disk_ends_in_one_line_and_leaves_nothing_behind(tmp_path, calibration, drive_scan, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ground_truth.os, "replace", full)
    with pytest.raises(InputError, match=r"cannot be written: No space left on device"):
        cached_lidar_depth(drive_scan, calibration, "l", tmp_path / "cache")
    assert cache_files(tmp_path / "cache") == []


# Several processes at one cache

PATIENCE = 60  # seconds


def build(scan: Path, day: Path, folder: Path, log: Path, meet: Barrier, inside: bool) -> None:
    """Ask for a map at the same moment as others, noting in `log` if it is computed here.

    inside: meet the others while computing, instead of before.
    """

    def noted(*arguments: object) -> np.ndarray:
        with log.open("a") as file:
            file.write(f"{scan.name}\n")
        if inside:
            meet.wait(PATIENCE)
        time.sleep(0.3)  # long enough for the others to ask too
        return lidar_depth(*arguments)

    ground_truth.lidar_depth = noted
    if not inside:
        meet.wait(PATIENCE)
    depth = cached_lidar_depth(scan, Calibration(day), "l", folder)
    assert np.array_equal(depth, lidar_depth(scan, Calibration(day), "l"))


def build_and_hang(scan: Path, day: Path, folder: Path, reached: Event) -> None:
    """Compute and write a map, but never finish it."""

    def hang(*_: object) -> None:
        reached.set()
        time.sleep(PATIENCE)

    ground_truth.os.replace = hang
    cached_lidar_depth(scan, Calibration(day), "l", folder)


def test_one_of_several_processes_computes_a_map_and_the_others_wait(tmp_path, calibration, drive_scan):
    warm, log = warm_context(), tmp_path / "log"
    meet = warm.Barrier(3)
    arguments = (drive_scan, tmp_path / DAY, tmp_path / "cache", log, meet, False)
    processes = [warm.Process(target=build, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(2 * PATIENCE)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert log.read_text().splitlines() == [drive_scan.name]
    assert len(cache_files(tmp_path / "cache")) == 1


def test_different_maps_are_computed_at_the_same_time(tmp_path, calibration):
    write_drive(tmp_path, drive_name(1), list(range(8)), sides="", scans=True)
    projection = calibration.projection_of_scan("l")
    scans = {
        ground_truth.cache_path(tmp_path / "cache", scan, projection, SIZE).parent: scan
        for scan in sorted((tmp_path / drive_name(1)).rglob("*.bin"))
    }
    warm, log = warm_context(), tmp_path / "log"
    meet = warm.Barrier(2)
    processes = [
        warm.Process(target=build, args=(scan, tmp_path / DAY, tmp_path / "cache", log, meet, True))
        for scan in list(scans.values())[:2]
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(2 * PATIENCE)
    assert [process.exitcode for process in processes] == [0, 0]


def test_a_killed_process_leaves_neither_lock_nor_litter(tmp_path, calibration, drive_scan):
    warm, folder = warm_context(), tmp_path / "cache"
    reached = warm.Event()
    process = warm.Process(target=build_and_hang, args=(drive_scan, tmp_path / DAY, folder, reached))
    process.start()
    assert reached.wait(PATIENCE)
    assert [path.suffix for path in cache_files(folder)] == [".writing"]
    process.kill()
    process.join()
    depth = cached_lidar_depth(drive_scan, calibration, "l", folder)
    assert np.array_equal(depth, lidar_depth(drive_scan, calibration, "l"))
    assert [path.suffix for path in cache_files(folder)] == [".safetensors"]
