"""Score a trajectory against the true one, from files in KITTI's or TUM's format.

python -m featdepth.score_trajectory TRUTH ESTIMATE [--alignment 7dof ...] [--lengths 100 200 ...] [--out DIR]

Where both files have times, each estimated pose is compared with the true one at its time; else poses are taken line by
line, and there must be as many of both.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from featdepth.config import Parser
from featdepth.console import count as counted
from featdepth.errors import InputError, run_program
from featdepth.files import write_text
from featdepth.odometry.interpolate import interpolate_poses
from featdepth.odometry.plots import MISSING, draw_plots, has_matplotlib
from featdepth.odometry.rotations import quaternions_from_rotations
from featdepth.odometry.scores import ALIGNMENTS, LENGTHS, score_trajectory
from featdepth.odometry.table import format_scores
from featdepth.odometry.trajectory_files import TrajectoryFile, read_trajectory

REACH = 0.02  # seconds


def main() -> None:
    arguments = make_parser().parse_args()
    if not all(0 < length < math.inf for length in arguments.lengths):
        raise InputError("--lengths: have to be above 0 metres")
    truth, estimate, count = associate(arguments.truth, arguments.estimate, arguments.reach)
    scores = score_trajectory(truth, estimate, sorted(set(arguments.lengths)))
    scores = {key: value for key, value in scores.items() if key not in ALIGNMENTS or key in arguments.alignment}
    scores = {"name": f"{arguments.estimate} against {arguments.truth}", "poses_of_the_estimate": count} | scores
    print(format_scores([scores]))
    if len(truth) < count:
        reach = f"within {arguments.reach:g} s, or of the same number"
        print(f"{count - len(truth)} of {count} poses have no true pose {reach}, and do not count")
    if arguments.out is not None:
        write(Path(arguments.out) / "odometry", Path(arguments.estimate).stem, truth, estimate, scores)


def make_parser() -> Parser:
    parser = Parser(description=__doc__, allow_abbrev=False)
    parser.add_argument("truth", metavar="TRUTH", help="the true trajectory, in metres")
    parser.add_argument("estimate", metavar="ESTIMATE", help="the one that is scored")
    parser.add_argument(
        "--alignment",
        nargs="+",
        choices=ALIGNMENTS,
        default=list(ALIGNMENTS),
        help="those to score with (default: all)",
    )
    parser.add_argument(
        "--lengths",
        nargs="+",
        type=float,
        default=list(LENGTHS),
        metavar="M",
        help="of segments (default: 100 to 800 m)",
    )
    parser.add_argument(
        "--reach", type=float, default=REACH, metavar="S", help="to the next true pose (default: %(default)s s)"
    )
    parser.add_argument("--out", metavar="DIR", help="also write odometry.json and plots there")
    return parser


def associate(truth_path: str, estimate_path: str, reach: float) -> tuple[np.ndarray, np.ndarray, int]:
    """True and estimated poses `[N, 4, 4]` of the same moments, and how many the estimate has. Raises InputError."""
    truth, estimate = read_trajectory(truth_path), read_trajectory(estimate_path)
    count = len(estimate.poses)
    if truth.times is not None and estimate.times is not None:
        found = poses_at(truth, estimate.times, reach)
        if len(found) < 2:
            raise InputError(
                f"{truth_path} has a pose within {reach:g} s of {len(found)} of the {count} times in {estimate_path}; "
                "at least 2 are needed; compare their clocks, or set --reach"
            )
        return np.stack(list(found.values())), estimate.poses[list(found)], count
    if truth.frames is not None or estimate.frames is not None:
        return by_frame(truth, estimate, truth_path, estimate_path)
    if len(truth.poses) != count:
        raise InputError(
            f"{truth_path} has {counted(len(truth.poses), 'pose')} and {estimate_path} {count}; without times in both "
            "(TUM's format) they are compared line by line, and must be of the same frames"
        )
    if count < 2:
        raise InputError(f"{estimate_path}: has a single pose; a trajectory has two or more")
    return truth.poses, estimate.poses, count


def by_frame(
    truth: TrajectoryFile, estimate: TrajectoryFile, truth_path: str, estimate_path: str
) -> tuple[np.ndarray, np.ndarray, int]:
    """The same where at least one of them numbers its frames; lines without numbers count from 0. Raises InputError."""
    true, own = (np.arange(len(each.poses)) if each.frames is None else each.frames for each in (truth, estimate))
    _, of_true, of_own = np.intersect1d(true, own, return_indices=True)
    if len(of_own) < 2:
        raise InputError(
            f"{truth_path} and {estimate_path} have {counted(len(of_own), 'frame')} of the same number in common; at "
            "least 2 are needed; compare where their numbers begin"
        )
    return truth.poses[of_true], estimate.poses[of_own], len(own)


def poses_at(trajectory: TrajectoryFile, times: np.ndarray, reach: float) -> dict[int, np.ndarray]:
    """The poses 4x4 of `trajectory` at `times`, by index, where it has one within `reach` seconds."""
    quaternions = quaternions_from_rotations(trajectory.poses[:, :3, :3])
    return interpolate_poses(trajectory.times, trajectory.poses[:, :3, 3], quaternions, times, reach)


def write(stem: Path, name: str, truth: np.ndarray, estimate: np.ndarray, scores: dict) -> None:
    """Write `stem`.json and plots that begin with `stem` and are called `name`. Raises InputError if impossible."""
    try:
        write_text(stem.with_suffix(".json"), json.dumps(scores, indent=2) + "\n")
        notes = draw_plots(stem, name, truth, estimate, scores) if has_matplotlib() else [f"no plots: {MISSING}"]
    except OSError as error:
        raise InputError(f"{stem.parent}: cannot be written to ({error.strerror}); choose another --out") from error
    print("\n".join([*notes, f"written to {stem.parent}"]))


if __name__ == "__main__":
    run_program(main)
