"""Training on several data sets at once, and how often each of them and each drive is drawn.

`data.mix` names other configuration files, whose data train along: each with its own kind, folder, lists, crop,
intrinsics and selection, but all with this configuration's frames, size, augmentation and cache. Validation and
evaluation are of this configuration's own data.

An epoch has as many positions as there are samples. The loader shuffles positions, and which sample a position shows is
drawn from (seed, epoch) alone: the same on every process and worker and after a resume. Weights decide how many
positions a drive has; within a drive no sample comes again before all the others have come.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from featdepth.config import Config
from featdepth.config.reading import mixed_configs
from featdepth.console import count
from featdepth.data.splits import check_leakage, held_out_again
from featdepth.errors import InputError
from featdepth.kinds import dataset_class

if TYPE_CHECKING:
    from featdepth.data.dataset import FrameDataset

ORDER = 1  # tells the random numbers of the order from those of a sample's augmentation


def mix(config: Config, own: FrameDataset) -> MixedDataset:
    """The training data `own` of `config` and those of `data.mix`, drawn as the configuration says.

    Raises InputError, naming the file, for anything wrong with one of them, and for drives that the own validation or
    test part has.
    """
    members = [own]
    for path, mixed in zip(config.data.mix, mixed_configs(config), strict=True):
        try:
            check_leakage(mixed)
            member = dataset_class(mixed.data.kind)(mixed, "train")
        except InputError as error:
            raise InputError(f"data.mix: {path}: {error}") from error
        shared = held_out_again(member.recordings(), config)
        if shared and not config.data.allow_leakage:
            raise InputError(
                f"data.mix: {path} trains on drives that validation or test of this configuration have: "
                f"{', '.join(shared[:5])}; leave them out of its list, or set data.allow_leakage=true, which marks all "
                "results as contaminated"
            )
        members.append(member)
    for member in members:  # of those that have no maps nothing is known
        member.with_prior = any(each.with_prior for each in members)
    return MixedDataset(members, config.data.mix_weights, config.data.drive_balance, config.train.seed)


class MixedDataset(Dataset):
    """Several data sets as one, with the surface of `FrameDataset` that training needs.

    members: the data sets; samples: theirs, one after the other; drives: theirs, sorted.
    """

    def __init__(
        self, members: Sequence[FrameDataset], weights: Sequence[float] | None, drive_balance: float, seed: int
    ) -> None:
        """weights: how often samples of each member are drawn; None: as many as it has; drive_balance: see config."""
        self.members, self.seed = list(members), seed
        self.samples = [sample for member in self.members for sample in member.samples]
        self.drives = sorted({drive for member in self.members for drive in member.drives})
        self.known_distances = sum(member.known_distances for member in self.members)
        self.starts = [0, *accumulate(map(len, self.members))]  # of the members among all samples
        self.drive_samples = [indices for member in range(len(self.members)) for indices in self.by_drive(member)]
        first = [indices[0] for indices in self.drive_samples]
        self.owners = np.searchsorted(self.starts, first, side="right") - 1  # the member of each of these drives
        self.shares = self.drive_shares(weights, drive_balance)
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # shared: persistent workers see it change
        self.order, self.order_epoch = np.empty(0, dtype=np.int64), -1

    def by_drive(self, member: int) -> list[np.ndarray]:
        """The indices, among all samples, of each of a member's drives."""
        drives = defaultdict(list)
        for index, sample in enumerate(self.members[member].samples, start=self.starts[member]):
            drives[sample.drive].append(index)
        return [np.array(indices) for indices in drives.values()]

    def drive_shares(self, weights: Sequence[float] | None, drive_balance: float) -> np.ndarray:
        """The part of an epoch that each of `drive_samples` has, float64, sum 1."""
        sizes = np.array([len(indices) for indices in self.drive_samples], dtype=np.float64)
        shares = sizes ** (1 - drive_balance)
        of_members = np.array([len(member) for member in self.members] if weights is None else weights)
        within_member = shares / np.bincount(self.owners, shares)[self.owners]
        return within_member * of_members[self.owners] / of_members.sum()

    def draw_order(self, epoch: int) -> np.ndarray:
        """The sample, int64 `[N]`, at each position of an epoch.

        A drive's share of the positions is rounded up or down by chance, so that it is exact over many epochs.
        """
        random = np.random.default_rng((self.seed, epoch, 0, ORDER))
        ends = np.floor(np.round(np.cumsum(self.shares) * len(self), 6) + random.random()).astype(np.int64)
        counts = np.diff(np.minimum(ends, len(self)), prepend=0)
        drawn = [
            np.resize(random.permutation(indices), count)
            for indices, count in zip(self.drive_samples, counts, strict=True)
        ]
        return np.concatenate(drawn)

    def start_intrinsics(self) -> dict[str, Tensor]:
        """What learned intrinsics start from, by camera name, as `FrameDataset` has it; of all members.

        Raises InputError where different data sets have cameras of one name.
        """
        found: dict[str, Tensor] = {}
        places: dict[str, tuple] = {}
        for member in self.members:
            place = (member.config.kind, member.config.root, member.config.crop)
            for name, intrinsics in member.start_intrinsics().items():
                if places.setdefault(name, place) != place:
                    raise InputError(
                        f"data.mix: {places[name][1]} and {member.config.root} both have a camera {name}, whose "
                        "intrinsics could not be learned apart; rename its drive's folder in one of them"
                    )
                found[name] = intrinsics
        return found

    def number_cameras(self, names: Sequence[str]) -> None:
        """Give the samples of all members the numbers of their cameras, as `FrameDataset` does."""
        for member in self.members:
            member.number_cameras(names)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose samples and augmentation are drawn; workers that already run see it too."""
        self.epoch.fill_(epoch)
        for member in self.members:
            member.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        """The sample at a position of the epoch, as `FrameDataset` has it; `index` is its place among `samples`."""
        if not 0 <= position < len(self):
            raise IndexError(f"position {position} of {len(self)}")
        if self.order_epoch != int(self.epoch):
            self.order_epoch = int(self.epoch)
            self.order = self.draw_order(self.order_epoch)
        index = int(self.order[position])
        member = int(np.searchsorted(self.starts, index, side="right")) - 1
        # A sample that is drawn twice is augmented in two ways.
        item = self.members[member].augmented_item(index - self.starts[member], draw=position)
        item["index"] = torch.tensor(index)
        return item

    def recordings(self) -> list[str]:
        """What a model remembers that it was trained on, of all members; sorted."""
        return sorted({name for member in self.members for name in member.recordings()})

    def describe(self) -> str:
        """Lines for a run's header: each member with its part of an epoch."""
        parts = np.bincount(self.owners, self.shares)
        lines = [f"{count(len(self), 'sample')} of {count(len(self.drives), 'drive')}; an epoch draws"]
        for part, member in zip(parts, self.members, strict=True):
            lines.append(f"  {part:7.1%}  {member.config.kind} {member.config.root}: {member.describe()}")
        return "\n".join(lines)
