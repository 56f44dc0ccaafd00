"""The dependency rules of docs/architecture.md, as facts of the import graph."""

from __future__ import annotations

import re

import pytest
from house import (
    REPOSITORY,
    SCRIPTS,
    circles,
    graph,
    imports_at_run_time,
    lines,
    loaded_by,
    modules,
    names_with_several_meanings,
    outside_the_rule,
)

ROWS = [
    {"errors", "files", "console", "kinds", "config", "scale"},
    {"geometry", "losses", "alignment", "two_view", "metrics"},
    {"cameras", "data", "models", "objective", "odometry", "drawing"},
    {"parallel", "training"},
    {"evaluation"},
    {"depth", "predict", "doctor", "export", "prepare_video", "prepare_stereo", "prepare_euroc", "prior"}
    | {"import_weights", "score_trajectory", *SCRIPTS},
]
NEVER = {  # what the mathematics, the data and the networks know nothing of, though it stands no higher
    "geometry": {"losses", "metrics", "two_view"},
    "losses": {"metrics", "two_view"},
    "data": {"models", "objective"},
    "cameras": {"models", "objective", "odometry"},
}
MOST_MODULES, MOST_LINES = 50, 7200  # that `import train` may load


def wing_of(name: str) -> str:
    """`data` of `featdepth.data.kitti.raw`, `errors` of `featdepth.errors`, `train` of `train`."""
    return name.removeprefix("featdepth.").split(".")[0]


def row_of(wing: str) -> int:
    return next(row for row, wings in enumerate(ROWS) if wing in wings)


def edges() -> set[tuple[str, str]]:
    """Pairs of wings, of which the first imports something of the second, inside functions and for types too."""
    pairs = {(wing_of(name), wing_of(other)) for name, others in graph(lazy=True).items() for other in others}
    return {(wing, other) for wing, other in pairs if wing != other and "featdepth" not in (wing, other)}


def test_every_wing_has_its_row() -> None:
    assert {wing_of(name) for name in modules()} - {"featdepth"} == set().union(*ROWS)


def test_nothing_is_imported_from_above() -> None:
    assert [f"{wing} imports {other}" for wing, other in sorted(edges()) if row_of(wing) < row_of(other)] == []


def test_mathematics_data_and_networks_keep_to_themselves() -> None:
    assert [f"{wing} imports {other}" for wing, other in sorted(edges()) if other in NEVER.get(wing, ())] == []


def test_no_module_imports_a_script() -> None:
    assert [name for name, others in graph(lazy=True).items() if others & set(SCRIPTS)] == []


@pytest.mark.parametrize("lazy", [False, True])
def test_there_are_no_circles(lazy: bool) -> None:
    assert circles(graph(lazy=lazy)) == []


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == [["b", "c"]]


def test_accelerate_is_known_only_where_it_may_be() -> None:
    assert outside_the_rule() == []


def test_every_file_class_and_imported_constant_has_a_name_of_its_own() -> None:
    assert names_with_several_meanings() == ([], [], [])


def test_training_loads_little() -> None:
    loaded, files = loaded_by("train"), modules()
    assert "featdepth.objective" in loaded
    assert len(loaded) <= MOST_MODULES
    assert sum(lines(files[name]) for name in loaded) <= MOST_LINES


def test_extras_are_imported_where_they_are_used() -> None:
    extras = {"transformers", "timm", "av", "cv2", "onnx", "onnxruntime", "onnxscript", "matplotlib", "scipy", "h5py"}
    found = {
        name: {each.split(".")[0] for each in imports_at_run_time(path)} & extras for name, path in modules().items()
    }
    assert {name: names for name, names in found.items() if names} == {}


def test_the_architecture_names_every_wing() -> None:
    text = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| (\d) \| (.+?) \|", text, re.M)
    assert [set(re.findall(r"`(\w+?)(?:\.py|/)?`", wings)) for _, wings in table] == ROWS


def test_the_reading_order_says_how_long_it_is() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[^|]+`) \| (\d+) \|", text.partition("| read | lines |")[2], re.M)
    found, total = {}, 0
    for names, said in rows:
        folder, length = REPOSITORY, 0
        for name in re.findall(r"`(.+?)`", names):
            path = REPOSITORY / name if (REPOSITORY / name).is_file() else folder / name
            folder, length = path.parent, length + lines(path)
        found[names] = (int(said), length)
        total += length
    assert len(rows) == 6
    assert {names: pair for names, pair in found.items() if abs(pair[0] - pair[1]) > 0.1 * pair[1]} == {}
    assert abs(int(re.search(r"in this order \(([\d,]+) lines", text)[1].replace(",", "")) - total) < 0.05 * total
