"""KITTI's text formats for the synthetic street: calibration, inertial measurements, time stamps.

Calibration files count pixels from 1, so they get cx + 1 and cy + 1 of
intrinsics whose pixel centres are integers from 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np

from featdepth.data.kitti.oxts_poses import EARTH_RADIUS
from featdepth.data.street.scene import rotation

INTERVAL = 0.1  # seconds between frames
CAMERA_X = (0.0, -0.54, 0.06, -0.48)  # x of camera 0's origin seen from each camera: 2 and 3 are 0.54 m apart
# Days on which KITTI recorded nothing, so that no drive here is taken for one of its drives.
DATES = ("2031_09_26", "2031_09_28", "2031_09_30")
LENSES = ((0.581, 0.491, 0.461), (0.566, 0.506, 0.489), (0.598, 0.497, 0.475))  # focal / W, cx / W, cy / H by date
# Small mounting angles by date (roll, pitch, yaw; radians) of scanner, rectification and inertial unit.
MOUNTS = (
    ((0.004, -0.003, 0.002), (0.003, 0.004, -0.002), (-0.005, 0.002, 0.001)),
    ((-0.003, 0.002, 0.003), (-0.002, 0.003, 0.004), (0.004, -0.003, -0.002)),
    ((0.002, 0.004, -0.003), (0.004, -0.002, 0.003), (0.003, 0.004, 0.002)),
)
OXTS_FIELDS = """lat:   latitude of the inertial unit (deg)
lon:   longitude of the inertial unit (deg)
alt:   altitude of the inertial unit (m)
roll:  roll angle (rad), positive = left side up
pitch: pitch angle (rad), positive = front down
yaw:   heading (rad), 0 = east, positive = counter clockwise
vn:    velocity towards north (m/s)
ve:    velocity towards east (m/s)
vf:    forward velocity, parallel to the ground (m/s)
vl:    leftward velocity, parallel to the ground (m/s)
vu:    upward velocity (m/s)
ax:    acceleration in x, the vehicle's front, with gravity (m/s^2)
ay:    acceleration in y, the vehicle's left (m/s^2)
az:    acceleration in z, the vehicle's top (m/s^2)
af:    forward acceleration (m/s^2)
al:    leftward acceleration (m/s^2)
au:    upward acceleration (m/s^2)
wx:    angular rate around x (rad/s)
wy:    angular rate around y (rad/s)
wz:    angular rate around z (rad/s)
wf:    angular rate around the forward axis (rad/s)
wl:    angular rate around the leftward axis (rad/s)
wu:    angular rate around the upward axis (rad/s)
pos_accuracy:  accuracy of the position (m)
vel_accuracy:  accuracy of the velocity (m/s)
navstat:       navigation status
numsats:       number of satellites
posmode:       position mode
velmode:       velocity mode
orimode:       orientation mode
"""


@dataclass
class Rig:
    """The cameras, scanner and inertial unit of one recording date; frames as in KITTI."""

    height: int
    width: int
    intrinsics: np.ndarray  # [3, 3], pixel centres at integers from 0; the same for all cameras
    rectification: np.ndarray  # [4, 4] rectified from unrectified camera 0
    camera_from_scanner: np.ndarray  # [4, 4] unrectified camera 0
    scanner_from_imu: np.ndarray  # [4, 4]

    @staticmethod
    def of(date: str, height: int, width: int) -> Rig:
        """The rig of one of DATES with images of height x width.

        The scanner is 0.08 m above the cameras and not before or behind them, so that its forward distance, which
        the field takes for depth, is the depth.
        """
        focal, cx, cy = LENSES[DATES.index(date)]
        intrinsics = np.array([[focal * width, 0, cx * width], [0, focal * width, cy * height], [0, 0, 1]])
        scanner, rectification, imu = (rotation(*angles) for angles in MOUNTS[DATES.index(date)])
        axes = np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])  # camera x right, y down, z forward
        return Rig(
            height,
            width,
            intrinsics,
            rigid(rectification, (0, 0, 0)),
            rigid(axes @ scanner, (-0.004, -0.08, 0.0)),
            rigid(imu, (-0.81, 0.32, -0.80)),
        )

    def scanner_pose(self, imu_pose: np.ndarray) -> np.ndarray:
        """world_from_scanner [4, 4] where `imu_pose` is world_from_imu."""
        return imu_pose @ np.linalg.inv(self.scanner_from_imu)

    def camera_pose(self, imu_pose: np.ndarray, camera: int) -> np.ndarray:
        """world_from_camera [4, 4] of a rectified camera (0..3) where `imu_pose` is world_from_imu."""
        shift = rigid(np.eye(3), (CAMERA_X[camera], 0, 0))
        return self.scanner_pose(imu_pose) @ np.linalg.inv(shift @ self.rectification @ self.camera_from_scanner)

    def files(self) -> dict[str, str]:
        """The three calibration files by name."""
        return {
            "calib_cam_to_cam.txt": self.camera_file(),
            "calib_velo_to_cam.txt": transform_file(self.camera_from_scanner) + "delta_f: 0 0\ndelta_c: 0 0\n",
            "calib_imu_to_velo.txt": transform_file(self.scanner_from_imu),
        }

    def camera_file(self) -> str:
        """Four ideal cameras: no distortion, and a rectification that turns all of them alike."""
        counted_from_one = np.add(self.intrinsics, [[0, 0, 1], [0, 0, 1], [0, 0, 0]])
        turn, size = self.rectification[:3, :3], (self.width, self.height)
        lines = ["calib_time: 01-Jan-2012 00:00:00", "corner_dist: 9.950000e-02"]
        for camera, x in enumerate(CAMERA_X):
            shift = np.array([x, 0, 0])
            projection = np.column_stack([counted_from_one, counted_from_one @ shift])
            rows = (
                ("S", size), ("K", counted_from_one), ("D", np.zeros(5)), ("R", np.eye(3)), ("T", turn.T @ shift),
                ("S_rect", size), ("R_rect", turn), ("P_rect", projection),
            )  # fmt: skip
            lines += [f"{name}_{camera:02}: {numbers(values)}" for name, values in rows]
        return "\n".join(lines) + "\n"


def rigid(turn: np.ndarray, shift: tuple[float, float, float]) -> np.ndarray:
    """The 4x4 matrix of a rotation [3, 3] and a translation [3]."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turn, shift
    return matrix


