"""Whether intrinsics can belong to the pictures at all: principal point, focal lengths, field of view."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from featdepth.data.notes import shape_note
from featdepth.doctor.findings import Finding, ok, problem, skipped, warning
from featdepth.doctor.survey import Survey

CHECK = "intrinsics"
OFF_CENTRE, FAR_OFF_CENTRE = 0.12, 0.2  # of the size: KITTI's principal points are 0.04 off, a cropped video's more
ODD_PIXELS, VERY_ODD_PIXELS = 1.08, 1.25  # fx / fy or fy / fx: 1.00 to 1.02 for cameras, 1.09 for old television
NARROW, WIDE = 20.0, 140.0  # degrees, horizontal field of view
CENTRE = "the principal point near the centre"
SQUARE = "square pixels, fx / fy near 1"


def check_plausibility(survey: Survey, faults: set[str]) -> Iterator[Finding]:
    """One finding for the worst camera of the training part, or one for all where nothing is wrong."""
    if survey.intrinsics_are_learned:
        yield skipped(CHECK, "they are learned (model.intrinsics), there is nothing to compare with")
        return
    found = [judge(intrinsics, size, name) for name, (intrinsics, size) in cameras(survey).items()]
    wrong = [finding for finding in found if finding.fault]
    yield next((finding for finding in wrong if finding.level == "PROBLEM"), wrong[0] if wrong else found[0])


def check_shape(survey: Survey, faults: set[str]) -> Iterator[Finding]:
    """Whether training changes the shape of the images; it can be learned, but wastes what the networks know."""
    size = survey.config.data.height, survey.config.data.width
    note = shape_note(survey.train, size)
    yield ok("shape", f"note: {note}" if note else f"images keep about their shape at {size[1]}x{size[0]}")


def cameras(survey: Survey) -> dict[str, tuple[np.ndarray, tuple[int, int]]]:
    """Intrinsics 3x3 (pixels) and image size (height, width) that belong together, by the first drive of a camera.

    Those of the files where they have their own, since a crop moves the principal point on purpose.
    """
    dataset = survey.train
    samples = {dataset.camera_of(sample): sample for sample in reversed(dataset.samples)}
    found = {}
    for camera, sample in samples.items():
        if dataset.config.intrinsics == "fixed":
            found[str(sample)] = dataset.intrinsics[camera].double().numpy(), dataset.size
        else:
            found[str(sample)] = dataset.camera(sample).intrinsics, dataset.native_sizes[camera]
    return found


def judge(intrinsics: np.ndarray, size: tuple[int, int], name: str) -> Finding:
    """What can be said of intrinsics 3x3 and an image of `size` (height, width) without looking at the image."""
    height, width = size
    (fx, _, cx), (_, fy, cy), _ = intrinsics
    text = f"fx {fx:.5g}, fy {fy:.5g}, principal point ({cx:.5g}, {cy:.5g}) for {width}x{height} pixels of {name}"
    centre = (np.array([cx, cy]) + 0.5) / (width, height)
    exchanged = (np.array([cy, cx]) + 0.5) / (width, height)
    off, off_exchanged = abs(centre - 0.5).max(), abs(exchanged - 0.5).max()
    if off > OFF_CENTRE and off_exchanged < off / 2 and off_exchanged < OFF_CENTRE:
        return problem(CHECK, "swapped_axes", f"x and y are swapped: {text}", CENTRE, "exchange fx, fy and cx, cy")
    if off > FAR_OFF_CENTRE:
        return wrong_resolution(text, centre)
    odd = odd_pixels(fx, fy, size, text)
    if odd is not None:
        return odd
    if off > OFF_CENTRE:
        advice = "right only if the pictures were cropped unevenly before; else find the calibration of this size"
        return warning(CHECK, "off_centre", f"{off:.0%} off the centre: {text}", f"{CENTRE}, within 12 %", advice)
    view = np.degrees(2 * np.arctan(width / (2 * fx)))
    if not NARROW <= view <= WIDE:
        advice = "check the focal length's unit (pixels, not millimetres) and the size that it belongs to"
        expected = f"{NARROW:.0f} to {WIDE:.0f} degrees"
        return warning(CHECK, "odd_view", f"a field of view of {view:.0f} degrees: {text}", expected, advice)
    return ok(CHECK, f"{text}: {view:.0f} degrees wide{corner_note(cx, cy, size)}")


def wrong_resolution(text: str, centre: np.ndarray) -> Finding:
    """The principal point is far from the centre (`[2]`, in sizes): the intrinsics are of another resolution."""
    factors = 2 * centre
    if factors.max() < 1.3 * factors.min():
        what = f"the intrinsics belong to pictures {factors.mean():.2g} times as large: {text}"
    else:
        what = f"the intrinsics do not belong to pictures of this size: {text}"
    advice = "scale fx, fy, cx and cy to the files' size, or use the files that were calibrated"
    return problem(CHECK, "wrong_resolution", what, f"{CENTRE}, within 20 %", advice)


def odd_pixels(fx: float, fy: float, size: tuple[int, int], text: str) -> Finding | None:
    """Focal lengths that differ: swapped, in shares of the size or in pixels, or of stretched pictures."""
    ratio = max(fx / fy, fy / fx)
    if ratio < ODD_PIXELS:
        return None
    if ratio < VERY_ODD_PIXELS:
        advice = "right only if the pictures were stretched; else look for a typing error"
        return warning(CHECK, "odd_pixels", f"pixels {ratio:.2f} times as long as wide: {text}", SQUARE, advice)
    height, width = size
    # Focal lengths as shares of the size, exchanged.
    exchanged = (fy / height * width) / (fx / width * height)
    sure = max(exchanged, 1 / exchanged) < ODD_PIXELS
    what = "fx and fy are swapped" if sure else "fx and fy are swapped, or the pictures were stretched"
    advice = "exchange fx and fy" if sure else "exchange fx and fy, or scale each as its side of the pictures was"
    return problem(CHECK, "swapped_axes", f"{what}: {text}", SQUARE, advice)


def corner_note(cx: float, cy: float, size: tuple[int, int]) -> str:
    """A note where a principal point at exactly half the size gives away that pixels are counted from a corner."""
    if abs(cx - size[1] / 2) > 1e-6 or abs(cy - size[0] / 2) > 1e-6:
        return ""
    return (
        "; note: the principal point is exactly half the size, which is the centre where pixels count from the corner; "
        "here pixel centres are integers, and it would be half a pixel less"
    )
