"""7-Scenes, or anything in its layout: hand-held RGB-D video of rooms.

<root>/<scene>/seq-XX/frame-XXXXXX.color.png|jpg
<root>/<scene>/seq-XX/frame-XXXXXX.depth.png      ground truth: uint16 millimetres, 0 and 65535 where there is none
<root>/<scene>/seq-XX/frame-XXXXXX.pose.txt       4x4 world_from_camera, metres (optional)
<root>/<scene>/TrainSplit.txt, TestSplit.txt      of the split "official": "sequence1" is seq-01
camera-intrinsics.txt                             3x3, beside the frames, one folder above or in the root (optional)

The root may also be a single scene, or hold the frames itself: then it is one drive that is called like the folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featdepth.cameras.intrinsics_files import read_pinhole
from featdepth.cameras.pinhole import matrix
from featdepth.data.footage import Camera
from featdepth.data.images import image_size, load_depth_image
from featdepth.data.listing import IMAGE_SUFFIXES, file_names, list_frames, read_matrix
from featdepth.data.samples import Sample
from featdepth.data.sets.sequences import Recording, SequenceDataset
from featdepth.errors import InputError
from featdepth.files import read_text

if TYPE_CHECKING:
    from featdepth.config import Config

IMAGE_NAME = re.compile(rf"frame-([0-9]{{6}})\.color\.(?:{IMAGE_SUFFIXES})", re.IGNORECASE)
IMAGE_FORM = "as in frame-000005.color.png"
DEPTH_NAME = re.compile(r"frame-([0-9]{6})\.depth\.png")
POSE_NAME = re.compile(r"frame-([0-9]{6})\.pose\.txt")
CAMERA_FILE = "camera-intrinsics.txt"
# The data set's own default, where no file says more.
DEFAULT_INTRINSICS = matrix(585.0, 585.0, 320.0, 240.0)
DEFAULT_SIZE = (480, 640)
MILLIMETRES, NO_DEPTH = 1000.0, 65535
SPLIT_LINE = re.compile(r"sequence([0-9]{1,3})")
LARGEST_SPLIT = 1 << 16  # bytes


class SevenScenes(SequenceDataset):
    """Official: of each scene's training sequences the last validates, where there are several."""

    image_form = IMAGE_FORM

    @classmethod
    def built_in_drives(cls, config: Config, part: str) -> Collection[str]:
        if config.data.split != "official":
            return ()
        root = Path(config.data.root)
        name = "TestSplit.txt" if part == "test" else "TrainSplit.txt"
        paths = sorted([*root.glob(name), *root.glob(f"*/{name}")])
        if not paths:
            raise InputError(f"{root}: no {name} here or one folder below; download it, or set data.split=time")
        scenes = [sorted(split_drives(root, path)) for path in paths]
        drives = [drive for scene in scenes for drive in scene]
        if part == "test":
            return drives
        last = {scene[-1] for scene in scenes if len(scene) > 1}
        return [drive for drive in drives if (drive in last) == (part == "validation")]

    def find_drives(self, root: Path) -> list[str]:
        if any(map(IMAGE_NAME.fullmatch, file_names(root))):
            self.folders = {Path(os.path.abspath(root)).name: root}
        else:
            found = sorted([*root.glob("seq-*"), *root.glob("*/seq-*")])
            self.folders = {folder.relative_to(root).as_posix(): folder for folder in found if folder.is_dir()}
        if not self.folders:
            raise InputError(f"{root}: nothing in the layout of 7-Scenes; expected chess/seq-01/frame-000000.color.png")
        return list(self.folders)

    def read_recording(self, drive: str) -> Recording:
        folder = self.folders[drive]
        images = list_frames(folder, IMAGE_NAME, IMAGE_FORM)
        if not images:
            return Recording({}, {})
        size = image_size(next(iter(images.values())))
        camera = Camera(size, self.read_camera(folder, size))
        return Recording({"l": images}, {"l": camera}, depth=list_frames(folder, DEPTH_NAME))

    def read_camera(self, folder: Path, size: tuple[int, int]) -> np.ndarray:
        """3x3 intrinsics of a drive whose images are of `size`: the nearest file's, or the default."""
        for place in (folder, folder.parent, self.root):
            path = place / CAMERA_FILE
            if path.is_file():
                return read_pinhole(path, size)
        if size != DEFAULT_SIZE:
            raise InputError(
                f"{folder}: images of {size[1]} x {size[0]} pixels without {CAMERA_FILE}, and the default is for "
                f"{DEFAULT_SIZE[1]} x {DEFAULT_SIZE[0]}; write the 3x3 intrinsics of their size there"
            )
        return DEFAULT_INTRINSICS

    def read_poses(self, drive: str) -> dict[int, np.ndarray]:
        paths = list_frames(self.folders[drive], POSE_NAME)
        return {frame: read_matrix(path, 4, "the pose") for frame, path in paths.items()}

    def ground_truth_hint(self) -> str:
        return "it is in frame-XXXXXX.depth.png beside the images"

    def read_depth(self, sample: Sample, path: str) -> np.ndarray:
        stored = load_depth_image(path, self.camera(sample).size, units_per_metre=1.0)
        return np.where(stored == NO_DEPTH, np.float32(0), stored / np.float32(MILLIMETRES))


def split_drives(root: Path, path: Path) -> Iterator[str]:
    """The drives below `root` that a scene's TrainSplit.txt or TestSplit.txt at `path` names, in order."""
    text = read_text(path, LARGEST_SPLIT, "the split")
    scene = path.parent.relative_to(root)
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        match = SPLIT_LINE.fullmatch(line.strip())
        if match is None:
            raise InputError(f"{path}:{number}: {line.strip()[:60]!r} should be a sequence, as in sequence1")
        yield (scene / f"seq-{int(match[1]):02}").as_posix()
