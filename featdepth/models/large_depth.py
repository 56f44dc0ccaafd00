"""Pretrained depth models of transformers as depth network: `model.depth`, and what of them learns, `model.tune`.

`LargeDepth` stands in the place of the encoder and gives what the network says; `RelativeDisparity` or
`MetricDisparity` in the place of the decoder makes disparity of it.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from featdepth.config import Model
from featdepth.config.depth_names import HUGGING_FACE, NEEDED, split_tune
from featdepth.config.values import shown
from featdepth.errors import InputError
from featdepth.files import read_text
from featdepth.models.backbones import Backbone
from featdepth.models.saved.storage import CARD_FILE, CONFIG_FILE, from_hub, read_settings

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation
HALF, AS_IT_IS = ((0.5,) * 3, (0.5,) * 3), ((0.0,) * 3, (1.0,) * 3)
RELATIVE_DEPTH, METRIC_DEPTH = "relative", "metric"  # inverse depth up to scale and shift; depth in metres
PROCESSOR_FILE = "preprocessor_config.json"
DOWNLOADED = [CONFIG_FILE, PROCESSOR_FILE, CARD_FILE, "*.safetensors", "*.safetensors.index.json"]
LARGEST_CARD = 16 << 20  # bytes
# What keeps a hostile configuration from demanding all memory and time.
LARGEST_NUMBER, MOST_LAYERS, DEEPEST = 65536, 512, 8
FOREIGN = ("backbone", "use_timm_backbone", "use_pretrained_backbone")  # keys that would load networks of others
WORD = re.compile(r"[\w.+-]{1,99}", re.ASCII)
LICENCE = re.compile(r"\A---\n(?:(?!---\n).*\n)*?license:[ \t]*([A-Za-z0-9.+-]{1,99})[ \t]*\n(?:.*\n)*?---\n")
ENCODERS = ("backbone", "dpt", "glpn", "depth_pro")  # the parts before the head
SPEED = 10.0  # of the two numbers that turn relative depth into disparity, against the learning rate
SHARPNESS = 10.0  # of the softplus that keeps disparity above 0
PROBE_SIZE = (224, 224)  # pixels of the picture that a network is tried with


class Family(NamedTuple):
    """A kind of network, by transformers' `model_type`."""

    architecture: str  # the class
    normalisation: tuple[tuple[float, ...], tuple[float, ...]]  # mean and deviation where the files do not tell
    kind: str | None  # of its depth; None: as its configuration says


FAMILIES = {
    "depth_anything": Family("DepthAnythingForDepthEstimation", IMAGENET, None),
    "depth_pro": Family("DepthProForDepthEstimation", HALF, RELATIVE_DEPTH),
    "dpt": Family("DPTForDepthEstimation", HALF, None),
    "glpn": Family("GLPNForDepthEstimation", AS_IT_IS, METRIC_DEPTH),
    "tipsv2_dpt": Family("Tipsv2DptForDepthEstimation", AS_IT_IS, METRIC_DEPTH),
    "zoedepth": Family("ZoeDepthForDepthEstimation", HALF, METRIC_DEPTH),
}
REFUSED = {
    "chmv2": "which predicts the height of trees seen from above, not depth",
    "prompt_depth_anything": "which needs a measured depth map as a prompt beside the image",
}


@dataclass(frozen=True)
class Base:
    """A pretrained depth model without its weights, as the section `base` of a saved model's `config.json` has it."""

    source: str  # hub id or directory
    revision: str | None  # commit on the hub; None: a directory's
    licence: str | None  # as its card says it
    network: dict[str, Any]  # its `config.json`
    mean: list[float]  # that images in [0, 1] are normalised with, by channel
    deviation: list[float]

    @property
    def family(self) -> Family:
        return FAMILIES[self.network["model_type"]]

    @property
    def kind(self) -> str:
        """RELATIVE_DEPTH or METRIC_DEPTH."""
        if self.network["model_type"] == "dpt":  # of which only the DINOv2 models, which project, give metres
            return METRIC_DEPTH if self.network.get("add_projection") else RELATIVE_DEPTH
        return self.family.kind or self.network.get("depth_estimation_type", RELATIVE_DEPTH)

    @classmethod
    def read(cls, content: object, place: str) -> Base:
        """The section `base` of the `config.json` at `place`. Raises InputError."""
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(content, dict) or set(content) != names:
            raise InputError(f"{place}: has no section base of its large depth model, or a damaged one; copy it again")
        base = cls(**content)
        words = [each for each in (base.revision, base.licence) if each is not None]
        is_text = all(isinstance(each, str) and WORD.fullmatch(each) for each in words)
        is_text = is_text and isinstance(base.source, str) and base.source.isprintable()
        if not is_text or not all(map(is_colour, (base.mean, base.deviation))):
            raise InputError(f"{place}: the section base is damaged; copy the file again")
        check_network(base.network, place)
        return base


