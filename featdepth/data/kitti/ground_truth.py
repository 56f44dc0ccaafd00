"""Ground-truth depth of KITTI: from the laser scans, as the field makes it, and a cache of the result.

All published numbers on the Eigen split share these conventions: points behind the scanner (x < 0) are dropped, a pixel
is round(u) - 1 since the calibration counts pixels from 1, the nearest point wins, and the value is the scanner's
forward distance x rather than the camera's z.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import zlib
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from featdepth.console import count
from featdepth.data.kitti.calibration import Calibration
from featdepth.errors import InputError
from featdepth.files import locked, read_bytes, read_safetensors, user_cache_folder

POINT_BYTES = 16  # x, y, z, reflectance: float32
LARGEST_SCAN = 64 << 20  # bytes; KITTI's scans have 2 MB
LARGEST_MAP = 2 * LARGEST_SCAN  # bytes of a cache file; a point has 8 of them
VERSION = 2  # of what `lidar_depth` computes and how it is kept: raise it when that changes, and caches are made anew


def read_scan(path: str | Path) -> np.ndarray:
    """The points `[N, 4]` (x forward, y left, z up in metres; reflectance) of a scan.

    Raises InputError for a file that is missing, cut in mid-point or unreasonably large.
    """
    data = read_bytes(path, LARGEST_SCAN, "the scan")
    if len(data) % POINT_BYTES:
        raise InputError(
            f"{path}: {count(len(data), 'byte')} are no whole number of {POINT_BYTES}-byte points, "
            f"the scan is cut after {count(len(data) // POINT_BYTES, 'point')}; download it again"
        )
    return np.frombuffer(data, dtype="<f4").reshape(-1, 4)


def lidar_depth(
    scan_path: str | Path, calibration: Calibration, side: str, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Sparse depth map float32 `[h, w]` (metres, 0 = none) of a scan in the camera on `side` ("l" or "r").

    size: height and width of the map; the camera's own by default. Raises InputError for a bad scan or calibration.
    """
    height, width = size or calibration.size(side)
    points = read_scan(scan_path)
    points = points[points[:, 0] >= 0]
    projection = calibration.projection_of_scan(side)
    # Points may be anything; what is not finite is outside of the image.
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        homogeneous = points[:, :3].astype(np.float64) @ projection[:, :3].T + projection[:, 3]
        column, row = np.round(homogeneous[:, :2] / homogeneous[:, 2:]).T - 1
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    index = row[inside].astype(np.int64) * width + column[inside].astype(np.int64)
    depth = np.full(height * width, np.inf, dtype=np.float32)
    np.minimum.at(depth, index, points[inside, 0])
    depth[np.isinf(depth)] = 0
    return depth.reshape(height, width)


def writable_cache_folder(configured: str | None) -> Path | None:
    """The cache folder, made if need be.

    Raises InputError where the configured one cannot be written to; without one configured the answer is then None,
    and depth maps are computed each time.
    """
    folder = Path(configured) if configured is not None else user_cache_folder("ground_truth")
    if folder is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        if configured is None:
            return None
        raise InputError(f"data.ground_truth_cache: {folder} cannot be written to: {error.strerror}") from error


def cached_lidar_depth(
    scan_path: str | Path, calibration: Calibration, side: str, cache_folder: Path | None
) -> np.ndarray:
    """`lidar_depth` at the camera's own size, kept in `cache_folder` (None: computed each time).

    A cache file's name is a digest of everything the map depends on (the scan's path, size and time of change, the
    calibration), so a changed scan has another file; a damaged one is made anew. Processes may share the folder: one
    of them makes a map and the others wait for it. Raises InputError where the cache cannot be written to.
    """
    if cache_folder is None:
        return lidar_depth(scan_path, calibration, side)
    size = calibration.size(side)
    path = cache_path(cache_folder, scan_path, calibration.projection_of_scan(side), size)
    depth = read_sparse(path, size)
    if depth is not None:
        return depth
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # One lock for the 256th part of all maps: hardly ever in the way, and far fewer files than one for each.
        with locked(path.parent / "lock"):
            depth = read_sparse(path, size)  # another process may have made it meanwhile
            if depth is None:
                depth = lidar_depth(scan_path, calibration, side)
                write_sparse(path, depth)
            return depth
    except OSError as error:
        raise InputError(
            f"{path}: the ground-truth cache cannot be written: {error.strerror}; "
            "free some space or set data.ground_truth_cache to another folder"
        ) from error


def cache_path(folder: Path, scan_path: str | Path, projection: np.ndarray, size: tuple[int, int]) -> Path:
    """The cache file of a scan seen through `projection` 3x4 at `size` (height, width)."""
    try:
        state = os.stat(scan_path)
    except OSError as error:
        raise InputError(f"{scan_path}: the scan cannot be read: {error.strerror}") from error
    key = (VERSION, os.path.abspath(scan_path), state.st_size, state.st_mtime_ns, size, projection.tolist())
    digest = hashlib.sha256(repr(key).encode()).hexdigest()[:32]
    return folder / digest[:2] / f"{digest}.safetensors"


def read_sparse(path: Path, size: tuple[int, int]) -> np.ndarray | None:
    """The depth map float32 `[h, w]` in a cache file, or None where the file is absent, damaged or of another make."""
    try:
        found = load(read_safetensors(path, LARGEST_MAP, "the depth map"))
    except (InputError, SafetensorError, KeyError):  # KeyError: a type of number that numpy does not know
        return None  # it is computed again, which repairs it
    kinds = {name: (values.dtype, values.shape) for name, values in found.items()}
    count = found["index"].size if "index" in found else 0
    if kinds != {"index": (np.int32, (count,)), "depth": (np.float32, (count,)), "check": (np.uint32, (1,))}:
        return None
    index, values = found["index"], found["depth"]
    if found["check"][0] != checksum(index, values) or index.min(initial=0) < 0:
        return None
    depth = np.zeros(size[0] * size[1], dtype=np.float32)
    if index.max(initial=0) >= depth.size or not (np.isfinite(values) & (values > 0)).all():
        return None
    depth[index] = values
    return depth.reshape(size)


def write_sparse(path: Path, depth: np.ndarray) -> None:
    """Keep a depth map `[h, w]` as flat index, depth and their checksum, whole or not at all; raises OSError.

    The caller holds the lock: the temporary file has the same name each time, so that one that a killed process has
    left is replaced.
    """
    index = np.flatnonzero(depth).astype(np.int32)
    values = depth.ravel()[index]
    content = save({"index": index, "depth": values, "check": np.array([checksum(index, values)], dtype=np.uint32)})
    temporary = path.with_suffix(".writing")
    temporary.unlink(missing_ok=True)
    try:
        with temporary.open("xb") as file:
            file.write(content)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def checksum(index: np.ndarray, values: np.ndarray) -> int:
    """Of a sparse map; safetensors files have none."""
    return zlib.crc32(values.tobytes(), zlib.crc32(index.tobytes()))