def numbers(values: np.ndarray | tuple[float, ...]) -> str:
    """Values as KITTI's calibration files write them."""
    return " ".join(f"{value:.6e}" for value in np.ravel(values))


def transform_file(matrix: np.ndarray) -> str:
    """A calibration file with rotation R and translation T."""
    return f"calib_time: 01-Jan-2012 00:00:00\nR: {numbers(matrix[:3, :3])}\nT: {numbers(matrix[:3, 3])}\n"


def oxts_line(pose: Callable[[float], np.ndarray], time: float) -> str:
    """The 30 measurements of the inertial unit at `time`; `pose(time)` is world_from_imu [4, 4], x east, y north."""
    first, now = pose(0.0)[:3, 3], pose(time)
    east, north, up = now[:3, 3] - first
    latitude, longitude = 49.0, 8.4  # of the first frame; KITTI's Mercator projection is scaled by the cosine there
    scale = np.cos(np.radians(latitude)) * EARTH_RADIUS
    mercator = np.log(np.tan(np.radians(90 + latitude) / 2)) + north / scale
    latitude, longitude = 2 * np.degrees(np.arctan(np.exp(mercator))) - 90, longitude + np.degrees(east / scale)
    turn = now[:3, :3]
    yaw, pitch = np.arctan2(turn[1, 0], turn[0, 0]), -np.arcsin(turn[2, 0])
    roll = np.arctan2(turn[2, 1], turn[2, 2])
    level = rotation(0, 0, yaw)
    step = 0.05
    velocity = (pose(time + step) - pose(time - step))[:3, 3] / (2 * step)
    spin = (pose(time + step) - pose(time - step))[:3, :3] @ turn.T / (2 * step)
    spin = np.array([spin[2, 1] - spin[1, 2], spin[0, 2] - spin[2, 0], spin[1, 0] - spin[0, 1]]) / 2
    wide = 0.25  # a second derivative needs a longer step
    force = (pose(time + wide) - 2 * now + pose(time - wide))[:3, 3] / wide**2 + [0, 0, 9.81]
    vf, vl, vu = level.T @ velocity
    values = (latitude, longitude, 112 + pose(0.0)[2, 3] + up, roll, pitch, yaw, velocity[1], velocity[0], vf, vl, vu)
    values = (*values, *(turn.T @ force), *(level.T @ force), *(turn.T @ spin), *(level.T @ spin), 0.01, 0.01)
    return " ".join([*(f"{value:.12f}" for value in values), "4", "10", "4", "4", "0"]) + "\n"


def timestamps(drive: int, date: str, frames: int) -> str:
    """The lines of a timestamps.txt, nanoseconds; all sensors see each frame at one instant."""
    start = datetime.strptime(date, "%Y_%m_%d") + timedelta(hours=9, minutes=drive)
    times = (start + timedelta(seconds=INTERVAL * frame) for frame in range(frames))
    return "".join(f"{time:%Y-%m-%d %H:%M:%S.%f}000\n" for time in times)
