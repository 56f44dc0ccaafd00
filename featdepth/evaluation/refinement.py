"""Refinement at test time: a trained model goes on learning from the very images that it is asked about.

Two kinds that must not be mixed up. *Transductive*, the published "online refinement": `train.py` with
`configs/kitti_refine.yaml` sees all test images before it predicts any. *Causal*, here: a model that follows a stream
predicts each frame first and learns from it afterwards, and begins every clip with the weights that it was trained to.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor

from featdepth.config import Config, Loss
from featdepth.console import Display
from featdepth.data.dataset import FrameDataset
from featdepth.data.samples import STEREO, Sample
from featdepth.errors import InputError
from featdepth.geometry import resize_intrinsics
from featdepth.metrics.depth import DepthScores, mean_scores
from featdepth.models import FeatDepth
from featdepth.models.featdepth import Prediction
from featdepth.models.inputs import resized
from featdepth.objective import compute_losses, upsampled_depths
from featdepth.odometry.aligned import Pairs, align_both_ways
from featdepth.training.validation import predict_disparity, score_prediction

# Learning rates of the depth network: two cameras at known places, at one moment, teach more reliably than one.
STEREO_RATE, MONOCULAR_RATE = 1e-4, 3e-5
REALIGNED = 4  # steps of one frame that a motion serves before it is found anew, with the depth as it is then
HELD = 0.05  # weight of the squared change of the mean logarithm of depth, which nothing else holds with one camera
LOSS = Loss(automask=True)  # what stands still or drives ahead at our own speed would be pushed to infinity


class Refiner:
    """A model that adapts to a stream of frames.

    model: the adapted copy, in evaluation mode, to predict with; the given one stays as it is, and where `reset` goes
    back to. Batch statistics stay those of training; the depth network learns, by Adam. The objective is that of
    training without features: photometric error and smoothness. A stereo stream learns the metres of its baseline. With
    one camera motion is that of alignment with the depth as it is (see `featdepth.odometry.aligned`), which says
    nothing of its scale: a term holds the one that the given model sees.

    Raises InputError for a model that has no depth.
    """

    def __init__(self, model: FeatDepth, steps: int = 1, learning_rate: float | None = None) -> None:
        """steps: of gradient descent a frame; learning_rate: of the depth network (STEREO_RATE or MONOCULAR_RATE)."""
        if not model.has_depth:
            raise InputError(f"refinement: objective {model.settings.objective} predicts no depth")
        self.original, self.steps, self.learning_rate = model, steps, learning_rate
        self.reset()

    def reset(self) -> None:
        """Begin a new clip: the original weights, no memory of frames or gradients."""
        self.model = copy.deepcopy(self.original).eval().requires_grad_(False)
        networks = (self.model.depth_encoder, self.model.depth_decoder)
        self.optimizer = torch.optim.Adam([each for net in networks for each in net.requires_grad_(True).parameters()])
        self.past: list[Tensor] = []  # at most two frames

    def learn(
        self, image: Tensor, intrinsics: Tensor, other: Tensor | None = None, stereo_pose: Tensor | None = None
    ) -> None:
        """Adapt to the frame that was predicted last.

        image: `[3, H, W]` in [0, 1], of any size; intrinsics: `[3, 3]`, pixels of that size; other: the other camera's
        image at the same time, with stereo_pose other_from_image `[4, 4]` in metres. With it, the image is explained
        from the other one; without, the frame before it from both of its neighbours, of which one shows what the other
        hides, as far as they can be aligned. Where these are not there yet, nothing happens. Raises InputError for
        another camera where the model has no metric scale.
        """
        if other is not None and self.model.settings.metres_per_unit is None:
            raise InputError("refinement: a model without metres cannot learn from a stereo baseline; give one image")
        size = (self.model.height, self.model.width)
        device = next(self.model.depth_encoder.parameters()).device
        image, intrinsics = resized(image[None].to(device), size)[0], scaled(intrinsics.to(device), image, size)
        if other is not None:
            frames = torch.stack([image, resized(other[None].to(device), size)[0]])[None]
            poses = self.model.poses(frames, [STEREO], stereo_pose[None].to(device))
            self.descend(frames, poses, intrinsics[None])
        elif len(self.past) == 2:
            self.descend(torch.stack([self.past[1], self.past[0], image])[None], None, intrinsics[None])
        self.past = [*self.past[-1:], image]

    def descend(self, frames: Tensor, poses: Tensor | None, intrinsics: Tensor) -> None:
        """`steps` steps of gradient descent on target and sources `[1, F, 3, H, W]`, at the model's size.

        poses: source_from_target `[1, F-1, 4, 4]`, network units; None: found by alignment. intrinsics: `[1, 3, 3]`.
        """
        is_free, seen = poses is None, frames
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate or (MONOCULAR_RATE if is_free else STEREO_RATE)
        # The networks of features would be run for nothing, and intrinsics are given.
        config = Config(model=dataclasses.replace(self.model.settings, objective="photometric"), loss=LOSS)
        for step in range(self.steps):
            if is_free and step % REALIGNED == 0:
                poses, is_aligned = self.align(frames, intrinsics)
                if not is_aligned.any():
                    return
                seen, poses = torch.cat([frames[:, :1], frames[:, 1:][:, is_aligned]], dim=1), poses[:, is_aligned]
                held = self.original.to_depth(self.original.predict_disparity(frames[:, 0])).log().mean()
            prediction = Prediction(self.model.depth(frames[:, 0]), poses)
            losses = compute_losses(prediction, {"images": seen, "intrinsics": intrinsics}, config)
            loss = torch.stack(list(losses.values())).sum()
            if is_free:
                depth = upsampled_depths(prediction, frames.shape[-2:], config)[0]
                loss = loss + HELD * (depth.log().mean() - held).square()
            if not loss.isfinite():
                raise InputError("refinement: the loss is no longer finite; lower the learning rate")
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

    @torch.no_grad()
    def align(self, frames: Tensor, intrinsics: Tensor) -> tuple[Tensor, Tensor]:
        """source_from_target `[1, F-1, 4, 4]` by the depth as it is now, and which of them are found `[F-1]`."""
        depth = self.model.to_depth(self.model.predict_disparity(frames[0]))
        (target, sources), (near, far) = (each.split([1, len(each) - 1]) for each in (frames[0], depth))
        target, near, intrinsics = (each.expand(len(sources), *each.shape[1:]) for each in (target, near, intrinsics))
        poses, is_aligned = align_both_ways(Pairs(target, sources, near, far, intrinsics), None)
        return poses[None], is_aligned


def scaled(intrinsics: Tensor, image: Tensor, size: tuple[int, int]) -> Tensor:
    """Intrinsics `[3, 3]` of `image` `[3, H, W]`, as they are at `size`."""
    return resize_intrinsics(intrinsics, tuple(image.shape[-2:]), size)


def refine_stream(
    model: FeatDepth,
    frames: Iterable[Tensor],
    intrinsics: Tensor,
    steps: int = 1,
    learning_rate: float | None = None,
) -> Iterator[Tensor]:
    """Depth `[1, H, W]` of each frame of one clip, from weights adapted to the frames before it.

    frames: `[3, H, W]` in [0, 1], in order, of any one size; intrinsics: `[3, 3]`, pixels of that size. Depth is in
    metres where the model knows them. The same frames give the same depth on the same device.
    """
    refiner, previous = Refiner(model, steps, learning_rate), None
    for frame in frames:
        # Only now, so that no step is taken after the last frame.
        if previous is not None:
            refiner.learn(previous, intrinsics)
        yield refiner.model.predict_depth(frame)
        previous = frame


def evaluate_refinement(
    model: FeatDepth, dataset: FrameDataset, config: Config, steps: int = 1, learning_rate: float | None = None
) -> dict:
    """Scores of a test part with and without causal refinement, its gain and its cost: for a card or a benchmark.

    dataset: samples with ground truth, of frames [0], or [0, "s"] to refine from both cameras. A clip is a drive from
    its first sample to its last, with the frames between, as far as none is missing; refinement begins anew with each.
    Only samples are scored. Speeds count prediction and learning, not the reading of files.
    """
    device = next(model.parameters()).device
    scores: dict[str, list[DepthScores]] = {"without": [], "with": []}
    seconds, clips = {"without": 0.0, "with": 0.0}, []
    refiner, scored = Refiner(model, steps, learning_rate), set(dataset.samples)
    all_clips = list(clips_of(dataset))
    display = Display("refinement", sum(map(len, all_clips)), "frames")
    for clip in all_clips:
        refiner.reset()
        first = len(scores["with"])
        for sample in clip:
            item = {name: value.to(device) for name, value in dataset.load(sample).items()}
            images = item["images"].float() / 255
            batch = {"images": images[None, :1], "depth": item["depth"][None], "depth_size": item["depth_size"][None]}
            for name, network in (("without", model), ("with", refiner.model)):
                started = now(device)
                with torch.no_grad():
                    disparity = predict_disparity(network, batch, config)
                seconds[name] += now(device) - started
                if sample in scored:
                    unit = model.settings.metres_per_unit
                    scores[name].append(score_prediction(network, disparity, batch, config, unit))
            started = now(device)
            refiner.learn(images[0], item["intrinsics"], *other_camera(images, item))
            seconds["with"] += now(device) - started
            display.update()
        part = {name: means(each[first:]) for name, each in scores.items()}
        clips.append({"drive": clip[0].drive, "side": clip[0].side, "frames": len(clip), **part})
    display.close()
    frames = sum(clip["frames"] for clip in clips)
    stereo = STEREO in dataset.frames
    rate = learning_rate or (STEREO_RATE if stereo else MONOCULAR_RATE)
    result: dict = {"kind": "causal", "steps": steps, "learning_rate": rate, "stereo": stereo}
    result |= {"images": len(scores["with"]), "frames": frames}
    for name, each in scores.items():
        result[name] = means(each) | {"frames_per_second": frames / seconds[name]}
    return result | {"gain": gain(result["without"], result["with"]), "clips": clips}


def other_camera(images: Tensor, item: dict[str, Tensor]) -> tuple[Tensor | None, Tensor | None]:
    """The other camera's image and its pose, where the sample has them."""
    return (images[1], item["stereo_pose"]) if len(images) > 1 else (None, None)


