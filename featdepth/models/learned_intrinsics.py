"""Intrinsics that are learned: one focal length and one principal point for each camera, beside the networks.

What makes the focal length observable is rotation (Gordon et al., Depth from Videos in the Wild, ICCV 2019). A camera
that turns by the angle r about its vertical axis sees pixel x, counted from the principal point, move by
f r + x^2 r / f. The first part says nothing: another focal length with another angle explains it as well. A focal
length that is wrong by d changes the second part by 2 d x^2 r / f^2, which at the edge x = W / 2 of an image of width W
is one pixel where

    d / f = 2 f / (W^2 r).

This is the `tolerance` of a camera, with its root mean square angle between frames for r; the same holds for the height
and the horizontal axis. Averages over many frames settle the focal length to a part of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from featdepth.geometry import flip_intrinsics

# Adam moves a parameter by about its learning rate a step, whatever the gradient, which for networks is far less than
# a focal length needs: one unit of these parameters is this change of a logarithm or of a share of the image.
FOCAL_UNIT, CENTRE_UNIT = 20.0, 1.0
RECENT_STEPS = 200  # that spreads are taken over
RECENT_SAMPLES = 1000  # of a camera that its rotation is taken over
LARGEST_TOLERANCE = 0.25  # beyond it the warning that the rotation is too small
MOST_LOGGED = 4  # cameras whose focal lengths are logged one by one


class LearnedIntrinsics(nn.Module):
    """Intrinsics of the cameras `names`, at any size of the images.

    Everything is kept in shares of the image: (fx, cx + 0.5) of its width, (fy, cy + 0.5) of its height. square_pixels:
    one factor for fx and fy, whose ratio stays that of the start.
    """

    def __init__(self, names: Sequence[str], square_pixels: bool) -> None:
        super().__init__()
        self.names = list(names)
        count, focals = len(self.names), 1 if square_pixels else 2
        # Of the logarithm of the focal length, and of the principal point, since the start.
        self.focal_change = nn.Parameter(torch.zeros(count, focals))
        self.centre_change = nn.Parameter(torch.zeros(count, 2))
        self.register_buffer("start", torch.tensor([1.0, 1.0, 0.5, 0.5]).repeat(count, 1))  # fx, fy, cx, cy
        # How many steps there were, and the values after the last of them, the oldest overwritten first; of the last
        # samples of each camera: how many, and mean square of the rotation (radians) about the vertical and the
        # horizontal axis.
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("recent", torch.zeros(RECENT_STEPS, count, 4))
        self.register_buffer("samples", torch.zeros(count))
        self.register_buffer("rotation", torch.zeros(count, 2))

    @torch.no_grad()
    def start_from(self, intrinsics: Mapping[str, Tensor], size: tuple[int, int]) -> None:
        """Start the cameras from `intrinsics` {name: [3, 3]} of images of `size` (height, width) in pixels."""
        height, width = size
        for row, name in enumerate(self.names):
            (fx, _, cx), (_, fy, cy), _ = intrinsics[name].tolist()
            values = (fx / width, fy / height, (cx + 0.5) / width, (cy + 0.5) / height)
            self.start[row] = torch.tensor(values)

    @torch.no_grad()
    def continue_from(self, other: LearnedIntrinsics) -> None:
        """Start the cameras that `other` knows too from what it has learned."""
        rows = [(self.names.index(name), row) for row, name in enumerate(other.names) if name in self.names]
        for own_row, row in rows:
            self.start[own_row] = other.values()[row]

    def values(self) -> Tensor:
        """fx, fy, cx, cy `[cameras, 4]` in shares of the image."""
        focals = self.start[:, :2] * torch.exp(FOCAL_UNIT * self.focal_change)
        return torch.cat([focals, self.start[:, 2:] + CENTRE_UNIT * self.centre_change], dim=1)

    def forward(self, camera: Tensor, given: Tensor, flip: Tensor, size: tuple[int, int]) -> Tensor:
        """Intrinsics `[B, 3, 3]` in pixels of the samples' images of `size` (height, width).

        camera: index into `names` `[B]`, negative for those that keep their `given` intrinsics `[B, 3, 3]`;
        flip: which images are mirrored, bool `[B]` (given intrinsics are those of the mirrored image already).
        """
        height, width = size
        fx, fy, cx, cy = self.values()[camera.clamp(min=0)].unbind(1)
        zero, one = torch.zeros_like(fx), torch.ones_like(fx)
        rows = [fx * width, zero, cx * width - 0.5, zero, fy * height, cy * height - 0.5, zero, zero, one]
        intrinsics = torch.stack(rows, dim=1).unflatten(1, (3, 3))
        intrinsics = torch.where(flip[:, None, None], flip_intrinsics(intrinsics, width), intrinsics)
        return torch.where((camera < 0)[:, None, None], given, intrinsics)

    @torch.no_grad()
    def follow(self, camera: Tensor, poses: Tensor) -> None:
        """Take a forward pass of training into the running statistics, without waiting for the device.

        camera: index `[B]` of its samples; poses: source_from_target `[B, S, 4, 4]` of their temporal sources.
        """
        self.recent.index_copy_(0, (self.steps % RECENT_STEPS)[None], self.values()[None])
        self.steps += 1

        known = (camera >= 0).float()
        camera = camera.clamp(min=0)
        turns = axis_sines(poses.detach().float()).square().mean(1) * known[:, None]
        counts = torch.zeros_like(self.samples).index_add(0, camera, known)
        sums = torch.zeros_like(self.rotation).index_add(0, camera, turns)
        self.samples += counts
        window = self.samples.clamp(min=1, max=RECENT_SAMPLES)
        self.rotation += (sums - counts[:, None] * self.rotation) / window[:, None]

    @torch.no_grad()
    def tolerance(self, size: tuple[int, int]) -> Tensor:
        """Relative error `[cameras]` of the focal length that moves the edge of an image of `size` by one pixel.

        Infinite where a camera has not been seen to turn.
        """
        height, width = size
        (fx, fy), (about_vertical, about_horizontal) = self.values()[:, :2].unbind(1), self.rotation.sqrt().unbind(1)
        horizontal, vertical = width * about_vertical / (2 * fx), height * about_horizontal / (2 * fy)
        if self.focal_change.shape[1] == 1:
            return 1 / torch.hypot(horizontal, vertical)
        return 1 / torch.minimum(horizontal, vertical)

    @torch.no_grad()
    def describe(self, size: tuple[int, int]) -> dict[str, dict[str, object]]:
        """What is known of each camera, as numbers for people; `size` (height, width) of the images in training.

        focal and principal_point: in shares of the width and the height; field_of_view: horizontal, degrees;
        spreads: standard deviation over the last steps, relative for the focal length; rotation: root mean square
        between frames, degrees; tolerance: see there, null where it is infinite.
        """
        recent = self.recent[: max(1, int(self.steps))]
        columns = (
            self.values(),
            recent.std(0, correction=0),
            self.rotation.sum(1).sqrt().rad2deg(),
            self.tolerance(size),
        )
        table = zip(self.names, *(column.tolist() for column in columns), strict=True)
        return {
            name: {
                "focal": values[:2],
                "focal_spread": [spread / value for spread, value in zip(spreads[:2], values[:2], strict=True)],
                "principal_point": values[2:],
                "principal_point_spread": spreads[2:],
                "field_of_view": 2 * math.degrees(math.atan(0.5 / values[0])),
                "rotation": rotation,
                "tolerance": tolerance if math.isfinite(tolerance) else None,
            }
            for name, values, spreads, rotation, tolerance in table
        }

    def log(self) -> dict[str, float]:
        """Focal lengths in widths of the image and the rotation (degrees) for a line of the log; means where many."""
        focals, rotation = self.values()[:, 0].tolist(), self.rotation.sum(1).mean().sqrt().rad2deg().item()
        few = len(focals) <= MOST_LOGGED
        named = {f"focal {name}": focal for name, focal in zip(self.names, focals, strict=True)} if few else {}
        return {**(named or {"focal": sum(focals) / len(focals)}), "rotation": rotation}

    @torch.no_grad()
    def warning(self, size: tuple[int, int]) -> str | None:
        """A line that names the cameras that turn too little for their focal lengths to be learned; None: all do."""
        tolerances = self.tolerance(size).tolist()
        doubtful = [
            f"{name} (one pixel is {tolerance:.0%} of it)" if math.isfinite(tolerance) else name
            for name, tolerance in zip(self.names, tolerances, strict=True)
            if tolerance > LARGEST_TOLERANCE
        ]
        if not doubtful:
            return None
        more = f" and {len(doubtful) - MOST_LOGGED} more" if len(doubtful) > MOST_LOGGED else ""
        return (
            f"the frames turn too little to learn the focal length of {', '.join(doubtful[:MOST_LOGGED])}{more}; give "
            "intrinsics, or film and train on more bends (docs/intrinsics.md)"
        )


def axis_sines(poses: Tensor) -> Tensor:
    """Rotation `[..., 2]` (radians, as long as it is small) of `poses` `[..., 4, 4]` about the vertical axis y and
    the horizontal axis x."""
    about_y = (poses[..., 0, 2] - poses[..., 2, 0]) / 2
    about_x = (poses[..., 2, 1] - poses[..., 1, 2]) / 2
    return torch.stack([about_y, about_x], dim=-1)
