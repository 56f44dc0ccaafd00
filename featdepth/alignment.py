"""Motion between two pictures by direct alignment: the pose under which the source, warped, looks like the target.

With the target's depth known, motion is six numbers. Gauss-Newton finds them on the pictures themselves, from coarse to
fine, to a fraction of a pixel and without a network. The residual is the source, sampled where depth and motion send
the target's pixels, minus the target. It is linearised on the target's side (inverse composition, Baker and Matthews
2004): the Jacobian stays the same for a whole level of the pyramid, and an iteration is one warp and one weighted
product of matrices.

Everything is batched, in float32, without gradients and of a fixed number of iterations. Each sample takes or refuses
its steps by itself and the host waits for nothing, so that it runs on GPUs and compiles as one graph. Inside, depth is
divided by its median, which makes the result independent of its unit.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from featdepth.geometry import (
    invert_intrinsics,
    pixel_grid,
    pose_from_vector,
    resize_intrinsics,
    scale_translation,
)

ITERATIONS = (4, 8)  # of each level, and of the coarsest, which has the longest way to go
COARSEST_SIDE = 8  # pixels of the coarsest level
MOST_CHOSEN = 1 << 15  # of a level; of more, those with the strongest gradients of their neighbourhoods are taken
# Degrees of freedom of Student's t of each level, the finest first. Its weights forgive occlusions and moving things.
# The fewer, the more is forgiven: too much for pictures that are still far from each other.
FREEDOM = (2.0, 2.0, 5.0)
NORMAL_DEVIATION = 1.4826  # standard deviations of a normal distribution in the median of its sizes
# In parts of the target's contrast. Where most pixels are flat, and fit however the camera moves, the median would make
# outliers of all the others.
STRICTEST = 0.05
# Relative, of a pixel's depth. What a pixel says along its parallax counts the less for it; what it says across does
# not depend on depth, and counts in full.
DEPTH_DEVIATION = 0.4
MEDIAN_SAMPLES = 1 << 12  # residuals that the robust scale is made from
NEAREST_SEEN = 1e-3  # median depths: what comes nearer to the source's plane is not seen
FIRST_DAMPING, EASED, RAISED = 1e-3, 0.3, 10.0  # Levenberg's, in parts of the diagonal
# Where pictures are far apart their gradients agree in part only, and Gauss-Newton's steps are too short by far: they
# grow as long as they are taken.
GROWTH, LONGEST = 1.5, 6.0
SMALLEST_SHARE = 0.05  # of the pixels: a pose that shows less of them is no candidate
EXPLAINED = 0.5  # of the source's variance: a motion that explains less is not known
LARGEST_DEVIATION = 0.02  # radians or median depths: nor is one that is uncertain by more


class Alignment(NamedTuple):
    """The motion of B pairs, and what there is to judge it by."""

    pose: Tensor  # source_from_target [B, 4, 4], in the unit of the depth
    # Inverse covariance [B, 6, 6] of an increment (rotation vector in radians, translation) on the left of the pose, as
    # if the residuals of all pixels were independent. They are not quite: take it for a metric, not for a probability.
    information: Tensor
    used: Tensor  # share of the pixels with depth that the source shows [B], 0 to 1
    residual: Tensor  # robust standard deviation of source minus target there [B], in the pictures' unit
    is_known: Tensor  # bool [B]; False: no overlap, too little texture for one of the six numbers, or nothing explained


class Level(NamedTuple):
    """What stays the same during the iterations at one size of the pictures, for N chosen pixels."""

    source: Tensor  # [B, C, h, w]
    projection: Tensor  # [B, 3, 3]: camera coordinates to those of grid_sample, -1 to 1
    points: Tensor  # x / z, y / z, 1 and 1 / z of the pixels [B, 4, N]
    values: Tensor  # of the target [B, C, N]
    jacobian: Tensor  # of these values [B, P, C * N]: rotation, translation, and gain and offset if they are free
    weight: Tensor  # of the pixels [B, 1, N], 0 where one is not to be used
    total: Tensor  # sum of the weights [B], above 0
    contrast: Tensor  # standard deviation of the values [B]
    freedom: float  # see FREEDOM


class Estimate(NamedTuple):
    """A pose, the normal equations there, and how boldly to go on."""

    pose: Tensor  # [B, 4, 4], translation in median depths
    tone: Tensor  # gain - 1 and offset [B, 2]: source = gain * target + offset
    hessian: Tensor  # [B, P, P]
    gradient: Tensor  # [B, P]
    cost: Tensor  # [B], negative log likelihood of a pixel
    residual: Tensor  # robust standard deviation of the residuals [B]
    scale: Tensor  # the same without what the uncertain depth explains [B]
    used: Tensor  # [B]
    damping: Tensor  # [B]
    stride: Tensor  # factor of the next step [B]


@torch.no_grad()
def align(
    target: Tensor,
    source: Tensor,
    depth: Tensor,
    intrinsics: Tensor,
    start: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    free_tone: bool = True,
    iterations: tuple[int, int] = ITERATIONS,
) -> Alignment:
    """The motion of B pairs of pictures or feature maps `[B, C, H, W]`, with the target's `depth` `[B, 1, H, W]`.

    intrinsics: of both, `[B, 3, 3]`, pixels. depth: in any unit; what is not above 0 is unknown, so it may be sparse;
    inf is far away. start: source_from_target `[B, 4, 4]` to begin with, in the depth's unit; None: the identity. mask:
    bool or weights `[B, 1, H, W]` of the target's pixels. free_tone: the source may have another exposure than the
    target, by one gain and one offset for all channels. iterations: see ITERATIONS.

    Grey pictures give what colours give, in a third of the time.
    """
    with torch.autocast(target.device.type, enabled=False):
        inverse_depth, weight = invert_depth(depth.float(), mask)
        unit = median_depth(inverse_depth, weight)
        images = (target.float(), source.float())
        levels = make_levels(*images, inverse_depth * unit[:, None, None, None], weight, intrinsics.float(), free_tone)
        pose = torch.eye(4, device=target.device).repeat(len(target), 1, 1) if start is None else start.float()
        pose, tone = scale_translation(pose, 1 / unit[:, None]), torch.zeros_like(pose[:, 0, :2])
        state = refine(levels[-1], pose, tone, iterations[1])
        for level in reversed(levels[:-1]):
            state = refine(level, state.pose, state.tone, iterations[0])
        return conclude(state, levels[0], unit)


def invert_depth(depth: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Inverse depth, 0 where unknown, and the weight of each pixel, `[B, 1, H, W]` both."""
    is_known = depth > 0
    weight = is_known.float()
    return torch.where(is_known, 1 / depth, 0.0), weight if mask is None else weight * mask.float()


