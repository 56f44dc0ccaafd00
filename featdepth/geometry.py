"""Cameras, depth and motion: pinhole intrinsics, rigid transforms, back-projection, projection and warping.

Pixel centres sit at integers, so an image of width W spans the pixels 0 .. W - 1. Camera axes: x right, y down,
z forward. A transform is named `to_from_from`, e.g. `source_from_target`, and maps points of the second frame into
the first. Everything here is float32 geometry that knows nothing of networks; shapes and devices come from the inputs.
Numbers enter as scalars: a tensor made of them would be copied to the device, which the host would wait for.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

# Points at or behind the camera plane are projected as if they were this far in front of it (network units).
NEAREST_PROJECTED_DEPTH = 1e-6


def resize_intrinsics(intrinsics: Tensor, from_size: tuple[int, int], to_size: tuple[int, int]) -> Tensor:
    """Intrinsics `[..., 3, 3]` of an image of `from_size` (height, width), after resizing it to `to_size`.

    The borders of the image stay put, which moves the centre of pixel x to (x + 0.5) * scale - 0.5.
    """
    scale_y, scale_x = to_size[0] / from_size[0], to_size[1] / from_size[1]
    x, y, last = intrinsics.unbind(-2)
    x, y = scale_x * x + (0.5 * scale_x - 0.5) * last, scale_y * y + (0.5 * scale_y - 0.5) * last
    return torch.stack([x, y, last], dim=-2)


def crop_intrinsics(intrinsics: Tensor, left: float, top: float) -> Tensor:
    """Intrinsics `[..., 3, 3]` after cutting `left` columns and `top` rows (pixels) off the image."""
    x, y, last = intrinsics.unbind(-2)
    return torch.stack([x - left * last, y - top * last, last], dim=-2)


def flip_intrinsics(intrinsics: Tensor, width: int) -> Tensor:
    """Intrinsics `[..., 3, 3]` of the mirrored image (left and right exchanged): cx becomes width - 1 - cx."""
    flipped = intrinsics.clone()
    flipped[..., 0, 2] = width - 1 - intrinsics[..., 0, 2]
    return flipped


def halve_intrinsics(intrinsics: Tensor) -> Tensor:
    """Intrinsics `[..., 3, 3]` of a feature map whose pixel i is centred on image pixel 2i.

    This is what a convolution of stride 2 with symmetric padding gives: unlike a resized image, it has no shift.
    """
    return torch.cat([intrinsics[..., :2, :] / 2, intrinsics[..., 2:, :]], dim=-2)


def invert_intrinsics(intrinsics: Tensor) -> Tensor:
    """Inverse of intrinsics `[..., 3, 3]` of the form [[fx, s, cx], [0, fy, cy], [0, 0, 1]], in closed form."""
    fx, fy, skew = intrinsics[..., 0, 0], intrinsics[..., 1, 1], intrinsics[..., 0, 1]
    cx, cy = intrinsics[..., 0, 2], intrinsics[..., 1, 2]
    zero, one = torch.zeros_like(fx), torch.ones_like(fx)
    rows = [one / fx, -skew / (fx * fy), (skew * cy - cx * fy) / (fx * fy), zero, one / fy, -cy / fy, zero, zero, one]
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def pose_from_vector(axis_angle: Tensor, translation: Tensor) -> Tensor:
    """Rigid transform `[..., 4, 4]` of a rotation vector `[..., 3]` (radians) and a translation `[..., 3]`.

    Rodrigues' formula, written with sinc-like factors that are smooth (value and gradient) at the zero rotation, and
    without a matrix product, which autocast would run in half precision.
    """
    x, y, z = axis_angle.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
    squared = axis_angle.square().sum(-1)[..., None, None]
    small = squared < 1e-6
    # The branch that is not taken must have a finite gradient too, hence the harmless 1 in place of a tiny angle.
    angle = torch.where(small, torch.ones_like(squared), squared).sqrt()
    sine_factor = torch.where(small, 1 - squared / 6, angle.sin() / angle)
    cosine_factor = torch.where(small, 0.5 - squared / 24, (1 - angle.cos()) / angle.square())
    identity = torch.eye(3, dtype=axis_angle.dtype, device=axis_angle.device)
    cross_squared = axis_angle[..., :, None] * axis_angle[..., None, :] - squared * identity
    rotation = identity + sine_factor * cross + cosine_factor * cross_squared
    return join_pose(rotation, translation)


def join_pose(rotation: Tensor, translation: Tensor) -> Tensor:
    """Rigid transform `[..., 4, 4]` from a rotation `[..., 3, 3]` and a translation `[..., 3]`."""
    top = torch.cat([rotation, translation[..., None]], dim=-1)
    bottom = torch.zeros_like(top[..., :1, :])
    bottom[..., 3] = 1
    return torch.cat([top, bottom], dim=-2)


def invert_pose(pose: Tensor) -> Tensor:
    """Inverse [R^T | -R^T t] of a rigid transform `[..., 4, 4]`; in full precision under autocast too."""
    inverse_rotation = pose[..., :3, :3].transpose(-1, -2)
    return join_pose(inverse_rotation, -(inverse_rotation * pose[..., None, :3, 3]).sum(-1))


def scale_translation(pose: Tensor, factor: float) -> Tensor:
    """The rigid transform `[..., 4, 4]` with its translation times `factor` (a change of the unit of length)."""
    return join_pose(pose[..., :3, :3], pose[..., :3, 3] * factor)


def pixel_grid(height: int, width: int, like: Tensor) -> Tensor:
    """Homogeneous pixel coordinates (x, y, 1) `[3, height * width]` on the device and in the type of `like`."""
    y, x = torch.meshgrid(
        torch.arange(height, dtype=like.dtype, device=like.device),
        torch.arange(width, dtype=like.dtype, device=like.device),
        indexing="ij",
    )
    return torch.stack([x, y, torch.ones_like(x)]).flatten(1)


def backproject(depth: Tensor, intrinsics: Tensor) -> Tensor:
    """Points `[B, 3, H * W]` in camera coordinates of a depth map `[B, 1, H, W]` seen with `intrinsics` `[B, 3, 3]`."""
    height, width = depth.shape[-2:]
    rays = invert_intrinsics(intrinsics) @ pixel_grid(height, width, like=depth)
    return rays * depth.flatten(2)


def project(points: Tensor, intrinsics: Tensor, pose: Tensor) -> Tensor:
    """Pixels (x, y) `[B, 2, N]` at which a camera sees `points` `[B, 3, N]` of another frame.

    `pose` `[B, 4, 4]` maps the frame of the points into the camera's; `intrinsics` `[B, 3, 3]` are the camera's.
    """
    projection = intrinsics @ pose[:, :3]
    homogeneous = torch.baddbmm(projection[:, :, 3:], projection[:, :, :3], points)
    return homogeneous[:, :2] / homogeneous[:, 2:].clamp(min=NEAREST_PROJECTED_DEPTH)


def sample(image: Tensor, pixels: Tensor) -> Tensor:
    """Values `[B, C, h, w]` of `image` `[B, C, H, W]` at `pixels` (x, y) `[B, 2, h, w]`: bilinear, border repeated.

    NaN where a coordinate is not finite. (torch gives some value of the image there, which hides a motion that is none,
    and on CPUs its gradient of NaN coordinates reads outside of the image and ends the process.)
    """
    height, width = image.shape[-2:]
    nothing = 0 * pixels.detach().sum(1, keepdim=True)  # NaN where a coordinate is not finite
    x, y = pixels.masked_fill(nothing != 0, 0.0).unbind(1)
    grid = torch.stack([x * (2 / (width - 1)) - 1, y * (2 / (height - 1)) - 1], dim=-1)
    values = functional.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=True)
    return values.add_(nothing)


def correspondences(depth: Tensor, intrinsics: Tensor, source_from_target: Tensor) -> Tensor:
    """Where each target pixel is seen in a source: pixels (x, y) `[B, 2, H, W]`.

    depth: of the target, `[B, 1, H, W]`; intrinsics: of both cameras, `[B, 3, 3]`; source_from_target: `[B, 4, 4]`
    in the unit of the depth.
    """
    pixels = project(backproject(depth, intrinsics), intrinsics, source_from_target)
    return pixels.unflatten(2, depth.shape[-2:])


def warp(source: Tensor, depth: Tensor, intrinsics: Tensor, source_from_target: Tensor) -> Tensor:
    """The source image or feature map `[B, C, H, W]` as the target camera would see it (view synthesis, Sec. 3.1)."""
    return sample(source, correspondences(depth, intrinsics, source_from_target))


def disparity_to_depth(disparity: Tensor, min_depth: float, max_depth: float) -> Tensor:
    """Depth in network units of a sigmoid `disparity` in [0, 1]: 1 / (1/max + (1/min - 1/max) * disparity)."""
    return 1 / (1 / max_depth + (1 / min_depth - 1 / max_depth) * disparity)
