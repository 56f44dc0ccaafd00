"""A model to train, as the configuration asks for it, with random, ImageNet, stage-1 or fine-tuning weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from featdepth.config import Config, Model
from featdepth.errors import InputError
from featdepth.models.encoders import ResNetEncoder, ResNetStem
from featdepth.models.featdepth import FeatDepth
from featdepth.models.saved.provenance import Provenance
from featdepth.models.saved.storage import CONFIG_FILE, load_strictly, read_camera_names, read_model_directory
from featdepth.scale import INHERITED, scale_of_training


def build_model(config: Config, intrinsics: Mapping[str, Tensor] | None = None) -> FeatDepth:
    """The model of `config`, in training mode, with the weights it starts from.

    intrinsics: where they are learned, what each camera starts from, `[3, 3]` at training size by name, as the training
    data's `start_intrinsics` has it. Raises InputError; ValueError where they are to be learned and there are none.
    """
    settings, data = config.model, config.data
    if settings.intrinsics == "learned" and not intrinsics:
        raise ValueError("model.intrinsics is learned: start_intrinsics() of the training data is needed")
    base = directory = None
    if settings.depth is not None:
        from featdepth.models.large_depth import find_base  # most models have none

        base, directory = find_base(settings.depth)
    model = FeatDepth(settings, data.frames, data.height, data.width, list(intrinsics or ()), base)
    if model.cameras is not None:
        model.cameras.start_from(intrinsics or {}, (data.height, data.width))
    if settings.pretrained is not False and settings.init is None:
        _start_encoders(model, settings.pretrained)
    if directory is not None:
        model.depth_encoder.load_base(directory)
        model.depth_decoder.fit(model.depth_encoder.try_out())
    if model.has_depth and settings.initial_depth is not None:
        model.depth_decoder.start_from(model.to_disparity(settings.initial_depth))
    if settings.feature_encoder is not None:
        _load_feature_encoder(model, settings.feature_encoder)
    if settings.init is not None:
        _initialise(model, settings.init)
    if model.has_depth and settings.metres_per_unit is not None:
        source = scale_of_training(config)
        if source is None and settings.init is not None:
            source = _inherited_scale(settings)
        if source is not None:
            model.provenance.scale_source = source
    if base is not None and config.loss.prior > 0 and config.data.prior is None:
        from featdepth.models.large_depth import original_prediction  # most models have none

        model.original_prediction = original_prediction(model.depth_encoder, model.depth_decoder)
    if config.train.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    return model.train()


def _start_encoders(model: FeatDepth, source: bool | str) -> None:
    """ImageNet weights for all encoders; a file, where depth has another encoder than a ResNet, is that one's alone."""
    if model.has_depth and model.base is None and not isinstance(model.depth_encoder, ResNetEncoder):
        model.depth_encoder.load_weights(source)
        if source is not True and not Path(source).is_dir():
            return
    from featdepth.models.imagenet import load_imagenet  # runs that continue or start from nothing need none

    for network in model.children():
        if isinstance(network, ResNetEncoder):
            load_imagenet(network, source)


def _load_feature_encoder(model: FeatDepth, source: str) -> None:
    """Stage 1's encoder: its first stage for the frozen one of stage 2, all of the autoencoder for `joint`."""
    content, state = read_model_directory(source)
    _inherit_provenance(model, content, source)
    if not any(key.startswith("feature_encoder.") for key in state):
        raise InputError(f"model.feature_encoder: {source} holds no feature encoder; train objective=autoencoder first")
    for name in ("feature_encoder", "feature_decoder"):
        if hasattr(model, name):
            _load_network(model, name, state, source)


def _initialise(model: FeatDepth, source: str) -> None:
    """Fine-tuning: every network that the model in `source` has too starts from there."""
    content, state = read_model_directory(source)
    _inherit_provenance(model, content, source)
    networks = [name for name, _ in model.named_children() if name != "cameras"]
    shared = [name for name in networks if network_state(state, name)]
    if not shared:
        raise InputError(f"model.init: {source} shares no network with objective {model.settings.objective}")
    for name in shared:
        _load_network(model, name, state, source)
    if model.cameras is not None and network_state(state, "cameras"):
        square_pixels = content["model"].get("square_pixels", True)
        cameras = type(model.cameras)(read_camera_names(content, source), square_pixels)
        load_strictly(cameras, network_state(state, "cameras"), f"{source}: cameras")
        model.cameras.continue_from(cameras)


def _load_network(model: FeatDepth, name: str, state: dict[str, Tensor], source: str) -> None:
    """Load one network from the tensors of another model; a stem takes its part of a whole encoder."""
    network, part = getattr(model, name), network_state(state, name)
    if type(network) is ResNetStem:
        part = {key: tensor for key, tensor in part.items() if key in network.state_dict()}
    load_strictly(network, part, f"{source}: {name}")


def _inherit_provenance(model: FeatDepth, content: dict, source: str) -> None:
    """What the other model has seen counts as seen: test drives stay contaminated through any number of stages."""
    seen = Provenance.read(content, f"{source}/{CONFIG_FILE}")
    model.provenance.add_data(seen.drives or (), seen.contaminated or (), seen.kinds or ())


def _inherited_scale(settings: Model) -> str:
    """Where the metres of `model.init` come from, where training knows none. InputError where it has other ones."""
    initial = FeatDepth.from_pretrained(settings.init)
    unit = None if initial.scale_source is None else initial.settings.metres_per_unit
    if unit is None or unit != settings.metres_per_unit:
        raise InputError(
            f"model.metres_per_unit: is {settings.metres_per_unit}, that of model.init {settings.init} is "
            f"{unit or 'null'}, and nothing in this training knows metres; set it to the latter"
        )
    return initial.scale_source.removesuffix(INHERITED) + INHERITED


def network_state(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors of the network `name`, under the names they have inside it."""
    prefix = f"{name}."
    return {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
