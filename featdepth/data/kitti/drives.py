"""What of KITTI raw is on disk: drives, images, scans, measurements and depth images. Each folder is listed once."""

from __future__ import annotations

import os
import re
from pathlib import Path

from featdepth.data.kitti.calibration import CAMERAS
from featdepth.data.listing import IMAGE_SUFFIXES, list_frames
from featdepth.data.samples import Naming
from featdepth.errors import InputError

IMAGE_NAME = re.compile(rf"([0-9]{{10}})\.(?:{IMAGE_SUFFIXES})", re.IGNORECASE)
RAW_IMAGE_FORM = "by ten digits, as in 0000000005.png"
SCAN_NAME = re.compile(r"([0-9]{10})\.bin")
DEPTH_NAME = re.compile(r"([0-9]{10})\.png")
PACKET_NAME = re.compile(r"([0-9]{10})\.txt")

KITTI_DRIVES = Naming(
    re.compile(r"([0-9]{4}_[0-9]{2}_[0-9]{2})/\1_drive_[0-9]{4,10}_sync"),
    "<date>/<drive>",
    "2011_09_26/2011_09_26_drive_0013_sync 95 l",
    published=(
        # The left image is the first word, others (right image, depth, focal length) follow.
        re.compile(
            r"/?(?P<drive>([0-9]{4}_[0-9]{2}_[0-9]{2})/\2_drive_[0-9]{4,10}_sync)/image_(?P<side>0[23])/data/"
            r"(?P<frame>[0-9]{1,10})\.(?:png|jpe?g)(?:\s.*)?",
            re.IGNORECASE,
        ),
        re.compile(
            r"(?P<drive>(?P<date>[0-9]{4}_[0-9]{2}_[0-9]{2})_drive_[0-9]{4,10}_sync)_(?P<side>0[23])\s+"
            r"(?P<frame>[0-9]{1,10})"
        ),
    ),
)


class KittiFiles:
    """The files below a root folder `<root>/<date>/<drive>/...`."""

    def __init__(self, root: str | Path) -> None:
        """Raises InputError where `root` is no folder."""
        if not str(root) or not os.path.isdir(root):
            raise InputError(
                f"data.root: {str(root)!r} is no folder; set it to the one that holds the days of KITTI raw"
            )
        self.root = Path(root)
        self.listings: dict[str, dict[int, str]] = {}  # {folder below the root: {frame: path}}

    def drives(self) -> list[str]:
        """Names `<date>/<drive>` of the drives on disk, sorted; InputError where there are none."""
        folders = self.root.glob("*_*_*/*_drive_*_sync")
        drives = sorted(folder.relative_to(self.root).as_posix() for folder in folders)
        drives = [drive for drive in drives if KITTI_DRIVES.pattern.fullmatch(drive)]
        if not drives:
            raise InputError(
                f"{self.root}: no KITTI raw drives here; expected <date>/<date>_drive_XXXX_sync, "
                "as in 2011_09_26/2011_09_26_drive_0001_sync"
            )
        return drives

    def image_frames(self, drive: str, side: str) -> list[int]:
        """The frames of which a camera ("l" or "r") has an image, in order."""
        return list(self.listing(f"{drive}/image_{CAMERAS[side]}/data", IMAGE_NAME))

    def image(self, drive: str, side: str, frame: int) -> str | None:
        """The path of a camera's image at a frame, if it is there; the png where there is a jpg too."""
        return self.listing(f"{drive}/image_{CAMERAS[side]}/data", IMAGE_NAME).get(frame)

    def scan(self, drive: str, frame: int) -> str | None:
        """The path of the laser scan at a frame, if it is there."""
        return self.listing(f"{drive}/velodyne_points/data", SCAN_NAME).get(frame)

    def packets(self, drive: str) -> dict[int, str]:
        """The paths of the inertial measurements, by frame."""
        return self.listing(f"{drive}/oxts/data", PACKET_NAME)

    def depth_image(self, drive: str, side: str, frame: int) -> str | None:
        """The path of the improved ground truth at a frame, if it is there.

        It lies below the drive, or in the `train` and `val` folders of KITTI's own archive.
        """
        name = drive.split("/")[1]
        for place in (drive, f"train/{name}", f"val/{name}"):
            folder = f"{place}/proj_depth/groundtruth/image_{CAMERAS[side]}"
            path = self.listing(folder, DEPTH_NAME).get(frame)
            if path is not None:
                return path
        return None

    def moving_mask(self, drive: str, side: str, frame: int) -> str | None:
        """The path of the mask of moving things at a frame, which only the synthetic street has."""
        return self.listing(f"{drive}/moving_{CAMERAS[side]}/data", DEPTH_NAME).get(frame)

    def listing(self, folder: str, pattern: re.Pattern[str]) -> dict[int, str]:
        """The files in `folder` whose names match `pattern`, by the frame number that is its first group, in order."""
        if folder not in self.listings:
            form = RAW_IMAGE_FORM if pattern is IMAGE_NAME else ""
            self.listings[folder] = list_frames(self.root / folder, pattern, form)
        return self.listings[folder]
