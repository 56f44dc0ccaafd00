"""Write what a large depth model sees in the frames of a data set, for `data.prior`.

python -m featdepth.prior --config C [key=value ...] --model hf:ORG/NAME|hf:DIRECTORY|DIRECTORY --out FOLDER [--cpu]

For each frame that training or validation of the configuration have as target, FOLDER gets its inverse depth, as
`<path below data.root>.npz` with the array `disparity`; set `data.prior=FOLDER data.prior_kind=disparity`. Frames are
seen whole, at `data.height` x `data.width`. What is there already stays, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from featdepth.config import Config, load_config, parse_arguments
from featdepth.config.depth_names import HUGGING_FACE
from featdepth.console import Display
from featdepth.data import augment, build_dataset
from featdepth.data.prior_maps import map_name
from featdepth.errors import InputError, run_program
from featdepth.files import write_bytes
from featdepth.models import FeatDepth
from featdepth.models.featdepth import normalise

Seeing = Callable[[Tensor], Tensor]  # images [N, 3, H, W] in [0, 1] -> inverse depth [N, 1, H, W]


def main() -> None:
    arguments = parse_arguments(None, __doc__, add_options)
    config = load_config(arguments.config, arguments.overrides, training=False)
    folder = Path(arguments.out)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {folder}: is no folder; choose another name")
    device = torch.device("cuda" if torch.cuda.is_available() and not arguments.cpu else "cpu")
    see = (
        large_model(arguments.model, device)
        if arguments.model.startswith(HUGGING_FACE)
        else own_model(arguments.model, device)
    )
    # Of whole frames, by themselves.
    data = dataclasses.replace(config.data, crop=[0.0] * 4, mix=[], drive_balance=0.0, prior=None)
    whole = dataclasses.replace(config, data=data, loss=dataclasses.replace(config.loss, prior=0.0, velocity=0.0))
    written = there = 0
    for part in ("train", "validation"):
        dataset = build_dataset(whole, part, with_depth=False, frames=[0])
        names = [map_name(dataset.image_path(sample, 0), data.root) for sample in dataset.samples]
        places = [(folder / name).with_name(f"{Path(name).name}.npz") for name in names]
        missing = [index for index, place in enumerate(places) if not place.exists()]
        there += len(places) - len(missing)
        display = Display(part, len(missing), "frames")
        for index, disparity in seen(Subset(dataset, missing), see, config, device):
            content = io.BytesIO()
            np.savez_compressed(content, disparity=disparity.astype(np.float16))
            write_bytes(places[index], content.getvalue())
            display.update()
            written += 1
        display.close()
    print(
        f"{folder}: {written} maps written, {there} were there; train with data.prior={folder} "
        "data.prior_kind=disparity loss.prior=0.1"
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="hf:ORG/NAME, hf:DIRECTORY, or a model directory of ours")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the maps go")
    parser.add_argument("--cpu", action="store_true", help="use no GPU")


def large_model(name: str, device: torch.device) -> Seeing:
    """What the large model `name` sees. Raises InputError."""
    from featdepth.models.large_depth import LargeDepth, find_base, make_large_depth

    base, directory = find_base(name)
    encoder: LargeDepth
    encoder, decoder = make_large_depth(Config().model, base)
    encoder.load_base(directory)
    encoder.eval().to(device)
    return lambda images: decoder.inverse_depth(encoder(normalise(images))[0])


def own_model(name: str, device: torch.device) -> Seeing:
    """What a saved model sees. Raises InputError."""
    model = FeatDepth.from_pretrained(name).to(device)
    if not model.has_depth:
        raise InputError(f"--model {name}: objective {model.settings.objective} predicts no depth")
    return lambda images: 1 / model.to_depth(model.predict_disparity(images))


@torch.no_grad()
def seen(frames: Subset, see: Seeing, config: Config, device: torch.device) -> Iterator[tuple[int, np.ndarray]]:
    """The place of each of `frames` in its data set, and its inverse depth `[H, W]`."""
    for batch in DataLoader(frames, config.evaluate.batch_size, num_workers=config.data.workers):
        images = augment(batch)["images"][:, 0].to(device)
        yield from zip(batch["index"].tolist(), see(images)[:, 0].float().cpu().numpy(), strict=True)


if __name__ == "__main__":
    run_program(main)
