"""What the doctor shows: a contact sheet, a warp preview, a parallax histogram and the ground truth on its images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional

from featdepth.data.samples import STEREO, Sample
from featdepth.doctor.ground_truth_fit import depth_at, fit_where
from featdepth.doctor.survey import Pair, Survey, spread
from featdepth.drawing import DEPTH_COLOURS, ERROR_COLOURS, colour, paint_dots, save_picture
from featdepth.geometry import warp
from featdepth.two_view.epipolar import best_rotation, rays, rotation_residuals
from featdepth.two_view.opencv import has_opencv
from featdepth.two_view.relative_pose import relative_pose, triangulate

MOST_ROWS = 8
COLUMN = 320  # pixels: largest width of a picture
SPACING = 8  # pixels between the places at which a filled depth map is computed
FILLED_FROM = 6  # points that each of them is filled from
BINS, LONGEST = 60, 0.15  # of the histogram; displacement at its right end, in widths
LARGEST_ERROR = 0.4  # absolute difference, of 0 to 1, shown in the brightest colour
NEAR, FAR = 2.0, 80.0  # metres of the brightest and the darkest colour


def draw_pictures(survey: Survey, out: Path) -> list[str]:
    """Write all pictures that can be drawn into `out`; their names. Raises InputError where that is impossible."""
    drawings = {
        "contact_sheet.png": contact_sheet,
        "warp_preview.png": warp_preview,
        "parallax.png": parallax_histogram,
        "ground_truth.png": ground_truth_overlay,
    }
    if not has_opencv():
        drawings = {name: draw for name, draw in drawings.items() if draw in (contact_sheet, ground_truth_overlay)}
    pictures = {name: draw(survey) for name, draw in drawings.items()}
    drawn = {name: image for name, image in pictures.items() if image is not None}
    for name, image in drawn.items():
        save_picture(image, out / name)
    return list(drawn)


def contact_sheet(survey: Survey) -> Image.Image | None:
    """A row for each of some targets: the target, then its sources in the order of `data.frames`."""
    rows = []
    for sample in spread(survey.targets, MOST_ROWS):
        looks = [survey.look("train", sample, frame) for frame in survey.train.frames]
        if all(looks):
            rows.append([look.colour for look in looks])
    return table(rows)


def warp_preview(survey: Survey) -> Image.Image | None:
    """A row for each of some pairs: target, source, the source as the target would see it, and the difference.

    Depth is the ground truth, or that of matched points, which is filled in between; the motion is what fits best, and
    of stereo pairs what the calibration says. With right intrinsics the difference is dark but for moving things.
    """
    rows = []
    frames = survey.train.frames[1:]
    for number, sample in enumerate(spread(survey.targets, MOST_ROWS)):
        pair = survey.pair("train", sample, frames[number % len(frames)]) if frames else None
        motion = None if pair is None or not pair.is_matchable else depth_and_motion(survey, pair)
        if motion is None:
            continue
        depth, pose = motion
        target, source = (survey.look("train", sample, frame).colour for frame in (0, pair.frame))
        intrinsics = torch.from_numpy(survey.intrinsics("train", sample)).float()[None]
        warped = warp(source[None].float(), depth, intrinsics, pose)[0].round().byte()
        error = (warped.float() - target.float()).abs().mean(0) / 255 / LARGEST_ERROR
        rows.append([target, source, warped, torch.from_numpy(colour(error, ERROR_COLOURS)).permute(2, 0, 1)])
    return table(rows)


def depth_and_motion(survey: Survey, pair: Pair) -> tuple[Tensor, Tensor] | None:
    """Depth `[1, 1, h, w]` of a training pair's target and source_from_target `[1, 4, 4]` in the same unit."""
    intrinsics, matches = survey.intrinsics("train", pair.sample), pair.matches
    dataset, pose = survey.train, np.eye(4)
    depths = np.zeros(len(matches.one))
    if dataset.depth_path(pair.sample) is not None:
        depths = depth_at(dataset.load_depth(pair.sample), matches.one, survey.size)
    fit = fit_where(depths > 0, matches, depths, intrinsics)
    if fit is not None:
        pose[:3, :3], pose[:3, 3] = fit.rotation, fit.translation
    else:
        view = relative_pose(matches, intrinsics)
        if view is None:
            return None
        depths = triangulate(matches, intrinsics, view)
        pose[:3, :3], pose[:3, 3] = view.rotation, view.translation
    if pair.frame == STEREO:
        known = dataset.stereo_poses[dataset.camera_of(pair.sample)].double().numpy()
        unit = 1.0 if fit is not None else float(np.linalg.norm(known[:3, 3]))
        depths, pose = depths * unit, known
    good = np.isfinite(depths) & (depths > 0)
    if not good.any():
        return None
    return fill(matches.one[good], depths[good], survey.size), torch.from_numpy(pose).float()[None]


