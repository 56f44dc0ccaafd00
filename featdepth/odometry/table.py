"""Odometry scores as a table for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from featdepth.console import count
from featdepth.odometry.scores import ALIGNMENTS

MOST_BLOCKS = 5  # sequences that the table shows; odometry.json has all
COLUMNS = (  # of the table: heading, key, digits
    ("scale", "scale", 3),
    ("ATE m", "ate_rmse_m", 3),
    ("t_rel %", "t_rel_percent", 3),
    ("r_rel deg/100m", "r_rel_deg_per_100m", 3),
    ("RPE m", "rpe_translation_m", 4),
    ("RPE deg", "rpe_rotation_deg", 4),
)
METRIC = ("none", "6dof")  # alignments that take the estimate's unit as it is
POSE_NETWORK, STRAIGHT_AHEAD = "pose_network", "straight_ahead"
COMPARED = {  # what stands beside a model's scores, in words
    POSE_NETWORK: "pose network",
    STRAIGHT_AHEAD: "straight ahead at constant speed, without any image",
}


def format_scores(scores: Sequence[Mapping], means: Mapping | None = None) -> str:
    """Scores as a table for people: a block for each sequence, a line for each alignment."""
    lines = [f"\n{'alignment':<14}" + "".join(f"{heading:>16}" for heading, _, _ in COLUMNS)]
    for score in scores[:MOST_BLOCKS]:
        lines += [
            f"{score['name']}: {count(score['frames'], 'frame')}, {score['distance_m']:.1f} m",
            *format_block(score),
        ]
    if len(scores) > MOST_BLOCKS:
        lines.append(f"... {count(len(scores) - MOST_BLOCKS, 'more sequence')} in odometry.json")
    if means is not None and len(scores) > 1:
        lines += [f"mean of {count(len(scores), 'sequence')}", *format_block(means)]
    if any("-" in line.split() for line in lines):
        lines.append("-: unknown; t_rel and r_rel need a trajectory longer than a segment (100 m and more)")
    return "\n".join(lines)


def shorten(notes: list[str]) -> list[str]:
    """The first of many notes, and how many there are."""
    return notes if len(notes) <= MOST_BLOCKS else [*notes[:1], f"... and {len(notes) - 1} more like this"]


def format_block(score: Mapping) -> list[str]:
    """The lines of one sequence, or of the mean."""
    lines = ["  motion by alignment with the model's depth:"] if STRAIGHT_AHEAD in score else []
    for alignment in ALIGNMENTS:
        if alignment not in score:
            continue
        if score[alignment] is None:
            reason = "the unit of the estimate is unknown" if alignment in METRIC else "there is no motion to scale"
            lines.append(f"  {alignment:<12}  {reason}")
            continue
        values = ((score[alignment].get(key), digits) for _, key, digits in COLUMNS)
        cells = ("-" if value is None else f"{value:.{digits}f}" for value, digits in values)
        lines.append(f"  {alignment:<12}" + "".join(f"{cell:>16}" for cell in cells))
    short = score["ate_5_frames"]
    lines.append(f"  5-frame ATE {short['mean_m']:.4f} +- {short['std_m']:.4f} m, each 5 frames scaled on their own")
    for key, words in COMPARED.items():
        if key in score:
            lines += [f"  {words}:", *format_block(score[key])]
    return lines
