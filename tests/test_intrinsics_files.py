"""Intrinsics from the files that other programs write: true contents in, the same camera out, and clear refusals."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featdepth.cameras.exif import exif_intrinsics
from featdepth.cameras.intrinsics_files import read_colmap_cameras, read_intrinsics
from featdepth.cameras.lenses import undistort_points
from featdepth.cameras.pinhole import field_of_view_intrinsics
from featdepth.errors import InputError

SHARED = Path(os.environ.get("FEATDEPTH_SHARED", Path(__file__).parents[2] / "shared"))

COLMAP = """# Camera list with one line of data per camera:
#   CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]
# Number of cameras: 8
1 SIMPLE_PINHOLE 3072 2304 2559.81 1536 1152
2 PINHOLE 3072 2304 2560.56 2560.5 1536 1152
3 SIMPLE_RADIAL 3072 2304 2559.69 1536 1152 -0.0218531
4 RADIAL 3072 2304 2559.7 1536 1152 -0.02 0.003
5 OPENCV 752 480 458.654 457.296 367.715 248.875 -0.283 0.074 0.0002 0.00002
6 SIMPLE_RADIAL_FISHEYE 512 512 190 255 257 0.003
7 RADIAL_FISHEYE 512 512 190 255 257 0.003 0.0007
8 OPENCV_FISHEYE 512 512 190.9 191 255.5 257.5 0.0034 0.0007 -0.002 0.0002
"""

OPENCV = """%YAML:1.0
---
calibration_time: "Tue 05 Mar 2024 10:12:43 AM CET"
nr_of_frames: 18
image_width: 640
image_height: 480
board_width: 9
flags: 0
fisheye_model: 0
camera_matrix: !!opencv-matrix
   rows: 3
   cols: 3
   dt: d
   data: [ 5.3591573396163199e+02, 0., 3.4228315473308373e+02, 0.,
       5.3591573396163199e+02, 2.3557082909788173e+02, 0., 0., 1. ]
distortion_coefficients: !!opencv-matrix
   rows: 5
   cols: 1
   dt: d
   data: [ -2.6637260909660682e-01, -3.8588898922304653e-02,
       1.7831947042852964e-03, -2.8122100441115472e-04,
       2.3839153080878486e-01 ]
avg_reprojection_error: 3.9259109564815858e-01
"""

ROS = """image_width: 512
image_height: 512
camera_name: cam0
camera_matrix:
  rows: 3
  cols: 3
  data: [190.978, 0.0, 254.931, 0.0, 190.973, 256.897, 0.0, 0.0, 1.0]
distortion_model: equidistant
distortion_coefficients:
  rows: 1
  cols: 4
  data: [0.0034823894, 0.0007150348, -0.0020532361, 0.00020293673]
