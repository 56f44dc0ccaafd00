"""The camera's path through a sequence, from the pose network: motions between neighbouring frames, and their chain."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from featdepth.errors import InputError
from featdepth.geometry import scale_translation
from featdepth.models import FeatDepth
from featdepth.models.inputs import resized
from featdepth.odometry.rotations import nearest_rotations, rotation_angles

LARGEST_BATCH = 8  # pairs of frames


def predict_motions(
    model: FeatDepth, frames: Iterable[np.ndarray | Tensor], batch_size: int = LARGEST_BATCH
) -> np.ndarray:
    """later_from_earlier float64 `[N-1, 4, 4]` between each two neighbours of N `frames`, in their order.

    Translations are in metres where the model's scale is known (`model.scale_source`), else in its own unit.
    frames: RGB, each uint8 `[h, w, 3]` or a tensor `[3, h, w]` (uint8, or float in [0, 1]); they are taken one after
    the other, never more than `batch_size` + 1 at a time, and seen at the size that the model was trained with.
    Raises InputError for a model without a pose network, ValueError for anything that is not a frame.
    """
    check_has_pose(model)
    motions, waiting = [np.empty((0, 4, 4))], []
    for frame in frames:
        waiting.append(seen_frame(model, frame))
        if len(waiting) > batch_size:
            motions.append(motions_between(model, torch.stack(waiting[:-1]), torch.stack(waiting[1:])))
            waiting = waiting[-1:]
    if len(waiting) > 1:
        motions.append(motions_between(model, torch.stack(waiting[:-1]), torch.stack(waiting[1:])))
    return np.concatenate(motions)


def check_has_pose(model: FeatDepth) -> None:
    """Raise InputError where the model has no pose network."""
    if not model.has_motion:
        raise InputError(
            f"the model has no pose network (objective {model.settings.objective}, data.frames {model.frames}); where "
            "intrinsics are known, featdepth.odometry.aligned.align_motions does without"
        )


def seen_frame(model: FeatDepth, frame: np.ndarray | Tensor) -> Tensor:
    """A frame (see `predict_motions`) as the pose network gets it in training: float `[3, H, W]`, on its device."""
    size = (model.height, model.width)
    # As images are loaded for training: as uint8 where they come so.
    image = resized(as_tensor(frame)[None], size)[0]
    image = image.float() if image.is_floating_point() else image.float() / 255
    return image.to(next(model.parameters()).device)


def as_tensor(frame: np.ndarray | Tensor) -> Tensor:
    """A frame (see `predict_motions`) as a tensor `[3, h, w]`. Raises ValueError for anything else."""
    if isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3:
        return torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)
    is_image = isinstance(frame, Tensor) and frame.ndim == 3 and frame.shape[0] == 3
    if is_image and (frame.dtype == torch.uint8 or frame.is_floating_point()):
        return frame
    found = f"{frame.dtype} {list(frame.shape)}" if isinstance(frame, np.ndarray | Tensor) else type(frame).__name__
    raise ValueError(f"a frame should be uint8 [h, w, 3], or a tensor [3, h, w] of uint8 or float, not {found}")


@torch.no_grad()
def motions_between(model: FeatDepth, earlier: Tensor, later: Tensor) -> np.ndarray:
    """later_from_earlier float64 `[B, 4, 4]` of images `[B, 3, H, W]` in [0, 1] of the model's size; `predict_motions`.

    Batch norm is that of the model's mode, which should be evaluation.
    """
    motions = model.motion(earlier, later).float()
    return scale_translation(motions, model.metres).cpu().numpy().astype(np.float64)


def motion_gap(motion: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Degrees between the rotations of two poses 4x4, and the gap of their translations in parts of the reference's."""
    turn = rotation_angles((reference[:3, :3].T @ motion[:3, :3])[None])[0]
    gap, length = np.linalg.norm(motion[:3, 3] - reference[:3, 3]), np.linalg.norm(reference[:3, 3])
    return float(np.degrees(turn)), float(gap / max(length, 1e-12))


def chain_motions(motions: np.ndarray) -> np.ndarray:
    """world_from_camera float64 `[N, 4, 4]` of N frames from the motions later_from_earlier `[N-1, 4, 4]` between them.

    The world is the first camera. Rotations of float32 are repaired first, so that rounding does not add up.
    """
    motions = np.array(motions, dtype=np.float64).reshape(-1, 4, 4)
    motions[:, :3, :3] = nearest_rotations(motions[:, :3, :3])
    poses = [np.eye(4)]
    for earlier_from_later in np.linalg.inv(motions):
        poses.append(poses[-1] @ earlier_from_later)
    return np.stack(poses)
