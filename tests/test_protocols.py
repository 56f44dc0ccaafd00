"""Each data set is scored as the field scores it, unless the configuration says otherwise; and the table says how."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import call_program, succeeded

import evaluate
from featdepth.config import Config, Data, Evaluate, load_config
from featdepth.errors import InputError
from featdepth.kinds import CITYSCAPES_CUT, KINDS, Protocol, describe_protocol, protocol_of

CONFIGS = Path(__file__).parents[1] / "configs"
FIELD = {
    ("kitti_raw", "eigen"): Protocol("garg", 80.0, 80.0),
    ("kitti_raw", "eigen_improved"): Protocol("none", None, 80.0),
    ("kitti_odometry", "own"): Protocol("none", 80.0, 80.0),
    ("cityscapes", "own"): Protocol("cityscapes", 80.0, 80.0),
    ("euroc", "own"): Protocol("none", 20.0, 20.0),
    ("eth3d", "own"): Protocol("none", 80.0, 80.0),
    ("tum_rgbd", "own"): Protocol("none", 10.0, 10.0),
    ("seven_scenes", "own"): Protocol("none", 10.0, 10.0),
    ("make3d", "own"): Protocol("none", 70.0, 70.0),
    ("nyu_depth", "own"): Protocol("nyu", 10.0, 10.0),
    ("video", "own"): Protocol("none", 80.0, 80.0),
}


def config_of(kind: str, protocol: str, **settings: object) -> Config:
    data = Data(kind=kind, crop=CITYSCAPES_CUT if kind == "cityscapes" else [0.0] * 4)
    return Config(data=data, evaluate=Evaluate(protocol=protocol, **settings))


def test_every_protocol_of_every_kind_is_here() -> None:
    assert set(FIELD) == {(kind, protocol) for kind in KINDS for protocol in KINDS[kind].protocols}


@pytest.mark.parametrize(("kind", "protocol"), FIELD)
def test_default_and_override(kind: str, protocol: str) -> None:
    default = protocol_of(config_of(kind, protocol))
    assert default == FIELD[kind, protocol]
    assert protocol_of(config_of(kind, protocol, cap=50.0)) == Protocol(default.crop, 50.0, 50.0)
    assert protocol_of(config_of(kind, protocol, crop="none")) == default._replace(crop="none")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configurations_use_the_defaults(path: Path) -> None:
    config = load_config(path, check_files=False)
    assert config.evaluate.crop is None and config.evaluate.cap is None
    assert protocol_of(config) == FIELD[config.data.kind, config.evaluate.protocol]


def test_the_crop_of_cityscapes_goes_with_its_cut() -> None:
    config = config_of("cityscapes", "own")
    config.data.crop = [0.0] * 4
    assert protocol_of(config).crop == "none"
    path = CONFIGS / "cityscapes.yaml"
    with pytest.raises(InputError, match=r"evaluate\.crop is cityscapes, which is made for data\.crop \[0\.0, 0\.25"):
        load_config(path, ["data.crop=[0,0,0,0]", "evaluate.crop=cityscapes"], check_files=False)


def test_words() -> None:
    assert describe_protocol(FIELD["kitti_raw", "eigen"]._asdict()) == "crop garg, cap 80 m"
    improved = describe_protocol(FIELD["kitti_raw", "eigen_improved"]._asdict())
    assert improved == "crop none, no cap of the truth, predictions up to 80 m"
    assert describe_protocol({"crop": "none", "cap": 10.0}) == "crop none, cap 10 m"


def test_the_table_and_the_files_say_it(config_file: Path, finished_run: Path, tmp_path: Path) -> None:
    arguments = [
        "--config",
        config_file,
        "--checkpoint",
        finished_run / "model",
        "--out",
        tmp_path,
        "evaluate.crop=null",
    ]
    assert "protocol eigen, crop garg, cap 80 m" in succeeded(call_program(evaluate.main, *arguments)).out
    improved = succeeded(call_program(evaluate.main, *arguments, "evaluate.protocol=eigen_improved")).out
    words = "protocol eigen_improved, crop none, no cap of the truth, predictions up to 80 m"
    assert words in improved and words in (tmp_path / "card.md").read_text()
