"""Pictures of a synthetic scene.

They are band-limited: the detail of a texture fades as the footprint of a ray on the surface approaches its wavelength,
and each pixel averages 2x2 rays. Looks depend on the surface point alone, never on the viewer, so that photometric
matching is exact but for occlusion and moving things.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from featdepth.data.street.rays import Rays, camera_rays, cast, round_bottom, round_top
from featdepth.data.street.scene import MATERIAL, Road, Scene, Solids

SUPERSAMPLING = 2
TEXELS = 32  # of the noise pattern per wavelength
NOISE_SIZE = 1024
OCTAVES = ((1.0, 0.9), (2.1, 0.9), (4.7, 0.8), (11.0, 0.5), (27.0, 0.3))  # (wavelength / grain, strength)
SHADOW_CELL = 0.25  # metres


@cache
def noise_pattern() -> np.ndarray:
    """A periodic pattern float32 [NOISE_SIZE, NOISE_SIZE], mean 0, deviation 1, about TEXELS texels a wavelength."""
    frequency = np.fft.fftfreq(NOISE_SIZE) * TEXELS
    radius = np.hypot(frequency[:, None], frequency[None])
    band = np.exp(-((radius - 0.8) ** 2) / (2 * 0.3**2)) * (radius > 0.1) * (radius < 1.5)
    spectrum = np.fft.fft2(np.random.default_rng(0).standard_normal((NOISE_SIZE, NOISE_SIZE))) * band
    pattern = np.fft.ifft2(spectrum).real
    return np.clip(pattern / pattern.std(), -2.5, 2.5).astype(np.float32)


def noise(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The pattern at u, v in wavelengths."""
    column = (u * TEXELS + 2**19).astype(np.int32) & (NOISE_SIZE - 1)  # the shift keeps truncation away from 0
    row = (v * TEXELS + 2**19).astype(np.int32) & (NOISE_SIZE - 1)
    return noise_pattern().ravel().take(row * NOISE_SIZE + column)


def fade(width_u: np.ndarray, width_v: np.ndarray, wavelength: np.ndarray | float) -> np.ndarray:
    """How much of a texture is left where a ray covers `width_u` by `width_v` metres."""
    return np.exp(-12 * (width_u**2 + width_v**2) / np.float32(wavelength) ** 2)


def pulses(x: np.ndarray, width: np.ndarray, period: np.ndarray | float, fill: np.ndarray | float) -> np.ndarray:
    """Share of [x - width/2, x + width/2] that lies in bars of `fill` of each `period`, in the middle of it."""
    width = np.maximum(width / period, 1e-3)

    def integral(place: np.ndarray) -> np.ndarray:
        whole = np.floor(place)
        return whole * fill + np.clip(place - whole - (1 - fill) / 2, 0, fill)

    return (integral(x / period + width / 2) - integral(x / period - width / 2)) / width


def band(x: np.ndarray, width: np.ndarray, low: float, high: float) -> np.ndarray:
    """Share of [x - width/2, x + width/2] that lies between `low` and `high`."""
    width = np.maximum(width, 1e-3)
    return np.clip((np.minimum(x + width / 2, high) - np.maximum(x - width / 2, low)) / width, 0, 1)


def texture(u: np.ndarray, v: np.ndarray, width_u: np.ndarray, width_v: np.ndarray, grain: np.ndarray) -> np.ndarray:
    """Sum of all octaves of noise at surface points (metres), faded by the footprint."""
    total = np.zeros_like(u)
    for number, (ratio, strength) in enumerate(OCTAVES):
        wavelength = grain * np.float32(ratio)
        sample = noise(u / wavelength + 7.3 * number, v / wavelength + 3.1 * number)
        total += np.float32(strength) * fade(width_u, width_v, wavelength) * sample
    return total


