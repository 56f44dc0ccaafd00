"""The two cameras as a rectified pair, by their calibration or by what their pictures show, and whether it is one.

What both pictures show is the judge of everything: points that both cameras see have to be in the same row, farther
left in the right picture, and by as much as their depth and the baseline in metres allow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from featdepth.cameras.lenses import Lens, undistortion_map
from featdepth.cameras.rectify import rectify
from featdepth.cameras.rig_files import CameraPair
from featdepth.data import baselines
from featdepth.data.films import Picture
from featdepth.errors import InputError
from featdepth.geometry import resize_intrinsics
from featdepth.prepare_video.frame_choice import analysed
from featdepth.prepare_video.record import Line
from featdepth.prepare_video.views import View, measuring_intrinsics, show
from featdepth.two_view.matching import Matches, match_frames, median
from featdepth.two_view.relative_pose import relative_pose

COMPARED_WIDTH = 1280  # pixels: wider pictures are compared in this width
ALIGNED, SKEWED = 0.3, 1.0  # pixels: median difference in rows up to which nothing is done; beyond which it is no pair
FEWEST_POINTS = 100  # that both cameras see, in all pairs that are compared
LARGEST_TURN = 10.0  # degrees of one camera against the other: more is no pair that its pictures could set right
LARGEST_DOUBT = 1.0  # pixels: by how much shifts may differ with the half of the pictures that a turn is estimated from
SAME_LENGTH = 0.05  # relative, of two baselines
ESTIMATED = "estimated from the pictures, so that far depths may be off; calibrate both together where metres matter"
SWAPPED = (
    "points are farther right in the right camera's pictures than in the left one's: the sides are swapped; exchange "
    "LEFT and RIGHT"
)

Pictures = tuple[Picture, Picture]


class Rectification(NamedTuple):
    """How both cameras' frames are shown."""

    views: tuple[View, View]
    about: Line  # for the records: what was done, and what both pictures show afterwards


class SeenInBoth(NamedTuple):
    """Points that both pictures show once they are rectified."""

    matches: list[Matches]  # of each pair: left, right
    size: tuple[int, int]  # height, width (pixels) in which pictures were compared
    intrinsics: np.ndarray  # 3x3 at that size

    @property
    def offsets(self) -> np.ndarray:
        """Place in the right picture less that in the left one, (x, y) `[N, 2]`, of all points."""
        one, other = joined(self.matches)
        return other - one

    @property
    def rows(self) -> float:
        """Median distance (pixels) between the rows of a point in both pictures."""
        return median(np.abs(self.offsets[:, 1]))

    @property
    def shifts(self) -> np.ndarray:
        """By how much (pixels) points are farther right in the right picture, of those that are shifted at all."""
        shifts = self.offsets[:, 0]
        return shifts[np.abs(shifts) > baselines.ENOUGH * self.size[1]]

    @property
    def ahead(self) -> float:
        """Share of the shifted points that are farther left in the right picture, as those in front of a pair are."""
        return float((self.shifts < 0).mean()) if len(self.shifts) else 0.0

    @property
    def is_pair(self) -> bool:
        """Whether points lie as a rectified pair shows them."""
        return self.ahead >= baselines.RIGHT_SIGN and self.rows <= SKEWED

    def depths(self, baseline: float) -> np.ndarray:
        """Metres to the points that are shifted."""
        return baseline * self.intrinsics[0, 0] / np.abs(self.shifts)


