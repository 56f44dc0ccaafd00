"""Facts of the house, from its import graph and its files, of which a test holds some: `python tests/support/house.py`.

Modules and lines are those of `featdepth/`; lines are all lines of a file, those of comments and docstrings too.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = ("train", "evaluate")
# Who may know of Accelerate: the two scripts, what wraps it, what a training and an evaluation do, and predict's loop.
KNOW_ACCELERATE = ("train", "evaluate", "featdepth.parallel", "featdepth.training", "featdepth.evaluation")
KNOW_ACCELERATE += ("featdepth.predict.__main__", "featdepth.predict.predictor")


def modules() -> dict[str, Path]:
    """Every module of the package, and the two scripts, with its file."""
    found = {}
    for path in sorted(REPOSITORY.glob("featdepth/**/*.py")):
        name = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found | {name: REPOSITORY / f"{name}.py" for name in SCRIPTS}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path, lazy: bool) -> Iterator[str]:
    """Names of what a file imports: at its top level, under TYPE_CHECKING too; lazy: also inside functions."""
    tree = parsed(path)
    top = [node for part in tree.body for node in (ast.walk(part) if isinstance(part, ast.If) else [part])]
    for node in ast.walk(tree) if lazy else top:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def graph(lazy: bool = False, type_checking: bool = True) -> dict[str, set[str]]:
    """Which modules of ours each module names in its imports."""
    files = modules()
    found = {}
    for name, path in files.items():
        names = set(imports(path, lazy)) if type_checking else set(imports_at_run_time(path))
        found[name] = {each for each in names if each in files and each != name}
    return found


def imports_at_run_time(path: Path) -> Iterator[str]:
    """As `imports`, without what stands under TYPE_CHECKING or in functions."""
    for node in parsed(path).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def loaded_by(script: str) -> set[str]:
    """All modules of ours that importing `script` loads, the packages that they lie in too."""
    edges = graph(type_checking=False)
    seen: set[str] = set()
    waiting = [script]
    while waiting:
        name = waiting.pop()
        if name in seen or name not in edges:
            continue
        seen.add(name)
        waiting += edges[name]
        parts = name.split(".")
        waiting += [".".join(parts[:length]) for length in range(1, len(parts))]
    return seen - set(SCRIPTS)


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import one another (strongly connected components of more than one)."""
    order: list[str] = []
    seen: set[str] = set()

    def visit(name: str, edges: dict[str, set[str]], into: list[str]) -> None:
        waiting = [(name, iter(sorted(edges[name])))]
        seen.add(name)
        while waiting:
            current, rest = waiting[-1]
            following = next((each for each in rest if each not in seen), None)
            if following is None:
                waiting.pop()
                into.append(current)
            else:
                seen.add(following)
                waiting.append((following, iter(sorted(edges[following]))))

    for name in edges:
        if name not in seen:
            visit(name, edges, order)
    backwards = defaultdict(set)
    for name, others in edges.items():
        for other in others:
            backwards[other].add(name)
    turned = {name: backwards[name] for name in edges}
    seen.clear()
    groups = []
    for name in reversed(order):
        if name not in seen:
            groups.append([])
            visit(name, turned, groups[-1])
    return [sorted(group) for group in groups if len(group) > 1]


def outside_the_rule() -> list[str]:
    """Modules that import Accelerate, though it is not theirs to know."""
    return [
        name
        for name, path in modules().items()
        if any(each.split(".")[0] == "accelerate" for each in imports(path, lazy=True))
        and not any(name == known or name.startswith(f"{known}.") for known in KNOW_ACCELERATE)
    ]


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def length_of(script: str, function: str) -> int:
    tree = parsed(REPOSITORY / f"{script}.py")
    found = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function)
    return found.end_lineno - found.lineno + 1


def names_with_several_meanings() -> tuple[list[str], list[str], list[str]]:
    """File names, class names and (imported) constants that stand in more than one place."""
    files, classes, constants = defaultdict(set), defaultdict(set), defaultdict(set)
    imported = {each.rpartition(".")[2] for path in modules().values() for each in imports(path, lazy=True)}
    for name, path in modules().items():
        if not path.name.startswith("__"):
            files[path.stem].add(name)
        for node in parsed(path).body:
            if isinstance(node, ast.ClassDef):
                classes[node.name].add(name)
            targets = node.targets if isinstance(node, ast.Assign) else []
            for target in (each for each in targets if isinstance(each, ast.Name) and each.id in imported):
                if target.id.isupper():
                    constants[target.id].add(name)
    return tuple(
        sorted(f"{key} ({', '.join(sorted(places))})" for key, places in found.items() if len(places) > 1)
        for found in (files, classes, constants)
    )


def main() -> None:
    files = modules()
    root = [path for path in REPOSITORY.glob("featdepth/*.py") if path.name != "__init__.py"]
    loaded = loaded_by("train")
    print(f"modules in the root of featdepth/: {len(root)}")
    print(f"modules that import train loads: {len(loaded)}, {sum(lines(files[name]) for name in loaded)} lines")
    for script in SCRIPTS:
        print(f"{script}.py: {lines(files[script])} lines, its main {length_of(script, 'main')}")
    print(f"lines of the package and the scripts: {sum(map(lines, files.values()))}")
    for kind, found in zip(("file", "class", "constant"), names_with_several_meanings(), strict=True):
        print(f"{kind} names in several places: {len(found)}", *found, sep="\n  ")
    print("circles, those of types too:", *(circles(graph()) or ["none"]), sep="\n  ")
    print("circles, imports inside functions too:", *(circles(graph(lazy=True)) or ["none"]), sep="\n  ")
    print("know Accelerate, outside the rule:", *(outside_the_rule() or ["none"]), sep="\n  ")


if __name__ == "__main__":
    main()
