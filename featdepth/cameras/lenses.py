"""Cameras with lens distortion: where a direction is seen, and pictures as a camera without distortion would take them.

A direction is written as the point (x, y) of the plane z = 1 that it passes through ("normalised"). Pixel centres sit
at integers from 0. The formulas, and what computes them, are OpenCV's: "radtan" is radial and tangential distortion
(Brown 1966), "fisheye" is that of Kannala and Brandt 2006.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from featdepth.errors import InputError
from featdepth.two_view.opencv import opencv

COEFFICIENTS = {"pinhole": (0,), "radtan": (4, 5), "fisheye": (4,)}  # how many each model can have
STEPS = 2000  # of undistortion: ten suffice but close to where the distortion turns
CONVERGED = 1e-9  # normalised units, a millionth of a pixel
# Focal lengths that `undistorted_intrinsics` chooses, relative to the lens's. Below half, the middle of the picture
# would lose more than half of its resolution; it makes a view of 134 degrees of an ideal fisheye.
WIDEST, NARROWEST = 0.5, 8.0
BISECTIONS = 40
ROUNDING = 1e-3  # pixels: a map is float32


class Lens(NamedTuple):
    """A camera of one image size. `undistort_points(distort(points, lens), lens)` gives the points back."""

    model: str  # "pinhole", "radtan" or "fisheye"
    intrinsics: np.ndarray  # float64 3x3, pixels
    coefficients: tuple[float, ...]  # pinhole: none; radtan: k1 k2 p1 p2 and perhaps k3; fisheye: k1 k2 k3 k4
    size: tuple[int, int]  # height, width of the image in pixels


def distort(points: np.ndarray, lens: Lens) -> np.ndarray:
    """Pixels (x, y) `[..., 2]` at which the lens shows normalised points `[..., 2]`, float64, also outside the image.

    nan where the distortion has turned: beyond the radius at which it stops to grow, it would show two directions at
    one pixel, and the coefficients mean nothing.
    """
    points = np.asarray(points, dtype=np.float64)
    pixels = bend(points, lens) @ lens.intrinsics[:2, :2].T + lens.intrinsics[:2, 2]
    reached = np.linalg.norm(points, axis=-1, keepdims=True)
    reached = np.arctan(reached) if lens.model == "fisheye" else reached
    return np.where(reached < turning_radius(lens), pixels, np.nan)


def undistort_points(pixels: np.ndarray, lens: Lens) -> np.ndarray:
    """Normalised points `[..., 2]`, float64, that the lens shows at `pixels` (x, y) `[..., 2]`: Newton's method.

    nan where there is none, as for the black corners of a fisheye, and from 90 degrees off the axis on.
    """
    cv2 = opencv()
    pixels = np.asarray(pixels, dtype=np.float64)
    bent = (pixels - lens.intrinsics[:2, 2]) @ np.linalg.inv(lens.intrinsics[:2, :2]).T
    undistort = cv2.fisheye.undistortPoints if lens.model == "fisheye" else cv2.undistortPoints
    stop = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, STEPS, 1e-15)
    points = undistort(bent.reshape(-1, 1, 2), np.eye(3), coefficients(lens), criteria=stop).reshape(bent.shape)
    # It gives some point where there is none.
    error = np.linalg.norm(distort(points, lens) - pixels, axis=-1, keepdims=True)
    return np.where(error < CONVERGED * lens.intrinsics[0, 0], points, np.nan)


def undistortion_map(
    lens: Lens, intrinsics: np.ndarray, size: tuple[int, int], rotation: np.ndarray | None = None
) -> np.ndarray:
    """Where the lens shows each pixel of an undistorted picture: pixels (x, y) float32 `[h, w, 2]` for `remap`.

    intrinsics: 3x3 of the picture; size: its height and width; rotation: 3x3 lens_from_picture (None: the same axes).
    nan where the lens shows nothing.
    """
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float64)
    return distort(directions(np.stack([x, y], axis=-1), intrinsics, rotation), lens).astype(np.float32)


def remap(image: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """The uint8 `image` `[H, W]` or `[H, W, C]` at `pixels` (x, y) `[h, w, 2]`: uint8 `[h, w]` or `[h, w, C]`.

    Bilinear; black outside the image and where `pixels` are nan.
    """
    cv2 = opencv()
    inside = seen(pixels, image.shape[:2])
    places = np.where(inside[..., None], pixels, 0).astype(np.float32)
    shown = cv2.remap(image, places, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    shown[~inside] = 0
    return shown


def undistorted_intrinsics(lens: Lens) -> np.ndarray:
    """Intrinsics 3x3 of the undistorted picture of the lens's size that shows most without an unseen pixel.

    It keeps the principal point and the shape of the pixels; its focal length is at least half the lens's. A pinhole's
    are its own. Raises InputError where the distortion leaves no such view.
    """
    if lens.model == "pinhole":
        return lens.intrinsics.copy()
    border = border_pixels(lens.size)

    def all_seen(scale: float) -> bool:
        view = directions(border, scaled_focal(lens.intrinsics, scale))
        return bool(seen(distort(view, lens), lens.size).all())

    wide, narrow = WIDEST, NARROWEST
    if not all_seen(narrow):
        raise InputError(f"the lens with {lens.model} coefficients {lens.coefficients} shows no undistorted view")
    if all_seen(wide):
        return scaled_focal(lens.intrinsics, wide)
    for _ in range(BISECTIONS):
        middle = (wide + narrow) / 2
        wide, narrow = (wide, middle) if all_seen(middle) else (middle, narrow)
    return scaled_focal(lens.intrinsics, narrow)


def check_pinhole(path: str | Path, name: str, matrix: np.ndarray) -> None:
    """Raise InputError unless the left 3x3 part of a `matrix` is a pinhole camera's K, which can be inverted.

    name: of the matrix in the file at `path`.
    """
    if matrix[0, 0] < 1 or matrix[1, 1] < 1:
        raise InputError(f"{path}: {name} has a focal length that is not positive, or below a pixel")
    if matrix[1, 0] or (matrix[2, :3] != (0, 0, 1)).any():
        raise InputError(f"{path}: {name} is no pinhole camera [fx s cx; 0 fy cy; 0 0 1]")


def bend(points: np.ndarray, lens: Lens) -> np.ndarray:
    """Points `[..., 2]` of the plane z = 1 after the distortion, whatever that means beyond where it turns."""
    cv2 = opencv()
    flat = points.reshape(-1, 1, 2)
    if lens.model == "fisheye":
        bent = cv2.fisheye.distortPoints(flat, np.eye(3), coefficients(lens))
    else:
        bent, _ = cv2.projectPoints(
            cv2.convertPointsToHomogeneous(flat), np.zeros(3), np.zeros(3), np.eye(3), coefficients(lens)
        )
    return bent.reshape(points.shape)


def coefficients(lens: Lens) -> np.ndarray:
    """The lens's coefficients as OpenCV takes them."""
    return np.array(lens.coefficients or (0.0, 0.0, 0.0, 0.0))