def find_rectification(
    pairs: Sequence[Pictures], cameras: CameraPair, baseline: float, height: int | None, known_from: str
) -> Rectification:
    """The views that show both cameras' frames as those of a rectified pair.

    pairs: pictures taken together, some of the whole; baseline: metres; height: of the frames that are written (None:
    as they come); known_from: where the cameras come from, in words. Where their poses are unknown and rows differ, one
    camera's turn against the other is estimated from the pictures. Raises InputError, which says what was found, where
    rows cannot be aligned, sides are swapped, or no depth is plausible.
    """
    by, pose = "nothing to do", baselines.beside(baseline)
    if cameras.right_from_left is not None:
        by, pose = "by the calibration", cameras.right_from_left.copy()
        pose[:3, 3] *= baseline / np.linalg.norm(pose[:3, 3])
    views = views_of(cameras.lenses, pose, height, known_from)
    seen = compare(pairs, views)
    if cameras.right_from_left is None and seen.rows > ALIGNED:
        by, pose = ESTIMATED, estimate_pose(seen, baseline)
        views = views_of(cameras.lenses, pose, height, known_from)
        seen = compare(pairs, views)
    check_sides(seen, pairs, views)
    depths = seen.depths(baseline)
    check_units(baseline, float(np.median(depths)))
    about = {
        "baseline": baseline,
        "rectified": by,
        "right_from_left": pose.tolist(),
        "rows": round(seen.rows * views[0].size[1] / seen.size[1], 3),  # pixels of the frames that are written
        "depths": [float(f"{depth:.3g}") for depth in np.percentile(depths, (5, 50, 95))],  # metres
    }
    return Rectification(views, about)


def views_of(
    lenses: tuple[Lens, Lens], right_from_left: np.ndarray, height: int | None, known_from: str
) -> tuple[View, View]:
    """Views of both cameras as a rectified pair; as they are where two equal pinholes are beside each other already."""
    left, right = lenses
    is_same = left.model == right.model == "pinhole" and np.array_equal(left.intrinsics, right.intrinsics)
    if is_same and np.array_equal(right_from_left, baselines.beside(abs(right_from_left[0, 3]))):
        full_size, intrinsics, maps = left.size, left.intrinsics, (None, None)
    else:
        pair = rectify(left, right, right_from_left)
        full_size, intrinsics = pair.size, pair.intrinsics
        rotations = pair.left_from_rectified, pair.right_from_rectified
        maps = (
            undistortion_map(lens, intrinsics, full_size, turn) for lens, turn in zip(lenses, rotations, strict=True)
        )
    size = full_size if height is None else (height, round(full_size[1] * height / full_size[0]))
    intrinsics = resize_intrinsics(torch.from_numpy(intrinsics), full_size, size).numpy()
    left_view, right_view = (View(left.size, size, intrinsics, known_from, places) for places in maps)
    return left_view, right_view


def compare(pairs: Sequence[Pictures], views: tuple[View, View]) -> SeenInBoth:
    """What both pictures of the pairs show. Raises InputError where that is too little."""
    matches = []
    for pictures in pairs:
        left, right = (
            analysed(show(picture.pixels, view), COMPARED_WIDTH) for picture, view in zip(pictures, views, strict=True)
        )
        matches.append(match_frames(left, right))
    points = sum(len(each.one) for each in matches)
    if points < FEWEST_POINTS:
        raise InputError(
            f"the two cameras' pictures have {points} points in common ({len(pairs)} pairs were compared, "
            f"{FEWEST_POINTS} points are needed); are they of one scene, taken together?"
        )
    return SeenInBoth(matches, left.shape, measuring_intrinsics(views[0], left.shape))


def joined(matches: Sequence[Matches]) -> Matches:
    """Matches of several pairs as those of one."""
    return Matches(*(np.concatenate(pixels) for pixels in zip(*matches, strict=True)))