class Painter:
    """Draws pictures of one scene; keeps what is common to all of them."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.shadow_corner, self.shadows = shadow_map(scene)

    def picture(self, intrinsics: np.ndarray, height: int, width: int, pose: np.ndarray, time: float) -> np.ndarray:
        """The image uint8 [height, width, 3] that a camera at `pose` (world_from_camera) takes at `time` (seconds)."""
        solids, cars = self.scene.at(time)
        rays = camera_rays(intrinsics, height, width, pose, SUPERSAMPLING)
        length, surface = cast(rays, solids)
        length, surface = length.ravel(), surface.ravel()
        colours = np.empty((len(length), 3), np.float32)
        sky, ground, solid = (np.flatnonzero(part) for part in (surface < 0, surface == 0, surface > 0))
        step = 1 / (SUPERSAMPLING * intrinsics[0, 0])
        colours[sky] = self.paint_sky(rays, sky)
        colours[ground] = self.paint_ground(rays, length[ground], ground, step, cars)
        colours[solid] = self.paint_solids(rays, solids, length[solid], surface[solid] - 1, solid, step)
        colours = colours.reshape(height, SUPERSAMPLING, width, SUPERSAMPLING, 3).mean((1, 3))
        return (np.clip(colours, 0, 1) * 255 + 0.5).astype(np.uint8)

    def paint_sky(self, rays: Rays, index: np.ndarray) -> np.ndarray:
        """Colours [n, 3] of rays that hit nothing: brighter towards the horizon, with soft clouds."""
        x, y, z = (rays.dot(axis).ravel()[index] for axis in np.eye(3))
        azimuth, elevation = np.arctan2(y, x), z / np.sqrt(x * x + y * y + z * z)
        cloud = noise(azimuth * 1.5, elevation * 5) + 0.5 * noise(azimuth * 4, elevation * 14 + 5)
        cloud = np.clip(0.35 + 0.3 * cloud, 0, 1)[:, None]
        blue = np.float32([0.45, 0.62, 0.85]) + np.float32([0.3, 0.2, 0.1]) * np.exp(-4 * np.abs(elevation))[:, None]
        grey = np.float32([0.85, 0.87, 0.9])
        return blue + (grey - blue) * cloud * np.float32(1.2 - self.scene.direct)

    def paint_ground(
        self, rays: Rays, length: np.ndarray, index: np.ndarray, step: float, cars: list[tuple[float, float, float]]
    ) -> np.ndarray:
        """Colours [n, 3] of ground points: road, marks, kerb, sidewalk and what lies behind, in shade and sun."""
        direction_x, direction_y = (rays.dot(axis).ravel()[index] for axis in np.eye(3)[:2])
        x, y = rays.origin[0] + length * direction_x, rays.origin[1] + length * direction_y
        # The footprint: how far the hit moves in x, y from one ray to the next in its row and in its column.
        right, down = rays.rotation[:, 0] * step, rays.rotation[:, 1] * step
        drop = np.float32(1 / rays.origin[2]) * length
        moves = [
            (length * (d[0] + direction_x * drop * d[2]), length * (d[1] + direction_y * drop * d[2]))
            for d in (right, down)
        ]
        layers = ground_layers(self.scene, x, y, moves)
        wide = np.sqrt(sum(dx * dx + dy * dy for dx, dy in moves))
        light = 1 - self.shade(x, y, wide)
        for car_x, car_y, yaw in cars:
            forward = (x - car_x) * np.cos(yaw) + (y - car_y) * np.sin(yaw)
            left = (y - car_y) * np.cos(yaw) - (x - car_x) * np.sin(yaw)
            light = light * (1 - 0.9 * band(forward, 0.4 + wide, -2.2, 2.2) * band(left, 0.4 + wide, -0.95, 0.95))
        direct = self.scene.direct
        brightness = (1 - 0.5 * direct) * 0.9 + direct * self.scene.sun[2] * 0.8 * light - (1 - light) * 0.12
        return layers * brightness[:, None].astype(np.float32)

    def shade(self, x: np.ndarray, y: np.ndarray, width: np.ndarray) -> np.ndarray:
        """Share of the direct light that static things keep from ground points [n]."""
        levels, rows, columns = self.shadows.shape
        level = np.clip(np.log2(np.maximum(width, 1e-3) / SHADOW_CELL) + 1, 0, levels - 1).astype(np.int32)
        column = (x - self.shadow_corner[0]) / SHADOW_CELL - 0.5
        row = (y - self.shadow_corner[1]) / SHADOW_CELL - 0.5
        column, row = np.clip(column, 0, columns - 2), np.clip(row, 0, rows - 2)
        left, top = column.astype(np.int32), row.astype(np.int32)
        a, b = (column - left).astype(np.float32), (row - top).astype(np.float32)
        flat, start = self.shadows.ravel(), (level * rows + top) * columns + left
        upper = flat[start] * (1 - a) + flat[start + 1] * a
        return upper * (1 - b) + (flat[start + columns] * (1 - a) + flat[start + columns + 1] * a) * b

    def paint_solids(
        self, rays: Rays, solids: Solids, length: np.ndarray, surface: np.ndarray, index: np.ndarray, step: float
    ) -> np.ndarray:
        """Colours [n, 3] of points on blocks and rounds."""
        table = surface_table(solids, rays)
        x, y, z = (rays.dot(axis).ravel()[index] for axis in np.eye(3))
        facts = table.take(surface, axis=0)
        normal, axis_u, axis_v, start_u, start_v = facts[:, :3].T, facts[:, 3:6].T, facts[:, 6:9].T, *facts[:, 9:].T
        facing = np.minimum(normal[0] * x + normal[1] * y + normal[2] * z, -1e-3)
        points, widths = [], []
        right, down = (rays.rotation[:, :2].T * step).astype(np.float32)
        for axis, start in ((axis_u, start_u), (axis_v, start_v)):
            along = axis[0] * x + axis[1] * y + axis[2] * z
            squared = 0
            for d in (right, down):
                tilt = (normal[0] * d[0] + normal[1] * d[1] + normal[2] * d[2]) / facing
                squared = squared + (axis[0] * d[0] + axis[1] * d[1] + axis[2] * d[2] - along * tilt) ** 2
            points.append(start + length * along)
            widths.append(length * np.sqrt(squared))
        lit = self.light(solids)[surface]
        rounded = np.flatnonzero(surface >= solids.materials.size)
        if len(rounded):  # they are wrapped in their texture: u around, v up
            hits = rays.origin + length[rounded, None] * np.stack([x, y, z], 1)[rounded]
            shape = solids.round_shapes[surface[rounded] - solids.materials.size]
            outward = (hits - shape[:, :3]) * shape[:, 3:6] ** 2
            points[0][rounded] = np.arctan2(outward[:, 1], outward[:, 0]) / shape[:, 3]
            points[1][rounded] = hits[:, 2]
            outward /= np.linalg.norm(outward, axis=1, keepdims=True)
            lit[rounded] = self.lambert(outward)
        materials = np.concatenate([solids.materials.ravel(), solids.round_materials])
        return paint(materials, surface, *points, *widths) * lit[:, None]

    def light(self, solids: Solids) -> np.ndarray:
        """Brightness of each surface [6 N + M]; that of rounds depends on the point and is left at 1."""
        return np.concatenate([self.lambert(solids.planes[..., :3].reshape(-1, 3)), np.ones(len(solids.round_shapes))])

    def lambert(self, normals: np.ndarray) -> np.ndarray:
        """Brightness [n] of surfaces with outward unit normals [n, 3]."""
        direct, sun = self.scene.direct, self.scene.sun
        soft = 0.5 + 0.5 * normals[:, 2] + 0.12 * normals[:, 0]  # even in the shade, sides of a box differ a little
        towards = np.maximum((normals * sun).sum(1), 0)
        return ((1 - 0.5 * direct) * (0.72 + 0.25 * soft) + 0.9 * direct * towards).astype(np.float32)


def surface_table(solids: Solids, rays: Rays) -> np.ndarray:
    """For each surface float32 [11]: normal, axes of u and v, and u, v of the viewer."""
    blocks = np.concatenate([solids.planes[..., None, :], solids.axes], axis=2).reshape(-1, 3, 4)
    functions = np.zeros((len(blocks) + len(solids.round_shapes), 3, 4))
    functions[: len(blocks)] = blocks
    functions[len(blocks) :, 0, :3] = -rays.rotation[:, 2]  # rounds: as if they faced the viewer, for the footprint
    functions[len(blocks) :, 1, :3] = rays.rotation[:, 0] * 1.5
    functions[len(blocks) :, 2, :3] = [0, 0, 1.0]
    starts = (functions[:, 1:, :3] * rays.origin).sum(-1) + functions[:, 1:, 3]
    return np.concatenate([functions[..., :3].reshape(-1, 9), starts], axis=1).astype(np.float32)


def paint(
    materials: np.ndarray, surface: np.ndarray, u: np.ndarray, v: np.ndarray, width_u: np.ndarray, width_v: np.ndarray
) -> np.ndarray:
    """Colours [n, 3] of points at (u, v) metres on surfaces of `materials`."""
    facts = np.ascontiguousarray(materials).view(np.float32).reshape(len(materials), -1).take(surface, axis=0)
    names = {name: MATERIAL.fields[name][1] // 4 for name in MATERIAL.names}
    colours, fill = facts[:, names["colour"] : names["colour"] + 3], facts[:, names["fill"]]
    patterned = np.flatnonzero(fill)
    if len(patterned):
        some = facts[patterned]
        period, fill = some[:, names["period"] :], some[:, names["fill"] :]
        cover = pulses(u[patterned], width_u[patterned], period[:, 0], fill[:, 0])
        cover *= pulses(v[patterned], width_v[patterned], period[:, 1], fill[:, 1])
        second = some[:, names["second"] : names["second"] + 3]
        colours[patterned] += (second - colours[patterned]) * cover[:, None]
    u, v = u + facts[:, names["offset"]], v + facts[:, names["offset"] + 1]
    grain = facts[:, names["grain"]]
    pattern = texture(u, v, width_u, width_v, grain) * facts[:, names["contrast"]]
    return colours * (1 + pattern)[:, None]


def ground_layers(scene: Scene, x: np.ndarray, y: np.ndarray, moves: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Unlit colours [n, 3] of ground points; `moves` are the footprint's two edges in metres."""
    looks, (station, offset, edge, other, tangent_x, tangent_y) = scene.looks, nearest_road(scene.roads, x, y)
    width_s = np.sqrt(sum((dx * tangent_x + dy * tangent_y) ** 2 for dx, dy in moves))
    width_d = np.sqrt(sum((dy * tangent_x - dx * tangent_y) ** 2 for dx, dy in moves))
    sidewalk, big = scene.roads[0].sidewalk, np.float32(1e4)
    x, y = x.astype(np.float32), y.astype(np.float32)
    width_x, width_y = (np.sqrt(sum(move[axis] ** 2 for move in moves)).astype(np.float32) for axis in (0, 1))
    grain = texture(x, y, width_x, width_y, np.float32(0.16))
    streaks = sum(  # tyre tracks and seams: long along the road, so that they stay visible far away
        np.float32(strength)
        * noise(station / (12 * wide) + number, offset / wide + 5 * number)
        * np.exp(-12 * ((width_s / (12 * wide)) ** 2 + (width_d / wide) ** 2))
        for number, (wide, strength) in enumerate(((0.3, 0.8), (0.8, 0.9), (2.2, 0.9)))
    )
    road = looks.asphalt * (1 + looks.contrast * (0.07 * grain + 0.10 * streaks))[:, None]
    marks = road_marks(scene, station, offset, edge, other, width_s, width_d)
    road += (0.85 + 0.05 * grain[:, None] - road) * marks[:, None]
    slabs = 1 - 0.25 * np.maximum(pulses(station, width_s, 0.8, 0.08), pulses(offset, width_d, 0.8, 0.08))
    walk = looks.sidewalk * (slabs * (1 + looks.contrast * (0.08 * grain + 0.06 * streaks)))[:, None]
    soil = looks.beyond * (1 + looks.contrast * 0.2 * grain)[:, None]
    colours = road * band(edge, width_d, -big, 0)[:, None] + soil * band(edge, width_d, sidewalk, big)[:, None]
    colours += walk * band(edge, width_d, 0.18, sidewalk)[:, None]
    colours += looks.kerb * (1 + 0.1 * grain)[:, None] * band(edge, width_d, 0, 0.18)[:, None]
    return colours.astype(np.float32)


