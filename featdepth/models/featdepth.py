"""`FeatDepth`: all networks of one objective behind a single forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from featdepth.config import Model
from featdepth.geometry import disparity_to_depth, invert_pose, pose_from_vector, scale_translation
from featdepth.models.decoders import DepthDecoder, FeatureDecoder, PoseDecoder
from featdepth.models.encoders import IMAGE_DEVIATION, IMAGE_MEAN, ResNetEncoder, ResNetStem
from featdepth.models.recompute import Segmented
from featdepth.models.saved.pretrained import Pretrained
from featdepth.models.saved.provenance import Provenance
from featdepth.scale import BASELINE, GIVEN, Scale

if TYPE_CHECKING:
    from featdepth.alignment import Alignment
    from featdepth.models.large_depth import Base
    from featdepth.models.learned_intrinsics import LearnedIntrinsics

NETWORKS = {
    "photometric": ("depth", "pose"),
    "autoencoder": ("feature_encoder", "feature_decoder"),
    "feature_metric": ("depth", "pose", "feature_stem"),
    "joint": ("depth", "pose", "feature_encoder", "feature_decoder"),
}


class Prediction(NamedTuple):
    """Everything that the networks say about a batch, float32; a field that the objective does not need is empty."""

    # [B, 1, H/2, W/2] .. [B, 1, H/16, W/16] in (0, 1), finest first; of a large model one, [B, 1, H, W] in [0, 1]
    disparities: tuple[Tensor, ...] = ()
    poses: Tensor | None = None  # source_from_target [B, F-1, 4, 4], translations in network units
    target_features: tuple[Tensor, ...] = ()  # of the target: the first map or all five, finest first
    source_features: Tensor | None = None  # first map of each source [B, F-1, 64, H/2, W/2]
    reconstructions: tuple[Tensor, ...] = ()  # of the target, [B, 3, H, W] .. [B, 3, H/8, W/8] in (0, 1)
    intrinsics: Tensor | None = None  # learned ones [B, 3, 3], pixels; None: the batch's hold
    alignment: Alignment | None = None  # of the sources in time, [B, T, ...], where the model's motion needs it
    prior: Tensor | None = None  # inverse depth up to scale and shift [B, 1, H, W], as a large model saw it untrained


class FeatDepth(nn.Module, Pretrained):
    """Depth, pose and feature networks of one objective.

    settings: the `model` section of a configuration; frames: target and sources, e.g. `[0, -1, 1, "s"]` (a pose
    network is built only when there are temporal sources); height, width: of the images it is trained on; cameras:
    names of those whose intrinsics it learns, where `settings.intrinsics` is learned; base: the large model that
    `settings.depth` names, None: looked for there.
    """

    def __init__(
        self,
        settings: Model,
        frames: Sequence[int | str],
        height: int,
        width: int,
        cameras: Sequence[str] = (),
        base: Base | None = None,
    ) -> None:
        super().__init__()
        self.settings, self.frames, self.height, self.width = settings, list(frames), height, width
        self.provenance = Provenance()
        networks = NETWORKS[settings.objective]
        self.base = base
        self.original_prediction: Callable[[Tensor], Tensor] | None = None  # see `featdepth.models.large_depth`
        if settings.depth is not None:
            from featdepth.models.large_depth import find_base, make_large_depth  # most models have none

            self.base = base or find_base(settings.depth)[0]
            self.depth_encoder, self.depth_decoder = make_large_depth(settings, self.base)
        elif "depth" in networks:
            if settings.depth_layers is not None:
                self.depth_encoder = ResNetEncoder(settings.depth_layers)
            else:
                from featdepth.models.backbones import make_backbone  # most models need none

                self.depth_encoder = make_backbone(settings.encoder)
            self.depth_decoder = DepthDecoder(self.depth_encoder.channels, settings.decoder_width, settings.dropout)
        if "pose" in networks and self.temporal_sources and settings.motion != "aligned":
            self.pose_encoder = ResNetEncoder(settings.pose_layers, input_channels=6)
            self.pose_decoder = PoseDecoder(self.pose_encoder.channels, settings.pose_start)
        if "feature_encoder" in networks:
            self.feature_encoder = ResNetEncoder(settings.feature_layers)
            self.feature_decoder = FeatureDecoder(self.feature_encoder.channels)
        if "feature_stem" in networks:
            self.feature_encoder = ResNetStem().requires_grad_(False)
            self.feature_encoder.eval()
        self.cameras: LearnedIntrinsics | None = None
        if settings.intrinsics == "learned":
            from featdepth.models.learned_intrinsics import LearnedIntrinsics

            self.cameras = LearnedIntrinsics(cameras, settings.square_pixels)

    @property
    def temporal_sources(self) -> list[int]:
        """The sources that are other moments of the same camera."""
        return [frame for frame in self.frames[1:] if frame != "s"]

    @property
    def has_depth(self) -> bool:
        return "depth" in NETWORKS[self.settings.objective]

    @property
    def scale_source(self) -> str | None:
        """Where the metres of its depth come from, e.g. "stereo baseline"; None: depth is known up to scale."""
        if not self.has_depth or self.settings.metres_per_unit is None:
            return None
        # Models that were saved before they said so, or that were never trained.
        assumed = BASELINE if "s" in self.frames else GIVEN
        return self.provenance.scale_source or assumed

    @property
    def scale(self) -> Scale:
        """What its depth is measured in."""
        return Scale(self.settings.metres_per_unit, self.scale_source)

    @property
    def metres(self) -> float:
        """Metres in a unit of the network, which depths and translations are multiplied by; 1 where it is unknown."""
        return self.scale.factor

    @property
    def has_motion(self) -> bool:
        """Whether it has learned how a camera moves between two moments."""
        return hasattr(self, "pose_decoder")

    @property
    def camera_names(self) -> list[str]:
        """Of the cameras whose intrinsics it learns; none where they are given."""
        return [] if self.cameras is None else self.cameras.names

    def train(self, mode: bool = True) -> FeatDepth:
        """Training or evaluation mode; the frozen feature encoder of stage 2 stays in evaluation mode."""
        super().train(mode)
        if self.settings.objective == "feature_metric":
            self.feature_encoder.eval()
        return self

    def gradient_checkpointing_enable(self) -> None:
        """Trade time for memory in training: the backward pass computes most activations again."""
        for network in self.children():
            # A frozen network keeps none.
            if isinstance(network, Segmented) and any(each.requires_grad for each in network.parameters()):
                network.gradient_checkpointing = True

    def synchronise_batch_norms(self, processes: int) -> None:
        """Let batch norms take their statistics over the batches of all processes, where there are several."""
        if processes > 1:
            from featdepth.models.batch_norm import synchronise_batch_norms

            synchronise_batch_norms(self, processes)

    def forward(self, batch: dict[str, Tensor]) -> Prediction:
        """All networks on a batch after `augment`: `images` and `augmented` float32 [B, F, 3, H, W], `stereo_pose`.

        For alignment also `intrinsics`, and where intrinsics are learned `camera` [B], `jitter` and, for cameras that
        are not known, `intrinsics`.
        """
        prediction = Prediction()
        if self.has_depth:
            prediction = self.depth_and_motion(batch["augmented"], self.frames[1:], batch.get("stereo_pose"))
        if self.original_prediction is not None:
            prediction = prediction._replace(prior=self.original_prediction(normalise(batch["images"][:, 0])))
        if self.settings.objective == "feature_metric":
            features = self.feature_encoder(channels_last(batch["images"].flatten(0, 1)))
            features = features.unflatten(0, batch["images"].shape[:2])
            prediction = prediction._replace(target_features=(features[:, 0],), source_features=features[:, 1:])
        elif self.settings.objective in ("autoencoder", "joint"):
            prediction = self.learned_features(batch["images"], prediction)
        if self.cameras is not None:
            is_flipped, size = batch["jitter"][:, 0] > 0.5, batch["images"].shape[-2:]
            intrinsics = self.cameras(batch["camera"], batch["intrinsics"], is_flipped, size)
            prediction = prediction._replace(intrinsics=intrinsics)
        return prediction if self.settings.motion == "network" else self.aligned(prediction, batch)

    def depth_and_motion(
        self, frames: Tensor, sources: Sequence[int | str], stereo_pose: Tensor | None = None
    ) -> Prediction:
        """Disparities of the first of `frames` `[B, F, 3, H, W]`, and the poses of the others: see `poses`."""
        disparities = self.depth(frames[:, 0])
        return Prediction(disparities, self.poses(frames, sources, stereo_pose) if sources else None)

    def aligned(self, prediction: Prediction, batch: dict[str, Tensor]) -> Prediction:
        """`prediction` of a batch (as for `forward`) with its alignment and, without a pose network, motion from it."""
        from featdepth.models.aligned_motion import align_sources, aligned_poses

        depth = self.to_depth(prediction.disparities[0].float())
        intrinsics = batch["intrinsics"] if prediction.intrinsics is None else prediction.intrinsics
        alignment = align_sources(depth, batch["images"], intrinsics, self.frames[1:])
        poses = prediction.poses
        if not self.has_motion:
            poses = aligned_poses(alignment, depth, poses, self.frames[1:])
        return prediction._replace(alignment=alignment, poses=poses)

    def depth(self, image: Tensor) -> tuple[Tensor, ...]:
        """Disparities in (0, 1), finest first, of images `[B, 3, H, W]` in [0, 1]; H and W multiples of 32."""
        return self.depth_decoder(self.depth_encoder(normalise(image)))

    def poses(self, frames: Tensor, sources: Sequence[int | str], stereo_pose: Tensor | None) -> Tensor:
        """source_from_target `[B, F-1, 4, 4]` of `frames` `[B, F, 3, H, W]`, the target first.

        sources: the others by their place in time, or "s"; stereo_pose: of that one `[B, 4, 4]` in metres. Each pair
        is a pass of its own, so that batch statistics are those of one pair. Without a pose network nothing moves.
        """
        poses = []
        for position, frame in enumerate(sources, start=1):
            if frame == "s":
                unit = self.settings.metres_per_unit
                poses.append(scale_translation(stereo_pose, 1 / unit))
            elif not self.has_motion:
                poses.append(torch.eye(4, device=frames.device).expand(len(frames), 4, 4))
            elif frame < 0:
                poses.append(invert_pose(self.motion(frames[:, position], frames[:, 0])))
            else:
                poses.append(self.motion(frames[:, 0], frames[:, position]))
        return torch.stack(poses, dim=1)

    def motion(self, earlier: Tensor, later: Tensor) -> Tensor:
        """later_from_earlier `[B, 4, 4]`, in network units, of two images `[B, 3, H, W]` in [0, 1]."""
        pair = torch.cat([earlier, later], dim=1)
        if self.settings.pose_size is not None and tuple(pair.shape[-2:]) != tuple(self.settings.pose_size):
            pair = functional.interpolate(pair, tuple(self.settings.pose_size), mode="bilinear", align_corners=False)
        axis_angle, translation = self.pose_decoder(self.pose_encoder(normalise(pair)))
        return pose_from_vector(axis_angle, translation)

    def learned_features(self, images: Tensor, prediction: Prediction) -> Prediction:
        """Features and reconstruction of the target, and the first feature of each source (`images` as in forward)."""
        target_features = self.feature_encoder(channels_last(images[:, 0]))
        prediction = prediction._replace(
            target_features=tuple(target_features), reconstructions=self.feature_decoder(target_features)
        )
        if self.settings.objective == "autoencoder":
            return prediction
        sources = [self.feature_encoder.stem(channels_last(image)) for image in images[:, 1:].unbind(1)]
        return prediction._replace(source_features=torch.stack(sources, dim=1))

    @torch.no_grad()
    def predict_disparity(self, images: Tensor) -> Tensor:
        """Sigmoid disparity `[N, 1, H, W]` of images `[N, 3, H, W]` in [0, 1] of any size, seen at the model's size."""
        from featdepth.models.inputs import resized  # training, whose images have their size, needs none of it

        disparity = self.depth(resized(images, (self.height, self.width)))[0]
        return functional.interpolate(disparity.float(), images.shape[-2:], mode="bilinear", align_corners=False)

    def predict_depth(
        self, images: Tensor | np.ndarray | Image.Image | Sequence
    ) -> Tensor | np.ndarray | list[Tensor | np.ndarray]:
        """Depth of images of any size, in the form that they come in: metres where the scale is known, else units.

        images: a tensor `[N, 3, H, W]` -> float32 `[N, 1, H, W]`, or `[3, H, W]` -> `[1, H, W]`, on the model's device;
        an array `[H, W, 3]` or a PIL image -> a float32 array `[H, W]`; a list of these, of any sizes -> a list. RGB,
        as uint8 or as floats in [0, 1]. Raises ValueError for anything else, and for a model without depth.

        The networks are in evaluation mode meanwhile, without gradients, and come back as they were.
        """
        if not self.has_depth:
            raise ValueError(f"a model of objective {self.settings.objective} predicts no depth")
        if isinstance(images, list | tuple):
            return [self.predict_depth(image) for image in images]
        from featdepth.models.inputs import as_given, as_images, in_evaluation_mode

        weight = next(self.depth_encoder.parameters())
        with in_evaluation_mode(self):
            disparity = self.predict_disparity(as_images(images, weight.device, weight.dtype))
        return as_given(self.metres * self.to_depth(disparity), images)

    def to_depth(self, disparity: Tensor) -> Tensor:
        """Depth in network units of a sigmoid disparity, with the model's own range."""
        return disparity_to_depth(disparity, self.settings.min_depth, self.settings.max_depth)

    def to_disparity(self, depth: float) -> float:
        """The sigmoid disparity of a depth in network units: the inverse of `to_depth`."""
        nearest, farthest = 1 / self.settings.min_depth, 1 / self.settings.max_depth
        return (1 / depth - farthest) / (nearest - farthest)

    def camera_values(self) -> dict[str, float]:
        """What a line of the log says of learned intrinsics."""
        return {} if self.cameras is None else self.cameras.log()

    def camera_warning(self) -> str | None:
        """What speaks against learned intrinsics; None: nothing, or there are none."""
        return None if self.cameras is None else self.cameras.warning((self.height, self.width))

    def follow_cameras(self, batch: dict[str, Tensor], prediction: Prediction) -> None:
        """Take a forward pass of training into the statistics of learned intrinsics; nothing where there are none."""
        if self.cameras is not None:
            # Not by a list of positions, which would have to be copied to the device, and the host would wait.
            poses = zip(prediction.poses.unbind(1), self.frames[1:], strict=True)
            temporal = [pose for pose, frame in poses if frame != "s"]
            self.cameras.follow(batch["camera"], torch.stack(temporal, dim=1))


def normalise(image: Tensor) -> Tensor:
    """What the depth and pose encoders see of an image in [0, 1], channels-last."""
    return channels_last((image - IMAGE_MEAN) / IMAGE_DEVIATION)


def channels_last(image: Tensor) -> Tensor:
    """The same image with its channels innermost in memory, which convolutions prefer."""
    return image.contiguous(memory_format=torch.channels_last)
