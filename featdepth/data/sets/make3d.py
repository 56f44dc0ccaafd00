"""Make3D's 134 test photos with laser depth (Saxena et al., 2009), to be scored on.

<root>/Test134/img-<name>.jpg                           2272 x 1704 pixels, upright
<root>/Gridlaserdata/depth_sph_corr-<name>.mat          ground truth: Position3DGrid [55, 305, 4], its last part depth

A name is "<scene>-p-<angles>"; a drive is a scene, its photos numbered in the order of their names.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from featdepth.cameras.pinhole import field_of_view_intrinsics
from featdepth.data.footage import Camera
from featdepth.data.images import image_size
from featdepth.data.listing import file_names
from featdepth.data.samples import Sample
from featdepth.data.sets.sequences import Recording
from featdepth.data.sets.stills import StillImages, read_matlab
from featdepth.errors import InputError

PHOTO_NAME = re.compile(r"img-(.+)\.jpg")
GRID, DEPTH = "Position3DGrid", 3  # of its four parts
# Degrees, horizontal: the data set does not tell, and no score of depth at single points depends on it.
FIELD_OF_VIEW = 50.0


class Make3d(StillImages):
    """The photos of Test134."""

    calibration_name = f"none: {FIELD_OF_VIEW:g} degrees are assumed"

    def find_drives(self, root: Path) -> list[str]:
        self.names: dict[str, list[str]] = {}
        for match in map(PHOTO_NAME.fullmatch, file_names(root / "Test134")):
            if match:
                self.names.setdefault(match[1].split("-p-")[0], []).append(match[1])
        if not self.names:
            raise InputError(f"{root}: no test photos of Make3D here; expected Test134/img-10.21op2-p-015t000.jpg")
        return sorted(self.names)

    def read_recording(self, drive: str) -> Recording:
        names = dict(enumerate(self.names[drive]))
        images = {number: str(self.root / "Test134" / f"img-{name}.jpg") for number, name in names.items()}
        grids = {number: self.root / "Gridlaserdata" / f"depth_sph_corr-{name}.mat" for number, name in names.items()}
        size = image_size(images[0])
        camera = Camera(size, field_of_view_intrinsics(FIELD_OF_VIEW, size))
        depth = {number: str(path) for number, path in grids.items() if path.is_file()}
        return Recording({"l": images}, {"l": camera}, depth=depth)

    def assumes_intrinsics(self, sample: Sample) -> bool:
        return True

    def ground_truth_hint(self) -> str:
        return "it is in Gridlaserdata/depth_sph_corr-*.mat"

    def read_depth(self, sample: Sample, path: str) -> np.ndarray:
        """Each of the grid's values at the one pixel in the middle of its cell: it says no more."""
        grid = read_grid(path)
        depth = np.zeros(self.camera(sample).size, dtype=np.float32)
        row, column = (
            ((np.arange(count) + 0.5) * length / count).astype(int)
            for count, length in zip(grid.shape, depth.shape, strict=True)
        )
        depth[np.ix_(row, column)] = grid
        return depth


def read_grid(path: str) -> np.ndarray:
    """The laser's depths `[55, 305]` in metres, 0 where there is none. Raises InputError."""
    grid = read_matlab(path, GRID)
    if grid.ndim != 3 or grid.shape[2] <= DEPTH:
        raise InputError(f"{path}: {GRID} is of {grid.shape}, expected [55, 305, 4]; download it again")
    depth = grid[:, :, DEPTH]
    return np.where(np.isfinite(depth) & (depth > 0), depth, 0.0)