def nearest_road(roads: list[Road], x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, ...]:
    """Where ground points lie on the road whose edge is nearest (or that they are deepest in).

    Returns station, offset, distance beyond the edge (negative on the road), the same distance for the next
    best road, and the tangent's x and y; each [n].
    """
    best = None
    for road in roads:
        station, offset, index = road.locate(x, y)
        edge = np.abs(offset) - np.float32(road.half_width)
        tangent_x, tangent_y = road.tangents[index].T.astype(np.float32)
        found = [station, offset, edge, np.full_like(edge, 1e3), tangent_x, tangent_y]
        if best is not None:
            wins = edge < best[2]
            other = np.minimum(np.maximum(edge, best[2]), best[3])
            found = [np.where(wins, new, old) for new, old in zip(found, best, strict=True)]
            found[3] = other
        best = found
    return tuple(best)


def road_marks(
    scene: Scene,
    station: np.ndarray,
    offset: np.ndarray,
    edge: np.ndarray,
    other: np.ndarray,
    width_s: np.ndarray,
    width_d: np.ndarray,
) -> np.ndarray:
    """Share of paint [n] on the road: middle line and edge lines, none on crossings."""
    looks, marks = scene.looks, np.zeros_like(offset)
    if looks.marks != "none":
        marks = band(offset, width_d, -0.08, 0.08)
        if looks.marks == "dashed":
            marks *= pulses(station, width_s, 7.5, 0.45)
    if looks.edge_line:
        marks = marks + band(np.abs(offset), width_d, looks.lane - 0.06, looks.lane + 0.08)
    return marks * band(other, width_d, 0.5, 1e4) * 0.9