def is_colour(value: object) -> bool:
    """Whether this is a number for each of three channels."""
    numbers = isinstance(value, list) and len(value) == 3
    return numbers and all(isinstance(each, int | float) and abs(each) < 1e4 for each in value)


def find_base(name: str) -> tuple[Base, Path]:
    """The base model `name` (of `model.depth`), and the directory with its files, downloaded where need be.

    Raises InputError for one that is missing or damaged, or that cannot serve.
    """
    source = name.removeprefix(HUGGING_FACE)
    directory, revision = Path(source), None
    if not directory.is_dir():
        directory = from_hub(source, DOWNLOADED)
        revision = directory.name
    place = directory / CONFIG_FILE
    if not place.exists():
        raise InputError(f"model.depth: {source} has no {CONFIG_FILE}; give the directory of a transformers model")
    network = read_settings(place)
    network.pop("auto_map", None)  # code of others, which is never run
    check_network(network, str(place))
    mean, deviation = map(list, FAMILIES[network["model_type"]].normalisation)
    if (directory / PROCESSOR_FILE).exists():
        seen = read_settings(directory / PROCESSOR_FILE)
        if seen.get("do_normalize") is False:
            mean, deviation = map(list, AS_IT_IS)
        elif "image_mean" in seen:
            mean, deviation = seen["image_mean"], seen.get("image_std")
    if not (is_colour(mean) and is_colour(deviation) and min(deviation) > 0):
        raise InputError(f"{directory / PROCESSOR_FILE}: image_mean and image_std are not three numbers each")
    licence = None
    if (directory / CARD_FILE).exists():
        found = LICENCE.match(read_text(directory / CARD_FILE, LARGEST_CARD, "the card").replace("\r\n", "\n"))
        licence = found and found[1]
    return Base(source, revision, licence, network, mean, deviation), directory


def check_network(network: object, place: str) -> None:
    """Raise InputError unless this is the configuration of a network that can serve."""
    name = network.get("model_type") if isinstance(network, dict) else None
    if isinstance(name, str) and name in REFUSED:
        raise InputError(f"{place}: model.depth is a {name} model, {REFUSED[name]}; usable are {', '.join(FAMILIES)}")
    if not isinstance(name, str) or name not in FAMILIES:
        expected = f"no network for depth that is known here; usable are {', '.join(FAMILIES)}"
        raise InputError(f"{place}: model_type is {shown(name)}, {expected}")
    for key, value in entries(network, place):
        is_number = isinstance(value, int) and not isinstance(value, bool)
        is_foreign = key in FOREIGN or (key == "model_type" and str(value).startswith("timm"))
        if is_foreign and value:
            raise InputError(f"{place}: {key} is {shown(value)}, a network of another library; it cannot serve here")
        if is_number and abs(value) > (MOST_LAYERS if "layers" in key or key == "depths" else LARGEST_NUMBER):
            raise InputError(f"{place}: {key} is {shown(value)}, which no network for depth has; copy the file again")


def entries(content: object, place: str, key: str = "", depth: int = 0) -> Iterator[tuple[str, object]]:
    """All values in nested dictionaries and lists, with the key that they stand at."""
    if depth > DEEPEST:
        raise InputError(f"{place}: nested too deep; copy the file again")
    if isinstance(content, dict):
        for name, value in content.items():
            yield from entries(value, place, name, depth + 1)
    elif isinstance(content, list):
        for value in content:
            yield from entries(value, place, key, depth + 1)
    else:
        yield key, content


def architecture(base: Base) -> type[PreTrainedModel]:
    """transformers' class of the network. Raises InputError where the library is missing or does not know it."""
    try:
        import transformers
    except ImportError as error:
        raise InputError(f"model.depth is {HUGGING_FACE}{base.source}, {NEEDED}") from error
    # Its notes and bars are of loading, of which we tell ourselves what matters.
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    found = getattr(transformers, base.family.architecture, None)
    if found is None:
        raise InputError(f"transformers {transformers.__version__} has no {base.family.architecture}; update it")
    return found


def network_settings(base: Base) -> PreTrainedConfig:
    """transformers' configuration of the network. Raises InputError where it does not take it."""
    content = copy.deepcopy(base.network)
    if "use_fov_model" in content:
        content["use_fov_model"] = False  # it tells focal lengths, and has no part in depth
    try:
        return architecture(base).config_class.from_dict(content)
    # Each class checks in its own way, and raises anything.
    except Exception as error:
        raise InputError(f"model.depth: the configuration of {base.source} is damaged ({reason(error)})") from error


