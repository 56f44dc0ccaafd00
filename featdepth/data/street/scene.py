"""The world of the synthetic street: roads, houses, trees, cars, and how the recording vehicle drives through it.

World frame: x east, y north, z up, metres, the ground is z = 0. Everything solid is either a block (a convex frustum
with rectangular bottom and top: walls, gable roofs, car bodies) or a round (an ellipsoid or an upright cylinder).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

# How a surface looks. Colours in [0, 1]; `second` is the colour of windows, tiles or lamps that repeat every `period`
# metres and fill `fill` of it; `grain` is the shortest wavelength of its texture in metres, `contrast` its strength.
MATERIAL = np.dtype(
    {
        "names": ("colour", "second", "period", "fill", "grain", "contrast", "offset"),
        "formats": ("3f4", "3f4", "2f4", "2f4", "f4", "f4", "2f4"),
    }
)


@dataclass
class Solids:
    """Blocks and rounds as arrays. A plane or axis [..., 4] is a linear function of position: `p[:3] @ xyz + p[3]`."""

    planes: np.ndarray  # [N, 6, 4]: negative inside the block; sides front, left, back, right, then top, bottom
    axes: np.ndarray  # [N, 6, 2, 4]: texture coordinates u, v in metres
    materials: np.ndarray  # [N, 6] MATERIAL
    corners: np.ndarray  # [N, 8, 3]
    round_shapes: np.ndarray  # [M, 8]: centre, 1 / radii (0 along z: a cylinder), lowest and highest z
    round_materials: np.ndarray  # [M] MATERIAL

    def moved(self, x: float, y: float, yaw: float) -> Solids:
        """The blocks turned by `yaw` (radians) and then shifted to (x, y); for things without rounds."""
        turn = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1.0]])
        shift = np.array([x, y, 0.0])

        def functions(old: np.ndarray) -> np.ndarray:
            normal = old[..., :3] @ turn.T
            return np.concatenate([normal, old[..., 3:] - (normal @ shift)[..., None]], axis=-1)

        corners = self.corners @ turn.T + shift
        moved = (functions(self.planes), functions(self.axes), self.materials, corners)
        return Solids(*moved, self.round_shapes, self.round_materials)

    @staticmethod
    def joined(parts: list[Solids]) -> Solids:
        """One collection of all `parts`."""
        empty = Solids(
            np.zeros((0, 6, 4)), np.zeros((0, 6, 2, 4)), np.zeros((0, 6), MATERIAL), np.zeros((0, 8, 3)),
            np.zeros((0, 8)), np.zeros(0, MATERIAL),
        )  # fmt: skip
        rows = [list(vars(part).values()) for part in [empty, *parts]]
        return Solids(*(np.concatenate(column) for column in zip(*rows, strict=True)))


def material(
    rng: np.random.Generator,
    colour: np.ndarray | tuple[float, ...],
    contrast: float = 0.2,
    grain: float = 0.15,
    second: np.ndarray | tuple[float, ...] = (0.0, 0.0, 0.0),
    period: tuple[float, float] = (1.0, 1.0),
    fill: tuple[float, float] = (0.0, 0.0),
) -> np.void:
    """One MATERIAL record, with its own place in the noise pattern."""
    offset = rng.uniform(0, 500, 2)
    record = (tuple(colour), tuple(second), period, fill, grain, contrast, tuple(offset))
    return np.array(record, MATERIAL)[()]


def block(
    bottom: tuple[float, float],
    top: tuple[float, float],
    low: float,
    high: float,
    sides: np.void | list[np.void],
    lid: np.void | None = None,
    at: tuple[float, float, float] = (0.0, 0.0, 0.0),
    shift: float = 0.0,
) -> Solids:
    """A frustum from z = `low` to `high`; `bottom` and `top` are (length, width), the top shifted forward by `shift`.

    `at` is (x, y, yaw) of the bottom's middle. `sides`: one material, or four (front, left, back, right).
    """
    signs = np.array([[1, -1], [1, 1], [-1, 1], [-1, -1]]) / 2
    lower = np.column_stack([signs * bottom, np.full(4, low)])
    upper = np.column_stack([signs * top + [shift, 0], np.full(4, high)])
    planes, axes = np.zeros((1, 6, 4)), np.zeros((1, 6, 2, 4))
    for side in range(4):
        start, end = lower[side], lower[(side + 1) % 4]
        along = (end - start) / np.linalg.norm(end - start)
        rise = (upper[side] + upper[(side + 1) % 4] - start - end) / 2
        rise -= along * (rise @ along)
        rise /= np.linalg.norm(rise)
        normal = np.cross(along, rise)
        planes[0, side] = [*normal, -normal @ start]
        axes[0, side] = [[*along, -along @ start], [*rise, -rise @ start + low]]
    planes[0, 4:] = [[0, 0, 1, -high], [0, 0, -1, low]]
    axes[0, 4:] = [[1, 0, 0, 0], [0, 1, 0, 0]]
    four = list(sides) if isinstance(sides, list) else [sides] * 4
    lid = four[0] if lid is None else lid
    materials = np.array([[*four, lid, lid]], MATERIAL)
    no_rounds = (np.zeros((0, 8)), np.zeros(0, MATERIAL))
    corners = np.concatenate([lower, upper])[None]
    return Solids(planes, axes, materials, corners, *no_rounds).moved(*at)


def rounds(shapes: list[tuple[float, ...]], looks: list[np.void]) -> Solids:
    """Rounds from (x, y, z, 1 / radius_x, 1 / radius_y, 1 / radius_z, lowest, highest) and their materials."""
    nothing = Solids.joined([])
    nothing.round_shapes, nothing.round_materials = np.array(shapes, float), np.array(looks, MATERIAL)
    return nothing


class Road:
    """A centre line with stations every 0.25 m; `locate` turns world positions into (station, offset to the left)."""

    SPACING, CELL = 0.25, 2.0

    def __init__(self, points: np.ndarray, headings: np.ndarray, half_width: float, sidewalk: float) -> None:
        self.points, self.headings = points, headings
        self.half_width, self.sidewalk = half_width, sidewalk
        self.tangents = np.column_stack([np.cos(headings), np.sin(headings)])
        self.length = self.SPACING * (len(points) - 1)
        self.corner = points.min(0) - 60
        columns, rows = np.ceil((points.max(0) + 60 - self.corner) / self.CELL).astype(int)
        x = self.corner[0] + self.CELL * (np.arange(columns) + 0.5)
        y = self.corner[1] + self.CELL * (np.arange(rows) + 0.5)
        coarse = points[::8].astype(np.float32)  # 2 m is near enough: locate() refines it
        across = (y[:, None] - coarse[:, 1]) ** 2
        self.nearest = np.stack([((place - coarse[:, 0]) ** 2 + across).argmin(-1) * 8 for place in x])

    def locate(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Station [n], offset to the left [n] (metres) and index of the nearest centre point [n] of world positions."""
        column = np.clip((x - self.corner[0]) / self.CELL, 0, self.nearest.shape[0] - 1).astype(np.int32)
        row = np.clip((y - self.corner[1]) / self.CELL, 0, self.nearest.shape[1] - 1).astype(np.int32)
        index = self.nearest[column, row]
        for _ in range(2):
            dx, dy = x - self.points[index, 0], y - self.points[index, 1]
            along = dx * self.tangents[index, 0] + dy * self.tangents[index, 1]
            previous, index = index, np.clip(index + np.rint(along / self.SPACING).astype(int), 0, len(self.points) - 1)
        offset = dy * self.tangents[previous, 0] - dx * self.tangents[previous, 1]
        return (previous * self.SPACING + along).astype(np.float32), offset.astype(np.float32), previous

    def place(self, station: float, offset: float) -> tuple[float, float, float]:
        """World x, y and heading of the road at (station, offset)."""
        position = np.clip(station / self.SPACING, 0, len(self.points) - 1)
        grid = np.arange(len(self.points))
        x, y = (np.interp(position, grid, self.points[:, axis]) for axis in (0, 1))
        heading = np.interp(position, grid, self.headings)
        return x - offset * np.sin(heading), y + offset * np.cos(heading), heading

    @staticmethod
    def from_headings(headings: np.ndarray, start: tuple[float, float], half_width: float, sidewalk: float) -> Road:
        """A road that begins at `start` and takes `headings` (radians), one for each 0.25 m."""
        middle = (headings[1:] + headings[:-1]) / 2
        steps = Road.SPACING * np.column_stack([np.cos(middle), np.sin(middle)])
        points = np.concatenate([[start], start + np.cumsum(steps, 0)])
        return Road(points, headings, half_width, sidewalk)