def turning_radius(lens: Lens) -> float:
    """Radius at which r (1 + k1 r² + k2 r⁴ ...) stops to grow; for a fisheye at most 90 degrees. Infinite if never."""
    radial = coefficients(lens) if lens.model == "fisheye" else np.delete(coefficients(lens), [2, 3])
    slope = [(2 * power + 1) * coefficient for power, coefficient in enumerate(radial, 1)]
    roots = np.roots([*reversed(slope), 1.0])
    turning = roots.real[(abs(roots.imag) < 1e-9) & (roots.real > 0)]
    most = np.pi / 2 if lens.model == "fisheye" else np.inf
    return min(most, np.sqrt(turning.min(initial=np.inf)))


def directions(pixels: np.ndarray, intrinsics: np.ndarray, rotation: np.ndarray | None = None) -> np.ndarray:
    """Normalised points `[..., 2]`, after `rotation` 3x3, of a pinhole's pixels `[..., 2]`; nan for those behind."""
    matrix = np.linalg.inv(intrinsics) if rotation is None else rotation @ np.linalg.inv(intrinsics)
    rays = np.concatenate([pixels, np.ones_like(pixels[..., :1])], axis=-1) @ matrix.T
    return rays[..., :2] / np.where(rays[..., 2:] > 0, rays[..., 2:], np.nan)


def seen(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Which pixels (x, y) `[..., 2]` lie between the pixels of an image of `size` (height, width): bool `[...]`."""
    x, y = np.moveaxis(pixels, -1, 0)
    last_x, last_y = size[1] - 1 + ROUNDING, size[0] - 1 + ROUNDING
    return (x >= -ROUNDING) & (x <= last_x) & (y >= -ROUNDING) & (y <= last_y)


def border_pixels(size: tuple[int, int]) -> np.ndarray:
    """The outermost pixels (x, y) `[N, 2]` of an image of `size` (height, width)."""
    height, width = size
    x, y = np.arange(width), np.arange(height)
    rows = [np.stack([x, np.full(width, row)], axis=-1) for row in (0, height - 1)]
    columns = [np.stack([np.full(height, column), y], axis=-1) for column in (0, width - 1)]
    return np.concatenate([*rows, *columns]).astype(np.float64)


def scaled_focal(intrinsics: np.ndarray, scale: float) -> np.ndarray:
    """Intrinsics 3x3 with the focal lengths (and skew) times `scale` and the same principal point."""
    scaled = intrinsics.astype(np.float64)
    scaled[:2, :2] *= scale
    return scaled
