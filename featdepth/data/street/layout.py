"""Builds the scenes of the synthetic street: how the road runs, what stands along it, who drives on it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from featdepth.data.street.objects import Style, barrier, car, house, tree, vivid
from featdepth.data.street.scene import GroundLooks, Journey, Road, Scene, Solids, block, material, rounds

ROADS = ("straight", "bend", "turn", "straight", "bend", "bend", "turn")  # what the road does, by drive number
BEHIND, AHEAD = 40.0, 150.0  # metres of street before the first and after the last position of the vehicle
WINDING_PERIOD = 2.0  # seconds from one bend of a winding street to the next, about


def build_street(rng: np.random.Generator, kind: str, duration: float, rate: float = 0.0) -> tuple[Scene, Journey]:
    """A street of `kind` (see ROADS, or "winding") and a drive of `duration` seconds along it.

    rate: radians a second by which a drive along a winding street turns, or more, for a third of the time.
    """
    style = Style.draw(rng)
    trajectory, roads = draw_course(rng, style, kind, duration, rate)
    moving = traffic(rng, style, trajectory, duration)
    cars = parked_cars(rng, style, roads)
    houses = [solid for road in roads for side in (-1, 1) for solid in frontage(rng, style, road, side, roads)]
    plants = [solid for road in roads for side in (-1, 1) for solid in furniture(rng, style, road, side, roads)]
    static = Solids.joined([*houses, *plants, *cars, *skyline(rng, roads[0])])
    azimuth, elevation = rng.uniform(0, 2 * np.pi), rng.uniform(0.45, 1.1)
    flat = np.cos(elevation)
    sun = np.array([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)])
    return Scene(roads, ground_looks(rng, style), sun, rng.uniform(0.1, 0.7), static, moving), trajectory


def ground_looks(rng: np.random.Generator, style: Style) -> GroundLooks:
    """Colours of road, sidewalk and what lies behind."""
    grass = np.array([0.30, 0.40, 0.18]) * rng.uniform(0.7, 1.2) + rng.uniform(-0.03, 0.03, 3)
    gravel = np.array([0.55, 0.50, 0.43]) * rng.uniform(0.7, 1.1)
    return GroundLooks(
        asphalt=rng.uniform(0.26, 0.48) + rng.uniform(-0.02, 0.02, 3),
        sidewalk=rng.uniform(0.42, 0.65) + rng.uniform(-0.04, 0.04, 3),
        beyond=grass if rng.random() < 0.7 else gravel,
        kerb=rng.uniform(0.55, 0.75) * np.ones(3),
        lane=style.lane,
        marks=str(rng.choice(["dashed", "dashed", "solid", "none"])),
        edge_line=bool(rng.random() < 0.5),
        contrast=style.contrast,
    )


def draw_course(
    rng: np.random.Generator, style: Style, kind: str, duration: float, rate: float
) -> tuple[Journey, list[Road]]:
    """The roads and the way of the vehicle along the first of them."""
    speed = rng.uniform(3.8, 6.5) if kind == "turn" else rng.uniform(4.5, 14)
    low, high = (-0.5, 0.5) if kind == "turn" else (-1.5, 1.5)
    acceleration = np.clip(rng.uniform(low, high), (3.5 - speed) / duration, (14 - speed) / duration)
    if kind == "winding":  # slow enough for its bends, and at one speed, which keeps the rate
        speed, acceleration = rng.uniform(4.5, 5.5), 0.0
    travelled = speed * duration + 0.5 * acceleration * duration**2
    stations = np.arange(0, BEHIND + travelled + AHEAD, Road.SPACING)
    headings = np.full(len(stations), rng.uniform(0, 2 * np.pi))
    if kind == "winding":
        headings += serpentine(rng, stations, travelled, max(1, round(duration / WINDING_PERIOD)), rate / speed)
    else:
        headings += bends(rng, kind, stations, travelled)
    road = Road.from_headings(headings, (0.0, 0.0), style.half_width, style.sidewalk)
    roads = [road, *side_roads(rng, style, kind, road, travelled)]
    swing = rng.uniform(0.1, 0.4)
    tilt = np.array(
        [
            [rng.uniform(-0.01, 0.01), rng.uniform(0.001, 0.004), rng.uniform(0.6, 1.5), rng.uniform(0, 6)],
            [rng.uniform(-0.009, 0.009), rng.uniform(0.001, 0.004), rng.uniform(0.6, 1.5), rng.uniform(0, 6)],
        ]
    )
    lateral = (-style.lane / 2 + rng.uniform(-0.1, 0.2), swing, rng.uniform(35, 80), rng.uniform(0, 6))
    height = 0.93 + rng.uniform(-0.08, 0.08)
    return Journey(road, BEHIND, speed, acceleration, lateral, tilt, height), roads


def bends(rng: np.random.Generator, kind: str, stations: np.ndarray, travelled: float) -> np.ndarray:
    """Heading (radians) relative to the start, at each station."""

    def curve(start: float, length: float, angle: float) -> np.ndarray:
        share = np.clip((stations - start) / length, 0, 1)
        return angle * (share - np.sin(2 * np.pi * share) / (2 * np.pi))  # curvature begins and ends at 0

    sign = rng.choice([-1.0, 1.0])
    if kind == "turn":
        first = BEHIND + rng.uniform(-12, 4)
        return curve(first, rng.uniform(20, 26), sign * rng.uniform(1.3, 1.6))
    if kind == "straight":
        return curve(BEHIND + travelled + rng.uniform(5, 50), rng.uniform(40, 80), sign * rng.uniform(0.2, 1.0))
    heading, station = np.zeros(len(stations)), rng.uniform(0, BEHIND)
    while station < stations[-1]:
        length = rng.uniform(30, 70)
        heading += curve(station, length, sign * rng.uniform(0.3, 1.0))
        station, sign = station + length + rng.uniform(0, 25), -sign
    return heading


def serpentine(
    rng: np.random.Generator, stations: np.ndarray, travelled: float, count: int, curvature: float
) -> np.ndarray:
    """Heading (radians) relative to the start along `count` equal periods, each a bend and a straight part.

    For half of each the road is bent by a little more than `curvature` (1/m), left and right in turn.
    """
    place = (stations - BEHIND) / travelled * count - rng.uniform(0, 0.34)
    period, share = np.floor(place), place % 1
    bent = 1.25 * curvature * np.interp(share, (0, 0.08, 0.58, 0.66), (0, 1, 1, 0))
    side = rng.choice([-1.0, 1.0]) * np.where(period % 2, 1, -1)
    driven = (period >= 0) & (period < count)
    return np.cumsum(np.where(driven, side * bent, 0.0)) * Road.SPACING


def side_roads(rng: np.random.Generator, style: Style, kind: str, road: Road, travelled: float) -> list[Road]:
    """Straight roads that meet the first one; where that one turns, its old direction goes on."""
    if kind == "turn":
        turning = np.flatnonzero(np.abs(road.headings - road.headings[0]) > 0.02)[0] * Road.SPACING
        crossings = [(turning + 6, road.headings[0] - road.place(turning + 6, 0)[2])]
    else:
        places = rng.uniform(BEHIND - 10, BEHIND + travelled + 60, rng.choice(3, p=[0.35, 0.45, 0.2]))
        crossings = [(station, rng.uniform(1.25, 1.9)) for station in places]
    roads = []
    for station, angle in crossings:
        x, y, heading = road.place(station, 0.0)
        heading += angle
        headings = np.full(int(170 / Road.SPACING), heading)
        start = (x - 85 * np.cos(heading), y - 85 * np.sin(heading))
        roads.append(
            Road.from_headings(headings, start, max(3.2, style.half_width - rng.uniform(0, 2)), style.sidewalk)
        )
    return roads


def is_clear(x: np.ndarray, y: np.ndarray, roads: list[Road], margin: float) -> bool:
    """Whether all points keep `margin` metres from the edge of every road."""
    x, y = np.atleast_1d(x), np.atleast_1d(y)
    return all(np.min(np.abs(road.locate(x, y)[1]) - road.half_width) > margin for road in roads)


def footprint(x: float, y: float, yaw: float, length: float, width: float) -> tuple[np.ndarray, np.ndarray]:
    """World positions of points along the outline of a rectangle."""
    steps = np.linspace(-0.5, 0.5, 9)
    along = np.concatenate([steps, steps, np.full(9, -0.5), np.full(9, 0.5)]) * length
    across = np.concatenate([np.full(9, -0.5), np.full(9, 0.5), steps, steps]) * width
    return x + along * np.cos(yaw) - across * np.sin(yaw), y + along * np.sin(yaw) + across * np.cos(yaw)


def frontage(rng: np.random.Generator, style: Style, road: Road, side: int, roads: list[Road]) -> list[Solids]:
    """Houses along one side of a road, with gaps, fences and hedges between them."""
    solids, station = [], rng.uniform(0, 10)
    while station < road.length:
        length, depth = rng.uniform(6, 22), rng.uniform(7, 13)
        setback = rng.uniform(*style.setback) + road.half_width + style.sidewalk
        if rng.random() < style.density:
            where = road.place(station + length / 2, side * (setback + depth / 2))
            if is_clear(*footprint(*where, length, depth), roads, 1.0):
                solids.append(house(rng, style, where, length, depth))
        has_garden = setback > road.half_width + style.sidewalk + 2.5
        if rng.random() < 0.6 * has_garden:
            distance = road.half_width + style.sidewalk + rng.uniform(0.1, 2)
            where = road.place(station + length / 2, side * distance)
            if is_clear(*footprint(*where, length, 0.6), roads, 0.5):
                solids.append(barrier(rng, style, where, length))
        station += length + (rng.uniform(0, 1) if rng.random() < 0.5 else rng.uniform(2, 9))
    return solids


def furniture(rng: np.random.Generator, style: Style, road: Road, side: int, roads: list[Road]) -> list[Solids]:
    """Trees, lamp posts, signs and boxes along one sidewalk, and trees in the gardens."""
    shapes, looks, blocks = [], [], []
    station = rng.uniform(0, 12)
    while station < road.length:
        near = road.half_width + rng.uniform(0.4, style.sidewalk)
        far = road.half_width + style.sidewalk + rng.uniform(1, 15)
        draw = rng.random()
        in_garden = draw < style.green * 0.45
        x, y, heading = road.place(station, side * (far if in_garden else near))
        station += rng.uniform(3, 14)
        if not is_clear(x, y, roads, 0.3):
            continue
        if draw < style.green * 0.7:
            for shape, look in tree(rng, style, x, y):
                shapes.append(shape), looks.append(look)
        elif draw < 0.8:
            steel = material(rng, rng.uniform(0.15, 0.6) * np.ones(3), 0.2, 0.1)
            thin = 1 / rng.uniform(0.05, 0.12)
            height = rng.uniform(2.2, 7)
            shapes.append((x, y, 0, thin, thin, 0, 0, height)), looks.append(steel)
            if rng.random() < 0.5:
                paint = material(rng, vivid(rng, 0.1, 0.9), 0.25, 0.15)
                blocks.append(block((0.06, 0.7), (0.06, 0.7), 1.9, 2.6, paint, at=(x, y, heading)))
        else:
            size, high = rng.uniform(0.4, 1.2, 2), rng.uniform(0.6, 1.6)
            look = material(rng, vivid(rng, 0.15, 0.6), 0.2 * style.contrast, 0.12)
            blocks.append(block(tuple(size), tuple(size), 0, high, look, at=(x, y, heading)))
    return [*blocks, rounds(shapes, looks)] if shapes else blocks


def parked_cars(rng: np.random.Generator, style: Style, roads: list[Road]) -> list[Solids]:
    """Cars along the kerbs, never in the way of the traffic."""
    driven, cars = roads[0], []
    if style.parking == 0:
        return cars
    for road in roads:
        for side in (-1, 1):
            station = rng.uniform(0, 8)
            while station < road.length:
                if rng.random() < style.parked:
                    x, y, heading = road.place(station, side * (road.half_width - rng.uniform(0.95, 1.2)))
                    heading += rng.normal(0, 0.02) + np.pi * (side > 0)
                    others = [other for other in roads if other is not road]
                    in_lane = abs(driven.locate(np.array([x]), np.array([y]))[1][0]) < style.lane + 1.1
                    if is_clear(x, y, others, 3.0) and not in_lane:
                        cars.append(car(rng).moved(x, y, heading))
                station += rng.uniform(5.2, 7)
    return cars


Position = Callable[[float], tuple[float, float, float]]


def traffic(
    rng: np.random.Generator, style: Style, trajectory: Journey, duration: float
) -> list[tuple[Solids, Position]]:
    """Moving cars: some oncoming, often one ahead at about the vehicle's own speed."""
    road, cars = trajectory.road, []

    def oncoming(start: float, speed: float) -> Position:
        def position(time: float) -> tuple[float, float, float]:
            x, y, heading = road.place(start - speed * time, style.lane / 2)
            return x, y, heading + np.pi

        return position

    def leading(gap: float, drift: float, offset: float) -> Position:
        return lambda time: road.place(trajectory.station(time) + gap + drift * time, offset)

    station = BEHIND + rng.uniform(5, 40)
    while station < road.length - 40:
        if rng.random() < style.traffic:
            cars.append((car(rng), oncoming(station, rng.uniform(5, 8))))
        station += rng.uniform(22, 60) + 3 * duration
    if rng.random() < 0.55:
        gap, drift = rng.uniform(9, 26), rng.uniform(-1.2, 1.5)
        gap = max(gap, 8 - drift * duration)
        cars.append((car(rng), leading(gap, drift, -style.lane / 2 + rng.uniform(-0.2, 0.2))))
    return cars


def skyline(rng: np.random.Generator, road: Road) -> list[Solids]:
    """Woods and houses far away all around, so that the horizon is not bare."""
    middle, parts = road.points.mean(0), []
    reach = np.abs(road.points - middle).max() + 90
    for angle in np.arange(0, 2 * np.pi, 0.16):
        angle += rng.uniform(-0.06, 0.06)
        x, y = middle + reach * rng.uniform(1, 1.5) * np.array([np.cos(angle), np.sin(angle)])
        colour = (
            np.array([0.28, 0.34, 0.24]) if rng.random() < 0.6 else rng.uniform(0.4, 0.6) * np.array([1, 0.97, 0.93])
        )
        look = material(rng, colour * rng.uniform(0.8, 1.2), 0.3, 1.5)
        width = rng.uniform(20, 60)
        parts.append(block((8, width), (4, width * 0.7), 0, rng.uniform(6, 18), look, at=(x, y, angle)))
    return parts