def shadow_map(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """South-west corner [2] of the map of shadows on the ground, and the map [levels, rows, columns], ever blurrier."""
    solids, slant = scene.static, -scene.sun[:2] / scene.sun[2]
    corner = scene.roads[0].points.min(0) - 40
    columns, rows = np.ceil((scene.roads[0].points.max(0) + 40 - corner) / SHADOW_CELL).astype(int)
    image = Image.new("L", (int(columns), int(rows)))
    pen = ImageDraw.Draw(image)
    on_ground = (solids.corners[..., :2] + solids.corners[..., 2:] * slant - corner) / SHADOW_CELL
    for block_corners in on_ground:
        for face in ((0, 1, 2, 3), (4, 5, 6, 7), (0, 1, 5, 4), (1, 2, 6, 5), (2, 3, 7, 6), (3, 0, 4, 7)):
            pen.polygon([tuple(block_corners[number]) for number in face], fill=255)
    circle = np.linspace(0, 2 * np.pi, 17)[:-1]
    for shape, low, high in zip(solids.round_shapes, round_bottom(solids), round_top(solids), strict=True):
        for height in np.linspace(low, high, 12):
            swell = np.sqrt(max(0, 1 - ((height - shape[2]) * shape[5]) ** 2))
            outline = np.stack([np.cos(circle) / shape[3], np.sin(circle) / shape[4]], 1) * max(swell, 0.02)
            pen.polygon([tuple(p) for p in (shape[:2] + outline + height * slant - corner) / SHADOW_CELL], fill=255)
    levels = [np.asarray(image.filter(ImageFilter.GaussianBlur(radius))) for radius in (1, 2, 4, 8)]
    return corner, np.stack(levels).astype(np.float32) / 255
