"""The labelled frames of NYU Depth V2 (Silberman et al., 2012), of which the official 654 test frames are scored on.

<root>/nyu_depth_v2_labeled.mat     MATLAB's HDF5: 1449 images, depths and names of scenes
<root>/splits.mat                   which of them test: testNdxs, counted from 1

A drive is a scene, "kitchen_0004"; frames are numbered as in the file, from 1.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from featdepth.cameras.pinhole import matrix
from featdepth.data.footage import Camera
from featdepth.data.images import resize_pixels, shown_pixels
from featdepth.data.samples import Sample
from featdepth.data.sets.sequences import Recording
from featdepth.data.sets.stills import INSTALL_READERS, MATLAB_ERRORS, StillImages, read_matlab
from featdepth.errors import InputError

FRAMES_FILE, SPLIT_FILE, TEST = "nyu_depth_v2_labeled.mat", "splits.mat", "testNdxs"
# Of the colour camera, as the data set's toolbox has it, which counts pixels from 1.
INTRINSICS = matrix(518.85790117450188, 519.46961112127485, 325.58244941119034 - 1, 253.73616633400465 - 1)


class NyuDepth(StillImages):
    """The labelled frames that test."""

    calibration_name = "the toolbox of NYU Depth V2"

    def find_drives(self, root: Path) -> list[str]:
        if not (root / FRAMES_FILE).is_file():
            raise InputError(f"{root}: no labelled frames of NYU Depth V2 here; expected {FRAMES_FILE}")
        self.frames_of: dict[str, list[int]] = {}
        scenes = self.read(lambda file: [text_of(file, place) for place in file["scenes"][0]])
        for number in sorted(map(int, read_matlab(root / SPLIT_FILE, TEST).ravel())):
            if not 0 < number <= len(scenes):
                raise InputError(f"{root / SPLIT_FILE}: frame {number} of {len(scenes)}; download both files again")
            self.frames_of.setdefault(scenes[number - 1], []).append(number)
        return sorted(self.frames_of)

    def read(self, what: Callable[[Any], Any]) -> Any:
        """`what` of the open file of frames. Raises InputError for one that is damaged."""
        path = self.root / FRAMES_FILE
        try:
            import h5py

            with h5py.File(path) as file:
                return what(file)
        except ImportError:
            raise InputError(f"{path}: reading MATLAB's files of version 7.3 needs h5py; {INSTALL_READERS}") from None
        except MATLAB_ERRORS as error:
            raise InputError(f"{path}: cannot be read ({type(error).__name__}: {error}); download it again") from error

    def read_recording(self, drive: str) -> Recording:
        numbers = self.frames_of[drive]
        width, height = self.read(lambda file: file["images"].shape[2:])
        places = {number: f"{self.root / FRAMES_FILE}#{number}" for number in numbers}
        return Recording({"l": places}, {"l": Camera((height, width), INTRINSICS)}, depth=places)

    def load_frame(self, path: str, camera: Hashable) -> Tensor:
        pixels = self.read(lambda file: file["images"][place_of(path)])  # channels, columns, rows, as MATLAB stores
        pixels = shown_pixels(np.ascontiguousarray(pixels.transpose(2, 1, 0)), self.windows[camera])
        return resize_pixels(pixels, self.size)

    def read_depth(self, sample: Sample, path: str) -> np.ndarray:
        depth = self.read(lambda file: file["depths"][place_of(path)]).T.astype(np.float32)
        return np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0))

    def ground_truth_hint(self) -> str:
        return f"it is in {FRAMES_FILE}"


def place_of(path: str) -> int:
    """Where a frame stands in the arrays, from 0, of what stands for its path: <file>#<number>."""
    return int(path.rpartition("#")[2]) - 1


def text_of(file: Any, reference: Any) -> str:
    """The text that a cell of MATLAB's refers to."""
    return np.asarray(file[reference]).astype("<u2").tobytes().decode("utf-16-le")
