"""`FeatDepth`: all networks of one objective behind a single forward pass."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from huggingface_hub import ModelCard, ModelHubMixin
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from featdepth import geometry
from featdepth.config import Config, Model, from_dict
from featdepth.config.checks import check_config
from featdepth.config.values import shown
from featdepth.errors import InputError
from featdepth.models.decoders import DepthDecoder, FeatureDecoder, PoseDecoder
from featdepth.models.encoders import ResNetEncoder, ResNetStem
from featdepth.models.inputs import as_given, as_images, in_evaluation_mode, resized
from featdepth.models.learned_intrinsics import LearnedIntrinsics
from featdepth.models.recompute import Segmented
from featdepth.models.saved.model_card import LIBRARY, TAGS, model_card, read_scores
from featdepth.models.saved.storage import (
    CONFIG_FILE,
    check_fit,
    hub_reason,
    read_camera_names,
    read_model_directory,
    read_record,
    write_model_directory,
)
from featdepth.models.saved.verdict import CHECK
from featdepth.scale import BASELINE, GIVEN, Scale

# What the depth and pose encoders subtract and divide by; the feature encoder sees [0, 1] as it is.
IMAGE_MEAN, IMAGE_DEVIATION = 0.45, 0.225

# Version of config.json in a model directory.
MODEL_FORMAT = 1

NETWORKS = {
    "photometric": ("depth", "pose"),
    "autoencoder": ("feature_encoder", "feature_decoder"),
    "feature_metric": ("depth", "pose", "feature_stem"),
    "joint": ("depth", "pose", "feature_encoder", "feature_decoder"),
}


class Prediction(NamedTuple):
    """Everything that the networks say about a batch, float32; a field that the objective does not need is empty."""

    disparities: tuple[Tensor, ...] = ()  # [B, 1, H/2, W/2] .. [B, 1, H/16, W/16] in (0, 1), finest first
    poses: Tensor | None = None  # source_from_target [B, F-1, 4, 4], translations in network units
    target_features: tuple[Tensor, ...] = ()  # of the target: the first map or all five, finest first
    source_features: Tensor | None = None  # first map of each source [B, F-1, 64, H/2, W/2]
    reconstructions: tuple[Tensor, ...] = ()  # of the target, [B, 3, H, W] .. [B, 3, H/8, W/8] in (0, 1)
    intrinsics: Tensor | None = None  # learned ones [B, 3, 3], pixels; None: the batch's hold


class FeatDepth(nn.Module, ModelHubMixin, library_name=LIBRARY, tags=TAGS):
    """Depth, pose and feature networks of one objective.

    settings: the `model` section of a configuration; frames: target and sources, e.g. `[0, -1, 1, "s"]` (a pose
    network is built only when there are temporal sources); height, width: of the images it is trained on; cameras:
    names of those whose intrinsics it learns, where `settings.intrinsics` is learned.
    """

    def __init__(
        self,
        settings: Model,
        frames: Sequence[int | str],
        height: int,
        width: int,
        cameras: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.settings, self.frames, self.height, self.width = settings, list(frames), height, width
        # How the model came to be: its drives, contamination, versions. Saved with it.
        self.training_record: dict = {}
        networks = NETWORKS[settings.objective]
        if "depth" in networks:
            self.depth_encoder = ResNetEncoder(settings.depth_layers)
            self.depth_decoder = DepthDecoder(self.depth_encoder.channels, settings.decoder_width, settings.dropout)
        if "pose" in networks and self.temporal_sources:
            self.pose_encoder = ResNetEncoder(settings.pose_layers, input_channels=6)
            self.pose_decoder = PoseDecoder(self.pose_encoder.channels, settings.pose_start)
        if "feature_encoder" in networks:
            self.feature_encoder = ResNetEncoder(settings.feature_layers)
            self.feature_decoder = FeatureDecoder(self.feature_encoder.channels)
        if "feature_stem" in networks:
            self.feature_encoder = ResNetStem().requires_grad_(False)
            self.feature_encoder.eval()
        self.cameras = LearnedIntrinsics(cameras, settings.square_pixels) if settings.intrinsics == "learned" else None

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
        return self.training_record.get("scale_source", assumed)

    @property
    def scale(self) -> Scale:
        """What its depth is measured in."""
        return Scale(self.settings.metres_per_unit, self.scale_source)

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

    def forward(self, batch: dict[str, Tensor]) -> Prediction:
        """All networks on a batch after `augment`: `images` and `augmented` float32 [B, F, 3, H, W], `stereo_pose`.

        Where intrinsics are learned also `camera` [B], `jitter` and, for cameras that are not known, `intrinsics`.
        """
        prediction = Prediction()
        if self.has_depth:
            augmented = batch["augmented"]
            prediction = prediction._replace(
                disparities=self.depth(augmented[:, 0]),
                poses=self.poses(augmented, batch.get("stereo_pose")) if len(self.frames) > 1 else None,
            )
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
        return prediction

    def depth(self, image: Tensor) -> tuple[Tensor, ...]:
        """Disparities in (0, 1), finest first, of images `[B, 3, H, W]` in [0, 1]; H and W multiples of 32."""
        return self.depth_decoder(self.depth_encoder(normalise(image)))

    def poses(self, frames: Tensor, stereo_pose: Tensor | None) -> Tensor:
        """source_from_target `[B, F-1, 4, 4]` of `frames` `[B, F, 3, H, W]`; `stereo_pose` `[B, 4, 4]` in metres.

        Each pair is a pass of its own, so that batch statistics are those of one pair.
        """
        poses = []
        for position, frame in enumerate(self.frames[1:], start=1):
            if frame == "s":
                unit = self.settings.metres_per_unit
                poses.append(geometry.scale_translation(stereo_pose, 1 / unit))
            elif frame < 0:
                poses.append(geometry.invert_pose(self.motion(frames[:, position], frames[:, 0])))
            else:
                poses.append(self.motion(frames[:, 0], frames[:, position]))
        return torch.stack(poses, dim=1)

    def motion(self, earlier: Tensor, later: Tensor) -> Tensor:
        """later_from_earlier `[B, 4, 4]`, in network units, of two images `[B, 3, H, W]` in [0, 1]."""
        pair = torch.cat([earlier, later], dim=1)
        if self.settings.pose_size is not None and tuple(pair.shape[-2:]) != tuple(self.settings.pose_size):
            pair = functional.interpolate(pair, tuple(self.settings.pose_size), mode="bilinear", align_corners=False)
        axis_angle, translation = self.pose_decoder(self.pose_encoder(normalise(pair)))
        return geometry.pose_from_vector(axis_angle, translation)

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
        weight = self.depth_encoder.conv1.weight
        with in_evaluation_mode(self):
            disparity = self.predict_disparity(as_images(images, weight.device, weight.dtype))
        return as_given(self.to_depth(disparity) * (self.settings.metres_per_unit or 1.0), images)

    def to_depth(self, disparity: Tensor) -> Tensor:
        """Depth in network units of a sigmoid disparity, with the model's own range."""
        return geometry.disparity_to_depth(disparity, self.settings.min_depth, self.settings.max_depth)

    def to_disparity(self, depth: float) -> float:
        """The sigmoid disparity of a depth in network units: the inverse of `to_depth`."""
        nearest, farthest = 1 / self.settings.min_depth, 1 / self.settings.max_depth
        return (1 / depth - farthest) / (nearest - farthest)

    def follow_cameras(self, batch: dict[str, Tensor], prediction: Prediction) -> None:
        """Take a forward pass of training into the statistics of learned intrinsics; nothing where there are none."""
        if self.cameras is not None:
            # Not by a list of positions, which would have to be copied to the device, and the host would wait.
            poses = zip(prediction.poses.unbind(1), self.frames[1:], strict=True)
            temporal = [pose for pose, frame in poses if frame != "s"]
            self.cameras.follow(batch["camera"], torch.stack(temporal, dim=1))

    def record_training(self, drives: Sequence[str], contaminated: Sequence[str], versions: Sequence[str] = ()) -> None:
        """Note what the weights have seen, beside what those that they started from had seen."""
        self.training_record.pop(CHECK, None)  # was of the weights that the training starts from
        for name, values in (("drives", drives), ("contaminated", contaminated)):
            self.training_record[name] = sorted({*self.training_record.get(name, []), *values})
        self.training_record["versions"] = list(versions)

    def record_configuration(self, configuration: dict, kinds: Sequence[str], transductive: bool) -> None:
        """Note how the weights came about, for the model's card.

        configuration: all sections; kinds: of the data, see `data.kind`; transductive: the training data are the test
        data, see `featdepth.evaluation.refinement`.
        """
        self.training_record |= {"configuration": configuration, "transductive": transductive}
        self.record_kinds(kinds)

    def record_validation(self, scores: dict[str, float]) -> None:
        """Note how good the weights are; what is not finite is left out."""
        self.training_record["validation"] = {name: value for name, value in scores.items() if math.isfinite(value)}

    def record_check(self, check: dict[str, float | int | str] | None) -> None:
        """Note whether the weights have learned anything: the verdict of `featdepth.training.learned_check`."""
        if check is not None:
            self.training_record[CHECK] = check

    def record_kinds(self, kinds: Sequence[str]) -> None:
        """Note kinds of data that the weights have seen, beside those noted before."""
        self.training_record["kinds"] = sorted({*self.training_record.get("kinds", []), *kinds})

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        config: None = None,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: dict | None = None,
        **push_to_hub_kwargs: object,
    ) -> str | None:
        """Write `config.json`, `model.safetensors` and a card, `README.md`, replacing `save_directory` as a whole.

        model_card_kwargs: for `generate_model_card`. push_to_hub: do that too, as `repo_id` (default: the directory's
        name) and with `push_to_hub_kwargs`; returns the URL. config: nothing but None, a model writes its own.
        """
        if config is not None:
            raise ValueError("a model writes its own configuration")
        directory, model_card_kwargs = Path(save_directory), model_card_kwargs or {}
        card = self.generate_model_card(**model_card_kwargs)
        write_model_directory(directory, self.describe_itself(), self.state_dict(), str(card))
        if not push_to_hub:
            return None
        return self.push_to_hub(repo_id or directory.name, model_card_kwargs=model_card_kwargs, **push_to_hub_kwargs)

    def push_to_hub(self, repo_id: str, **options: object) -> str:
        """Upload the model and its card to the Hugging Face hub as `user/name`; returns the URL of the commit.

        options: `private`, `token`, `branch`, `create_pr`, `commit_message`, `model_card_kwargs`, ... as
        `huggingface_hub.ModelHubMixin.push_to_hub` takes them. Raises InputError where the hub does not take it.
        """
        try:
            return super().push_to_hub(repo_id, **options)
        except (InputError, TypeError):
            raise
        # As in downloading, errors of several libraries.
        except Exception as error:
            raise InputError(f"{repo_id}: the model could not be uploaded to the hub ({hub_reason(error)})") from error

    def generate_model_card(self, evaluation: str | Path | None = None) -> ModelCard:
        """What people should know of the model, in markdown; `evaluation`: the folder of its scores by `evaluate.py`.

        Raises InputError for scores that cannot be read.
        """
        scores = None if evaluation is None else read_scores(evaluation)
        return model_card(self.describe_itself(), sum(map(torch.numel, self.parameters())), self.scale_source, scores)

    def describe_itself(self) -> dict:
        """The content of `config.json`."""
        # Where the weights came from is in the training record; a saved model needs no other file.
        settings = dataclasses.replace(self.settings, pretrained=False, feature_encoder=None, init=None)
        content = {
            "format": MODEL_FORMAT,
            "data": {"frames": self.frames, "height": self.height, "width": self.width},
            "model": dataclasses.asdict(settings),
            "training": self.training_record,
        }
        if self.cameras is not None:
            content["cameras"] = self.cameras.describe((self.height, self.width))
        return content

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
    ) -> FeatDepth:
        """The model in a directory that `save_pretrained` wrote, or of a hub id `user/name`, in evaluation mode.

        For the hub alone: revision: branch, tag or commit; token: of a private model (default: of `hf auth login`);
        cache_dir: where downloads are kept; local_files_only: download nothing; force_download: what is there too.
        Raises InputError for a missing or damaged model.
        """
        content, state = read_model_directory(
            source,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        where = f"{source}/{CONFIG_FILE}"
        if content.get("format") != MODEL_FORMAT:
            raise InputError(
                f"{where}: model format {shown(content.get('format'))}, this version reads format {MODEL_FORMAT}"
            )
        for section in ("data", "model"):
            if not isinstance(content.get(section), dict):
                raise InputError(f"{where}: has no section {section}; copy the file again")
        config = from_dict({section: content[section] for section in ("data", "model")}, where)
        check_config(config, where, check_files=False, training=False)
        record = read_record(content, source)
        cameras = read_camera_names(content, source) if config.model.intrinsics == "learned" else ()
        model = cls.from_state(config, state, str(source), cameras)
        model.training_record = record
        return model

    @classmethod
    def from_state(
        cls, config: Config, state: Mapping[str, Tensor], source: str, cameras: Sequence[str] = ()
    ) -> FeatDepth:
        """The model of `config` with the weights `state`, in evaluation mode; InputError where they do not fit."""
        # Without memory first, so that sizes which the weights do not have allocate nothing.
        with torch.device("meta"):
            model = cls(config.model, config.data.frames, config.data.height, config.data.width, cameras)
        check_fit(model, state, source)
        model.to_empty(device="cpu").load_state_dict(state)
        return model.eval()


def normalise(image: Tensor) -> Tensor:
    """What the depth and pose encoders see of an image in [0, 1], channels-last."""
    return channels_last((image - IMAGE_MEAN) / IMAGE_DEVIATION)


def channels_last(image: Tensor) -> Tensor:
    """The same image with its channels innermost in memory, which convolutions prefer."""
    return image.contiguous(memory_format=torch.channels_last)
