"""Seconds from the command to the end of the demo's first training step, and what they are spent on.

python benchmarks/start_up.py [--config configs/demo.yaml] [--repeat 5] [--cpu] [--json FILE] [key=value ...]

"libraries": Python, and all that train.py and the package import of others. "own code": everything from there until the
first step begins: importing the package, configuration, data set, networks, optimizer, loader processes and the first
batch. A small street is made on the spot; train.py runs in a process of its own each time, the first of which warms the
disk and does not count.
"""

from __future__ import annotations

import ast
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from measure import REPOSITORY, Column, device_of, finish, heading, make_parser, run_python, start, table_line

from featdepth.data.synthetic import write_street

COLUMNS = [Column("seconds", "seconds", 2), Column("longest", "longest", 2)]


def main() -> None:
    parser = make_parser(__doc__, repeat=5)
    parser.add_argument("--config", type=Path, default=REPOSITORY / "configs/demo.yaml")
    parser.add_argument("--drives", type=int, default=24, help="of the street, six frames each")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the configuration")
    arguments = parser.parse_args()
    settings = {"configuration": arguments.config.stem, "drives": arguments.drives, "rounds": arguments.repeat}
    result = start(device_of(arguments), settings)
    imports = library_imports([REPOSITORY / "train.py", *sorted(REPOSITORY.glob("featdepth/**/*.py"))])
    with tempfile.TemporaryDirectory() as folder:
        street = Path(folder) / "street"
        write_street(street, drives=arguments.drives)
        words = ["--config", arguments.config.resolve(), *arguments.overrides]
        words += [f"data.root={street}", f"data.split={street}/splits"] + ["--cpu"] * arguments.cpu
        runs = [time_parts(imports, [*words, f"run.directory={folder}/{run}"]) for run in range(1 + arguments.repeat)]
    parts = {name: [run[name] for run in runs[1:]] for name in runs[0]}
    result["rows"] = {
        name: {"seconds": statistics.median(values), "longest": max(values)} for name, values in parts.items()
    }
    print(f"\n{heading(COLUMNS)}")
    for name, row in result["rows"].items():
        print(table_line(name, row, COLUMNS))
    finish(result, arguments)


def library_imports(files: list[Path]) -> str:
    """The statements at the top of these files that import neither the package nor Python's own modules."""
    statements = (statement for file in files for statement in ast.parse(file.read_text()).body)
    texts = set()
    for statement in statements:
        if isinstance(statement, ast.Import):
            modules = [alias.name for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom):
            modules = [statement.module]
        else:
            continue
        if any(module.split(".")[0] not in {"featdepth", *sys.stdlib_module_names} for module in modules):
            texts.add(ast.unparse(statement))
    return "\n".join(sorted(texts))


def time_parts(imports: str, words: list[object]) -> dict[str, float]:
    """Seconds of each part of one start of train.py with the arguments `words`."""
    started = time.time()
    marks = json.loads(run_python([REPOSITORY / "benchmarks/first_step.py", imports, *words]).splitlines()[-1])
    return {
        "libraries": marks["libraries"] - started,
        "own code": marks["set-up"] - marks["libraries"],
        "  its imports": marks["imports"] - marks["libraries"],
        "  its set-up": marks["set-up"] - marks["imports"],
        "first step": marks["first step"] - marks["set-up"],
        "in all": marks["first step"] - started,
    }


if __name__ == "__main__":
    main()
