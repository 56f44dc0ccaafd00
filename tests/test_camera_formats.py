"""Camera files in the true forms in which other programs write them, and what is near to one and is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featdepth.cameras.intrinsics_files import read_intrinsics
from featdepth.cameras.lenses import Lens
from featdepth.errors import InputError

SIZE = (480, 640)
KALIBR = """cam0:
  cam_overlaps: [1]
  camera_model: pinhole
  distortion_coeffs: [-0.28340811, 0.07395907, 0.00019359, 1.76187114e-05]
  distortion_model: radtan
  intrinsics: [458.654, 457.296, 367.215, 248.375]
  resolution: [752, 480]
  rostopic: /cam0/image_raw
cam1:
  T_cn_cnm1:
  - [0.99999, 0.0023, 0.0003, -0.11007]
  - [-0.0023, 0.99989, 0.0140, 0.00039]
  - [-0.0003, -0.0140, 0.99990, -0.00085]
  - [0.0, 0.0, 0.0, 1.0]
  camera_model: pinhole
  distortion_coeffs: [0.0034, 0.0007, -0.002, 0.0002]
  distortion_model: equidistant
  intrinsics: [457.587, 456.134, 379.999, 255.238]
  resolution: [752, 480]
"""
EUROC = """# General sensor definitions.
sensor_type: camera
comment: VI-Sensor cam0 (MT9M034)
T_BS:
  cols: 4
  rows: 4
  data: [0.0148655429818, -0.999880929698, 0.00414029679422, -0.0216401454975,
         0.999557249008, 0.0149672133247, 0.025715529948, -0.064676986768,
        -0.0257744366974, 0.00375618835797, 0.999660727178, 0.00981073058949,
         0.0, 0.0, 0.0, 1.0]
rate_hz: 20
resolution: [752, 480]
camera_model: pinhole
intrinsics: [458.654, 457.296, 367.215, 248.375] #fu, fv, cu, cv
distortion_model: radial-tangential
distortion_coefficients: [-0.28340811, 0.07395907, 0.00019359, 1.76187114e-05]
"""
OPENCV_STEREO = """%YAML:1.0
---
M1: !!opencv-matrix
   rows: 3
   cols: 3
   dt: d
   data: [ 5.3480734550038787e+02, 0., 3.3536449291405916e+02, 0.,
       5.3480734550038787e+02, 2.4077231010408542e+02, 0., 0., 1. ]
D1: !!opencv-matrix
   rows: 1
   cols: 5
   dt: d
   data: [ -2.9e-01, 1.1e-01, 1.2e-03, -1.3e-04, 1.5e-03 ]
M2: !!opencv-matrix
   rows: 3
   cols: 3
   dt: d
   data: [ 5.37e+02, 0., 3.34e+02, 0., 5.37e+02, 2.41e+02, 0., 0., 1. ]
D2: !!opencv-matrix
   rows: 1
   cols: 5
   dt: d
   data: [ -2.8e-01, 1.0e-01, 0., 0., 0. ]
"""
ROS_MESSAGE = """header:
  seq: 1
  frame_id: "cam"
height: 480
width: 640
distortion_model: "plumb_bob"
D: [0.1, -0.2, 0.001, 0.002, 0.0]
K: [500.0, 0.0, 320.0, 0.0, 501.0, 240.0, 0.0, 0.0, 1.0]
P: [500.0, 0.0, 320.0, 0.0, 0.0, 501.0, 240.0, 0.0, 0.0, 0.0, 1.0, 0.0]
roi:
  height: 0
  width: 0
