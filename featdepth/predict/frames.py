"""Frames on their way to the network: decoded upright as 8-bit RGB, resized, and loaded ahead of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, IterableDataset

from featdepth.data.films import read_pictures
from featdepth.data.images import LARGEST_IMAGE, read_photo
from featdepth.errors import InputError
from featdepth.parallel.loaders import PREFETCHED, keep_loading_at_signals
from featdepth.predict.intrinsics import FrameCamera
from featdepth.predict.sources import FrameSource

LONGEST_VIEW = 1280  # pixels: the longer side of what point clouds, videos and pages show of a frame


class InputFrame(NamedTuple):
    """One frame of a source; `error` says why there is none."""

    name: str  # that its outputs begin with
    path: str  # of its image or video
    index: int  # its place in the source
    size: tuple[int, int] = (0, 0)  # height, width of the upright frame, pixels
    image: Tensor | None = None  # uint8 [3, H, W] at the network's size; None where it was not asked for
    view: Tensor | None = None  # uint8 [h, w, 3], at most LONGEST_VIEW pixels long; None where it was not asked for
    seconds: float | None = None  # after the first frame; None for images
    error: str | None = None
    camera: FrameCamera = FrameCamera()


def load_photo(path: str | Path) -> np.ndarray:
    """The image at `path` as all programs read it (see `featdepth.data.images`): uint8 RGB `[h, w, 3]`, upright.

    Raises InputError, naming the file, for one that cannot be read or has more than LARGEST_IMAGE pixels.
    """
    try:
        return read_photo(path).pixels
    except InputError as error:
        if isinstance(error.__cause__, Image.DecompressionBombError):
            reason = f"has more than {LARGEST_IMAGE // 1_000_000} million pixels, the most that are read"
            raise InputError(f"{path}: {reason}; make it smaller") from error
        raise


def resize(pixels: np.ndarray, size: tuple[int, int]) -> Tensor:
    """uint8 `[3, H, W]` of uint8 RGB `[h, w, 3]`, with the antialiased filter that training uses."""
    channels_last = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]
    if pixels.shape[:2] == tuple(size):
        return channels_last[0]
    return functional.interpolate(channels_last, size, mode="bilinear", antialias=True)[0]


def view_size(size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of what is shown of a frame of `size`: not more than LONGEST_VIEW pixels."""
    shrink = min(1.0, LONGEST_VIEW / max(size))
    return max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink))


class Wanted(NamedTuple):
    """What has to be made of frames."""

    size: tuple[int, int]  # height, width that the network sees
    with_view: bool
    done: Collection[str] = ()  # names of frames that are predicted already


def make_frame(
    name: str, path: str, index: int, pixels: np.ndarray, seconds: float | None, wanted: Wanted
) -> InputFrame:
    """A frame from uint8 RGB `[h, w, 3]`."""
    size = pixels.shape[:2]
    image = resize(pixels, wanted.size).contiguous()
    view = resize(pixels, view_size(size)).permute(1, 2, 0).contiguous() if wanted.with_view else None
    return InputFrame(name, path, index, size, image, view, seconds)


class ImageFrames(Dataset):
    """The image files of a source that are not done."""

    def __init__(self, files: dict[str, Path], wanted: Wanted) -> None:
        places = enumerate(files.items())
        self.files = [(index, name, str(path)) for index, (name, path) in places if name not in wanted.done]
        self.wanted = wanted

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> InputFrame:
        place, name, path = self.files[index]
        try:
            return make_frame(name, path, place, load_photo(path), None, self.wanted)
        except InputError as error:
            return InputFrame(name, path, place, error=str(error))


class VideoFrames(IterableDataset):
    """The frames of a video in their order, named by their numbers; what is damaged ends it with an error."""

    def __init__(self, path: Path, wanted: Wanted) -> None:
        self.path, self.wanted = path, wanted

    def __iter__(self) -> Iterator[InputFrame]:
        index, path = -1, str(self.path)
        try:
            for index, picture in enumerate(read_pictures(self.path)):
                name = frame_name(index)
                if name in self.wanted.done:
                    yield InputFrame(name, path, index, picture.pixels.shape[:2], seconds=picture.seconds)
                else:
                    yield make_frame(name, path, index, picture.pixels, picture.seconds, self.wanted)
        except InputError as error:
            yield InputFrame(frame_name(index + 1), path, index + 1, error=str(error))


def frame_name(index: int) -> str:
    """What the outputs of a video's frame begin with."""
    return f"{index:06}"


class Batch(NamedTuple):
    """Frames in their order, those included that failed or are done."""

    frames: list[InputFrame]  # without their images
    images: Tensor | None  # uint8 [B, 3, H, W] of those that have one, in the same order


def collate(frames: list[InputFrame]) -> Batch:
    images = [frame.image for frame in frames if frame.image is not None]
    # A frame that is to be predicted keeps an empty image as a mark.
    marked = [frame if frame.image is None else frame._replace(image=frame.image[:, :0]) for frame in frames]
    return Batch(marked, torch.stack(images) if images else None)


def frame_bytes(wanted: Wanted) -> int:
    """Bytes that a frame has on its way to the network; what is shown of it counts as large as it may be, at 4:3."""
    view = LONGEST_VIEW * LONGEST_VIEW * 3 // 4 if wanted.with_view else 0
    return 3 * (wanted.size[0] * wanted.size[1] + view)


def loader_processes(source: FrameSource, frames: int, batch_size: int, workers: int) -> int:
    """How many of up to `workers` processes load a source; a video is one stream."""
    most = 1 if source.is_video else -(-frames // batch_size)
    # Starting processes takes longer than loading a few images.
    return min(workers, most) if source.is_video or most > 1 else 0


def load_batches(source: FrameSource, wanted: Wanted, batch_size: int, workers: int) -> DataLoader:
    """The frames of a source in batches, in their order, decoded ahead by up to `workers` processes."""
    frames = VideoFrames(source.path, wanted) if source.is_video else ImageFrames(source.files, wanted)
    workers = loader_processes(source, 0 if source.is_video else len(frames), batch_size, workers)
    return DataLoader(
        frames,
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=collate,
        prefetch_factor=PREFETCHED if workers else None,
        worker_init_fn=keep_loading_at_signals,
        generator=torch.Generator().manual_seed(0),
    )
