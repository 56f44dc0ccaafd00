"""Write a trained depth network as one file that runs without this package.

python -m featdepth.export --checkpoint DIR_OR_HUB_ID --out FILE [--format onnx|torch] [--size H W | --dynamic-size]
    [--precision float32|float16] [--int8 --calibration FOLDER [--keep-float heads|decoder]] [--overwrite]

What the file takes: `image`, float32 RGB `[N, 3, H, W]` in [0, 1], any N. What it gives: `depth`, float32
`[N, 1, H, W]`: exactly `FeatDepth.predict_depth`, the resizing to the model's own size and back included. The file is
compared with the model before it gets its name. docs/export.md has examples, tolerances and the gain of int8.

Exit code 0: written; 1: the file does not predict what the model does, and is removed; 2: bad input.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from featdepth.config import Parser
from featdepth.errors import InputError, end_with, run_program
from featdepth.export.quantise import KEPT_FLOAT, load_calibration, quantise
from featdepth.files import written_whole
from featdepth.geometry import disparity_to_depth
from featdepth.models import FeatDepth
from featdepth.models.featdepth import normalise
from featdepth.models.saved.provenance import versions

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
PRECISIONS = {"float32": torch.float32, "float16": torch.float16}
TOLERANCES = {"float32": 1e-3, "float16": 5e-2}  # largest relative error of any pixel; int8 has none
OPSET = 18  # the first with antialiased resizing
LARGEST_BATCH, LARGEST_SIDE = 4096, 16384
METADATA_FILE = "metadata.json"  # inside the file of torch

Predictor = Callable[[Tensor], Tensor]


def main() -> None:
    arguments = parse_arguments()
    model = FeatDepth.from_pretrained(arguments.checkpoint)
    if not model.has_depth:
        raise InputError(f"{arguments.checkpoint}: objective {model.settings.objective} predicts no depth")
    size = None if arguments.dynamic_size else tuple(arguments.size or (model.height, model.width))
    images = load_calibration(arguments.calibration, size or (model.height, model.width)) if arguments.int8 else None
    metadata = describe(model, arguments, size)
    program = DepthProgram(model, DepthNetwork(model, PRECISIONS[arguments.precision]), size).eval()
    with written_whole(arguments.out) as temporary:
        save = save_onnx if arguments.format == "onnx" else save_torch
        save(export_program(program, model, size), temporary, metadata)
        if arguments.int8:
            with quiet():
                quantise(temporary, images, arguments.keep_float or "heads")
        largest, mean = compare(model, load_predictor(temporary), size, images)
        tolerance = None if arguments.int8 else TOLERANCES[arguments.precision]
        # Written so that a comparison with nan fails too.
        if not (largest <= tolerance if tolerance else largest < float("inf")):
            end_with(
                f"{arguments.out}: not written, its depth differs from the model's by {largest:.2g} relative "
                f"(mean {mean:.2g}), allowed is {tolerance}",
                1,
            )
    allowed = "measured, not limited" if tolerance is None else f"allowed {tolerance:g}"
    print("\n".join(f"{name:14} {value}" for name, value in metadata.items()))
    print(f"parity         relative error of depth: max {largest:.2e}, mean {mean:.2e} ({allowed})")
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1e6:.1f} MB")


def parse_arguments() -> argparse.Namespace:
    """The command line, checked as far as it can be without the model. Raises InputError."""
    parser = Parser(
        prog="python -m featdepth.export",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="DIR", help="model directory or hub id")
    add("--out", required=True, type=Path, metavar="FILE", help=".onnx, or .pt2 (torch.export)")
    add("--format", choices=tuple(SUFFIXES), help="default: as the name of FILE says")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--size", nargs=2, type=int, metavar=("H", "W"), help="of the images; default: the model's own")
    sizes.add_argument("--dynamic-size", action="store_true", help="images of any size")
    add("--precision", choices=tuple(PRECISIONS), default="float32", help="of the network; input and output: float32")
    add("--int8", action="store_true", help="quantise the network for CPUs (ONNX)")
    add("--calibration", type=Path, metavar="FOLDER", help="images like those to come, for --int8")
    add("--keep-float", choices=KEPT_FLOAT, help="with --int8: the last layers (default), or all of the decoder")
    add("--overwrite", action="store_true", help="replace FILE where it exists")
    arguments = parser.parse_args()
    arguments.format = arguments.format or ("onnx" if arguments.out.suffix == ".onnx" else "torch")
    check_options(arguments)
    check_out(arguments)
    return arguments


def check_options(arguments: argparse.Namespace) -> None:
    """Raise InputError for options that do not go together."""
    if arguments.int8 != (arguments.calibration is not None):
        raise InputError("--int8 and --calibration FOLDER go together: the images tell which ranges to quantise")
    if arguments.keep_float and not arguments.int8:
        raise InputError("--keep-float: goes with --int8")
    if arguments.int8 and arguments.format == "torch":
        raise InputError("--int8: goes with --format onnx alone; name --out a file .onnx")
    if arguments.int8 and arguments.precision != "float32":
        raise InputError("--int8: quantises the float32 network; leave out --precision")
    if arguments.size and not all(1 <= side <= LARGEST_SIDE for side in arguments.size):
        raise InputError(f"--size {' '.join(map(str, arguments.size))}: sides are from 1 to {LARGEST_SIDE} pixels")
    if arguments.format == "onnx":
        check_onnx()


def check_out(arguments: argparse.Namespace) -> None:
    """Raise InputError for a name that another format has, or that is taken."""
    out, suffix = arguments.out, SUFFIXES[arguments.format]
    if out.suffix != suffix:
        name = out.with_suffix(suffix).name
        raise InputError(f"--out {out}: --format {arguments.format} writes {suffix} files; name it {name}")
    if out.is_dir() or (out.exists() and not arguments.overwrite):
        raise InputError(f"--out {out}: exists already; choose another name, or replace a file with --overwrite")


def check_onnx() -> None:
    """Raise InputError where a package for ONNX is missing."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"--format onnx needs {', '.join(missing)} (pip install {' '.join(missing)})")