def median_depth(inverse_depth: Tensor, weight: Tensor) -> Tensor:
    """The median `[B]` of depths that are used and not infinite; 1 where there are none."""
    is_finite = (weight > 0) & (inverse_depth > 0)
    median = 1 / torch.where(is_finite, inverse_depth, torch.nan).flatten(1).nanmedian(1).values
    return torch.where(median.isfinite(), median, 1.0)


def make_levels(
    target: Tensor, source: Tensor, inverse_depth: Tensor, weight: Tensor, intrinsics: Tensor, free_tone: bool
) -> list[Level]:
    """The pyramid, its finest level first; each has half the size of the one before."""
    levels = [make_level(target, source, inverse_depth, weight, intrinsics, free_tone, FREEDOM[0])]
    while min(target.shape[-2:]) >= 2 * COARSEST_SIDE:
        target, source = halve(target, smooth=True), halve(source, smooth=True)
        weighted, weight = halve(inverse_depth * weight, smooth=False), halve(weight, smooth=False)
        inverse_depth = weighted / weight.clamp(min=1e-12)
        intrinsics = resize_intrinsics(intrinsics, (2, 2), (1, 1))
        freedom = FREEDOM[min(len(levels), len(FREEDOM) - 1)]
        levels.append(make_level(target, source, inverse_depth, weight, intrinsics, free_tone, freedom))
    return levels


def halve(image: Tensor, smooth: bool) -> Tensor:
    """Half the size: means of two by two pixels or, `smooth`, of four by four with the weights 1 3 3 1.

    The former would keep much of what is too fine for the smaller size, whose gradients lead nowhere.
    """
    return functional.interpolate(image, scale_factor=0.5, mode="bilinear", antialias=smooth)