def estimate_pose(seen: SeenInBoth, baseline: float) -> np.ndarray:
    """right_from_left 4x4 (metres) that explains where both cameras see the same points.

    Raises InputError where the pictures do not tell, and where the cameras are no pair.
    """
    parts = seen.matches, seen.matches[::2], seen.matches[1::2] or seen.matches
    found = [relative_pose(joined(part), seen.intrinsics) for part in parts]
    rows = f"a point's rows in the two pictures differ by {seen.rows:.2f} pixels"
    if any(each is None for each in found):
        raise InputError(f"{rows}, and they do not tell how the cameras are turned; calibrate both together")
    whole = found[0]
    turn = np.degrees(np.arccos(np.clip((np.trace(whole.rotation) - 1) / 2, -1, 1)))
    # All points shift with the turn about the vertical axis, and depths with them; rows hardly show it.
    doubt = np.ptp([seen.intrinsics[0, 0] * each.rotation[0, 2] for each in found])
    if turn > LARGEST_TURN or doubt > LARGEST_DOUBT:
        raise InputError(
            f"{rows}, as if one camera were turned by {turn:.1f} degrees, but by that points shift by {doubt:.1f} "
            "pixels more in one half of the pictures than in the other; calibrate both together"
        )
    if whole.translation[0] > 0:
        raise InputError(SWAPPED)
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = whole.rotation, baseline * whole.translation
    return pose


def check_sides(seen: SeenInBoth, pairs: Sequence[Pictures], views: tuple[View, View]) -> None:
    """Raise InputError unless points are in the same row, and farther left in the right picture."""
    if seen.is_pair:
        return
    if compare([(right, left) for left, right in pairs], views).is_pair:
        raise InputError(SWAPPED)
    if seen.ahead < baselines.RIGHT_SIGN:
        raise InputError(
            f"{seen.ahead:.0%} of the points that are shifted are farther left in the right camera's pictures, where "
            "all should be; are the two cameras beside each other, looking ahead, and their pictures taken together?"
        )
    raise InputError(
        f"a point's rows in the two pictures differ by {seen.rows:.2f} pixels in the median; calibrate both cameras "
        "together, as they are now, and see that their pictures are taken together"
    )


def check_units(baseline: float, depth: float) -> None:
    """Raise InputError where the median depth that a baseline means (both metres) is not such as pictures show."""
    if baselines.NEAREST <= depth <= baselines.FARTHEST:
        return
    units = baselines.likely_units(baseline, depth) if depth > baselines.FARTHEST else []
    advice = in_metres(baseline, units) if units else "compare it and the focal length with the cameras"
    raise InputError(f"with a baseline of {baseline:g} m points are {depth:.3g} m away in the median; {advice}")


def choose_baseline(given: float | None, right_from_left: np.ndarray | None) -> float:
    """Metres between the cameras: as given, else as the calibration says, whose unit a given one tells.

    Raises InputError where there is none, where both differ by more than their unit, and for impossible ones.
    """
    length = None if right_from_left is None else float(np.linalg.norm(right_from_left[:3, 3]))
    if given is None and length is None:
        raise InputError("--baseline: is needed, in metres, since no calibration tells where the right camera is")
    baseline, name = (length, "the calibration's baseline") if given is None else (given, "--baseline")
    if baseline > baselines.LONGEST:
        advice = in_metres(baseline, baselines.likely_units(baseline))
        raise InputError(f"{name} {baseline:g}: is no pair's in metres; {advice}")
    if not baseline >= baselines.SHORTEST:  # which nan is not
        raise InputError(f"{name} {baseline:g}: is no pair's, which is {baselines.SHORTEST:g} m at least; write metres")
    if given is not None and length is not None:
        ratios = [length / given / unit for unit in (1.0, *baselines.UNITS.values())]
        if min(abs(ratio - 1) for ratio in ratios) > SAME_LENGTH:
            raise InputError(f"--baseline {given:g}: the calibration has {length:.6g}; correct one, or leave it out")
    return baseline


def in_metres(baseline: float, units: Sequence[str]) -> str:
    """What to write for a baseline that is in one of these units."""
    units = units or list(baselines.UNITS)
    values = " or ".join(f"{baseline / baselines.UNITS[unit]:g}" for unit in units)
    return f"is it in {' or '.join(units)}? Write metres: --baseline {values}"
