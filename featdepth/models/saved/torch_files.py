"""Files of `torch.save` that others have made: read without running their code or believing their sizes."""

from __future__ import annotations

import io
import os
import pickletools
import re
import warnings
import zipfile
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from featdepth.errors import InputError
from featdepth.files import open_plain

LARGEST_TORCH_FILE = 8 << 30  # bytes
LARGEST_PICKLE = 4 << 20  # bytes; what says which tensors there are, 100 kB for a thousand of them
ZIP_START, ZIP_END, ZIP_END_BYTES = b"PK\3\4", b"PK\5\6", 22
FAR = 0xFFFFFFFF  # a place in a zip archive that is written elsewhere, since it has more than 32 bits
LEGACY_PICKLES = 5  # magic number, version, system, content, names of the storages; then come the storages

# What the pickles of weights, and of random states, call. torch allows more, even with weights_only=True, among it
# `bytearray`, which makes gigabytes of a number.
CALLED = re.compile(
    r"collections OrderedDict|torch Size|torch\._utils _rebuild_(tensor|tensor_v2|parameter)"
    r"|torch(\.cuda)? (Double|Float|Half|BFloat16|Long|Int|Short|Char|Byte|Bool)Storage"
    r"|numpy\.(_core|core)\.multiarray _reconstruct|numpy (ndarray|dtype)|numpy\.dtypes \w+DType|_codecs encode"
)


def state_of(content: object) -> dict[str, Tensor] | None:
    """A loaded `state_dict` as a plain dictionary of tensors by name; None for anything else."""
    state = plain(content) if isinstance(content, dict) else {"": None}
    tensors = all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items())
    return state if tensors else None


def plain(content: dict) -> dict:
    """The same without attributes: a hostile file may give an OrderedDict some that stand in for its methods."""
    return dict(type(content).items(content))


def read_torch_file(path: Path, key: str) -> dict:
    """The dictionary in a file of `torch.save`, without unpickling code; InputError names `key` and the path."""
    if not path.exists():
        raise InputError(f"{key}: {path} does not exist; check the path")
    place = f"{key}: {path}"
    with open_plain(path, LARGEST_TORCH_FILE, "the file of torch.save") as file:
        if file.read(len(ZIP_START)) == ZIP_START:
            check_archive(file, place)
        else:
            check_legacy(file, place)
        file.seek(0)
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        # A damaged file makes torch raise anything: KeyError, AttributeError, MemoryError; all mean that it is damaged.
        except Exception as error:
            raise damaged(place, " ".join(str(error).split())[:120]) from error
    if not isinstance(content, dict):
        raise InputError(f"{place} holds a {type(content).__name__}, not a dictionary of tensors")
    return plain(content)


def check_torch_archive(path: str | Path) -> None:
    """Raise InputError unless `path` is an archive of `torch.save` that cannot demand more memory than its size.

    Its members have to be stored as they are, since compressed or forged ones let a small file demand any amount, and
    its pickle may call nothing but what tensors, numpy arrays and plain containers need.
    """
    with open_plain(path, LARGEST_TORCH_FILE, "the file of torch.save") as file:
        check_archive(file, str(path))


def check_archive(file: BinaryIO, place: str) -> None:
    """Raise InputError, naming `place`, for a zip archive that `check_torch_archive` refuses."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - ZIP_END_BYTES))
    end = file.read()
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            # torch trusts what the last bytes say; zipfile would also find a directory elsewhere.
            if not end.startswith(ZIP_END) or int.from_bytes(end[16:20], "little") not in (archive.start_dir, FAR):
                raise damaged(place, "it does not end with its directory")
            if any(each.compress_type != zipfile.ZIP_STORED for each in members):
                raise damaged(place, "compressed")
            if sum(max(each.file_size, each.compress_size) for each in members) > size:
                raise damaged(place, "its parts claim to be larger than the whole")
            pickles = [each for each in members if each.filename.lower().endswith(".pkl")]
            if len(pickles) != 1 or pickles[0].file_size > LARGEST_PICKLE:
                raise damaged(place, "not one pickle, or a huge one")
            check_pickle(io.BytesIO(archive.read(pickles[0])), place)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError, OSError) as error:
        raise damaged(place, " ".join(str(error).split())[:120]) from error


def check_legacy(file: BinaryIO, place: str) -> None:
    """Raise InputError unless `file` begins as torch before 1.6 wrote it, with pickles that call only the allowed."""
    file.seek(0)
    content = io.BytesIO(file.read(LARGEST_PICKLE))
    for _ in range(LEGACY_PICKLES):
        check_pickle(content, place)


def check_pickle(content: io.BytesIO, place: str) -> None:
    """Go through one pickle without executing it; InputError where it is damaged or calls what is not allowed.

    content: in memory, since a forged length makes a file allocate that much before it finds that there is less.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes in texts of damaged files
            called = [argument for opcode, argument, _ in pickletools.genops(content) if opcode.name == "GLOBAL"]
    except ValueError as error:
        raise damaged(place, "no pickle, or a huge one") from error
    if not all(map(CALLED.fullmatch, called)):
        raise InputError(
            f"{place} is damaged, or holds more than tensors and plain values, which could run code when loaded; "
            "copy it again, or save its state_dict alone and use that file"
        )


def damaged(place: str, reason: str) -> InputError:
    """The error that tells of a file that is none of torch.save."""
    return InputError(f"{place} is damaged or no file of torch.save ({reason})")
