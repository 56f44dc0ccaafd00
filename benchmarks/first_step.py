"""Runs train.py until its first step is done, and prints when each part was: seconds of the clock, as JSON.

python benchmarks/first_step.py IMPORTS --config configs/demo.yaml [key=value ...]

IMPORTS: import statements of libraries, which are then there when train.py is imported. start_up.py calls this; it is
a program of its own because it has to begin with nothing imported.
"""

import json
import sys
import time


def main() -> None:
    marks = {}
    exec(sys.argv.pop(1), {})
    marks["libraries"] = time.time()

    sys.path.insert(0, sys.path[0] + "/..")
    import train

    marks["imports"] = time.time()
    augment, end_batch = train.augment, train.Steps.end_batch

    def first_augment(batch: dict) -> dict:
        marks.setdefault("set-up", time.time())
        return augment(batch)

    def last_of_step(*arguments: object) -> None:
        end_batch(*arguments)
        if train.torch.cuda.is_available():
            train.torch.cuda.synchronize()
        marks["first step"] = time.time()
        print(json.dumps(marks))
        sys.exit()

    train.augment, train.Steps.end_batch = first_augment, last_of_step
    train.run_program(train.main)


if __name__ == "__main__":
    main()
