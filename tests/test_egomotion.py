"""Motions from the pose network, and their chain."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import HEIGHT, WIDTH, tiny_config, tiny_model

from featdepth.data.images import load_image
from featdepth.errors import InputError
from featdepth.geometry import pose_from_vector
from featdepth.models import FeatDepth
from featdepth.odometry.egomotion import chain_motions, predict_motions


@pytest.fixture(scope="module")
def model() -> FeatDepth:
    """A pose network whose motions depend on what it sees, and that sees another size than the depth network."""
    model = tiny_model(tiny_config("photometric", pose_size=[32, 64]), seed=3).eval()
    with torch.no_grad():
        model.pose_decoder.conv3.weight.mul_(50)
    return model


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [
        np.kron(random.integers(0, 256, (7, 9, 3), dtype=np.uint8), np.ones((16, 16, 1), np.uint8)) for _ in range(6)
    ]


class TestMotions:
    def test_each_is_that_of_the_pose_network_in_metres(self, model: FeatDepth, frames: list[np.ndarray]) -> None:
        """At the size of training, as images are loaded for it, then resized to `pose_size` by the model itself."""
        motions = predict_motions(model, frames)
        assert motions.shape == (5, 4, 4) and motions.dtype == np.float64
        assert np.ptp(motions[:, :3, 3], axis=0).max() > 1e-4
        assert model.settings.metres_per_unit == 5.4
        for motion, earlier, later in zip(motions, frames, frames[1:], strict=False):
            pair = (resized(frame) for frame in (earlier, later))
            with torch.no_grad():
                expected = model.motion(*pair)[0].double().numpy()
            assert np.allclose(motion[:3, :3], expected[:3, :3], atol=1e-6)
            assert np.allclose(motion[:3, 3], 5.4 * expected[:3, 3], atol=1e-6)

    def test_it_sees_what_training_loads(self, model: FeatDepth, frames: list[np.ndarray], tmp_path) -> None:
        for number, frame in enumerate(frames[:2]):
            Image.fromarray(frame).save(tmp_path / f"{number}.png")
        loaded = [load_image(tmp_path / f"{number}.png", (HEIGHT, WIDTH)) for number in range(2)]
        assert np.allclose(predict_motions(model, frames[:2]), predict_motions(model, loaded), atol=1e-7)

    def test_batches_and_types_make_no_difference(self, model: FeatDepth, frames: list[np.ndarray]) -> None:
        motions = predict_motions(model, frames)
        for size in (1, 2, 5):
            assert np.allclose(predict_motions(model, iter(frames), size), motions, atol=1e-6)
        floats = [torch.from_numpy(frame).permute(2, 0, 1) / 255 for frame in frames]
        assert np.allclose(predict_motions(model, floats), motions, atol=1e-3)  # uint8 is rounded when it is resized

    def test_few_frames_are_taken_at_a_time(self, model: FeatDepth, frames: list[np.ndarray]) -> None:
        """A video is never held as a whole: the second batch is asked for when the first is done."""
        taken = []
        stopped = RuntimeError("enough")

        def stream():
            for frame in frames:
                if len(taken) == 4:
                    raise stopped
                taken.append(frame)
                yield frame

        calls = []
        motion = model.motion
        model.motion = lambda earlier, later: calls.append(len(earlier)) or motion(earlier, later)
        try:
            with pytest.raises(RuntimeError, match="enough"):
                predict_motions(model, stream(), batch_size=2)
        finally:
            del model.motion
        assert calls == [2]

    @pytest.mark.parametrize("count", [0, 1])
    def test_without_a_neighbour_there_is_no_motion(self, model: FeatDepth, frames: list[np.ndarray], count) -> None:
        assert predict_motions(model, frames[:count]).shape == (0, 4, 4)

    def test_a_model_without_scale_keeps_its_unit(self, frames: list[np.ndarray]) -> None:
        scaled = tiny_model(tiny_config("photometric", [0, -1, 1]), seed=3).eval()
        unit = tiny_model(tiny_config("photometric", [0, -1, 1], metres_per_unit=None), seed=3).eval()
        ratio = predict_motions(scaled, frames)[:, :3, 3] / predict_motions(unit, frames)[:, :3, 3]
        assert np.allclose(ratio, 5.4, rtol=1e-4)

    def test_a_model_without_pose_network_is_refused(self, frames: list[np.ndarray]) -> None:
        stereo = tiny_model(tiny_config("photometric", [0, "s"]))
        with pytest.raises(InputError, match=r"no pose network.*data.frames \[0, 's'\]"):
            predict_motions(stereo, frames)

    @pytest.mark.parametrize(
        ("frame", "found"),
        [
            (np.zeros((4, 6), np.uint8), r"uint8 \[4, 6\]"),
            (np.zeros((4, 6, 4), np.uint8), r"uint8 \[4, 6, 4\]"),
            (np.zeros((4, 6, 3), np.float32), r"float32 \[4, 6, 3\]"),
            (torch.zeros(1, 3, 4, 6), r"torch.float32 \[1, 3, 4, 6\]"),
            (torch.zeros(3, 4, 6, dtype=torch.int64), r"torch.int64"),
            ("0001.png", "not str"),
        ],
        ids=["grey", "RGBA", "float array", "batch", "integers", "name"],
    )
    def test_what_is_no_frame_is_refused(self, model: FeatDepth, frame: object, found: str) -> None:
        with pytest.raises(ValueError, match=found):
            predict_motions(model, [frame])


def resized(frame: np.ndarray) -> torch.Tensor:
    image = torch.from_numpy(frame).permute(2, 0, 1)[None]
    image = torch.nn.functional.interpolate(image, (HEIGHT, WIDTH), mode="bilinear", antialias=True)
    return image.float() / 255


class TestChain:
    def test_it_inverts_how_motions_are_made_of_poses(self) -> None:
        random = torch.Generator().manual_seed(0)
        steps = pose_from_vector(*torch.randn(2, 20, 3, generator=random, dtype=torch.float64)).numpy()
        poses = [np.eye(4)]
        for earlier_from_later in steps:
            poses.append(poses[-1] @ earlier_from_later)
        later_from_earlier = [np.linalg.inv(later) @ earlier for earlier, later in pairwise(poses)]
        assert np.allclose(chain_motions(later_from_earlier), poses, atol=1e-10)

    def test_points_that_come_nearer_are_a_way_ahead(self) -> None:
        """A motion of -1 m along z brings every point 1 m nearer: the camera goes ahead."""
        motion = np.eye(4)
        motion[2, 3] = -1.0
        assert chain_motions(np.stack([motion] * 3))[:, 2, 3].tolist() == [0, 1, 2, 3]

    def test_rounding_does_not_add_up(self) -> None:
        """Ten thousand float32 rotations in a row are still rotations."""
        axis = torch.tensor([[0.01, 0.02, -0.005]]).expand(10_000, 3)
        poses = chain_motions(pose_from_vector(axis, axis).numpy())
        products = poses[:, :3, :3] @ poses[:, :3, :3].transpose(0, 2, 1)
        assert abs(products - np.eye(3)).max() < 1e-10

    def test_no_motion_is_one_pose(self) -> None:
        assert np.array_equal(chain_motions(np.empty((0, 4, 4))), np.eye(4)[None])