rectification_matrix:
  rows: 3
  cols: 3
  data: [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
projection_matrix:
  rows: 3
  cols: 4
  data: [190.0, 0.0, 255.0, 0.0, 0.0, 190.0, 257.0, 0.0, 0.0, 0.0, 1.0, 0.0]
"""

KITTI_ODOMETRY = """P0: 7.188560000000e+02 0.0 6.071928000000e+02 0.0 0.0 7.188560e+02 1.852157e+02 0.0 0.0 0.0 1.0 0.0
P1: 7.188560000000e+02 0.0 6.071928000000e+02 -3.861448e+02 0.0 7.18856e+02 1.852157000000e+02 0.0 0.0 0.0 1.0 0.0
Tr: 4.27e-04 -9.99e-01 -8.08e-03 -1.19e-02 -7.2e-03 8.08e-03 -9.99e-01 -5.4e-02 9.99e-01 4.8e-04 -7.2e-03 -2.9e-01
"""

KITTI_RAW = """calib_time: 09-Jan-2012 13:57:47
S_02: 1.392000e+03 5.120000e+02
K_02: 9.597910e+02 0 6.960217e+02 0 9.569251e+02 2.241806e+02 0 0 1
S_rect_02: 1.242000e+03 3.750000e+02
P_rect_02: 7.215377e+02 0 6.095593e+02 4.485728e+01 0 7.215377e+02 1.728540e+02 2.163791e-01 0 0 1 2.745884e-03
S_rect_03: 1.242000e+03 3.750000e+02
P_rect_03: 7.000000e+02 0 6.095593e+02 -3.395242e+02 0 7.000000e+02 1.728540e+02 2.199936 0 0 1 2.729905e-03
"""


def written(folder: Path, text: str, name: str = "camera.txt") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def four(intrinsics: np.ndarray) -> tuple[float, float, float, float]:
    """fx, fy, cx, cy."""
    return intrinsics[0, 0], intrinsics[1, 1], intrinsics[0, 2], intrinsics[1, 2]


@pytest.mark.parametrize(
    "text",
    ["585 0 320\n0 586 240\n0 0 1\n", "# fx fy cx cy\n585, 586, 320, 240\n", "5.85e+02 586. 3.2e2 240"],
)
def test_matrix_and_four_numbers(tmp_path: Path, text: str):
    lens = read_intrinsics(written(tmp_path, text), (480, 640))
    assert (lens.model, lens.coefficients, lens.size) == ("pinhole", (), (480, 640))
    assert four(lens.intrinsics) == (585, 586, 320, 240)


def test_colmap_cameras_count_from_the_corner(tmp_path: Path):
    cameras = read_colmap_cameras(written(tmp_path, COLMAP))
    assert [camera.model for camera in cameras.values()] == ["pinhole"] * 2 + ["radtan"] * 3 + ["fisheye"] * 3
    assert four(cameras[1].intrinsics) == (2559.81, 2559.81, 1535.5, 1151.5)
    assert four(cameras[2].intrinsics) == (2560.56, 2560.5, 1535.5, 1151.5)
    assert cameras[3].coefficients == (-0.0218531, 0, 0, 0)
    assert cameras[4].coefficients == (-0.02, 0.003, 0, 0)
    assert cameras[5].coefficients == (-0.283, 0.074, 0.0002, 0.00002)
    assert cameras[5].size == (480, 752)
    assert four(cameras[5].intrinsics) == (458.654, 457.296, 367.215, 248.375)
    assert cameras[6].coefficients == (0.003, 0, 0, 0)
    assert cameras[7].coefficients == (0.003, 0.0007, 0, 0)
    assert cameras[8].coefficients == (0.0034, 0.0007, -0.002, 0.0002)
    assert four(cameras[8].intrinsics) == (190.9, 191, 255, 257)


def test_one_of_several_cameras_is_chosen_by_name(tmp_path: Path):
    path = written(tmp_path, COLMAP)
    assert four(read_intrinsics(f"{path}#2").intrinsics) == (2560.56, 2560.5, 1535.5, 1151.5)
    with pytest.raises(InputError, match=r"several cameras \(1, 2, .*8\); choose one, for instance .*camera.txt#1"):
        read_intrinsics(path)
    with pytest.raises(InputError, match=r"camera.txt: no camera 9; there are 1, 2,"):
        read_intrinsics(f"{path}#9")
    strange = written(tmp_path, "585 586 320 240", "with#mark.txt")
    assert read_intrinsics(strange, (480, 640)).intrinsics[0, 0] == 585


def test_opencv_yaml(tmp_path: Path):
    lens = read_intrinsics(written(tmp_path, OPENCV, "out_camera_data.yml"))
    assert (lens.model, lens.size) == ("radtan", (480, 640))
    assert four(lens.intrinsics) == (535.91573396163199, 535.91573396163199, 342.28315473308373, 235.57082909788173)
    assert lens.coefficients[2:] == (1.7831947042852964e-03, -2.8122100441115472e-04, 2.3839153080878486e-01)
    old = OPENCV.replace("camera_matrix", "Camera_Matrix").replace("distortion_coeff", "Distortion_Coeff")
    assert read_intrinsics(written(tmp_path, old)).coefficients == lens.coefficients
    fisheye = OPENCV.replace("fisheye_model: 0", "fisheye_model: 1").replace(",\n       2.3839153080878486e-01", "")
    assert read_intrinsics(written(tmp_path, fisheye)).model == "fisheye"


def test_ros_yaml(tmp_path: Path):
    lens = read_intrinsics(written(tmp_path, ROS))
    assert (lens.model, lens.size) == ("fisheye", (512, 512))
    assert lens.coefficients == (0.0034823894, 0.0007150348, -0.0020532361, 0.00020293673)
    plumb_bob = read_intrinsics(written(tmp_path, ROS.replace("equidistant", "plumb_bob")))
    assert (plumb_bob.model, plumb_bob.coefficients) == ("radtan", lens.coefficients)


@pytest.mark.parametrize("numbers", ["0, 0, 0, 0, 0", ""])
def test_lens_without_distortion_is_a_pinhole(tmp_path: Path, numbers: str):
    text = ROS.replace("equidistant", "plumb_bob").replace(
        "0.0034823894, 0.0007150348, -0.0020532361, 0.00020293673", numbers
    )
    assert read_intrinsics(written(tmp_path, text)).model == "pinhole"
    # An ideal fisheye has no coefficients either, and is none.
    ideal = text.replace("plumb_bob", "equidistant").replace(f"[{numbers}]", "[0, 0, 0, 0]")
    assert read_intrinsics(written(tmp_path, ideal)).model == "fisheye"


def test_long_radtan_serves_where_its_rest_is_zero(tmp_path: Path):
    text = ROS.replace("equidistant", "rational_polynomial")
    long = text.replace("0.00020293673]", "0.0002, 0.1, 0, 0, 0]")
    assert read_intrinsics(written(tmp_path, long)).coefficients[4:] == (0.1,)
    with pytest.raises(InputError, match="8 distortion coefficients, but radtan lenses have 4 or 5"):
        read_intrinsics(written(tmp_path, long.replace("0, 0, 0]", "0, 0, 0.3]")))


def test_kitti_counts_from_one(tmp_path: Path):
    odometry = written(tmp_path, KITTI_ODOMETRY, "calib.txt")
    assert four(read_intrinsics(odometry, (376, 1241)).intrinsics) == pytest.approx(
        (718.856, 718.856, 606.1928, 184.2157)
    )
    raw = written(tmp_path, KITTI_RAW, "calib_cam_to_cam.txt")
    lens = read_intrinsics(f"{raw}#02")
    assert lens.size == (375, 1242)
    assert four(lens.intrinsics) == pytest.approx((721.5377, 721.5377, 608.5593, 171.854))
    with pytest.raises(InputError, match=r"several cameras \(02, 03\)"):
        read_intrinsics(raw)


def test_intrinsics_of_resized_images(tmp_path: Path):
    path = written(tmp_path, ROS)
    lens, half = read_intrinsics(path), read_intrinsics(path, (256, 256))
    pixel = np.array([100.0, 300.0])
    assert np.allclose(undistort_points(pixel, lens), undistort_points((pixel + 0.5) / 2 - 0.5, half), atol=1e-9)
    assert half.size == (256, 256)
    with pytest.raises(InputError, match="are for images of 512 x 512 pixels, these have 640 x 480, another shape"):
        read_intrinsics(path, (480, 640))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("585 0 320\n0 586 240\n", "not recognised; expected a 3x3 matrix"),
        ("", "not recognised"),
        ("hello world\n", "not recognised"),
        ("585 0 320\n0 586 24O\n0 0 1\n", r"camera.txt:2: 0 586 24O should be 3 numbers"),
        ("585 nan 320 240\n", r"camera.txt:1: 585 nan 320 240 should be 4 numbers"),
        ("585 1e999 320 240\n", "not finite"),
        ("585 0 320\n1 586 240\n0 0 1\n", "no pinhole camera"),
        ("-585 585 320 240\n", "focal length that is not positive"),
        ("1.2 1.2 320 240\n", r"focal lengths 1.2 and 1.2 are impossible for images of 640 x 480"),
        ("585 586 640 480\n", r"principal point \(640, 480\) is outside .* calibrated at another size"),
        ("1 PINHOLE 640 480 500 500 320\n", r"camera.txt:1: .* should be 7 numbers"),
        ("1 PINHOLE 640 -480 500 500 320 240\n", "no image size"),
        ("1 FULL_OPENCV 640 480 500 500 320 240 0 0 0 0 0 0 0 0\n", "FULL_OPENCV.* model among SIMPLE_PINHOLE"),
        ("camera_matrix: [1, 2, 3]\n", "camera_matrix has 3 numbers instead of 9"),
        ("a: camera_matrix\n", "camera_matrix should be a list of numbers"),
        ("camera_matrix: {data: [\n", "not valid YAML"),
        ("camera_matrix: !!python/object/apply:os.system [ls]\n", "not valid YAML"),
        (ROS.replace("equidistant", "double_sphere"), "distortion_model double_sphere is not known"),
        (ROS.replace("image_width: 512", "image_width: wide"), "no image size"),
        ("P0: 1 2 3\n", r"camera.txt:1: 1 2 3 should be 12 numbers"),
    ],
)
def test_unusable_file_is_refused_in_one_line(tmp_path: Path, text: str, message: str):
    with pytest.raises(InputError, match=message) as error:
        read_intrinsics(written(tmp_path, text), (480, 640))
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_file_that_says_no_size_needs_it(tmp_path: Path):
    with pytest.raises(InputError, match="nothing says how large the images are"):
        read_intrinsics(written(tmp_path, "585 586 320 240"))


def test_missing_and_binary_files(tmp_path: Path):
    with pytest.raises(InputError, match="No such file"):
        read_intrinsics(tmp_path / "missing.txt")
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\0\0")
    with pytest.raises(InputError, match="no text"):
        read_intrinsics(tmp_path / "photo.jpg")


def photo(folder: Path, size: tuple[int, int], values: dict[int, object], orientation: int = 1) -> Path:
    """A JPEG of `size` (height, width) with EXIF `values`."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif.get_ifd(0x8769).update(values)
    Image.new("RGB", (size[1], size[0])).save(folder / "photo.jpg", exif=exif)
    return folder / "photo.jpg"


def test_exif_focal_length_for_film(tmp_path: Path):
    """35 mm film has 36 x 24 mm: at 24 mm a picture of its shape is 36 / 24 as wide as the focal length."""
    lens = exif_intrinsics(photo(tmp_path, (200, 300), {0xA405: 24}))
    assert four(lens.intrinsics) == pytest.approx((200, 200, 149.5, 99.5))
    assert (lens.model, lens.size) == ("pinhole", (200, 300))
    narrow = exif_intrinsics(photo(tmp_path, (300, 400), {0xA405: 26}))
    assert narrow.intrinsics[0, 0] == pytest.approx(26 / 43.2666 * 500, rel=1e-5)


@pytest.mark.parametrize("orientation", [6, 8])
def test_exif_of_a_picture_to_be_turned(tmp_path: Path, orientation: int):
    resolutions = {0x920A: 5.0, 0xA20E: 1000.0, 0xA20F: 1100.0, 0xA210: 3}
    lens = exif_intrinsics(photo(tmp_path, (300, 400), resolutions, orientation))
    assert lens.size == (400, 300)
    assert four(lens.intrinsics) == pytest.approx((550, 500, 149.5, 199.5))


def test_exif_resolution_of_the_sensor(tmp_path: Path):
    """A sensor of 4000 pixels on 5.4 mm, in inches, and a picture made four times smaller later."""
    values = {0x920A: 4.05, 0xA20E: 4000 / 5.4 * 25.4, 0xA210: 2, 0xA002: 4000, 0xA003: 3000}
    lens = exif_intrinsics(photo(tmp_path, (750, 1000), values))
    assert lens.intrinsics[0, 0] == pytest.approx(4.05 / 5.4 * 1000, rel=1e-4)


@pytest.mark.parametrize(
    "values", [{}, {0xA405: 0}, {0x920A: 4.05}, {0x920A: 4.05, 0xA20E: 1000.0, 0xA210: 1}, {0xA20E: 1000.0}]
)
def test_exif_that_does_not_tell(tmp_path: Path, values: dict[int, object]):
    assert exif_intrinsics(photo(tmp_path, (30, 40), values)) is None


def test_impossible_exif_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"photo.jpg: focal lengths .* impossible"):
        exif_intrinsics(photo(tmp_path, (30, 40), {0xA405: 2}))


