"""What stands and drives on the synthetic street: houses, hedges and fences, trees, cars."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from featdepth.data.street.scene import Solids, block, material

DARK = (0.06, 0.06, 0.07)


@dataclass
class Style:
    """What the surroundings of one drive are like; every number is drawn anew for each drive."""

    lane: float  # lane width, metres
    parking: float  # width of the parking strip, metres; 0 = none
    sidewalk: float
    setback: tuple[float, float]  # range of the distance from sidewalk to wall
    density: float  # share of the street's length with houses
    height: tuple[float, float]
    parked: float  # share of the parking strip that is taken
    green: float  # trees and hedges
    contrast: float
    warmth: float  # colour cast of the walls
    traffic: float

    @staticmethod
    def draw(rng: np.random.Generator) -> Style:
        """A random style."""
        low, near = rng.uniform(3, 7), rng.uniform(0.5, 5)
        return Style(
            lane=rng.uniform(3.1, 3.9),
            parking=float(rng.choice([0.0, 2.3, 2.7])),
            sidewalk=rng.uniform(1.5, 3.5),
            setback=(near, near + rng.uniform(1, 10)),
            density=rng.uniform(0.5, 1.0),
            height=(low, low + rng.uniform(3, 12)),
            parked=rng.uniform(0.1, 0.55),
            green=rng.uniform(0.1, 1.0),
            contrast=rng.uniform(0.7, 1.3),
            warmth=rng.uniform(-1, 1),
            traffic=rng.uniform(0.2, 1.0),
        )

    @property
    def half_width(self) -> float:
        return self.lane + self.parking + 0.3


def house(
    rng: np.random.Generator, style: Style, where: tuple[float, float, float], length: float, depth: float
) -> Solids:
    """A house with windows on all sides, under a flat or a gable roof."""
    storey = rng.uniform(2.7, 3.4)
    height = max(1, round(rng.uniform(*style.height) / storey)) * storey
    brick = rng.random() < 0.3
    tone = (
        np.array([0.55, 0.33, 0.25]) if brick else rng.uniform(0.5, 0.85) + 0.07 * style.warmth * np.array([1, 0.2, -1])
    )
    tone = np.clip(tone * rng.uniform(0.75, 1.15) + rng.uniform(-0.06, 0.06, 3), 0.1, 0.95)
    glass = rng.uniform(0.1, 0.35) * np.array([0.9, 1.0, 1.15])
    spacing = rng.uniform(1.8, 3.4)
    fill = (rng.uniform(0.3, 0.6), rng.uniform(0.4, 0.65))
    contrast, grain = style.contrast * rng.uniform(0.06, 0.15), rng.uniform(0.12, 0.3)

    def wall(width: float) -> np.void:
        period = (width / max(1, round(width / spacing)), storey)
        return material(rng, tone, contrast, grain, glass, period, fill)

    sides = [wall(depth), wall(length), wall(depth), wall(length)]
    tiles = np.array(rng.choice([[0.45, 0.2, 0.15], [0.3, 0.28, 0.28], [0.4, 0.3, 0.22]])) * rng.uniform(0.8, 1.3)
    roof = material(rng, tiles, 0.2 * style.contrast, 0.2, tiles * 0.6, (300, rng.uniform(0.5, 0.9)), (1, 0.3))
    parts = [block((length, depth), (length, depth), 0, height, sides, roof, where)]
    if rng.random() < 0.6:
        eaves, rise = rng.uniform(0.2, 0.6), rng.uniform(0.25, 0.5) * depth
        gable = [sides[0], roof, sides[2], roof]
        bottom = (length + 0.2, depth + 2 * eaves)
        parts.append(block(bottom, (length + 0.2, 0.05), height, height + rise, gable, roof, where))
    return Solids.joined(parts)


def barrier(rng: np.random.Generator, style: Style, where: tuple[float, float, float], length: float) -> Solids:
    """A hedge, a garden wall or a board fence."""
    height = rng.uniform(0.7, 2.2)
    kind = rng.choice(["hedge", "wall", "fence"])
    if kind == "hedge":
        leaves = material(rng, np.array([0.2, 0.3, 0.12]) * rng.uniform(0.7, 1.4), 0.4 * style.contrast, 0.15)
        return block((length, 0.9), (length - 0.2, 0.6), 0, height, leaves, at=where)
    stone = rng.uniform(0.35, 0.7) + rng.uniform(-0.06, 0.06, 3)
    period = (rng.uniform(0.8, 2.5), 300) if kind == "fence" else (300, rng.uniform(0.3, 0.6))
    fill = (0.3, 1) if kind == "fence" else (1, 0.2)
    look = material(rng, stone, 0.2 * style.contrast, 0.2, stone * 0.6, period, fill)
    return block((length, 0.25), (length, 0.25), 0, height, look, at=where)


def tree(rng: np.random.Generator, style: Style, x: float, y: float) -> list[tuple[tuple[float, ...], np.void]]:
    """A trunk and a crown of a few ellipsoids, or a bush, as rounds."""
    green = np.array([0.22, 0.33, 0.12]) * rng.uniform(0.6, 1.5) + rng.uniform(-0.03, 0.06, 3) * [1, 1, 0.3]
    leaves = [material(rng, green * rng.uniform(0.85, 1.15), 0.45 * style.contrast, 0.25) for _ in range(3)]
    if rng.random() < 0.25:
        size = rng.uniform(0.5, 1.3)
        return [((x, y, size * 0.7, 1 / size, 1 / size, 1 / size, 0, 9), leaves[0])]
    trunk, crown = rng.uniform(2.2, 3.5), rng.uniform(1.1, 2.6)
    bark = material(rng, np.array([0.3, 0.25, 0.2]) * rng.uniform(0.7, 1.3), 0.3, 0.12)
    thin = 1 / rng.uniform(0.1, 0.28)
    parts = [((x, y, 0, thin, thin, 0, 0, trunk + crown), bark)]
    for look in leaves:
        dx, dy, dz = rng.uniform([-0.5, -0.5, 0], 0.5) * crown  # never lower than the trunk: vehicles pass below it
        a, b = crown * rng.uniform(0.6, 1, 2)
        high = crown * rng.uniform(0.7, 1.2)
        parts.append(((x + dx, y + dy, trunk + high + dz, 1 / a, 1 / b, 1 / high, 0, 99), look))
    return parts


def car(rng: np.random.Generator) -> Solids:
    """A car, estate or van that points along x, its middle at the origin."""
    length, width, van = rng.uniform(3.7, 4.8), rng.uniform(1.65, 1.85), rng.random() < 0.2
    waist, height = rng.uniform(0.85, 1.0), rng.uniform(1.8, 2.4) if van else rng.uniform(1.4, 1.65)
    colour = vivid(rng, 0.05, 0.8)
    paint = material(rng, colour, 0.12, 0.3)
    front = material(rng, colour, 0.12, 0.3, (0.8, 0.75, 0.6), (width / 2, 0.6), (0.35, 0.3))
    back = material(rng, colour, 0.12, 0.3, (0.6, 0.08, 0.06), (width / 2, 0.6), (0.3, 0.3))
    glass = material(rng, (0.12, 0.14, 0.17), 0.35, 0.4)
    tyre = material(rng, DARK, 0.3, 0.1)
    cabin = length * (0.75 if van else rng.uniform(0.5, 0.62))
    shift = -rng.uniform(0, 0.06) * length
    parts = [
        block((length, width), (length - 0.15, width - 0.1), 0.28, waist, [front, paint, back, paint], paint),
        block(
            (cabin, width - 0.12), (cabin * 0.72, width - 0.4), waist, height, glass, paint, (shift - 0.1, 0, 0), -0.1
        ),
    ]
    for axle in (-0.3, 0.3):
        parts.append(block((0.62, width - 0.04), (0.5, width - 0.04), 0, 0.6, tyre, at=(axle * length, 0, 0)))
    return Solids.joined(parts)


def vivid(rng: np.random.Generator, low: float, high: float) -> np.ndarray:
    """A random paint: often grey, sometimes coloured."""
    saturation = rng.choice([0.02, 0.08, 0.25])
    return np.clip(rng.uniform(low, high) * (1 + rng.uniform(-2, 2, 3) * saturation), 0.03, 0.95)
