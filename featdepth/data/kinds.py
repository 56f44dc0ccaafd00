"""The kinds of data, by their names in `data.kind`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featdepth.data.dataset import FrameDataset
from featdepth.data.kitti.odometry import KittiOdometry
from featdepth.data.kitti.raw import KittiRaw
from featdepth.data.sets.cityscapes import Cityscapes
from featdepth.data.sets.eth3d import Eth3d
from featdepth.data.sets.euroc import Euroc
from featdepth.data.sets.seven_scenes import SevenScenes
from featdepth.data.sets.tum_rgbd import TumRgbd
from featdepth.data.sets.video import Video
from featdepth.errors import InputError

if TYPE_CHECKING:
    from featdepth.config import Config

DATASETS: dict[str, type[FrameDataset]] = {
    "kitti_raw": KittiRaw,
    "kitti_odometry": KittiOdometry,
    "cityscapes": Cityscapes,
    "euroc": Euroc,
    "eth3d": Eth3d,
    "tum_rgbd": TumRgbd,
    "seven_scenes": SevenScenes,
    "video": Video,
}


def kind_of(config: Config) -> type[FrameDataset]:
    """The dataset class that `data.kind` names. Raises InputError."""
    if config.data.kind not in DATASETS:
        raise InputError(f"data.kind: {config.data.kind!r} is unknown; there are {', '.join(DATASETS)}")
    return DATASETS[config.data.kind]
