"""The objective: joins prediction, geometry and losses into one value per term and sample.

Every sum over scales follows the paper's Eq. for the total loss; what does not depend on the scale is computed once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from featdepth import geometry, losses
from featdepth.config import Config
from featdepth.models.featdepth import Prediction

# How fast the weight of a derivative falls with the image's own derivative.
DISPARITY_EDGE_SHARPNESS, FEATURE_EDGE_SHARPNESS = 0.5, 1.0
LARGEST_MISFIT = 1.5  # error of a given pose in those of aligned ones, beyond which the latter are not believed


def compute_losses(prediction: Prediction, batch: dict[str, Tensor], config: Config) -> dict[str, Tensor]:
    """The weighted terms of the objective, one value per sample `{name: [B]}`; the loss is the mean of their sum.

    batch: after `augment`: `images` float32 [B, F, 3, H, W], `intrinsics` [B, 3, 3]; `distance` [B, F-1] (metres, NaN
    where unknown) for `loss.velocity`; for `loss.prior` `prior` [B, 1, H, W] (inverse depth up to scale and shift, NaN
    where unknown), in the place of the prediction's.
    """
    return {name: values.sum(0) for name, values in compute_terms(prediction, batch, config).items()}


def compute_terms(prediction: Prediction, batch: dict[str, Tensor], config: Config) -> dict[str, Tensor]:
    """The same terms, separately for each scale or feature level as they are summed: `{name: [scales, B]}`."""
    images, intrinsics = batch["images"], intrinsics_of(prediction, batch)
    objective, weights = config.model.objective, config.loss
    terms = {}
    if objective != "autoencoder":
        if weights.pyramid:
            terms["photometric"] = pyramid_terms(prediction, images, intrinsics, config)
        else:
            depths = upsampled_depths(prediction, images.shape[-2:], config)
            terms["photometric"] = photometric_terms(depths, prediction, images, intrinsics, config)
        terms["smoothness"] = smoothness_terms(prediction.disparities, images[:, 0], config)
    if prediction.alignment is not None:
        from featdepth.models.aligned_motion import alignment_terms  # most trainings need none of it

        depth = upsampled_depths(prediction, prediction.disparities[0].shape[-2:], config)[0]
        terms |= alignment_terms(prediction.alignment, prediction.poses, depth, images.shape[-2:], config)
    prior = batch.get("prior", prediction.prior)
    if weights.prior > 0 and prior is not None:  # a model that is evaluated has none
        terms["prior"] = weights.prior * prior_error(prediction.disparities[0], prior)[None]
    if weights.velocity > 0:
        terms["velocity"] = weights.velocity * velocity_error(prediction.poses, batch["distance"], config)[None]
    if objective in ("feature_metric", "joint"):
        terms["feature_metric"] = weights.feature_metric * feature_metric_error(prediction, intrinsics, config)[None]
    if objective in ("autoencoder", "joint"):
        stepwise = objective == "autoencoder"
        terms["reconstruction"] = reconstruction_terms(prediction.reconstructions, images[:, 0], stepwise)
        terms["feature_regularisation"] = regularisation_terms(prediction.target_features, images[:, 0], config)
    return terms


def intrinsics_of(prediction: Prediction, batch: dict[str, Tensor]) -> Tensor:
    """Intrinsics `[B, 3, 3]` (pixels) of the images after `augment`: learned ones where there are, else the given."""
    return batch["intrinsics"] if prediction.intrinsics is None else prediction.intrinsics


def upsampled_depths(prediction: Prediction, size: tuple[int, int], config: Config) -> list[Tensor]:
    """Depth maps `[B, 1, H, W]` in network units at full size, one for each scale of the disparity."""
    upsampled = (
        functional.interpolate(disparity, size, mode="bilinear", align_corners=False)
        for disparity in prediction.disparities
    )
    model = config.model
    return [geometry.disparity_to_depth(disparity, model.min_depth, model.max_depth) for disparity in upsampled]


def photometric_terms(
    depths: list[Tensor], prediction: Prediction, images: Tensor, intrinsics: Tensor, config: Config
) -> Tensor:
    """Photometric error at each scale, per-pixel minimum over the sources, automasked if asked for: `[scales, B]`."""
    given = given_source(prediction, config)
    target, sources = images[:, 0], images[:, 1:]
    statistics = losses.local_statistics(target)
    unwarped = identity_error(target, sources, statistics, config) if config.loss.automask else None
    terms = []
    for depth in depths:
        error = minimum_error(reconstruct(sources, depth, intrinsics, prediction.poses), target, statistics, given)
        if unwarped is not None:
            error = torch.minimum(error, unwarped)
        terms.append(losses.per_sample_mean(error))
    return torch.stack(terms) / len(depths)


def pyramid_terms(prediction: Prediction, images: Tensor, intrinsics: Tensor, config: Config) -> Tensor:
    """Photometric error of the finest depth at full size, and of the others at their own: `[scales, B]`.

    The gradient of an image leads to the right place from a few pixels away. Where frames are farther apart, as in
    bends, that is only so in small images, in which a pixel is as wide as 4, 8 and 16 of the full size.
    """
    full_size, terms = images.shape[-2:], []
    for scale, disparity in enumerate(prediction.disparities):
        size = full_size if scale == 0 else disparity.shape[-2:]
        resized = functional.interpolate(images.flatten(0, 1), size, mode="area").unflatten(0, images.shape[:2])
        depths = upsampled_depths(prediction._replace(disparities=(disparity,)), size, config)
        resized_intrinsics = geometry.resize_intrinsics(intrinsics, full_size, size)
        terms.append(photometric_terms(depths, prediction, resized, resized_intrinsics, config)[0])
    return torch.stack(terms) / len(terms)


def reconstruct(sources: Tensor, depth: Tensor, intrinsics: Tensor, poses: Tensor) -> list[Tensor]:
    """The target warped from each of the `sources` `[B, S, C, H, W]` by `poses` `[B, S, 4, 4]`: S x `[B, C, H, W]`."""
    points = geometry.backproject(depth, intrinsics)
    warped = []
    for source, pose in zip(sources.unbind(1), poses.unbind(1), strict=True):
        pixels = geometry.project(points, intrinsics, pose).unflatten(2, depth.shape[-2:])
        warped.append(geometry.sample(source, pixels))
    return warped


def minimum_error(
    candidates: list[Tensor], target: Tensor, statistics: losses.LocalStatistics, given: int | None = None
) -> Tensor:
    """Smallest photometric error `[B, 1, H, W]` over candidates `[B, 3, H, W]`; given: as for `smallest`."""
    return smallest([losses.photometric_error(candidate, target, statistics) for candidate in candidates], given)


def smallest(errors: list[Tensor], given: int | None) -> Tensor:
    """Smallest error `[B, 1, H, W]` over the sources of each pixel: what one of them hides another shows.

    given: place of the source whose pose is given, where those of all others were found with the very depth that is
    judged by them. While depth is wrong they fit better than the given one, and would win most pixels with what they
    have to teach least: a sample in which one fits better by far leaves it out.
    """
    together = torch.stack(errors)
    if given is not None:
        means = together.detach().mean((2, 3, 4))
        together = together.masked_fill((means[given] > LARGEST_MISFIT * means)[:, :, None, None, None], torch.inf)
    return together.amin(0)


def given_source(prediction: Prediction, config: Config) -> int | None:
    """Place of the stereo source where the others are aligned; None: there is none, or they are not."""
    is_aligned = prediction.alignment is not None and config.model.motion == "aligned"
    return config.data.frames.index("s") - 1 if is_aligned and "s" in config.data.frames else None


def identity_error(target: Tensor, sources: Tensor, statistics: losses.LocalStatistics, config: Config) -> Tensor:
    """Photometric error `[B, 1, H, W]` of the unwarped sources: pixels where it is smaller do not move with the scene.

    `loss.identity_noise` breaks ties at random, in training only, so that validation stays reproducible.
    """
    with torch.no_grad():
        error = minimum_error(list(sources.unbind(1)), target, statistics)
    if config.loss.identity_noise and torch.is_grad_enabled():
        error = error + config.loss.identity_noise * torch.randn_like(error)
    return error


def smoothness_terms(disparities: tuple[Tensor, ...], target: Tensor, config: Config) -> Tensor:
    """First- plus second-order smoothness of the disparity at its own resolution: `[scales, B]`."""
    terms = []
    for scale, disparity in enumerate(disparities):
        image = functional.interpolate(target, disparity.shape[-2:], mode="area")
        if config.loss.normalise_disparity:
            disparity = losses.normalise_disparity(disparity)
        first, second = losses.smoothness(disparity, image, DISPARITY_EDGE_SHARPNESS)
        terms.append((first + second) / 2**scale)
    return config.loss.smoothness * torch.stack(terms) / len(disparities)


def prior_error(disparity: Tensor, prior: Tensor) -> Tensor:
    """How far a disparity is from the prior `[B, 1, H, W]`, up to scale and shift: `[B]`; see `losses.affine_error`."""
    disparity = functional.interpolate(disparity, prior.shape[-2:], mode="bilinear", align_corners=False)
    return losses.affine_error(disparity, prior)


def velocity_error(poses: Tensor, distances: Tensor, config: Config) -> Tensor:
    """How far the lengths l of translations are from the distances d moved: `[B]`, the mean over the sources.

    poses: `[B, F-1, 4, 4]` in network units; distances: `[B, F-1]` (metres, NaN where unknown). Depth follows the
    translations, since the photometric terms fix the ratio of the two.

    Guizilini et al. (CVPR 2020) have |l - d| in metres. Here it is |l^2 - d^2| / (2 d^2). Near d that is the relative
    error: all samples tell the scale alike, and a weight suits any speed and frame rate. Far below d its gradient is
    small: that of |l - d| pulls the first, random translations to full length before the pictures have turned them
    forward, and depth escapes to infinity, where no wrong translation shows. Below 0.1 m the error is in parts of that
    distance: a camera that stands still asks for no motion, with a bounded gradient.
    """
    return losses.distance_error(poses[:, :, :3, 3] * config.model.metres_per_unit, distances)


def feature_metric_error(prediction: Prediction, intrinsics: Tensor, config: Config) -> Tensor:
    """Feature-metric error `[B]` (Sec. 3.2): target features against each source's, warped; minimum over the sources.

    It uses the finest depth alone, hence once per step; the published sum over four scales of a quarter is the same.
    """
    target = prediction.target_features[0]
    disparity = functional.interpolate(
        prediction.disparities[0], target.shape[-2:], mode="bilinear", align_corners=False
    )
    depth = geometry.disparity_to_depth(disparity, config.model.min_depth, config.model.max_depth)
    warped = reconstruct(prediction.source_features, depth, geometry.halve_intrinsics(intrinsics), prediction.poses)
    errors = [losses.robust_l1(candidate, target) for candidate in warped]
    return losses.per_sample_mean(smallest(errors, given_source(prediction, config)))


def reconstruction_terms(reconstructions: tuple[Tensor, ...], target: Tensor, stepwise: bool) -> Tensor:
    """Photometric form between the autoencoder's output and the resized target: `[scales, B]`.

    The target of a scale is resized from full size, as the published joint model has it; `stepwise`: from the scale
    before it, as the published autoencoder of stage 1. Bilinear resizing to half its size averages two by two pixels;
    to a quarter or an eighth at once it sees only some of them.
    """
    terms, previous = [], target
    for reconstruction in reconstructions:
        image, size = previous if stepwise else target, reconstruction.shape[-2:]
        if image.shape[-2:] != size:
            image = functional.interpolate(image, size, mode="bilinear", align_corners=False)
        terms.append(losses.per_sample_mean(losses.photometric_error(reconstruction, image)))
        previous = image
    return torch.stack(terms) / len(reconstructions)


def regularisation_terms(features: tuple[Tensor, ...], target: Tensor, config: Config) -> Tensor:
    """Feature regularisation (Sec. 3.3): large first derivatives (discriminative), small second ones (convergent)."""
    terms = []
    for level, feature in enumerate(features):
        image = functional.interpolate(target, feature.shape[-2:], mode="area")
        first, second = losses.smoothness(feature, image, FEATURE_EDGE_SHARPNESS)
        terms.append((config.loss.convergent * second - config.loss.discriminative * first) / 2**level)
    return torch.stack(terms) / len(features)


class Explanation(NamedTuple):
    """What the photometric term sees at the finest scale."""

    reconstruction: Tensor  # the target as the best source of each pixel shows it [B, 3, H, W]
    error: Tensor  # its photometric error [B, 1, H, W]
    moving: Tensor  # 1 where warping beats the unwarped sources, 0 where the automask would leave out [B, 1, H, W]


@torch.no_grad()
def explain_photometric(prediction: Prediction, batch: dict[str, Tensor], config: Config) -> Explanation:
    """The maps behind the photometric term, for pictures; `batch` as for `compute_losses`."""
    images = batch["images"]
    target, sources = images[:, 0], images[:, 1:]
    statistics = losses.local_statistics(target)
    depth = upsampled_depths(prediction, images.shape[-2:], config)[0]
    warped = torch.stack(reconstruct(sources, depth, intrinsics_of(prediction, batch), prediction.poses))
    errors = torch.stack([losses.photometric_error(candidate, target, statistics) for candidate in warped])
    error, best = errors.min(0)
    reconstruction = warped.gather(0, best[None].expand(1, *warped.shape[1:]))[0]
    unwarped = minimum_error(list(sources.unbind(1)), target, statistics)
    return Explanation(reconstruction, error, (error < unwarped).to(error.dtype))
