"""What data sets of single images have in common, which nothing can be trained on: no image has neighbours in time."""

from __future__ import annotations

import io
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featdepth.data.samples import Sample
from featdepth.data.sets.sequences import SequenceDataset
from featdepth.errors import InputError
from featdepth.files import read_bytes

if TYPE_CHECKING:
    from featdepth.config import Config

INSTALL_READERS = "pip install 'scipy>=1.11' 'h5py>=3.10'"
LARGEST_MATLAB = 1 << 23  # bytes of a file in MATLAB's older format; they have half a million at most
# What readers of MATLAB's files raise for files that are none, or damaged.
MATLAB_ERRORS = (ValueError, TypeError, KeyError, IndexError, OSError, RuntimeError, zlib.error)


class StillImages(SequenceDataset):
    """Test images with ground truth; a drive is what was taken at one place. The split "official" has them all."""

    def built_in_samples(self, config: Config, part: str) -> list[Sample]:
        if part != "test":
            raise InputError(f"data.kind {config.data.kind} has test images alone, and none to learn from")
        return super().built_in_samples(config, part)

    @classmethod
    def built_in_drives(cls, config: Config, part: str) -> Collection[str]:
        return ("*",) if part == "test" else ()

    def image_path(self, sample: Sample, frame: int | str) -> str | None:
        """The next number is another picture, not the next moment."""
        return super().image_path(sample, frame) if frame == 0 else None


def read_matlab(path: str | Path, name: str) -> np.ndarray:
    """The array of a name in a file of MATLAB's format 5. Raises InputError, naming the file."""
    try:
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError
    except ImportError:
        raise InputError(f"{path}: reading MATLAB's files needs scipy; {INSTALL_READERS}") from None
    content = read_bytes(path, LARGEST_MATLAB, f"the file of {name}")
    try:
        return np.asarray(loadmat(io.BytesIO(content), variable_names=[name])[name], dtype=np.float64)
    except (*MATLAB_ERRORS, MatReadError) as error:
        raise InputError(f"{path}: no {name} can be read ({type(error).__name__}); download it again") from error