def clips_of(dataset: FrameDataset) -> list[list[Sample]]:
    """The frames of each drive and camera from the first sample to the last; a missing frame ends a clip."""
    clips = []
    for (drive, side), group in groupby(sorted(dataset.samples, key=drive_order), lambda each: (each.drive, each.side)):
        samples = list(group)
        clips.append([])
        for frame in range(samples[0].frame, samples[-1].frame + 1):
            sample = Sample(drive, frame, side)
            if all(dataset.image_path(sample, source) for source in dataset.frames):
                clips[-1].append(sample)
            elif clips[-1]:
                clips.append([])
    return clips


def drive_order(sample: Sample) -> tuple[str, str, int]:
    return sample.drive, sample.side, sample.frame


def means(scores: Sequence[DepthScores]) -> dict[str, dict[str, float] | None]:
    """Mean scores over images, median-scaled and at fixed scale (None where the scale is unknown)."""
    if not scores:
        return {"median_scaled": None, "fixed_scale": None}
    pixels = torch.cat([each.pixels for each in scores])
    fixed = torch.cat([each.fixed_scale for each in scores])
    return {
        "median_scaled": mean_scores(torch.cat([each.median_scaled for each in scores]), pixels),
        "fixed_scale": None if fixed[pixels > 0].isnan().all() else mean_scores(fixed, pixels),
    }


def gain(without: dict, refined: dict) -> dict[str, float | None]:
    """By how much refinement lowers abs_rel (negative: it raises it), median-scaled and at fixed scale."""
    return {
        name: without[name]["abs_rel"] - refined[name]["abs_rel"] if without[name] and refined[name] else None
        for name in ("median_scaled", "fixed_scale")
    }


def now(device: torch.device) -> float:
    """Seconds, when all that was left to the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
