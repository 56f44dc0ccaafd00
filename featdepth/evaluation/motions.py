"""How the camera moves through the test sequences: by alignment with the model's depth, and as its pose network says.

A pair that finds no motion from the identity is aligned again from the pose network's motion, and then from the motion
before it. The latter needs all pairs in order, so it is a pass of its own over the few that are left: the result is the
same on any number of processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from featdepth.data.samples import Sample
from featdepth.evaluation.scoring import seen_intrinsics
from featdepth.evaluation.subject import Subject
from featdepth.geometry import scale_translation
from featdepth.metrics.flicker import flicker
from featdepth.models import FeatDepth
from featdepth.odometry.aligned import Pairs, align_again, align_both_ways, constant_velocity, see_pairs
from featdepth.parallel.processes import gather_columns


class Motions(NamedTuple):
    """Motions of N pairs of a data set, later_from_earlier float64 `[N, 4, 4]`, in metres or the model's unit."""

    index: np.ndarray  # int [N], ascending: their places in the data set
    motions: np.ndarray  # by alignment, or what stands in for it; NaN where the depth of a frame is not finite
    is_aligned: np.ndarray  # bool [N]; False: the pose network's motion stands in or, without one, the motion before
    network: np.ndarray | None = None  # of the pose network; None: there is none
    flicker: np.ndarray | None = None  # [N, 2], see `featdepth.metrics.flicker`; NaN: not aligned at first


def find_motions(accelerator: Accelerator, subject: Subject, unit: float | None) -> Motions:
    """Motions of all readable pairs of a subject whose data are those of `open_sequences`; every process enters.

    unit: metres in a unit of the model; None: unknown.
    """
    model, dataset = subject.model, subject.dataset
    dataset.number_cameras(model.camera_names)

    def columns(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        pairs, found = pairs_of(model, batch), {}
        motions, is_aligned = align_both_ways(pairs, None)
        if model.has_motion:
            network = model.motion(pairs.earlier, pairs.later).float()
            found["network"] = network.flatten(1)
            motions, is_aligned = align_again(pairs, network, motions, is_aligned)
        found["flicker"] = flicker(pairs.earlier_depth, pairs.later_depth, pairs.intrinsics, motions)
        found["flicker"][~is_aligned] = torch.nan
        depths = torch.cat([pairs.earlier_depth, pairs.later_depth], dim=1)
        found["is_finite"] = depths.isfinite().flatten(1).all(1)
        return {"index": batch["index"], "motions": motions.flatten(1), "is_aligned": is_aligned, **found}

    table = gather_columns(accelerator, model, subject.loader, columns)
    order = table["index"].argsort()
    table = {name: column[order] for name, column in table.items()}
    index, motions, is_aligned = table["index"].long(), table["motions"].unflatten(1, (4, 4)), table["is_aligned"] > 0
    runs = runs_of_frames([dataset.samples[place] for place in index.tolist()])
    if not is_aligned.all():
        starts = torch.eye(4).repeat(len(dataset), 1, 1)
        starts[index] = motions_before(runs, motions, is_aligned)
        again = align_from(accelerator, subject, index[~is_aligned].tolist(), starts)
        places = torch.searchsorted(index, again["index"].long())
        motions[places], is_aligned[places] = again["motions"].unflatten(1, (4, 4)), again["is_aligned"] > 0
    network = table["network"].unflatten(1, (4, 4)) if model.has_motion else None
    stand_in = motions_before(runs, motions, is_aligned) if network is None else network
    motions = torch.where(is_aligned[:, None, None], motions, stand_in)
    motions[table["is_finite"] == 0] = torch.nan
    scaled = [None if each is None else scale_translation(each, unit or 1.0) for each in (motions, network)]
    motions, network = (None if each is None else each.double().numpy() for each in scaled)
    return Motions(index.numpy(), motions, is_aligned.numpy(), network, table["flicker"].double().numpy())


def pairs_of(model: FeatDepth, batch: dict[str, Tensor]) -> Pairs:
    """The pairs of a batch of `open_sequences`, as the model sees them."""
    return see_pairs(model, *batch["images"].unbind(1), seen_intrinsics(model, batch))


def align_from(accelerator: Accelerator, subject: Subject, places: list[int], starts: Tensor) -> dict[str, Tensor]:
    """Align the pairs at `places` of the data set from `starts` `[len(dataset), 4, 4]`; every process enters.

    Columns `index`, `motions` and `is_aligned`, as in `find_motions`.
    """
    config, pairs = subject.config, Subset(subject.dataset, places)
    loader = DataLoader(pairs, config.evaluate.batch_size, num_workers=config.data.workers)

    def columns(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        start = starts.to(batch["index"].device)[batch["index"]]
        motions, is_aligned = align_both_ways(pairs_of(subject.model, batch), start)
        return {"index": batch["index"], "motions": motions.flatten(1), "is_aligned": is_aligned}

    return gather_columns(accelerator, subject.model, accelerator.prepare(loader), columns)


def motions_before(runs: Sequence[slice], motions: Tensor, is_aligned: Tensor) -> Tensor:
    """For each pair the last aligned motion before it in its run `[N, 4, 4]`, the identity where there is none."""
    return torch.cat([constant_velocity(motions[run], is_aligned[run], None) for run in runs])


def runs_of_frames(samples: Sequence[Sample]) -> list[slice]:
    """Where pairs follow one another, in order."""
    keys = [(sample.drive, sample.frame - place) for place, sample in enumerate(samples)]
    groups = [[place for place, _ in run] for _, run in groupby(enumerate(keys), lambda each: each[1])]
    return [slice(group[0], group[-1] + 1) for group in groups]
