"""Depth that other models saw in the training frames, as files: `data.prior`.

The map of a frame has its path below `data.root` with another ending: png of 16 bits (0: nothing known), tiff of one
channel of floats, npy, or npz with an array called as `data.prior_kind` says, `depth` or `disparity`; `[h, w]`, of any
size and in any unit, of the whole frame. Disparity may be any inverse depth up to scale and shift. Unknown are values
that are not finite, and depths that are not above 0.
"""

from __future__ import annotations

import io
import math
import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from featdepth.data.images import LARGEST_IMAGE, decoded
from featdepth.errors import InputError
from featdepth.files import read_bytes

MAP_FORMATS = {".npz": None, ".npy": None, ".png": "PNG", ".tiff": "TIFF", ".tif": "TIFF"}  # Pillow's, by ending
LARGEST_MAP = 8 * LARGEST_IMAGE  # bytes
MOSTLY = 0.5  # of what a resized pixel is made of has to be known


def map_name(image: str, root: str) -> str:
    """The name, without ending, of the map of `image` in the folder of maps. Raises InputError."""
    name = os.path.relpath(image, root)
    if name.startswith(os.pardir):
        raise InputError(f"data.prior: the frame {image} is not below data.root, {root}; its map has no name")
    return os.path.splitext(name)[0]


def find_map(folder: str, image: str, root: str) -> Path:
    """The map of `image` in `folder`. Raises InputError, naming the frame, where there is none."""
    place = os.path.join(folder, map_name(image, root))
    for suffix in MAP_FORMATS:
        if os.path.isfile(place + suffix):
            return Path(place + suffix)
    endings = ", ".join(MAP_FORMATS)
    raise InputError(f"data.prior: the frame {image} has no map {place} ({endings}); write it, or leave the frame out")


def load_prior(path: Path, kind: str, crop: Sequence[float], size: tuple[int, int]) -> Tensor:
    """Inverse depth float32 `[1, H, W]` in the map at `path`, NaN where unknown, cropped and resized to `size` (H, W).

    kind: "depth" or "disparity"; crop: parts of it that are cut off, as `data.crop`. Raises InputError, naming the
    file, for one that is damaged or no such map.
    """
    values = torch.from_numpy(read_map(path, kind))
    values = torch.where(values > 0, 1 / values, torch.nan) if kind == "depth" else values
    height, width = values.shape
    top, bottom, left, right = crop
    values = values[
        round(top * height) : height - round(bottom * height), round(left * width) : width - round(right * width)
    ]
    is_known = values.isfinite()
    both = torch.stack([torch.where(is_known, values, 0.0), is_known.to(values.dtype)])[None]
    total, known = functional.interpolate(both, size, mode="bilinear", antialias=True)[0]
    return torch.where(known > MOSTLY, total / known.clamp(min=MOSTLY), torch.nan)[None]


def read_map(path: Path, kind: str) -> np.ndarray:
    """The values float32 `[h, w]` in the file at `path`, NaN where it says that nothing is known. Raises InputError."""
    suffix = path.suffix.lower()
    if MAP_FORMATS[suffix] is not None:
        with decoded(path, (MAP_FORMATS[suffix],), None) as image:
            values = image_values(image, path)
    else:
        content = read_bytes(path, LARGEST_MAP, "the map")
        try:
            values = array_in(archived(content, kind) if suffix == ".npz" else content)
        except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, NotImplementedError, zlib.error) as error:
            said = f"an array {kind}" if suffix == ".npz" else "an array"
            raise InputError(
                f"{path}: holds no map as {said} ({' '.join(str(error).split())[:120]}); write it again, or set "
                "data.prior_kind to what it is"
            ) from error
    values = values.reshape([side for side in values.shape if side != 1] if values.ndim > 2 else values.shape)
    if values.ndim != 2 or min(values.shape) < 2 or values.size > LARGEST_IMAGE:
        raise InputError(f"{path}: an array {list(values.shape)} is no map [height, width]; write one for each frame")
    return values.astype(np.float32)


def image_values(image: Image.Image, path: Path) -> np.ndarray:
    """The values of a png of 16 bits, or of a tiff of floats. Raises InputError for any other."""
    if image.format == "PNG" and image.mode.startswith("I"):
        values = np.array(image, dtype=np.float32)
        return np.where(values > 0, values, np.nan)
    if image.format == "TIFF" and image.mode == "F":
        return np.array(image)
    raise InputError(f"{path}: mode {image.mode} is no map; expected a png of 16 bits or a tiff of floats")


def archived(content: bytes, name: str) -> bytes:
    """The npy file of the array `name` in an npz file."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        member = archive.getinfo(f"{name}.npy")
        if member.file_size > LARGEST_MAP:
            raise ValueError(f"{member.file_size} bytes are too many")
        return archive.read(member)


def array_in(content: bytes) -> np.ndarray:
    """The array of numbers in an npy file, which nothing is unpickled of. Raises ValueError."""
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, by_columns, dtype = read_header(stream)
    start = stream.tell()
    if dtype.kind not in "fiu" or math.prod(shape) * dtype.itemsize != len(content) - start:
        raise ValueError(f"{dtype} {list(shape)} in {len(content)} bytes")
    return np.frombuffer(content, dtype, offset=start).reshape(shape, order="F" if by_columns else "C")
