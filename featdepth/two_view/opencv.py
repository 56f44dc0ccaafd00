"""OpenCV, which the extra `vision` installs: imported where it is used, with one line for who lacks it."""

from __future__ import annotations

import importlib.util
from types import ModuleType

from featdepth.errors import InputError

OLDEST = 5  # the first whose undistortPoints takes as many steps as it is told
INSTALL = f"pip install 'opencv-python-headless>={OLDEST}'"


def has_opencv() -> bool:
    """Whether `opencv` will find it."""
    return importlib.util.find_spec("cv2") is not None


def opencv() -> ModuleType:
    """The module cv2, on one thread. Raises InputError where it is not installed, or too old."""
    try:
        import cv2
    except ImportError as error:
        raise InputError(f"OpenCV is needed for this, and not installed; {INSTALL}") from error
    if int(cv2.__version__.partition(".")[0]) < OLDEST:
        raise InputError(f"OpenCV {cv2.__version__} is too old, {OLDEST} is needed; {INSTALL}")
    cv2.setNumThreads(1)  # loader processes have the other cores
    return cv2
