"""What all kinds of data have in common: target frames with their neighbours in time and the other camera's frame."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from featdepth.config.keys import Config
from featdepth.console import count, first_names
from featdepth.data.footage import Footage
from featdepth.data.images import Window, crop_window, load_image, load_mask, load_recent_image
from featdepth.data.samples import STEREO, Sample, list_file, read_list
from featdepth.errors import InputError
from featdepth.geometry import crop_intrinsics, resize_intrinsics

UNNUMBERED = -1  # the camera of a sample whose intrinsics no model has learned
SKIPPING_ADVICE = ", or set data.skip_bad_frames=true"  # in errors of single frames
MOST_REPLACEMENTS = 10  # bad samples in a row: beyond that the data set is broken, not a frame
FIXED_INTRINSICS = [[0.58, 0.0, 0.5], [0.0, 1.92, 0.5], [0.0, 0.0, 1.0]]  # of the published code, in widths and heights


class NoGroundTruth(InputError):
    """No sample of a part has ground truth where it is required; the text says where it is looked for."""


class FrameDataset(Footage, Dataset):
    """Samples as dicts of tensors (see `__getitem__`); made by `featdepth.data.build_dataset`.

    samples: the target images, in order; drives: their drives, sorted; left_out: listed samples that lack one of their
    frames; static: samples of training or validation left out for moving too little; unknown_motion: those that stay
    since nobody knows whether they move; without_depth: samples left out for want of ground truth; known_distances:
    samples that know how far the camera moved; depth_size: the common size of `depth`.

    A kind of data is a subclass that says what is on the disk, see `Footage`.
    """

    def __init__(
        self,
        config: Config,
        part: str,
        with_depth: bool | None = None,
        frames: Sequence[int | str] | None = None,
        require_depth: bool = False,
    ) -> None:
        """Find the samples and everything that belongs to them; see `build_dataset` for arguments and errors."""
        self.config = config.data
        self.seed = config.train.seed
        self.is_training = part == "train"
        self.size = (config.data.height, config.data.width)
        self.frames = list(config.data.frames if frames is None else frames)
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # shared: persistent workers see it change

        # Learned intrinsics: whether they start from a guess, and their cameras' places among those of the model.
        self.guesses_intrinsics = config.model.intrinsics == "learned" and config.data.field_of_view is not None
        self.camera_numbers: dict[str, int] | None = None

        self.open_root(config)
        self.find_samples(config, part, require_depth)
        self.drives = sorted({sample.drive for sample in self.samples})
        if with_depth is None:
            with_depth = not self.is_training and any(self.depth_path(sample) for sample in self.samples)
        self.with_depth = with_depth
        self.prepare_cameras()
        self.with_distance = config.loss.velocity > 0 and any(frame != STEREO for frame in self.frames[1:])
        self.known_distances = 0
        if self.with_distance:
            self.known_distances = sum(not all(map(math.isnan, self.distances(sample))) for sample in self.samples)
        self.with_prior = part != "test" and config.data.prior is not None and config.loss.prior > 0
        self.prior_maps: dict[Sample, Path] = {}
        if self.with_prior:
            from featdepth.data.prior_maps import find_map  # most runs have none

            for sample in self.samples:
                self.prior_maps[sample] = find_map(config.data.prior, self.image_path(sample, 0), config.data.root)
        self.cache = None
        if config.data.cache is not None:
            from featdepth.data.cached.frame_cache import FrameCache  # most runs have none

            self.cache = FrameCache(config.data.cache, self.size, config.data.cache_gb, config.data.crop)

    @property
    def members(self) -> list[FrameDataset]:
        """The data sets that this one is made of (see `featdepth.data.mix`): itself alone."""
        return [self]

    def list_samples(self, config: Config, part: str) -> list[Sample]:
        """The samples of a part before any is left out for missing neighbours.

        Raises InputError where there is none, and for a line of a list whose target image is not on the disk.
        """
        path = list_file(config, part)
        if path is None:
            return self.built_in_samples(config, part)
        samples = []
        for number, sample in read_list(path, self.naming):
            if self.image_path(sample, 0) is None:
                called = f", called {self.image_form}," if self.image_form else ""
                raise InputError(
                    f"{path}:{number}: {sample} names a frame that is not below {config.data.root}; "
                    f"add it{called} or remove the line"
                )
            samples.append(sample)
        return samples

    def find_samples(self, config: Config, part: str, require_depth: bool) -> None:
        """The part's samples with all their frames, enough motion and, if required, ground truth; counts the others."""
        listed = self.list_samples(config, part)
        complete = [sample for sample in listed if all(self.image_path(sample, frame) for frame in self.frames)]
        if not complete:
            raise InputError(
                f"{part}: none of {count(len(listed), 'sample')} has all of its frames {self.frames} below "
                f"{self.config.root}; the first is {listed[0]}; download what is missing or change data.frames"
            )
        moving, self.unknown_motion = complete, 0
        if part != "test" and (self.config.min_distance is not None or self.config.min_motion is not None):
            from featdepth.data.selection import count_unknown, moving_samples  # most runs take all there are

            moving = moving_samples(self, complete)
            self.unknown_motion = count_unknown(self, moving)
        self.samples = [sample for sample in moving if self.depth_path(sample)] if require_depth else moving
        if not self.samples:
            raise NoGroundTruth(
                f"{part}: none of {count(len(moving), 'sample')} has ground truth; {self.ground_truth_hint()}"
            )
        self.left_out = len(listed) - len(complete)
        self.static = len(complete) - len(moving)
        self.without_depth = len(moving) - len(self.samples)

    def prepare_cameras(self) -> None:
        """Compute each camera's intrinsics, stereo pose and native size, so that a bad calibration ends it here."""
        self.native_sizes: dict[Hashable, tuple[int, int]] = {}  # of the files
        self.windows: dict[Hashable, Window | None] = {}  # what `data.crop` leaves of them
        self.intrinsics: dict[Hashable, Tensor] = {}
        self.stereo_poses: dict[Hashable, Tensor] = {}
        for camera, sample in {self.camera_of(sample): sample for sample in reversed(self.samples)}.items():
            size, intrinsics, stereo_pose = self.camera(sample)
            if self.guesses_intrinsics:
                from featdepth.cameras.pinhole import field_of_view_intrinsics  # most data have a calibration

                intrinsics = field_of_view_intrinsics(self.config.field_of_view, size)
            self.native_sizes[camera] = size
            self.windows[camera] = crop_window(size, self.config.crop)
            self.intrinsics[camera] = self.scaled_intrinsics(intrinsics, size, self.windows[camera])
            if stereo_pose is not None:
                from featdepth.data.baselines import check_stereo_pose

                check_stereo_pose(f"{self.config.root}, {sample.drive}", stereo_pose, sample.side)
                self.stereo_poses[camera] = torch.from_numpy(stereo_pose).float()
        self.depth_size = tuple(map(max, zip(*map(self.shown_size, self.native_sizes), strict=True)))

    def check_baselines(self) -> None:
        """Raise InputError for a stereo baseline that no pair has, which is no metres."""
        if self.stereo_poses:
            from featdepth.data.baselines import check_baselines

            check_baselines(self.config.root, self.stereo_poses)

    def start_intrinsics(self) -> dict[str, Tensor]:
        """What learned intrinsics start from, in pixels at training size: `[3, 3]` by `camera_name`, sorted."""
        found = {self.camera_name(sample): self.intrinsics[self.camera_of(sample)] for sample in reversed(self.samples)}
        return dict(sorted(found.items()))

    def number_cameras(self, names: Sequence[str]) -> None:
        """Give each sample `camera`, the place of its camera among `names`, those of the training samples; -1: none.

        Nothing changes without `names`: no intrinsics are learned then.
        Raises InputError where intrinsics that were not learned are not known otherwise either.
        """
        if not names:
            return
        self.camera_numbers = {name: number for number, name in enumerate(names)}
        strangers = sorted({self.camera_name(sample) for sample in self.samples} - self.camera_numbers.keys())
        if strangers and self.guesses_intrinsics:
            raise InputError(
                f"model.intrinsics is learned, and no training sample is of the camera {first_names(strangers)}, whose "
                "intrinsics are not known either; validate on the cameras that the model is trained on, as with "
                "data.split time"
            )

    def distances(self, sample: Sample) -> list[float]:
        """Metres between the camera at the target and at each source; NaN where unknown, and for the other camera."""
        found = (None if frame == STEREO else self.distance(sample, frame) for frame in self.frames[1:])
        return [math.nan if distance is None else distance for distance in found]

    def shown_size(self, camera: Hashable) -> tuple[int, int]:
        """Height and width of a camera's images after the crop, before they are resized."""
        if self.windows[camera] is None:
            return self.native_sizes[camera]
        top, bottom, left, right = self.windows[camera]
        return bottom - top, right - left

    def scaled_intrinsics(self, intrinsics: np.ndarray, size: tuple[int, int], window: Window | None) -> Tensor:
        """Intrinsics float32 `[3, 3]` of the cropped and resized images: the camera's own, or the fixed ones."""
        if self.config.intrinsics == "fixed":
            height, width = self.size
            return torch.tensor(FIXED_INTRINSICS) * torch.tensor([[width], [height], [1.0]])
        own = torch.from_numpy(intrinsics)
        if window is not None:
            top, bottom, left, right = window
            own, size = crop_intrinsics(own, left, top), (bottom - top, right - left)
        return resize_intrinsics(own, size, self.size).float()

    def describe(self) -> str:
        """A line for a run's header: how many samples of how many drives, what was left out, and what is cached."""
        text = f"{count(len(self.samples), 'sample')} of {count(len(self.drives), 'drive')}"
        if self.left_out:
            text += f", {self.left_out} left out (missing frames)"
        if self.static:
            text += f", {self.static} left out (static)"
        if self.unknown_motion:
            text += f", {self.unknown_motion} kept whose motion is unknown"
        if self.without_depth:
            text += f", {self.without_depth} left out (no ground truth)"
        if self.with_distance:
            text += f", {self.known_distances} with known distances"
        if self.cache is not None:
            text += f"\n  cached   {self.cache.describe(len(self.image_files()))}"
        return text

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose augmentation is drawn; workers that already run see it too."""
        self.epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Sample `index`.

        images uint8 `[F, 3, H, W]`; intrinsics `[3, 3]`; stereo_pose `[4, 4]` (source_from_target, metres; with "s"
        only); distance `[F-1]` (metres to each source, NaN: unknown; with `loss.velocity` only); prior `[1, H, W]`
        (inverse depth up to scale and shift, NaN: unknown; with `data.prior` and `loss.prior` only); depth `[h, w]`
        (metres, 0 = none, padded at the bottom and the right) and depth_size int64 `[2]` (with_depth only); jitter
        `[5]`: flip (0 or 1), brightness, contrast, saturation, hue; index int64; replaced int64: 1 where the sample
        cannot be read and the next good one stands in, which only `data.skip_bad_frames` allows (InputError otherwise).
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return self.augmented_item(index, draw=index)

    def augmented_item(self, index: int, draw: int) -> dict[str, Tensor]:
        """Sample `index` with the `draw`-th numbers of the epoch for its augmentation."""
        item, steps = self.load_readable(index)
        item["jitter"] = self.draw_jitter(draw)
        item["index"] = torch.tensor(index)
        item["replaced"] = torch.tensor(int(steps > 0))
        return item

    def load_readable(self, index: int) -> tuple[dict[str, Tensor], int]:
        """The sample at `index`, or the next readable one if bad frames are skipped, and how many steps away it is."""
        if not self.config.skip_bad_frames:
            try:
                return self.load(self.samples[index]), 0
            except InputError as error:
                raise InputError(f"{error}{SKIPPING_ADVICE}") from error
        for steps in range(min(MOST_REPLACEMENTS + 1, len(self))):
            try:
                return self.load(self.samples[(index + steps) % len(self)]), steps
            except InputError as error:
                last = error
        raise InputError(
            f"{count(steps + 1, 'sample')} in a row cannot be read, from {self.samples[index]} on; the last: {last}"
        )

    def load(self, sample: Sample) -> dict[str, Tensor]:
        """Images, camera and ground truth of a sample."""
        camera = self.camera_of(sample)
        images = [self.load_frame(self.image_path(sample, frame), camera) for frame in self.frames]
        item = {"images": torch.stack(images), "intrinsics": self.intrinsics[camera].clone()}
        if STEREO in self.frames:
            item["stereo_pose"] = self.stereo_poses[camera].clone()
        if self.camera_numbers is not None:
            item["camera"] = torch.tensor(self.camera_numbers.get(self.camera_name(sample), UNNUMBERED))
        if self.with_distance:
            item["distance"] = torch.tensor(self.distances(sample))
        if self.with_prior:
            item["prior"] = self.load_prior(sample)
        if self.with_depth:
            height, width = self.shown_size(camera)
            item["depth"] = torch.zeros(self.depth_size)
            item["depth"][:height, :width] = torch.from_numpy(self.load_depth(sample))
            item["depth_size"] = torch.tensor([height, width])
        return item

    def load_prior(self, sample: Sample) -> Tensor:
        """The sample's map of `data.prior`, inverse depth float32 `[1, H, W]`; NaN where nothing is known."""
        if sample not in self.prior_maps:
            return torch.full((1, *self.size), torch.nan)
        from featdepth.data.prior_maps import load_prior

        return load_prior(self.prior_maps[sample], self.config.prior_kind, self.config.crop, self.size)

    def load_frame(self, path: str, camera: Hashable) -> Tensor:
        """The image at `path` of a camera, uint8 `[3, H, W]`. InputError for one that is unreadable, or one colour."""
        size = self.native_sizes[camera]
        if self.cache is not None:
            return self.cache.load(path, size)
        # In training's order neighbours are far apart; else consecutive samples have most frames in common.
        load = load_image if self.is_training else load_recent_image
        return load(path, self.size, size, self.windows[camera], True)

    def image_files(self) -> dict[str, tuple[int, int]]:
        """All images that the samples need, with the size (height, width) that each must have."""
        return {
            self.image_path(sample, frame): self.native_sizes[self.camera_of(sample)]
            for sample in self.samples
            for frame in self.frames
        }

    def load_depth(self, sample: Sample) -> np.ndarray:
        """Ground truth float32 `[h, w]` (metres, 0 = none) of the cropped image, not resized; all 0: there is none."""
        path, camera = self.depth_path(sample), self.camera_of(sample)
        if path is None:
            return np.zeros(self.shown_size(camera), dtype=np.float32)
        return self.shown_part(self.read_depth(sample, path), camera)

    def moving_mask(self, sample: Sample) -> np.ndarray | None:
        """Which pixels of the cropped image, not resized, show moving things: bool `[h, w]`; None: unknown."""
        path, camera = self.moving_path(sample), self.camera_of(sample)
        return None if path is None else self.shown_part(load_mask(path, self.native_sizes[camera]), camera)

    def shown_part(self, values: np.ndarray, camera: Hashable) -> np.ndarray:
        """What the crop leaves of a map `[h, w]` at the size of the camera's files."""
        if self.windows[camera] is None:
            return values
        top, bottom, left, right = self.windows[camera]
        return values[top:bottom, left:right]

    def draw_jitter(self, draw: int) -> Tensor:
        """The numbers of a sample's augmentation, float32 `[5]`; always the same for one seed, epoch and draw."""
        if not self.is_training:
            return torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0])
        random = np.random.default_rng((self.seed, int(self.epoch), draw))
        # All numbers are drawn whatever the probabilities, so that changing one leaves the others as they are.
        flip, coloured = random.random(2) < (self.config.flip, self.config.colour_jitter)
        factors, hue = random.uniform(0.8, 1.2, 3), random.uniform(-0.1, 0.1)
        colour = [*factors, hue] if coloured else [1.0, 1.0, 1.0, 0.0]
        return torch.tensor([float(flip), *colour], dtype=torch.float32)
