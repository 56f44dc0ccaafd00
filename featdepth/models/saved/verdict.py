"""What the check at the end of a training (`training.learned_check`) says of a model, in its record and in words."""

from __future__ import annotations

from collections.abc import Mapping

from featdepth.cameras.opencv import INSTALL

CHECK = "check"  # its place in a training record
WITHOUT_OPENCV = "without_opencv"  # 1 where motion could not be compared with matched points
LEARNED, NOTHING, TOO_FEW = "learned", "nothing learned", "too few samples"


def describe(check: Mapping) -> str:
    """A verdict in one line."""
    words = [f"on {check.get('samples', 0)} validation samples"]
    if "angle" in check:
        words.append(f"motion {check['angle']:.0f} degrees off matched points")
    if WITHOUT_OPENCV in check:
        words.append(f"motion not compared with matched points: no OpenCV; {INSTALL}")
    if "row_correlation" in check:
        words.append(f"nearer at the bottom {check['row_correlation']:+.2f}")
    if "gain" in check:
        words.append(f"warping removes {check['gain']:.0%} of the error")
    return f"{check['verdict']} ({', '.join(words)})"


def warning(record: Mapping) -> str | None:
    """What a model's training record says against its depth; None: nothing, or it was never checked."""
    check = record.get(CHECK, {})
    if check.get("verdict") != NOTHING:
        return None
    return f"the model seems to have learned nothing; train it longer: {describe(check)}"