def reason(error: Exception) -> str:
    """What a library says, in a part of a line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


class LargeDepth(Backbone):
    """A pretrained depth network in the place of the encoder: one map, what the network says, at the image's size.

    Images are resized for it, to the nearest multiples of its patch; a network that knows one size alone (Depth Pro,
    DPT without a backbone of its own) sees them at that size, their shape changed.
    """

    def __init__(self, base: Base, tune: str) -> None:
        super().__init__(base.mean, base.deviation)
        self.base = base
        settings = network_settings(base)
        try:
            self.network = architecture(base)._from_config(settings)
        except Exception as error:  # as above
            raise InputError(f"model.depth: {base.source} cannot be built ({reason(error)})") from error
        self.channels, self.channels_last = [1], [False]
        learn(self.network, tune)

    def maps(self, image: Tensor) -> list[Tensor]:
        return [self.segment(self.predict, image, self.network)]

    def predict(self, image: Tensor, network: nn.Module) -> Tensor:
        """What `network` says of normalised images `[B, 3, H, W]`: float32 `[B, 1, H, W]`."""
        size = network_size(network.config, tuple(image.shape[-2:]))
        seen = image
        if size != tuple(image.shape[-2:]):
            seen = functional.interpolate(image, size, mode="bilinear", align_corners=False, antialias=True)
        depth = network(pixel_values=seen).predicted_depth.float()[:, None]
        return functional.interpolate(depth, image.shape[-2:], mode="bilinear", align_corners=False)

    def load_base(self, directory: Path) -> None:
        """Start from the weights in `directory`, in safetensors alone. Raises InputError."""
        if not list(directory.glob("*.safetensors")):
            raise InputError(
                f"model.depth: {directory} has no .safetensors; weights of other formats are never read, save it with "
                "save_pretrained of transformers"
            )
        if (directory / "adapter_config.json").exists():
            raise InputError(f"model.depth: {directory} holds an adapter; merge it into its model first")
        options = {"use_safetensors": True, "trust_remote_code": False, "local_files_only": True}
        try:
            loaded, report = architecture(self.base).from_pretrained(
                directory, config=self.network.config, dtype=torch.float32, output_loading_info=True, **options
            )
        except Exception as error:
            raise InputError(f"model.depth: the weights in {directory} cannot be read ({reason(error)})") from error
        missing = sorted({*report["missing_keys"], *map(str, report["mismatched_keys"])})
        if missing:
            raise InputError(f"model.depth: {directory} lacks weights of its network, such as {shown(missing[0])}")
        lacking = self.network.load_state_dict(loaded.state_dict(), strict=False).missing_keys
        assert all(name.endswith((".down", ".up")) for name in lacking)

    def try_out(self) -> float:
        """The mean of what the network says of a smooth random picture.

        Parameters without a part in it (mask tokens, heads for other purposes) learn no more: processes that train
        together wait for the gradients of all that learn.
        """
        generator = torch.Generator().manual_seed(0)
        coarse = torch.rand(1, 3, 7, 7, generator=generator)
        image = functional.interpolate(coarse, PROBE_SIZE, mode="bilinear", align_corners=False)
        learning = [each for each in self.network.parameters() if each.requires_grad]
        self.eval()
        with torch.enable_grad():
            said = self(2 * image - 1)[0]
            if learning:
                gradients = torch.autograd.grad(said.sum(), learning, allow_unused=True)
                for parameter, gradient in zip(learning, gradients, strict=True):
                    parameter.requires_grad_(gradient is not None)
        self.train()
        return said.detach().mean().item()


def network_size(settings: PreTrainedConfig, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width at which a network sees images of `size`."""
    if settings.model_type == "depth_pro":
        side = round(settings.patch_size / min(settings.scaled_images_ratios))
        return side, side
    backbone = getattr(settings, "backbone_config", None)
    if settings.model_type == "dpt" and (backbone is None or settings.is_hybrid):
        return pair(settings.image_size)
    steps = (32, 32) if backbone is None else pair(backbone.patch_size)
    return tuple(max(1, round(side / step)) * step for side, step in zip(size, steps, strict=True))