def test_field_of_view():
    intrinsics = field_of_view_intrinsics(90, (480, 640))
    assert four(intrinsics) == pytest.approx((320, 320, 319.5, 239.5))
    left, right = (np.linalg.inv(intrinsics) @ [x, 0, 1] for x in (-0.5, 639.5))  # the borders of the image
    assert math.degrees(math.atan(right[0]) - math.atan(left[0])) == pytest.approx(90)
    with pytest.raises(InputError, match="180 degrees is impossible"):
        field_of_view_intrinsics(180, (480, 640))


@pytest.mark.skipif(not (SHARED / "indoor_mini").is_dir(), reason="needs the real excerpts")
def test_real_files():
    assert four(read_intrinsics(SHARED / "indoor_mini/camera-intrinsics.txt", (480, 640)).intrinsics) == (
        585,
        585,
        320,
        240,
    )
    kitti = read_intrinsics(SHARED / "kitti_mini/kitti_raw/2011_09_26/calib_cam_to_cam.txt")  # four cameras, one K
    assert four(kitti.intrinsics) == pytest.approx((721.5377, 721.5377, 608.5593, 171.854))
    odometry = read_intrinsics(SHARED / "kitti_odometry_mini/sequences/06/calib.txt", (370, 1226))
    assert four(odometry.intrinsics) == pytest.approx((707.0912, 707.0912, 600.8873, 182.1104))
