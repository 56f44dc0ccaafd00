"""Runs train.py or evaluate.py and prints how many validation or test images it predicts in a second.

python benchmarks/second_pass.py train.py|evaluate.py --config FILE [--cpu] [key=value ...]

The pass over the images is made twice and the second timed, after which all is warm. scaling.py calls this.
"""

from __future__ import annotations

import runpy
import sys
import time
from collections.abc import Callable

from accelerate import Accelerator
from measure import REPOSITORY
from torch import Tensor

from featdepth.parallel import processes


def main() -> None:
    # Before the program imports it.
    processes.gather_values = twice(processes.gather_values)
    sys.argv = sys.argv[1:]
    runpy.run_path(str(REPOSITORY / sys.argv[0]), run_name="__main__")


def twice(gather_values: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`gather_values`, which ends with its values on the CPU of every process."""

    def timed(accelerator: Accelerator, *arguments: object) -> Tensor:
        gather_values(accelerator, *arguments)
        accelerator.wait_for_everyone()
        started = time.perf_counter()
        table = gather_values(accelerator, *arguments)
        accelerator.print(f"second pass {len(table) / (time.perf_counter() - started)} images/s")
        return table

    return timed


if __name__ == "__main__":
    main()
