"""Pictures of odometry: the path from above, and the error over the length of the segments. Needs matplotlib."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featdepth.errors import InputError
from featdepth.files import write_bytes, write_text
from featdepth.odometry.scores import align

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MISSING = "plots need matplotlib (pip install matplotlib)"
TRUE = {"color": "0.6", "linewidth": 4.0, "solid_capstyle": "round"}
# Of the estimates: the second shows what it covers of the first.
ESTIMATES = ({"color": "tab:red", "linewidth": 2.5}, {"color": "tab:blue", "linewidth": 1.5, "linestyle": "--"})
STYLE = {"svg.hashsalt": "featdepth", "svg.fonttype": "none"}  # the same input gives the same file


def has_matplotlib() -> bool:
    """Whether plots can be drawn here."""
    return importlib.util.find_spec("matplotlib") is not None


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, that belongs to no window. Raises InputError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(MISSING) from error
    return Figure(figsize=(width, height), layout="constrained")


def draw_plots(stem: Path, name: str, truth: np.ndarray, estimate: np.ndarray, score: Mapping) -> list[str]:
    """Plot a trajectory and, where it has segments, their errors; alignments none and 7dof, if `score` has them.

    Files begin with `stem`. Returns what could not be drawn, in words. Raises InputError without matplotlib, OSError.
    """
    shown = [alignment for alignment in ("none", "7dof") if score.get(alignment) is not None]
    estimates = {f"estimate, alignment {each}": align(truth, estimate, each)[0] for each in shown}
    plot_ways(stem.with_name(f"{stem.name}_way"), truth, estimates, name)
    per_length = {f"alignment {each}": score[each]["per_length"] for each in shown if score[each]["per_length"]}
    if not per_length:
        return [f"no plot of errors over length of {name}: it is shorter than any segment"]
    plot_segment_errors(stem.with_name(f"{stem.name}_errors"), per_length, name)
    return []


def plot_ways(path: Path, truth: np.ndarray, estimates: Mapping[str, np.ndarray], title: str) -> list[Path]:
    """Draw trajectories from above into `path` with the endings png and svg, and return both.

    truth, and at most two estimates by what the legend calls them: world_from_camera `[N, 4, 4]` in one common frame,
    metres. What is right and ahead is that of the first true camera. Raises InputError without matplotlib, OSError.
    """
    figure = new_figure(5.5, 5.5)
    axes = figure.add_subplot()
    first_from_world = np.linalg.inv(truth[0])
    for (name, poses), style in zip({"true": truth, **estimates}.items(), (TRUE, *ESTIMATES), strict=False):
        right, _, ahead = (first_from_world @ poses)[:, :3, 3].T
        axes.plot(right, ahead, label=name, **style)
        axes.plot(right[-1:], ahead[-1:], color=style["color"], marker="s", markersize=6)
    axes.plot(0, 0, color="black", marker="o", markersize=7, linestyle="none", label="start")
    axes.set_xlabel("right (m)")
    axes.set_ylabel("ahead (m)")
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_title(title)
    finish(axes)
    return save(figure, path)


def plot_segment_errors(path: Path, per_length: Mapping[str, Mapping[str, dict]], title: str) -> list[Path]:
    """Draw t_rel and r_rel over the length of the segments into `path` with the endings png and svg; return both.

    per_length: at most two of `score_aligned(...)["per_length"]` by what the legend calls them. Raises InputError
    without matplotlib, OSError.
    """
    figure = new_figure(8.0, 3.6)
    panels = figure.subplots(1, 2)
    quantities = (("t_rel_percent", "translation error (%)"), ("r_rel_deg_per_100m", "rotation error (deg / 100 m)"))
    for axes, (quantity, label) in zip(panels, quantities, strict=True):
        for (name, scores), style in zip(per_length.items(), ESTIMATES, strict=False):
            lengths = [float(length) for length in scores]
            axes.plot(lengths, [score[quantity] for score in scores.values()], marker="o", label=name, **style)
        axes.set_xlabel("length of the segment (m)")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        finish(axes)
    figure.suptitle(title)
    return save(figure, path)


def finish(axes: Axes) -> None:
    """Grid and legend."""
    axes.grid(alpha=0.3)
    axes.legend()


def save(figure: Figure, path: Path) -> list[Path]:
    """Write `figure` as png and svg, each whole or not at all."""
    from matplotlib import rc_context

    png, svg = path.with_name(f"{path.name}.png"), path.with_name(f"{path.name}.svg")
    with rc_context(STYLE):
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=120)
        write_bytes(png, content.getvalue())
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
        write_text(svg, text.getvalue())
    return [png, svg]