@dataclass
class GroundLooks:
    """How the ground of a scene looks. Colours in [0, 1]."""

    asphalt: np.ndarray
    sidewalk: np.ndarray
    beyond: np.ndarray  # grass or gravel behind the sidewalk
    kerb: np.ndarray
    lane: float  # lane width, metres
    marks: str  # "dashed", "solid" or "none": the middle line
    edge_line: bool
    contrast: float


@dataclass
class Scene:
    """Everything that a ray can meet. `at(time)` gives the solids at that instant (seconds), moving cars last."""

    roads: list[Road]  # the first is the one that is driven
    looks: GroundLooks
    sun: np.ndarray  # unit vector to the sun
    direct: float  # strength of the direct light; the rest is ambient
    static: Solids
    moving: list[tuple[Solids, Callable[[float], tuple[float, float, float]]]] = field(default_factory=list)

    def at(self, time: float) -> tuple[Solids, list[tuple[float, float, float]]]:
        """All solids, and the positions (x, y, yaw) of the moving cars."""
        positions = [position(time) for _, position in self.moving]
        cars = [car.moved(*where) for (car, _), where in zip(self.moving, positions, strict=True)]
        return Solids.joined([self.static, *cars]), positions


@dataclass
class Journey:
    """The vehicle's way along the first road: smooth functions of time (seconds)."""

    road: Road
    start: float  # station at time 0, metres
    speed: float  # m/s at time 0
    acceleration: float
    lateral: tuple[float, float, float, float]  # offset, and amplitude (m), wavelength (m), phase of the weaving
    tilt: np.ndarray  # [2, 4]: roll and pitch as mean, amplitude (rad), frequency (Hz), phase
    height: float  # of the inertial unit above the ground

    def station(self, time: float) -> float:
        """Distance along the road in metres."""
        return self.start + self.speed * time + 0.5 * self.acceleration * time**2

    def pose(self, time: float) -> np.ndarray:
        """world_from_imu [4, 4]; imu: x forward, y left, z up."""
        x, y, yaw = self.position(time)
        ahead = np.subtract(self.position(time + 0.02)[:2], self.position(time - 0.02)[:2])
        yaw = np.arctan2(ahead[1], ahead[0])  # the vehicle points where it goes
        roll, pitch = self.tilt[:, 0] + self.tilt[:, 1] * np.sin(2 * np.pi * self.tilt[:, 2] * time + self.tilt[:, 3])
        pose = np.eye(4)
        pose[:3, :3] = rotation(roll, pitch, yaw)
        pose[:3, 3] = x, y, self.height
        return pose

    def position(self, time: float) -> tuple[float, float, float]:
        """World x, y and the road's heading."""
        station = self.station(time)
        offset, amplitude, wavelength, phase = self.lateral
        return self.road.place(station, offset + amplitude * np.sin(2 * np.pi * station / wavelength + phase))


def rotation(roll: float, pitch: float, yaw: float) -> np.ndarray:
    """Rz(yaw) Ry(pitch) Rx(roll) [3, 3], the order of KITTI's inertial unit."""
    (cr, cp, cy), (sr, sp, sy) = np.cos([roll, pitch, yaw]), np.sin([roll, pitch, yaw])
    return np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]]) @ [[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]] @ [
        [1, 0, 0], [0, cr, -sr], [0, sr, cr],
    ]  # fmt: skip
