"""The shipped configurations against the hyper-parameters of the published ones; where they differ, it is said here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from featdepth.config import Config, load_config

CONFIGS = Path(__file__).parents[1] / "configs"
STEREO_AND_VIDEO = [0, -1, 1, "s"]

COMMON = {
    "optimizer.lr": 1e-4,
    "optimizer.weight_decay": 0.0,
    "optimizer.clip_norm": 35.0,
    "schedule.warmup_steps": 500,
    "schedule.warmup_ratio": 0.3333,
    "schedule.gamma": 0.5,
}
AUTOENCODER = (
    COMMON
    | {  # networks, range of depths, automask and normalisation of the files have no use in this objective
        "model.objective": "autoencoder",
        "model.feature_layers": 50,
        "data.frames": [0],
        "loss.discriminative": 1e-3,
        "loss.convergent": 1e-3,
        "schedule.milestones": [10, 20],
        "train.epochs": 30,
    }
)
FEATURE_METRIC = COMMON | {
    "model.objective": "feature_metric",
    "model.depth_layers": 50,
    "model.pose_layers": 18,
    "model.init": None,
    "model.min_depth": 0.1,
    "model.max_depth": 100.0,
    "data.frames": STEREO_AND_VIDEO,
    "loss.automask": False,
    "loss.normalise_disparity": False,
    "loss.feature_metric": 1e-3,
    "loss.smoothness": 1e-3,
    "schedule.milestones": [20, 30],
    "train.epochs": 40,
    "train.batch_size": 2,
}


def size(height: int, width: int) -> dict[str, object]:
    return {"data.height": height, "data.width": width}


PUBLISHED = {  # by the shipped file's name
    "kitti_autoencoder": AUTOENCODER | size(256, 800) | {"train.batch_size": 5},
    "euroc_autoencoder": AUTOENCODER | size(480, 768) | {"train.batch_size": 3},
    "kitti": FEATURE_METRIC | size(320, 1024),
    "kitti_joint": FEATURE_METRIC
    | size(192, 640)
    | {"model.objective": "joint", "loss.discriminative": 1e-3, "loss.convergent": 1e-3},
    # From epoch 40 of a trained model to 60, halved at 50.
    "kitti_refine": FEATURE_METRIC
    | size(320, 1024)
    | {"train.epochs": 20, "schedule.milestones": [10], "model.init": "runs/kitti/model"},
    "kitti_odometry_feature_metric": FEATURE_METRIC
    | size(320, 1024)
    | {"data.frames": [0, 1, -1, "s"], "schedule.milestones": [25, 30]},
    "euroc": FEATURE_METRIC | size(480, 768) | {"model.max_depth": 50.0, "train.epochs": 80},
    "eth3d": FEATURE_METRIC | size(448, 736) | {"loss.feature_metric": 0.0},
}
DIFFERENCES = {
    "eth3d": {
        "data.frames": [0, -1, 1],  # the rig has no stereo pair
        "loss.automask": True,  # which replaces what the stereo frame does for standing cameras
        "loss.normalise_disparity": True,  # nothing but this keeps a scale that is unknown from shrinking
        "model.objective": "photometric",  # which is what a feature loss of weight 0 is
        "loss.feature_metric": 1e-3,  # the default, which has no use there
    },
}
NOT_PUBLISHED = {"cityscapes", "demo", "kitti_mono", "kitti_odometry", "seven_scenes", "tum_rgbd", "video"}
NOT_SHIPPED = {"make3d_fm", "eth3d_autoencoder"}  # no such data here; no use without a feature loss


def shipped(name: str) -> Config:
    return load_config(CONFIGS / f"{name}.yaml", check_files=False)


def value_of(config: Config, key: str) -> object:
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


def comment_of(name: str) -> str:
    lines = (CONFIGS / f"{name}.yaml").read_text().splitlines()
    return " ".join(line.removeprefix("# ") for line in lines if line.startswith("# "))


def test_every_shipped_configuration_is_here() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(PUBLISHED) | NOT_PUBLISHED


@pytest.mark.parametrize("name", PUBLISHED)
def test_as_published(name: str) -> None:
    config, expected = shipped(name), PUBLISHED[name] | DIFFERENCES.get(name, {})
    assert {key: value_of(config, key) for key in expected} == expected


@pytest.mark.parametrize("name", sorted(NOT_PUBLISHED | set(DIFFERENCES)))
def test_others_do_not_say_that_they_are(name: str) -> None:
    comment = comment_of(name)
    assert "FeatDepth" not in comment
    assert "published" not in comment or re.search(r"Not (a|the) published configuration", comment)


def test_features_for_odometry_do_not_come_from_eigens_drives() -> None:
    """Those have sequences 09 and 10, which the odometry is scored on."""
    assert shipped("kitti_odometry_feature_metric").model.feature_encoder != shipped("kitti").model.feature_encoder
