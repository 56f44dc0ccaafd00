"""Camera poses of a drive of KITTI raw, from what its inertial unit measured.

Latitude and longitude become metres through a Mercator projection that is scaled at the first packet: x east, y north,
z up. A packet is the nearest of a hundred a second to its picture, so poses are interpolated in time, without which
single steps would be wrong by up to 10 %. Positions still jump by centimetres where the satellites' reception changes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from featdepth.data.kitti.calibration import Calibration, parse_rotation, parse_row, read_rows
from featdepth.data.kitti.oxts import NUMBERS
from featdepth.data.listing import read_numbers
from featdepth.odometry.interpolate import interpolate_poses
from featdepth.odometry.rotations import quaternions_from_rotations

EARTH_RADIUS = 6378137.0  # metres, as the raw development kit has it
REACH = 0.1  # seconds from a picture to the nearest packet, of which there are ten a second


def camera_poses(
    times: np.ndarray, packet_times: np.ndarray, packets: Mapping[int, str], calibration: Calibration
) -> dict[int, np.ndarray]:
    """world_from_camera 4x4 (metres) of the left colour camera, by frame; none where no packet is near.

    times: of the pictures `[N]`, packet_times: of the packets, by frame (seconds, NaN: unknown); packets: their files
    by frame. Raises InputError for a bad packet or calibration.
    """
    frames = [frame for frame in packets if frame < len(packet_times) and np.isfinite(packet_times[frame])]
    if not frames:
        return {}
    imu_poses = world_from_imu(np.concatenate([read_numbers(packets[frame], NUMBERS, "a packet") for frame in frames]))
    quaternions = quaternions_from_rotations(imu_poses[:, :3, :3])
    found = interpolate_poses(packet_times[frames], imu_poses[:, :3, 3], quaternions, times, REACH)
    imu_from_camera = np.linalg.inv(camera_from_imu(calibration))
    return {frame: pose @ imu_from_camera for frame, pose in found.items()}


def world_from_imu(packets: np.ndarray) -> np.ndarray:
    """Poses `[N, 4, 4]` of the inertial unit of its `packets` `[N, 30]`: latitude, longitude, altitude, angles, ..."""
    latitude, longitude = np.radians(packets[:, :2]).T
    scale = EARTH_RADIUS * np.cos(latitude[0])
    poses = np.tile(np.eye(4), (len(packets), 1, 1))
    poses[:, 0, 3] = scale * (longitude - longitude[0])
    mercator = np.log(np.tan(np.pi / 4 + latitude / 2))
    poses[:, 1, 3] = scale * (mercator - mercator[0])
    poses[:, 2, 3] = packets[:, 2] - packets[0, 2]
    roll, pitch, yaw = packets[:, 3:6].T
    poses[:, :3, :3] = turns(yaw, 0, 1) @ turns(pitch, 2, 0) @ turns(roll, 1, 2)
    return poses


def turns(angles: np.ndarray, first: int, second: int) -> np.ndarray:
    """Rotations `[N, 3, 3]` by `angles` (radians) from the axis `first` towards the axis `second`."""
    result = np.tile(np.eye(3), (len(angles), 1, 1))
    result[:, first, first] = result[:, second, second] = np.cos(angles)
    result[:, second, first] = np.sin(angles)
    result[:, first, second] = -np.sin(angles)
    return result


def camera_from_imu(calibration: Calibration) -> np.ndarray:
    """4x4 (metres) of the rectified left colour camera. Raises InputError for a bad or missing file."""
    path = calibration.camera_path.with_name("calib_imu_to_velo.txt")
    rows = read_rows(path)
    result = np.eye(4)
    for where, values in ((path, rows), (calibration.scanner_path, calibration.scanner_rows)):
        step = np.eye(4)
        step[:3, :3] = parse_rotation(where, values, "R")
        step[:3, 3] = parse_row(where, values, "T", 3)
        result = step @ result
    rectified = np.eye(4)
    rectified[:3, :3] = parse_rotation(calibration.camera_path, calibration.camera_rows, "R_rect_00")
    left_from_zero = np.eye(4)
    left_from_zero[:3, 3] = calibration.position("l")
    return left_from_zero @ rectified @ result