def make_level(
    target: Tensor,
    source: Tensor,
    inverse_depth: Tensor,
    weight: Tensor,
    intrinsics: Tensor,
    free_tone: bool,
    freedom: float,
) -> Level:
    """A level of pictures of this size."""
    height, width = target.shape[-2:]
    gradient_x, gradient_y, weight = image_gradients(target, weight)
    pixels = pixel_grid(height, width, like=target).expand(len(target), -1, -1)
    maps = [inverse_depth, weight, target, gradient_x, gradient_y]
    chosen = [pixels, *(each.flatten(2) for each in maps)]
    if height * width > MOST_CHOSEN:
        places = strongest(gradient_x, gradient_y, weight, math.ceil(math.sqrt(height * width / MOST_CHOSEN)))
        chosen = [each.gather(2, places.expand(-1, each.shape[1], -1)) for each in chosen]
    pixels, inverse_depth, weight, values, gradient_x, gradient_y = chosen
    rays = invert_intrinsics(intrinsics) @ pixels
    # From pixels to x / z and y / z of the camera.
    fx, skew, fy = (intrinsics[:, row, column, None, None] for row, column in ((0, 0), (0, 1), (1, 1)))
    jacobian = pose_jacobian(fx * gradient_x, skew * gradient_x + fy * gradient_y, rays, inverse_depth)
    if free_tone:
        jacobian = torch.cat([jacobian, values[:, None], torch.ones_like(values)[:, None]], dim=1)
    x, y, last = intrinsics.unbind(-2)
    projection = torch.stack([x * (2 / (width - 1)) - last, y * (2 / (height - 1)) - last, last], dim=-2)
    points, total = torch.cat([rays, inverse_depth], dim=1), weight.sum((1, 2)).clamp(min=1e-12)
    contrast = standard_deviation(values, weight / total[:, None, None])
    return Level(source, projection, points, values, jacobian.flatten(2), weight, total, contrast, freedom)


def standard_deviation(values: Tensor, weight: Tensor) -> Tensor:
    """Of `values` `[B, C, N]` around the means of their channels: `[B]`; the weights `[B, 1, N]` have the sum 1."""
    means = (values * weight).sum(2, keepdim=True)
    return ((values - means).square() * weight).sum(2).mean(1).sqrt()


