"""Published FeatDepth checkpoints as model directories: `python -m featdepth.import_weights CHECKPOINT OUT`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from featdepth.config import Config, Data, Model, Parser
from featdepth.config.checks import SMALLEST_SIDE, check_config, check_side
from featdepth.config.values import shown
from featdepth.errors import InputError, run_program
from featdepth.models.featdepth import FeatDepth
from featdepth.models.saved.torch_files import read_torch_file, state_of

# Published prefix -> ours; their levels count from 1, ours from 0.
RENAMES = (
    (r"DepthEncoder\.encoder\.", "depth_encoder."),
    (r"PoseEncoder\.encoder\.", "pose_encoder."),
    (r"(?:extractor|Encoder)\.encoder\.", "feature_encoder."),
    (r"PoseDecoder\.", "pose_decoder."),
    (r"DepthDecoder\.reduce([0-9])\.conv\.", "depth_decoder.levels.{0}.reduce."),
    (r"DepthDecoder\.iconv([0-9])\.conv\.", "depth_decoder.levels.{0}.join."),
    (r"DepthDecoder\.crp([0-9])\.0\.([0-9])_pointwise\.conv\.", "depth_decoder.levels.{0}.pooling.pointwise.{1}."),
    (r"DepthDecoder\.merge([0-9])\.conv\.", "depth_decoder.levels.{0}.merge."),
    (r"DepthDecoder\.disp([0-9])\.0\.conv\.", "depth_decoder.levels.{0}.disparity."),
    (r"Decoder\.upconv([0-9])\.conv\.conv\.", "feature_decoder.enter.{0}."),
    (r"Decoder\.iconv([0-9])\.conv\.conv\.", "feature_decoder.refine.{0}."),
    (r"Decoder\.disp([0-9])\.conv\.", "feature_decoder.image.{0}."),
)
RESNET_BLOCKS = {(2, False): 18, (6, False): 34, (6, True): 50, (23, True): 101}  # (blocks in layer3, bottleneck)


def convert(state: Mapping[str, Tensor], height: int, width: int, metres_per_unit: float | None) -> FeatDepth:
    """The model that a published `state_dict` describes. Raises InputError when it is none of FeatDepth's.

    height, width: of the images it was trained on; metres_per_unit: 36 for KITTI stereo, None for monocular training.
    """
    renamed = {}
    for key, tensor in state.items():
        new = rename(key)
        if new is not None:
            renamed[new] = tensor
    settings = recognise(renamed, metres_per_unit)
    if settings.objective == "feature_metric":
        # Of the frozen extractor only its first stage has a part in the objective.
        stem = ("feature_encoder.conv1.", "feature_encoder.bn1.")
        renamed = {
            key: tensor
            for key, tensor in renamed.items()
            if not key.startswith("feature_encoder.") or key.startswith(stem)
        }
    frames: list[int | str] = [0] if settings.objective == "autoencoder" else [0, -1, 1]
    if settings.objective != "autoencoder" and metres_per_unit is not None:
        frames.append("s")
    config = Config(data=Data(frames=frames, height=height, width=width), model=settings)
    check_config(config, "checkpoint", check_files=False, training=False)
    return FeatDepth.from_state(config, renamed, "checkpoint")


def rename(key: str) -> str | None:
    """Our name of a published tensor; None for the classifiers, which nothing uses. Raises InputError if unknown."""
    key = key.removeprefix("module.")
    if ".fc." in key:
        return None
    for pattern, replacement in RENAMES:
        if found := re.match(pattern, key):
            return replacement.format(*(int(level) - 1 for level in found.groups())) + key[found.end() :]
    raise InputError(f"checkpoint: no network of FeatDepth has a tensor named {shown(key)}")


def recognise(state: Mapping[str, Tensor], metres_per_unit: float | None) -> Model:
    """Objective, depths and widths, read off the names and shapes of the tensors."""
    has_depth = "depth_decoder.levels.0.merge.weight" in state
    has_autoencoder = "feature_decoder.image.0.weight" in state
    has_features = "feature_encoder.conv1.weight" in state
    if not has_depth and not has_autoencoder:
        raise InputError("checkpoint: holds neither a depth decoder nor an autoencoder of FeatDepth")
    if has_depth:
        objective = "joint" if has_autoencoder else "feature_metric" if has_features else "photometric"
    else:
        objective = "autoencoder"
    settings = Model(objective=objective, pretrained=False, metres_per_unit=metres_per_unit)
    for name in ("depth", "pose", "feature"):
        layers = resnet_layers(state, f"{name}_encoder.")
        if layers is not None:
            setattr(settings, f"{name}_layers", layers)
    if has_depth:
        if state["depth_decoder.levels.0.merge.weight"].dim() != 4:
            raise InputError("checkpoint: the depth decoder's merge1 is no convolution; copy the file again")
        settings.decoder_width = state["depth_decoder.levels.0.merge.weight"].shape[0]
    return settings


def resnet_layers(state: Mapping[str, Tensor], prefix: str) -> int | None:
    """18, 34, 50 or 101, or None when there is no whole ResNet below `prefix`."""
    blocks = {key.split(".")[2] for key in state if key.startswith(f"{prefix}layer3.")}
    return RESNET_BLOCKS.get((len(blocks), f"{prefix}layer3.0.conv3.weight" in state))


def main() -> None:
    parser = Parser(description="Published FeatDepth checkpoint (.pth) -> model directory")
    parser.add_argument("checkpoint", type=Path, help="the .pth file: depth and pose, or the autoencoder of stage 1")
    parser.add_argument("out", type=Path, help="directory to write config.json and model.safetensors into")
    parser.add_argument("--height", type=int, default=320, help="of the images it was trained on (default 320)")
    parser.add_argument("--width", type=int, default=1024, help="of the images it was trained on (default 1024)")
    parser.add_argument(
        "--metres-per-unit", type=float, default=36.0, help="36 for KITTI stereo (default); 0 for monocular training"
    )
    arguments = parser.parse_args()
    if arguments.out.exists():
        raise InputError(f"{arguments.out}: exists already; remove it or choose another name")
    for option, side in (("--height", arguments.height), ("--width", arguments.width)):
        for _, problem in check_side(option, side, SMALLEST_SIDE):
            raise InputError(f"{option} {problem}")
    if not 0 <= arguments.metres_per_unit < math.inf:
        raise InputError(f"--metres-per-unit {arguments.metres_per_unit}: has to be a number from 0 on")
    content = read_torch_file(arguments.checkpoint, "checkpoint")
    state = state_of(content.get("state_dict", content))
    if state is None:
        raise InputError(f"checkpoint: {arguments.checkpoint} holds no state_dict of tensors")
    model = convert(state, arguments.height, arguments.width, arguments.metres_per_unit or None)
    model.provenance.imported_from = arguments.checkpoint.name
    model.save_pretrained(arguments.out)
    print(f"{arguments.out}: {model.settings.objective}, {sum(p.numel() for p in model.parameters()):,} parameters")


if __name__ == "__main__":
    run_program(main)
