"""Another look for the synthetic street: other colours and textures, other light, a higher camera.

The geometry of roads, houses and traffic stays as it is, and so do all draws of the default look.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from featdepth.data.street.scene import GroundLooks, Journey, Scene, Solids

LOOKS = ("default", "other")
RAISED = 0.6  # metres by which the vehicle's sensors are higher: a van, not a car
GRAIN, CONTRAST = 2.5, 1.8  # factors: coarser and stronger textures
DIRECT = 1.0  # strength of the sun; 0.1 to 0.7 in the default look


def change_look(scene: Scene, trajectory: Journey) -> tuple[Scene, Journey]:
    """The same street in the other look, driven with a higher camera; what is given stays as it is."""
    changed = dataclasses.replace(
        scene,
        looks=repainted_ground(scene.looks),
        direct=DIRECT,
        static=repainted(scene.static),
        moving=[(repainted(car), position) for car, position in scene.moving],
    )
    return changed, dataclasses.replace(trajectory, height=trajectory.height + RAISED)


def repainted(solids: Solids) -> Solids:
    """The same solids in other colours, with other textures."""
    materials, round_materials = solids.materials.copy(), solids.round_materials.copy()
    for each in (materials, round_materials):
        each["colour"], each["second"] = other_colour(each["colour"]), other_colour(each["second"])
        each["grain"] *= GRAIN
        each["contrast"] *= CONTRAST
    return dataclasses.replace(solids, materials=materials, round_materials=round_materials)


def repainted_ground(looks: GroundLooks) -> GroundLooks:
    """Pale, warm asphalt between dark sidewalks, and no lines on it."""
    return dataclasses.replace(
        looks,
        asphalt=other_colour(looks.asphalt) + np.array([0.08, 0.03, -0.06]),
        sidewalk=0.5 * looks.sidewalk,
        beyond=other_colour(looks.beyond),
        kerb=0.5 * looks.kerb,
        marks="none",
        edge_line=False,
        contrast=CONTRAST * looks.contrast,
    )


def other_colour(colour: np.ndarray) -> np.ndarray:
    """Colours `[..., 3]` in [0, 1] with red, green and blue exchanged, and dark and bright partly too."""
    return np.clip(0.9 - 0.8 * colour[..., [2, 0, 1]], 0.05, 0.95)