---
"""
ROS_FILE = """image_width: 640
image_height: 480
camera_matrix: {rows: 3, cols: 3, data: [500, 0, 320, 0, 501, 240, 0, 0, 1]}
distortion_model: MODEL
distortion_coefficients: {rows: 1, cols: 4, data: [0.1, -0.2, 0.001, 0.002]}
"""
ORB_SLAM = """%YAML:1.0
Camera.type: "PinHole"
Camera.fx: 517.306408
Camera.fy: 516.469215
Camera.cx: 318.643040
Camera.cy: 255.313989
Camera.k1: 0.262383
Camera.k2: -0.953104
Camera.p1: -0.005358
Camera.p2: 0.002628
Camera.k3: 1.163314
Camera.width: 640
Camera.height: 480
"""
NERF = """{"camera_angle_x": 0.75, "fl_x": 1000.5, "fl_y": 1001.0, "k1": 0.04, "k2": -0.05, "p1": -0.001, "p2": 0.002,
"cx": 960.5, "cy": 540.5, "w": 1920.0, "h": 1080.0, "aabb_scale": 16, "frames": [{"file_path": "images/0001.jpg"}]}"""


def read(folder: Path, text: str, size: tuple[int, int] | None = None, name: str = "") -> Lens:
    (folder / "camera").write_text(text)
    return read_intrinsics(f"{folder}/camera{name}", size)


def four(lens: Lens) -> list[float]:
    """fx, fy, cx, cy."""
    return [float(lens.intrinsics[place]) for place in ((0, 0), (1, 1), (0, 2), (1, 2))]


def test_kalibr(tmp_path: Path) -> None:
    lens = read(tmp_path, KALIBR, name="#cam0")
    assert (lens.model, lens.size, four(lens)) == ("radtan", (480, 752), [458.654, 457.296, 367.215, 248.375])
    assert lens.coefficients == (-0.28340811, 0.07395907, 0.00019359, 1.76187114e-05)
    other = read(tmp_path, KALIBR, name="#cam1")
    assert (other.model, other.coefficients) == ("fisheye", (0.0034, 0.0007, -0.002, 0.0002))
    with pytest.raises(InputError, match=r"several cameras \(cam0, cam1\); choose one, for instance .*#cam0"):
        read(tmp_path, KALIBR)
    with pytest.raises(InputError, match="camera_model omni is not read"):
        read(tmp_path, KALIBR.replace("camera_model: pinhole", "camera_model: omni"), name="#cam0")


def test_euroc(tmp_path: Path) -> None:
    lens = read(tmp_path, EUROC)
    assert (lens.model, lens.size, four(lens)) == ("radtan", (480, 752), [458.654, 457.296, 367.215, 248.375])
    assert lens.coefficients == (-0.28340811, 0.07395907, 0.00019359, 1.76187114e-05)


def test_opencv_stereo(tmp_path: Path) -> None:
    lens = read(tmp_path, OPENCV_STEREO, SIZE, "#M1")
    assert four(lens) == [534.80734550038787, 534.80734550038787, 335.36449291405916, 240.77231010408542]
    assert lens.coefficients == (-0.29, 0.11, 0.0012, -0.00013, 0.0015)
    assert read(tmp_path, OPENCV_STEREO, SIZE, "#M2").intrinsics[0, 0] == 537
    with pytest.raises(InputError, match=r"several cameras \(M1, M2\)"):
        read(tmp_path, OPENCV_STEREO, SIZE)
    with pytest.raises(InputError, match="nothing says how large the images are"):
        read(tmp_path, OPENCV_STEREO, name="#M1")


def test_rectified_opencv_stereo(tmp_path: Path) -> None:
    """What stereoRectify leaves: no lens, and 12 numbers of each camera."""
    rows = {"P1": [530, 0, 330, 0, 0, 530, 240, 0, 0, 0, 1, 0], "P2": [530, 0, 330, -1700, 0, 530, 240, 0, 0, 0, 1, 0]}
    rows |= {"R1": [1, 0, 0, 0, 1, 0, 0, 0, 1], "T": [-3.3, 0.03, 0.01]}
    text = "%YAML:1.0\n---\n" + "".join(
        f"{name}: !!opencv-matrix\n   rows: 1\n   cols: {len(data)}\n   dt: d\n   data: {data}\n"
        for name, data in rows.items()
    )
    assert four(read(tmp_path, text, SIZE)) == [530, 530, 330, 240]  # both are one
    assert read(tmp_path, text, SIZE, "#P2").model == "pinhole"
    both = OPENCV_STEREO + text.removeprefix("%YAML:1.0\n---\n")
    with pytest.raises(InputError, match=r"several cameras \(M1, M2\)"):
        read(tmp_path, both, SIZE)


def test_rational_model_is_told(tmp_path: Path) -> None:
    text = ROS_FILE.replace("MODEL", "rational_polynomial").replace("0.002]", "0.002, 0, 0.3, 0.1, 0.2]")
    with pytest.raises(InputError, match=r"^.*: 8 distortion coefficients.*again without the rational"):
        read(tmp_path, text)


def test_json_of_other_programs(tmp_path: Path) -> None:
    text = '{"width": 640, "height": 480, "fx": 500.0, "fy": 501, "cx": 320, "cy": 240}'
    assert four(read(tmp_path, text)) == [500, 501, 320, 240]
    text = '{"camera_matrix": [[500, 0, 320], [0, 501, 240], [0, 0, 1]], "dist_coeff": [[0.1, 0, 0, 0, 0]]}'
    assert read(tmp_path, text, SIZE).intrinsics[1, 1] == 501
    open3d = '{"width": 640, "height": 480, "intrinsic_matrix": [525, 0, 0, 0, 525, 0, 319.5, 239.5, 1]}'
    with pytest.raises(InputError, match="transposed"):
        read(tmp_path, open3d)
    with pytest.raises(InputError, match="cx is missing among width, height, ppx"):
        read(tmp_path, '{"width": 640, "height": 480, "ppx": 320, "ppy": 240, "fx": 600, "fy": 600}')


def test_ros_message(tmp_path: Path) -> None:
    for text in (ROS_MESSAGE, ROS_MESSAGE.replace("D:", "d:").replace("K:", "k:").replace("P:", "p:")):
        lens = read(tmp_path, text)
        assert (lens.model, lens.size, four(lens)) == ("radtan", (480, 640), [500, 501, 320, 240])
        assert lens.coefficients == (0.1, -0.2, 0.001, 0.002, 0)


def test_several_ros_messages(tmp_path: Path) -> None:
    message = ROS_MESSAGE.rstrip().removesuffix("---") + "\n---\n"
    assert four(read(tmp_path, 3 * message)) == [500, 501, 320, 240]
    with pytest.raises(InputError, match=r"several cameras \(1-camera, 2-camera\)"):
        read(tmp_path, message + message.replace("501", "502"))


@pytest.mark.parametrize(
    ("name", "model"),
    [("radtan", "radtan"), ("plumb_bob", "radtan"), ("equidistant", "fisheye"), ("radial-tangential", "radtan")],
)
def test_distortion_models(tmp_path: Path, name: str, model: str) -> None:
    lens = read(tmp_path, ROS_FILE.replace("MODEL", name))
    assert (lens.model, lens.coefficients) == (model, (0.1, -0.2, 0.001, 0.002))


def test_distortion_model_none(tmp_path: Path) -> None:
    text = ROS_FILE.replace("MODEL", "none")
    for numbers in ("[]", "[0, 0, 0, 0, 0]"):
        assert read(tmp_path, text.replace("[0.1, -0.2, 0.001, 0.002]", numbers)).model == "pinhole"
    with pytest.raises(InputError, match="distortion_model none has coefficients that are not 0"):
        read(tmp_path, text)


def test_orb_slam(tmp_path: Path) -> None:
    lens = read(tmp_path, ORB_SLAM)
    assert (lens.size, four(lens)) == ((480, 640), [517.306408, 516.469215, 318.643040, 255.313989])
    assert lens.coefficients == (0.262383, -0.953104, -0.005358, 0.002628, 1.163314)


def test_nerf_counts_from_the_corner(tmp_path: Path) -> None:
    lens = read(tmp_path, NERF)
    assert (lens.model, lens.size, four(lens)) == ("radtan", (1080, 1920), [1000.5, 1001, 960, 540])
    assert lens.coefficients[:4] == (0.04, -0.05, -0.001, 0.002)
    right_angle = f'{{"camera_angle_x": {np.pi / 2}, "frames": []}}'
    assert four(read(tmp_path, right_angle, SIZE)) == pytest.approx([320, 320, 319.5, 239.5])
    fisheye = NERF.replace('"p1": -0.001, "p2": 0.002', '"k3": 0.1, "k4": 0, "camera_model": "OPENCV_FISHEYE"')
    assert read(tmp_path, fisheye).coefficients == (0.04, -0.05, 0.1, 0)
    with pytest.raises(InputError, match=r"nearest is NeRF's transforms.json"):
        read(tmp_path, "{}")


@pytest.mark.parametrize(
    "text",
    [
        "585 0 320 0 586 240 0 0 1",
        "585 0 320 0\n0 586 240 0\n0 0 1 0\n",
        "585.0 0.0 320.0 0.0\n0.0 586.0 240.0 0.0\n0.0 0.0 1.0 0.0\n0.0 0.0 0.0 1.0\n",
        "585 0 320 0 0 586 240 0 0 0 1 0\n",
        "[[585. 0. 320.]\n [0. 586. 240.]\n [0. 0. 1.]]\n",
        "585,0,320\n0,586,240\n0,0,1\n",
    ],
)
def test_matrices(tmp_path: Path, text: str) -> None:
    lens = read(tmp_path, text, SIZE)
    assert (lens.model, four(lens)) == ("pinhole", [585, 586, 320, 240])


def test_one_line_with_distortion(tmp_path: Path) -> None:
    """As programs for SLAM have it; nine numbers that are no matrix have k3 too."""
    lens = read(tmp_path, "517.3 516.5 318.6 255.3 0.2624 -0.9531 -0.0054 0.0026 1.1633", SIZE)
    assert (lens.model, lens.coefficients) == ("radtan", (0.2624, -0.9531, -0.0054, 0.0026, 1.1633))
    assert read(tmp_path, "517.3 516.5 318.6 255.3 0.2624 -0.9531 -0.0054 0.0026", SIZE).coefficients[0] == 0.2624


def test_what_is_near_to_a_format_is_told(tmp_path: Path) -> None:
    normalised = "0.58 0 0.5\n0 1.92 0.5\n0 0 1\n"
    with pytest.raises(InputError, match=r"normalised, .*write pixels: `371.2 921.6 319.5 239.5` for images of 640"):
        read(tmp_path, normalised, SIZE)
    with pytest.raises(InputError, match=r"normalised, .*multiply fx and cx by the width"):
        read(tmp_path, normalised)
    with pytest.raises(InputError, match="transposed, as MATLAB has it"):
        read(tmp_path, "585 0 0\n0 586 0\n320 240 1\n", SIZE)
    with pytest.raises(InputError, match="not recognised among name, focus; nearest is OpenCV's yaml"):
        read(tmp_path, "name: one\nfocus: 3\n", SIZE)
    with pytest.raises(InputError, match="lines of 5 words"):
        read(tmp_path, "1 2 3 4 5\n", SIZE)