def fill(pixels: np.ndarray, depths: np.ndarray, size: tuple[int, int]) -> Tensor:
    """A smooth map `[1, 1, h, w]` of depths `[N]` known at pixels `[N, 2]`: of the nearest, nearer ones weigh more."""
    height, width = size
    y, x = np.mgrid[SPACING / 2 : height : SPACING, SPACING / 2 : width : SPACING]
    distance = np.hypot(x[..., None] - pixels[:, 0], y[..., None] - pixels[:, 1]) + 1.0
    nearest = np.argsort(distance, axis=-1)[..., :FILLED_FROM]
    weights = np.take_along_axis(distance, nearest, -1) ** -2
    inverse = (weights / depths[nearest]).sum(-1) / weights.sum(-1)
    coarse = torch.from_numpy(1 / inverse).float()[None, None]
    return functional.interpolate(coarse, size, mode="bilinear", align_corners=False)


def parallax_histogram(survey: Survey) -> Image.Image | None:
    """How far points move between targets and sources (blue), and how far by no turn of the camera (orange)."""
    pairs = [pair for pair in survey.pairs if pair.is_matchable]
    if not pairs:
        return None
    moved = np.concatenate([np.linalg.norm(pair.matches.other - pair.matches.one, axis=1) for pair in pairs])
    shifted = np.concatenate([point_parallax(survey, pair) for pair in pairs])
    width, height, margin = 640, 240, 30
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    for values, fill_colour, part in ((moved, (70, 120, 190), 0), (shifted, (240, 150, 50), 1)):
        counts, _ = np.histogram(np.minimum(values / survey.size[1], 0.999 * LONGEST), BINS, (0, LONGEST))
        step = (width - 2 * margin) / BINS
        for index, count in enumerate(counts):
            left = margin + index * step + part * step / 2
            top = height - margin - count / max(counts.max(), 1) * (height - 2 * margin)
            draw.rectangle((left, top, left + step / 2 - 1, height - margin), fill=fill_colour)
    for share in np.arange(0, LONGEST + 1e-6, 0.03):
        draw.text((margin + share / LONGEST * (width - 2 * margin) - 8, height - margin + 6), f"{share:.0%}", "black")
    draw.text((margin, 8), "displacement of points in widths: all (blue), what no turn explains (orange)", "black")
    return image


def point_parallax(survey: Survey, pair: Pair) -> np.ndarray:
    """Pixels `[N]` by which points move beyond what the best rotation explains."""
    intrinsics = survey.intrinsics("train", pair.sample)
    one, other = (rays(pixels, intrinsics) for pixels in pair.matches)
    return rotation_residuals(best_rotation(one, other, intrinsics), one, pair.matches.other, intrinsics)


def ground_truth_overlay(survey: Survey) -> Image.Image | None:
    """Images with their ground truth on the right half of each pair, near is bright."""
    rows = []
    for part in ("test", "validation", "train"):
        dataset = survey.parts.get(part)
        samples = [sample for sample in dataset.samples if dataset.depth_path(sample)] if dataset else []
        if samples and dataset.with_depth:
            rows = [overlay(survey, part, sample) for sample in spread(samples, MOST_ROWS)]
            break
    return table([row for row in rows if row is not None])


def overlay(survey: Survey, part: str, sample: Sample) -> list[Tensor] | None:
    """The image, and the image darkened under its measurements, uint8 `[3, h, w]` each."""
    seen = survey.look(part, sample, 0)
    if seen is None:
        return None
    depth = survey.parts[part].load_depth(sample)
    y, x = depth.nonzero()
    values = np.clip((1 / depth[y, x] - 1 / FAR) / (1 / NEAR - 1 / FAR), 0, 1)
    scale = np.array(survey.size) / depth.shape
    places = ((np.stack([y, x], axis=1) + 0.5) * scale).astype(int)
    dots = colour(torch.from_numpy(values)[None] ** 0.5, DEPTH_COLOURS)[0]
    painted = seen.colour.permute(1, 2, 0).numpy() // 2
    order = np.argsort(values)  # near ones last, on top
    paint_dots(painted, places[order], dots[order])
    return [seen.colour, torch.from_numpy(painted).permute(2, 0, 1)]


def table(rows: list[list[Tensor]]) -> Image.Image | None:
    """Pictures uint8 `[3, h, w]` of one size in rows and columns, made smaller where they are wide."""
    if not rows:
        return None
    image = Image.fromarray(torch.cat([torch.cat(row, 2) for row in rows], 1).permute(1, 2, 0).numpy())
    shrink = min(1.0, COLUMN / rows[0][0].shape[2])
    return image.resize((round(image.width * shrink), round(image.height * shrink)), Image.Resampling.BILINEAR)