def pair(value: int | list[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def learn(network: nn.Module, tune: str) -> None:
    """Let only that of `network` learn which `model.tune` names; low-rank layers are put into it for `lora`."""
    kind, number = split_tune(tune)
    if kind == "all":
        return
    encoder = next(getattr(network, name) for name in ENCODERS if hasattr(network, name))
    if kind == "lora":
        network.requires_grad_(False)
        add_low_rank(encoder, number)
        return
    encoder.requires_grad_(False)
    layers = [
        layer
        for each in encoder.modules()
        if isinstance(each, nn.ModuleList)
        for layer in each
        if hasattr(layer, "attention")
    ]
    if kind == "last" and number > len(layers):
        raise InputError(f"model.tune is {tune}, but the encoder of model.depth has {len(layers)} layers")
    for layer in layers[len(layers) - number :]:
        layer.requires_grad_(True)


class LowRankLinear(nn.Linear):
    """A frozen linear layer, and a learned one of low rank beside it that starts at 0 (Hu et al., ICLR 2022)."""

    def __init__(self, frozen: nn.Linear, rank: int) -> None:
        super().__init__(frozen.in_features, frozen.out_features, frozen.bias is not None, device="meta")
        self.weight, self.bias = frozen.weight, frozen.bias
        self.down = nn.Parameter(self.weight.new_empty(rank, self.in_features))
        self.up = nn.Parameter(self.weight.new_zeros(self.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)  # as torch starts a linear layer

    def forward(self, features: Tensor) -> Tensor:
        change = functional.linear(functional.linear(features, self.down), self.up)
        return super().forward(features) + change


def add_low_rank(encoder: nn.Module, rank: int) -> None:
    """Put a `LowRankLinear` in the place of each linear layer of the attention."""
    for name, module in list(encoder.named_modules()):
        for part, layer in list(module.named_children()):
            if type(layer) is nn.Linear and "attention" in f"{name}.{part}".split("."):
                setattr(module, part, LowRankLinear(layer, rank))


class RelativeDisparity(nn.Module):
    """Disparity of inverse depth d up to scale and shift: `softplus(a d + b)`, a and b learned.

    At the start the mean of what the network says of the picture it is tried with has the disparity `start_from`, and
    0 is far away. Sharpness: the softplus is a line where d is not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
        self.register_buffer("typical", torch.ones(()))  # d
        self.register_buffer("start", torch.tensor(0.5))  # disparity of that

    def start_from(self, disparity: float) -> None:
        """Let about this disparity (in (0, 1)) be that of a typical d."""
        self.start.fill_(disparity)

    def fit(self, said: float) -> None:
        """Take this for a typical d."""
        self.typical.fill_(said if said > 0 else 1.0)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, ...]:
        relative = (SPEED * self.scale).exp() * maps[0] / self.typical + SPEED * self.shift
        return ((self.start * functional.softplus(relative, SHARPNESS)).clamp(max=1),)

    def inverse_depth(self, said: Tensor) -> Tensor:
        """Inverse depth, up to scale and shift, of what a network says."""
        return said


class MetricDisparity(nn.Module):
    """Disparity of depth in metres, with a factor that is learned, which starts at 1.

    settings: of the model, with the range of disparity; without `metres_per_unit`, a unit is a metre at the start.
    """

    def __init__(self, settings: Model, source: str) -> None:
        super().__init__()
        self.source, self.metres = source, settings.metres_per_unit or 1.0
        self.farthest, self.nearest = 1 / settings.max_depth, 1 / settings.min_depth  # inverse depth
        self.scale = nn.Parameter(torch.zeros(()))

    def start_from(self, disparity: float) -> None:
        raise InputError(f"model.initial_depth: the depth of {self.source} has metres, which it starts with; set null")

    def fit(self, said: float) -> None:
        """Nothing has to be found where depth has metres."""

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, ...]:
        inverse = (SPEED * self.scale).exp() * self.metres * self.inverse_depth(maps[0])
        return (((inverse - self.farthest) / (self.nearest - self.farthest)).clamp(0, 1),)

    def inverse_depth(self, said: Tensor) -> Tensor:
        """Inverse depth of what a network says."""
        return 1 / said.clamp(min=1e-3)


def make_large_depth(settings: Model, base: Base) -> tuple[LargeDepth, RelativeDisparity | MetricDisparity]:
    """Network and disparity of `model.depth`, with random weights, in training mode. Raises InputError."""
    is_metric = base.kind == METRIC_DEPTH
    disparity = MetricDisparity(settings, base.source) if is_metric else RelativeDisparity()
    return LargeDepth(base, settings.tune), disparity


def original_prediction(
    encoder: LargeDepth, decoder: RelativeDisparity | MetricDisparity
) -> Callable[[Tensor], Tensor]:
    """What the network says now, kept while it learns: normalised images `[B, 3, H, W]` -> inverse depth.

    The copy shares all that does not learn; of a network with low-rank layers these alone are copied.
    """
    frozen = {id(each): each for each in encoder.network.parameters() if not each.requires_grad}
    network = copy.deepcopy(encoder.network, frozen).eval().requires_grad_(False)

    @torch.no_grad()
    def predict(image: Tensor) -> Tensor:
        network.to(image.device)
        said = encoder.predict(image * encoder.gain + encoder.offset, network)
        return decoder.inverse_depth(said)

    return predict
