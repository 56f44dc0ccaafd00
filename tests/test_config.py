"""The configuration: what is read, what is refused and how, and that the files in configs/ are right."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from featdepth.config import Config, from_dict, load_config, parse_arguments, save_config, to_dict
from featdepth.config.checks import check_config
from featdepth.errors import InputError
from featdepth.kinds import KINDS

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted((ROOT / "configs").glob("*.yaml"))
LAUNCHES = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))


def write(folder: Path, text: str = "", objective: str = "photometric") -> Path:
    """A valid configuration with `text` below it."""
    path = folder / "x.yaml"
    path.write_text(f"model: {{objective: {objective}}}\n{text}\n", encoding="utf-8")
    return path


def refused(path: Path | str, *overrides: str, check_files: bool = False) -> str:
    """The message, which is one line, of a configuration that is refused."""
    with pytest.raises(InputError) as error:
        load_config(path, overrides, check_files=check_files)
    message = str(error.value)
    assert message.isprintable()
    return message


def test_absent_keys_keep_their_defaults(tmp_path: Path) -> None:
    config = load_config(write(tmp_path), check_files=False)
    assert config.data.frames == [0, -1, 1, "s"]
    assert config.model.metres_per_unit == 36.0
    assert config.optimizer.lr == 1e-4
    assert config.train.max_steps is None
    assert config.run.directory == "runs/run"


def test_overrides_come_after_the_file_in_order(tmp_path: Path) -> None:
    path = write(tmp_path, "train: {batch_size: 3, epochs: 5}")
    overrides = ["train.batch_size=4", "data.frames=[0,-1,s]", "train.batch_size=6", "data.root=a=b=c"]
    config = load_config(path, overrides, check_files=False)
    assert (config.train.batch_size, config.train.epochs) == (6, 5)
    assert config.data.frames == [0, -1, "s"]
    assert config.data.root == "a=b=c"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimizer.lr=1e-4", 1e-4),
        ("optimizer.lr=2E+0", 2.0),
        ("optimizer.lr=1", 1.0),
        ("optimizer.clip_norm=null", None),
        ("optimizer.clip_norm=", None),
        ("train.max_steps=0", 0),
        ("loss.automask=yes", True),
        ("loss.automask=off", False),
        ("model.pretrained=no", False),
        ("model.pretrained=weights.pth", "weights.pth"),
        ("model.pose_size=null", None),
        ("run.name=no", "no"),
        ("run.name=2011_09_26", "2011_09_26"),
        ('run.name="5"', "5"),
        ("data.frames=[0, s]", [0, "s"]),
        ("run.trackers=[tensorboard]", ["tensorboard"]),
    ],
)
def test_values_mean_what_people_mean(tmp_path: Path, override: str, expected: object) -> None:
    config = load_config(write(tmp_path), [override], check_files=False)
    section, key = override.partition("=")[0].split(".")
    value = getattr(getattr(config, section), key)
    assert value == expected
    assert type(value) is type(expected)


def test_run_directory_follows_the_name(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert load_config(path, ["run.name=night"], check_files=False).run.directory == "runs/night"
    assert load_config(path, ["run.directory=/x"], check_files=False).run.directory == "/x"


def test_home_directory_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert load_config(write(tmp_path), ["data.root=~/kitti"], check_files=False).data.root == "/home/me/kitti"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {heigth: 64}", "unknown key 'data.heigth'; did you mean 'data.height'?"),
        ("data: {batch_size: 64}", "unknown key 'data.batch_size'; did you mean 'train.batch_size'?"),
        ("lr: 1", "unknown key 'lr'; did you mean 'optimizer.lr'?"),
        ("Data: {height: 64}", "unknown key 'Data'; did you mean 'data'?"),
        ("data: {zzzzzz: 64}", "unknown key 'data.zzzzzz'; there are data.kind, data.root"),
        ("data: {height: tall}", "data.height is tall, expected a whole number"),
        ("data: {height: 64.0}", "data.height is 64.0, expected a whole number"),
        ("data: {height: true}", "data.height is true, expected a whole number"),
        ("data: {height: }", "data.height is null, expected a whole number"),
        ("data: {frames: 0}", "data.frames is 0, expected a list, each a whole number or text; write [0]"),
        ("data: {frames: [0, 1.5]}", "data.frames is [0, 1.5], expected a list, each a whole number or text"),
        ("data: {flip: .nan}", "data.flip is .nan, expected a number, finite"),
        ("optimizer: {lr: .inf}", "optimizer.lr is .inf, expected a number, finite"),
        ("optimizer: {lr: fast}", "optimizer.lr is fast, expected a number"),
        ("loss: {automask: 1}", "loss.automask is 1, expected true or false"),
        ("run: {name: 5}", 'run.name is 5, expected text; put it in quotes: "5"'),
        ("data: {val_files: no}", "data.val_files is no, expected text or null; write null for none"),
        ("data: {height: {a: &b [*b]}}", "line 2: not valid YAML: an alias; write the value out"),
        ("data: [1]", "'data' is a section of keys, found [1]"),
        ("model: {}", "line 2: not valid YAML: 'model' is given twice"),
        ("data:\n  height: 64\n  height: 96", "line 4: not valid YAML: 'height' is given twice"),
        ("data:\n\theight: 64", "line 3: not valid YAML"),
        ("data: !!python/object:os.system {}", "line 2: not valid YAML: could not determine a constructor"),
    ],
)
def test_wrong_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    assert f"{path}: {message}" in refused(path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.heigth=64", "unknown key 'data.heigth'; did you mean 'data.height'?"),
        ("data=64", "'data' is a section, set one of its keys: data.kind"),
        ("data.height", "'data.height' is not of the form section.key=value"),
        ("data.height=tall", "data.height is tall, expected a whole number"),
        ("data.frames=[0,", "data.frames: line 1: not valid YAML"),
        (
            "data.crop=0.25",
            "data.crop is 0.25, expected a list, each a number; write four parts, as in [0.25, 0.0, 0.0, 0.0]",
        ),
        (
            "model.pose_size=192",
            "model.pose_size is 192, expected a list, each a whole number or null; write two sides, as in [192, 640]",
        ),
        ("data.height=100", "data.height has 100 pixels, it must be a multiple of 32: 96 or 128"),
    ],
)
def test_wrong_override_is_refused_as_the_command_line(tmp_path: Path, override: str, message: str) -> None:
    assert refused(write(tmp_path), override).startswith(f"command line: {message}")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.objective=photometrc"], "model.objective is photometrc, expected one of .*did you mean photometric"),
        (["model.objective=feature_metric"], "needs model.feature_encoder"),
        (["model.feature_encoder=x"], "model.feature_encoder has no use in model.objective photometric"),
        (["model.depth_layers=20"], "model.depth_layers is 20, expected one of 18, 34, 50, 101"),
        (["model.min_depth=100"], "model.min_depth is 100.0, it must be below model.max_depth"),
        (["model.min_depth=0"], "model.min_depth is 0.0, it must be above 0"),
        (["model.metres_per_unit=0"], "model.metres_per_unit is 0.0, it must be above 0"),
        (["model.metres_per_unit=null"], "model.metres_per_unit is null, but the stereo frame s"),
        (["model.dropout=1"], "model.dropout is 1.0"),
        (["model.pose_size=[192]"], "model.pose_size is .192., expected .height, width. or null"),
        (["model.pose_size=[192, 100]"], "model.pose_size has 100 pixels, it must be a multiple of 32: 96 or 128"),
        (["data.width=0"], "data.width has 0 pixels, .* at least 64"),
        (["data.height=32"], "data.height has 32 pixels, .* at least 64"),
        (["data.frames=[1, 0]"], "data.frames is .1, 0., it must start with the target frame 0"),
        (["data.frames=[0, 1, 1]"], "a frame is given twice"),
        (["data.frames=[0, x]"], "'x' is no frame"),
        (["data.frames=[0]"], "data.frames is .0., model.objective photometric needs a source"),
        (["data.frames=[]"], "it must start with the target frame 0"),
        (["data.kind=kitty_raw"], "did you mean kitti_raw"),
        (["data.intrinsics=mine"], "expected one of calibration, fixed"),
        (["data.flip=1.5"], "data.flip is 1.5, a probability lies between 0 and 1"),
        (["data.workers=-1"], "data.workers is -1, it must not be negative"),
        (["data.cache=''"], "data.cache is empty; write null for no cache"),
        (["data.cache_gb=10"], "data.cache_gb is set without data.cache"),
        (["data.cache=x", "data.cache_gb=0"], "data.cache_gb is 0.0, it must be above 0"),
        (["loss.smoothness=-1"], "loss.smoothness is -1.0, it must not be negative"),
        (["optimizer.lr=0"], "optimizer.lr is 0.0, it must be above 0"),
        (["schedule.warmup_ratio=0"], "schedule.warmup_ratio is 0.0"),
        (["schedule.milestones=[30, 20]"], "schedule.milestones is .30, 20., epochs must be above 0 and increase"),
        (["train.batch_size=0"], "train.batch_size is 0, it must be above 0"),
        (["train.max_steps=-1"], "train.max_steps is -1, it must not be negative"),
        (["train.seed=4294967296"], "train.seed is 4294967296, it must be below"),
        (["evaluate.protocol=eigen_imroved"], "did you mean eigen_improved"),
        (["evaluate.cap=0"], "evaluate.cap is 0.0, it must be above 0"),
        (["run.name=a/b"], "run.name is a/b, it must be a plain file name"),
        (["run.name=.."], "run.name is .., it must be a plain file name"),
        (["run.trackers=[tensorbord]"], "run.trackers has tensorbord, .* did you mean tensorboard"),
    ],
)
def test_impossible_combinations_are_refused(tmp_path: Path, overrides: list[str], message: str) -> None:
    assert re.search(message, refused(write(tmp_path), *overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.objective=autoencoder", "data.frames=[0]"],
        ["model.objective=joint", "model.feature_encoder=x"],
        ["model.objective=feature_metric", "model.feature_encoder=x"],
        ["data.frames=[0, -1, 1]", "model.metres_per_unit=null"],
        ["data.frames=[0, s]"],
        ["schedule.milestones=[]"],
    ],
)
def test_possible_combinations_are_accepted(tmp_path: Path, overrides: list[str]) -> None:
    loaded = to_dict(load_config(write(tmp_path), overrides, check_files=False))
    for override in overrides:
        name, _, value = override.partition("=")
        section, key = name.split(".")
        assert loaded[section][key] == yaml.safe_load(value)


def test_aliases_are_refused_before_they_grow(tmp_path: Path) -> None:
    bomb = "data:\n  frames: [&a [x, x], &b [*a, *a], [*b, *b]]"
    assert re.search("line 3: not valid YAML: an alias", refused(write(tmp_path, bomb)))


def test_stereo_frame_is_refused_without_second_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "kitti_raw", KINDS["kitti_raw"]._replace(has_stereo=False))
    config = from_dict({"model": {"objective": "photometric"}}, "x")
    with pytest.raises(InputError, match=r"data.frames is .* but data.kind kitti_raw has one camera; leave out s"):
        check_config(config, "x", check_files=False)


def test_missing_files_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, f"data: {{root: {tmp_path}}}")
    load_config(path)
    assert "data.root is not set" in refused(path, "data.root=''", check_files=True)
    for override in ("data.root=nowhere", "data.split=eigne", "data.train_files=none.txt", "model.init=nowhere"):
        key, _, value = override.partition("=")
        assert refused(path, override, check_files=True).startswith(f"command line: {key} is {value}")
    assert "no such file" in refused(path, "model.pretrained=weights.pth", check_files=True)


def test_evaluation_does_without_what_only_training_needs(tmp_path: Path) -> None:
    path = write(tmp_path, f"data: {{root: {tmp_path}}}", objective="feature_metric, feature_encoder: nowhere")
    assert "model.feature_encoder is nowhere: no such folder; train stage 1 first" in refused(path, check_files=True)
    load_config(path, training=False)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.yaml") == f"{tmp_path / 'none.yaml'}: no such configuration file"
    assert refused(tmp_path).endswith("cannot read the configuration: Is a directory")
    path = tmp_path / "x.yaml"
    for content in (b"", b"- a", b"\xff\xfe\x00", b"a\x00", b"[" * 5000, b"a: 1\n---\nb: 1", b"9" * 5000):
        path.write_bytes(content)
        assert refused(path).startswith(f"{path}: ")


def test_saved_configuration_reads_back(tmp_path: Path) -> None:
    overrides = [
        "run.name=1e-4_no",
        "run.name='1e-4'",
        "data.frames=[0, s]",
        "optimizer.lr=1e-9",
        "data.root='a: b # c'",
    ]
    config = load_config(write(tmp_path), overrides, check_files=False)
    saved = tmp_path / "config.yaml"
    save_config(config, saved, "torch 2.11\n\ncommit abc")
    assert saved.read_text().startswith("# torch 2.11\n#\n# commit abc\nrun:")
    assert load_config(saved, check_files=False) == config
    assert from_dict(to_dict(config), "config.json") == config
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "x.yaml"]


def test_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = tmp_path / "config.yaml"
    save_config(Config(), saved)
    before = saved.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="No space"):
        save_config(from_dict({"train": {"epochs": 1}}, "x"), saved)
    assert saved.read_bytes() == before
    assert list(tmp_path.iterdir()) == [saved]


def test_command_line_takes_overrides_anywhere() -> None:
    def extra(parser: object) -> None:
        parser.add_argument("--resume", action="store_true")
        parser.add_argument("--checkpoint")

    argv = ["a.b=1", "--config", "x.yaml", "c.d=[0,-1]", "--resume", "e.f=g=h", "--checkpoint", "dir", "i.j=2"]
    arguments = parse_arguments(argv, "test", extra)
    assert (arguments.config, arguments.resume, arguments.checkpoint) == ("x.yaml", True, "dir")
    assert arguments.overrides == ["a.b=1", "c.d=[0,-1]", "e.f=g=h", "i.j=2"]


@pytest.mark.parametrize("argv", [[], ["x.yaml"], ["--config", "x", "--resum"], ["--conf", "x"], ["--config"]])
def test_wrong_usage_is_refused(argv: list[str]) -> None:
    with pytest.raises(InputError, match=r"^command line: .*\(see --help\)$"):
        parse_arguments(argv, "test")


def test_configuration_needs_no_torch() -> None:
    code = "import sys, featdepth.config; sys.exit('torch' in sys.modules or 'accelerate' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiments_are_valid(path: Path) -> None:
    config = load_config(path, check_files=False)
    assert config.run.name == path.stem
    assert path.read_text().startswith("# ")
    assert f"--config configs/{path.name}" in path.read_text()


def test_published_hyper_parameters() -> None:
    for name in ("kitti", "kitti_mono", "kitti_joint", "kitti_autoencoder"):
        config = load_config(ROOT / "configs" / f"{name}.yaml", check_files=False)
        stage1 = name == "kitti_autoencoder"
        assert (config.optimizer.lr, config.optimizer.clip_norm, config.schedule.gamma) == (1e-4, 35.0, 0.5)
        assert config.schedule.warmup_steps == 500
        assert config.schedule.warmup_ratio == pytest.approx(1 / 3, abs=1e-3)
        assert (config.train.epochs, config.schedule.milestones) == ((30, [10, 20]) if stage1 else (40, [20, 30]))
        assert (config.model.depth_layers, config.model.pose_layers, config.model.feature_layers) == (50, 18, 50)
        sizes = {"kitti_autoencoder": (256, 800), "kitti_joint": (192, 640)}
        assert (config.data.height, config.data.width) == sizes.get(name, (320, 1024))
        assert config.loss.automask == config.loss.normalise_disparity == (name == "kitti_mono")


@pytest.mark.parametrize("path", LAUNCHES, ids=lambda path: path.stem)
def test_launch_files_are_known_to_accelerate(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    assert path.read_text().startswith("# ")
    assert load_config_from_file(str(path)).num_processes == yaml.safe_load(path.read_text())["num_processes"]


def test_requirements_are_the_seven_core_packages() -> None:
    lines = (ROOT / "requirements.txt").read_text().split()
    names = {line.partition(">=")[0] for line in lines}
    assert names == {"torch", "torchvision", "accelerate", "numpy", "pillow", "tqdm", "pyyaml"}
    assert all(">=" in line for line in lines)


def test_makefile_and_project_agree() -> None:
    project, makefile = (ROOT / "pyproject.toml").read_text(), (ROOT / "Makefile").read_text()
    assert 'dependencies = { file = ["requirements.txt"] }' in project
    extras = re.search(r"^test = \[(.*?)\]$", project, re.MULTILINE | re.DOTALL)[1]
    tools = re.search(r"^TEST_TOOLS = (.*?[^\\])$", makefile, re.MULTILINE | re.DOTALL)[1]
    assert re.findall(r'"(.*?)"', extras) == re.findall(r"'(.*?)'", tools) != []