def image_gradients(image: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Central differences along x and y `[B, C, H, W]`, and the weight without the border, where there are none."""
    gradient_x, gradient_y, inside = torch.zeros_like(image), torch.zeros_like(image), torch.zeros_like(weight)
    gradient_x[..., 1:-1] = (image[..., 2:] - image[..., :-2]) / 2
    gradient_y[..., 1:-1, :] = (image[..., 2:, :] - image[..., :-2, :]) / 2
    inside[..., 1:-1, 1:-1] = weight[..., 1:-1, 1:-1]
    return gradient_x, gradient_y, inside


def strongest(gradient_x: Tensor, gradient_y: Tensor, weight: Tensor, size: int) -> Tensor:
    """The pixel with the strongest gradient of each square of `size` pixels: places `[B, 1, N]` in the flat picture."""
    strength = (gradient_x.square() + gradient_y.square()).sum(1, keepdim=True) * weight + weight
    return functional.max_pool2d(strength, size, return_indices=True)[1].flatten(2)


def pose_jacobian(gradient_x: Tensor, gradient_y: Tensor, rays: Tensor, inverse_depth: Tensor) -> Tensor:
    """Derivative `[B, 6, C, N]` of picture values by a left increment (rotation, translation) of their points.

    gradient_x, gradient_y: of the values over x / z and y / z, `[B, C, N]`; rays: x / z, y / z and 1 `[B, 3, N]`;
    inverse_depth: 1 / z `[B, 1, N]`.
    """
    x, y = rays[:, :1], rays[:, 1:2]
    along = gradient_x * x + gradient_y * y
    rotation = [-gradient_y - along * y, gradient_x + along * x, gradient_y * x - gradient_x * y]
    translation = [gradient_x * inverse_depth, gradient_y * inverse_depth, -along * inverse_depth]
    return torch.stack(rotation + translation, dim=1)


def refine(level: Level, pose: Tensor, tone: Tensor, iterations: int) -> Estimate:
    """Damped steps at one level; each sample takes those that lower its cost."""
    first = torch.ones_like(pose[:, 0, 0])
    state = linearise(level, pose, tone, FIRST_DAMPING * first, first)
    for _ in range(iterations):
        step = solve(state.hessian, state.gradient, state.damping) * state.stride[:, None]
        pose = state.pose @ pose_from_vector(-step[:, :3], -step[:, 3:6])
        tone = state.tone + step[:, 6:] if step.shape[1] > 6 else state.tone
        found = linearise(level, pose, tone, state.damping * EASED, (state.stride * GROWTH).clamp(max=LONGEST))
        kept = state._replace(damping=state.damping * RAISED, stride=first)
        is_better = found.cost < state.cost
        state = Estimate(*(choose(is_better, new, old) for new, old in zip(found, kept, strict=True)))
    return state


def linearise(level: Level, pose: Tensor, tone: Tensor, damping: Tensor, stride: Tensor) -> Estimate:
    """The state at a pose. The scale is that of its own residuals, at every pose anew: it shrinks as they do.

    A pixel's variance is that of the pictures, scale^2, and what the deviation of its depth adds to it.
    """
    residuals, seen = compare(level, pose, tone)
    by_depth = DEPTH_DEVIATION * depth_jacobian(level, pose)
    residual, scale = robust_scales(residuals, by_depth, seen, (STRICTEST * level.contrast).clamp(min=1e-6))
    variance = scale[:, None, None].square() + by_depth.square()
    spread, freedom = level.freedom * variance + residuals.square(), level.freedom
    weight = ((freedom + 1) * scale[:, None, None].square() * seen / spread).flatten(1)
    weighted = level.jacobian * weight[:, None]
    hessian = weighted @ level.jacobian.transpose(1, 2)
    gradient = (weighted @ residuals.flatten(1)[..., None])[..., 0]
    in_view = seen.sum((1, 2))
    # Of Student's t, with its variances: poses compete though each has others.
    errors = ((freedom + 1) * spread.log() - freedom * variance.log()) * seen
    cost = errors.sum((1, 2)) / (2 * residuals.shape[1] * in_view).clamp(min=1e-12)
    used = in_view / level.total
    cost = torch.where(used > SMALLEST_SHARE, cost, torch.inf)
    return Estimate(pose, tone, hessian, gradient, cost, residual, scale, used, damping, stride)


def depth_jacobian(level: Level, pose: Tensor) -> Tensor:
    """Derivative `[B, C, N]` of the values by the logarithm of each pixel's inverse depth: its parallax in the picture.

    A point that comes nearer by a part moves as under that part of the translation, here seen from the target.
    """
    translation = pose[:, None, :3, 3] @ pose[:, :3, :3]
    return (translation @ level.jacobian[:, 3:6])[:, 0].view_as(level.values)


def compare(level: Level, pose: Tensor, tone: Tensor) -> tuple[Tensor, Tensor]:
    """Residuals `[B, C, N]`, source at the projections minus target, and the weight `[B, 1, N]` of pixels in view."""
    projected = level.projection @ pose[:, :3] @ level.points
    forward = projected[:, 2:]
    grid = projected[:, :2] / forward.clamp(min=NEAREST_SEEN)
    is_seen = (forward > NEAREST_SEEN) & (grid.abs().amax(1, keepdim=True) <= 1)
    # What lies far outside must not overflow the integers of grid_sample.
    grid = grid.clamp(-2, 2).transpose(1, 2)[:, None]
    values = functional.grid_sample(level.source, grid, mode="bilinear", padding_mode="border", align_corners=True)
    residuals = values[:, :, 0] - level.values
    if level.jacobian.shape[1] > 6:
        residuals = residuals - tone[:, :1, None] * level.values - tone[:, 1:, None]
    return residuals, level.weight * is_seen


def robust_scales(residuals: Tensor, by_depth: Tensor, seen: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
    """Standard deviations `[B]` of the residuals, and without what the uncertain depth explains; `least` or more."""
    every = math.ceil(residuals[0].numel() / MEDIAN_SAMPLES)
    sizes = torch.where(seen[..., ::every] > 0, residuals[..., ::every].abs(), torch.nan)
    residual = torch.maximum(median_deviation(sizes), least)
    sizes = sizes * (1 + (by_depth[..., ::every] / residual[:, None, None]).square()).rsqrt()
    return residual, torch.maximum(median_deviation(sizes), least)


def median_deviation(sizes: Tensor) -> Tensor:
    """The standard deviation `[B]` that normal errors of these sizes `[B, C, N]` have, without those that are NaN."""
    return (NORMAL_DEVIATION * sizes.flatten(1).nanmedian(1).values).nan_to_num(0.0)


def solve(hessian: Tensor, gradient: Tensor, damping: Tensor) -> Tensor:
    """The damped step `[B, P]`; 0 in directions of which nothing is known."""
    size = inverse_root(hessian)
    factor, _ = torch.linalg.cholesky_ex(normalised(hessian, size, damping + 1e-6))
    step = torch.cholesky_solve((gradient * size)[..., None], factor)[..., 0] * size
    return step.nan_to_num(0.0, 0.0, 0.0)


def inverse_root(hessian: Tensor) -> Tensor:
    """One over the square root of the diagonal `[B, P]`."""
    return hessian.diagonal(dim1=1, dim2=2).clamp(min=1e-12).rsqrt()


def normalised(hessian: Tensor, size: Tensor, ridge: Tensor) -> Tensor:
    """The hessian with a diagonal of 1, and `ridge` added to it."""
    return hessian * size[:, :, None] * size[:, None] + torch.diag_embed(ridge[:, None].expand_as(size))


def choose(condition: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """`first` of the samples where `condition` `[B]`, `second` of the others."""
    return torch.where(condition.view(-1, *[1] * (first.ndim - 1)), first, second)


def conclude(state: Estimate, level: Level, unit: Tensor) -> Alignment:
    """The result, in the depth's unit."""
    variance = state.scale.square()
    size = inverse_root(state.hessian)
    factor, failure = torch.linalg.cholesky_ex(normalised(state.hessian, size, torch.full_like(unit, 1e-6)))
    covariance = torch.cholesky_inverse(factor) * size[:, :, None] * size[:, None] * variance[:, None, None]
    deviation = covariance[:, :6, :6].diagonal(dim1=1, dim2=2).amax(1).sqrt()
    explained = ((1 + state.tone[:, 0]) * level.contrast).square()
    is_known = (state.used > SMALLEST_SHARE) & (explained > EXPLAINED * (explained + state.residual.square()))
    is_known = is_known & (failure == 0) & (deviation < LARGEST_DEVIATION)
    pose = scale_translation(state.pose, unit[:, None])
    return Alignment(pose, left_information(state, pose, unit), state.used, state.residual, is_known)


def left_information(state: Estimate, pose: Tensor, unit: Tensor) -> Tensor:
    """Information `[B, 6, 6]` of an increment on the left of `pose`; the state's are on the right, and in its unit."""
    hessian = state.hessian[:, :6, :6]
    if state.hessian.shape[1] > 6:  # what gain and offset, which are not known either, leave of it
        mixed, tone = state.hessian[:, :6, 6:], state.hessian[:, 6:, 6:]
        (gain, both), (_, offset) = (row.unbind(1) for row in tone.unbind(1))
        determinant = (gain * offset - both.square()).clamp(min=1e-12) + 1e-6 * gain * offset
        inverse = torch.stack([offset, -both, -both, gain], dim=1) / determinant[:, None]
        hessian = hessian - mixed @ inverse.unflatten(1, (2, 2)) @ mixed.transpose(1, 2)
    inverse_rotation = pose[:, :3, :3].transpose(1, 2)
    nothing = torch.zeros_like(inverse_rotation)
    # Columns are t x e_i: the translation that a rotation on the left gives.
    units = torch.eye(3, device=pose.device).expand_as(nothing)
    moved = torch.linalg.cross(pose[:, None, :3, 3].expand(-1, 3, -1), units).transpose(1, 2)
    lower = torch.cat([-inverse_rotation @ moved, inverse_rotation], dim=2) / unit[:, None, None]
    right_from_left = torch.cat([torch.cat([inverse_rotation, nothing], dim=2), lower], dim=1)
    information = right_from_left.transpose(1, 2) @ hessian @ right_from_left
    return information / state.scale.square()[:, None, None]