class DepthNetwork(nn.Module):
    """Normalised images `[B, 3, H, W]` -> the finest disparity `[B, 1, H/2, W/2]`, computed in `dtype`."""

    def __init__(self, model: FeatDepth, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.encoder = copy.deepcopy(model.depth_encoder).to(dtype)
        self.decoder = copy.deepcopy(model.depth_decoder).to(dtype)

    def forward(self, image: Tensor) -> Tensor:
        return self.decoder(self.encoder(image.to(self.dtype)))[0]


class DepthProgram(nn.Module):
    """`FeatDepth.predict_depth` for tracing: images of `size` (None: of any), `network` in the place of its own."""

    def __init__(self, model: FeatDepth, network: nn.Module, size: tuple[int, int] | None) -> None:
        super().__init__()
        self.network = network
        self.seen_size = model.height, model.width
        self.is_resized = size != self.seen_size
        self.depth_range = model.settings.min_depth, model.settings.max_depth
        self.metres_per_unit = model.metres

    def forward(self, image: Tensor) -> Tensor:
        """Depth `[N, 1, H, W]` of images `[N, 3, H, W]` in [0, 1]."""
        seen = image
        # Decided beforehand, and not by the sizes at hand: these are known only when the program runs.
        if self.is_resized:
            seen = functional.interpolate(image, self.seen_size, mode="bilinear", align_corners=False, antialias=True)
        disparity = self.network(normalise(seen)).float()
        disparity = functional.interpolate(disparity, image.shape[-2:], mode="bilinear", align_corners=False)
        return disparity_to_depth(disparity, *self.depth_range) * self.metres_per_unit


def describe(model: FeatDepth, arguments: argparse.Namespace, size: tuple[int, int] | None) -> dict[str, str]:
    """What a user of the file has to know; stored in it."""
    unit = model.settings.metres_per_unit
    seen = f"{model.height}x{model.width}"
    return {
        "checkpoint": str(arguments.checkpoint),
        "input": f"image: float32 RGB [N, 3, H, W] in [0, 1], HxW {'any' if size is None else '{}x{}'.format(*size)}",
        "output": "depth: float32 [N, 1, H, W]",
        "unit": "metres" if unit else "network units, known up to scale",
        "scale_source": model.scale_source or "none",
        "min_depth": f"{model.settings.min_depth * model.metres:g}",
        "max_depth": f"{model.settings.max_depth * model.metres:g}",
        "network_size": seen,
        "precision": f"int8, float {arguments.keep_float or 'heads'}" if arguments.int8 else arguments.precision,
        "versions": "; ".join(versions()),
    }


def export_program(program: nn.Module, model: FeatDepth, size: tuple[int, int] | None) -> torch.export.ExportedProgram:
    """`program` by torch.export: any batch, and for size None any height and width. InputError where it has one batch.

    That is so of networks of others whose code makes a number of what the batch is when it is exported.
    """
    # No number of the example may equal another, or one of the model's: it would be taken for the same.
    example = torch.zeros(2, 3, *(size or (model.height + 16, model.width + 48)))
    dynamic = {0: torch.export.Dim("batch", min=1, max=LARGEST_BATCH)}
    if size is None:
        dynamic |= {
            axis: torch.export.Dim(name, min=1, max=LARGEST_SIDE) for axis, name in ((2, "height"), (3, "width"))
        }
    try:
        with torch.no_grad(), quiet():
            return torch.export.export(program, (example,), dynamic_shapes={"image": dynamic})
    except torch._dynamo.exc.UserError as error:
        if model.base is None:
            raise
        raise InputError(
            f"the depth network is a {model.base.network['model_type']} model, whose code cannot be exported for any "
            "number of images; predict with python -m featdepth.predict"
        ) from error


def save_torch(exported: torch.export.ExportedProgram, path: Path, metadata: dict[str, str]) -> None:
    """Write the file of `torch.export.load`; the metadata as JSON among its extra files."""
    torch.export.save(exported, path, extra_files={METADATA_FILE: json.dumps(metadata, indent=1)})


def save_onnx(exported: torch.export.ExportedProgram, path: Path, metadata: dict[str, str]) -> None:
    """Write an ONNX file with input `image` and output `depth`; the metadata among its properties."""
    import onnx

    with quiet():
        converted = torch.onnx.export(
            exported, input_names=["image"], output_names=["depth"], opset_version=OPSET, verbose=False
        )
    content = converted.model_proto
    onnx.helper.set_model_props(content, metadata)
    onnx.save(content, path)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the notes that exporters write for their own developers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def load_predictor(path: Path) -> Predictor:
    """What an exported file predicts: images `[N, 3, H, W]` -> depth `[N, 1, H, W]`, on the CPU."""
    if path.suffix == ".onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return lambda images: torch.from_numpy(session.run(["depth"], {"image": images.numpy()})[0])
    return torch.no_grad()(torch.export.load(path).module())


def compare(
    model: FeatDepth, predict: Predictor, size: tuple[int, int] | None, images: Tensor | None = None
) -> tuple[float, float]:
    """Largest and mean relative error of `predict` against `model.predict_depth`, over all pixels of some images.

    size: of the images (None: of any); images: `[N, 3, H, W]` in [0, 1], in the place of images made here.
    """
    errors = []
    for batch in probes(model, size) if images is None else images.split(1):
        expected = model.predict_depth(batch)
        errors.append(((predict(batch) - expected) / expected).abs().flatten())
    joined = torch.cat(errors).double()
    return joined.max().item(), joined.mean().item()


def probes(model: FeatDepth, size: tuple[int, int] | None) -> Iterator[Tensor]:
    """Batches of 1 and 3 images: noise, and noise of all scales, whose spectrum is like that of photographs."""
    generator = torch.Generator().manual_seed(0)
    own = model.height, model.width
    sizes = [size] if size is not None else [own, (own[0] * 5 // 4 + 3, own[1] * 9 // 8 + 7)]
    for height, width in sizes:
        yield torch.rand(1, 3, height, width, generator=generator)
        yield natural_images(3, height, width, generator)


def natural_images(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """`[count, 3, height, width]` in [0, 1]: noise at all scales, the coarser the stronger."""
    images = torch.full((count, 3, height, width), 0.5)
    for exponent in range(1, 7):
        coarse = torch.rand(count, 3, 2**exponent, 2 ** (exponent + 1), generator=generator) - 0.5
        spread = functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
        images += spread / 1.6**exponent
    return images.clamp(0, 1)


if __name__ == "__main__":
    run_program(main)
