"""A sequence of EuRoC as it is downloaded, with its cameras or others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from drive_writer import RenderedDrive, quaternion_of
from PIL import Image

from featdepth.cameras.lenses import Lens

RATE = 20  # images a second
START = 1403636579763555584  # nanoseconds, of MH_01_easy
# As published: cameras, and T_BS of both.
LENSES = (
    Lens(
        "radtan",
        np.array([[458.654, 0, 367.215], [0, 457.296, 248.375], [0, 0, 1]]),
        (-0.28340811, 0.07395907, 0.00019359, 1.76187114e-05),
        (480, 752),
    ),
    Lens(
        "radtan",
        np.array([[457.587, 0, 379.999], [0, 456.134, 255.238], [0, 0, 1]]),
        (-0.28368365, 0.07451284, -0.00010473, -3.55590700e-05),
        (480, 752),
    ),
)
MOUNTS = (
    np.array(
        [
            [0.0148655429818, -0.999880929698, 0.00414029679422, -0.0216401454975],
            [0.999557249008, 0.0149672133247, 0.025715529948, -0.064676986768],
            [-0.0257744366974, 0.00375618835797, 0.999660727178, 0.00981073058949],
            [0.0, 0.0, 0.0, 1.0],
        ]
    ),
    np.array(
        [
            [0.0125552670891, -0.999755099723, 0.0182237714554, -0.0198435579556],
            [0.999598781151, 0.0130119051815, 0.0251588363115, 0.0453689425024],
            [-0.0253898008918, 0.0179005838253, 0.999517347078, 0.00786212447038],
            [0.0, 0.0, 0.0, 1.0],
        ]
    ),
)
TRUTH_HEADER = (
    "#timestamp, p_RS_R_x [m], p_RS_R_y [m], p_RS_R_z [m], q_RS_w [], q_RS_x [], q_RS_y [], q_RS_z [], "
    "v_RS_R_x [m s^-1], v_RS_R_y [m s^-1], v_RS_R_z [m s^-1], b_w_RS_S_x [rad s^-1], b_w_RS_S_y [rad s^-1], "
    "b_w_RS_S_z [rad s^-1], b_a_RS_S_x [m s^-2], b_a_RS_S_y [m s^-2], b_a_RS_S_z [m s^-2]"
)


def write_camera(
    sequence: Path, camera: str, lens: Lens, body_from_camera: np.ndarray, images: dict[int, np.ndarray]
) -> None:
    """cam0 or cam1 with grey images uint8 `[H, W]` by their nanoseconds."""
    folder = sequence / "mav0" / camera
    (folder / "data").mkdir(parents=True)
    fu, fv, cu, cv = lens.intrinsics[[0, 1, 0, 1], [0, 1, 2, 2]].tolist()
    (folder / "sensor.yaml").write_text(
        "# General sensor definitions.\n"
        f"sensor_type: camera\ncomment: VI-Sensor {camera} (MT9M034)\n\n"
        f"# Sensor extrinsics wrt. the body-frame.\n{mount_text(body_from_camera)}\n"
        f"# Camera specific definitions.\nrate_hz: {RATE}\nresolution: [{lens.size[1]}, {lens.size[0]}]\n"
        f"camera_model: pinhole\nintrinsics: [{fu}, {fv}, {cu}, {cv}] #fu, fv, cu, cv\n"
        f"distortion_model: radial-tangential\ndistortion_coefficients: {list(lens.coefficients)}\n"
    )
    (folder / "data.csv").write_bytes(
        "".join(["#timestamp [ns],filename\r\n", *(f"{time},{time}.png\r\n" for time in images)]).encode()
    )
    for time, image in images.items():
        Image.fromarray(image).save(folder / "data" / f"{time}.png", compress_level=1)


def write_truth(sequence: Path, body_from_measured: np.ndarray, poses: dict[int, np.ndarray]) -> None:
    """state_groundtruth_estimate0 with poses world_from_measured 4x4 by their nanoseconds."""
    folder = sequence / "mav0" / "state_groundtruth_estimate0"
    folder.mkdir(parents=True)
    (folder / "sensor.yaml").write_text(f"sensor_type: visual-inertial\n{mount_text(body_from_measured)}\n")
    lines = [TRUTH_HEADER]
    for time, pose in poses.items():
        x, y, z, w = quaternion_of(pose[:3, :3])
        values = [*pose[:3, 3], w, x, y, z, *[0.0] * 9]
        lines.append(",".join([str(time), *(f"{value:.9f}" for value in values)]))
    (folder / "data.csv").write_text("\r\n".join(lines) + "\r\n")


def write_pinhole_sequence(sequence: Path, drive: RenderedDrive) -> None:
    """A rendered drive with its own cameras, which have no distortion and are parallel."""
    times = [START + frame * 10**9 // RATE for frame in range(len(drive.images))]
    lens = Lens("radtan", drive.intrinsics, (0.0, 0.0, 0.0, 0.0), drive.images[0].shape[:2])
    body_from_right = MOUNTS[0] @ np.linalg.inv(drive.right_from_left)
    for camera, images, mount in (("cam0", drive.images, MOUNTS[0]), ("cam1", drive.right_images, body_from_right)):
        write_camera(sequence, camera, lens, mount, dict(zip(times, map(grey, images), strict=True)))
    poses = [pose @ np.linalg.inv(MOUNTS[0]) for pose in drive.poses]
    write_truth(sequence, np.eye(4), dict(zip(times, poses, strict=True)))


def mount_text(pose: np.ndarray) -> str:
    values = ", ".join(repr(float(value)) for value in pose.ravel())
    return f"T_BS:\n  cols: 4\n  rows: 4\n  data: [{values}]\n"


def grey(image: np.ndarray) -> np.ndarray:
    """A colour image uint8 `[H, W, 3]` as a grey one `[H, W]`."""
    return np.array(Image.fromarray(image).convert("L"))
