"""Checks of gpu_check.py that measure: waiting for data, prediction, and steps as a multiple of the bare networks."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import product

import torch
from gpu_rows import Context, Row
from measure import REPOSITORY, WARM_UP, peak_memory, run_python, synchronise
from step_time import OBJECTIVES, Case, accelerator_for, bare_networks, training_step

LEAST_SECONDS, COMPILING_SECONDS = 10, 100  # that have to be left for a row of `speed`
NO_TIME = "no time is left; --only speed --seconds 1800"
BARE_SECONDS: dict[str, float] = {}  # of the bare networks, by the name of the row


def loader(context: Context) -> dict[str, Callable[[], Iterable[Row]]]:
    return {"data_wait.py": partial(wait_for_data, context)}


def wait_for_data(context: Context) -> Iterator[Row]:
    words = ["data_wait.py", "--repeat", 1, "--drives", 6]
    if context.is_small:
        words += ["--steps", 4, "--frame-size", "64x192", "--cpu", "train.log_every=2", "train.batch_size=2"]
        words += ["model.decoder_width=16", "data.frames=[0,s]", "train.panel_samples=0"]
    else:
        words += ["--steps", 60, "--frame-size", "128x416", "train.batch_size=12", "data.workers=8", "data.height=192"]
        words += ["data.width=640", "model.depth_layers=50", "model.decoder_width=256", "model.pose_size=null"]
    for name, row in run_benchmark(context, words).items():
        note = "after the first interval; most of what is left is the exchange of epochs where they are short"
        yield Row(f"waiting, frames {name}", "figure", {"%": row["later"], "images/s": row["images_per_second"]}, note)


def prediction(context: Context) -> dict[str, Callable[[], Iterable[Row]]]:
    return {"prediction.py": partial(predict_frames, context)}


def predict_frames(context: Context) -> Iterator[Row]:
    words = ["prediction.py", "--batches", 1, 8, "--no-compile"]
    if context.is_small:
        words += ["--layers", 18, "--sizes", "64x96", "--repeat", 1, "--precisions", "float32", "--cpu"]
    else:
        words += ["--layers", 18, 50, "--precisions", "float32", "bfloat16"]
    for row in run_benchmark(context, words):
        figures = {"frames/s": row["frames_per_second"]}
        yield Row(f"{row['name']}, {row['height']}x{row['width']}, batch {row['batch']}", "figure", figures)


def run_benchmark(context: Context, words: list[object]) -> dict | list:
    """The rows that another benchmark writes."""
    file = context.folder / f"{words[0]}.json"
    run_python([REPOSITORY / "benchmarks" / str(words[0]), *words[1:], "--json", file])
    return json.loads(file.read_text())["rows"]


def speed(context: Context) -> dict[str, Callable[[], Iterable[Row]]]:
    sizes, layers = ([(64, 96, 2)], 18) if context.is_small else ([(192, 640, 12), (320, 1024, 4)], 50)
    cases = [Case(*size, objective, "float32", layers) for size in sizes for objective in OBJECTIVES]
    parts = {title(case): partial(time_steps, context, case) for case in cases}
    if context.is_small:
        return parts
    compiled_parts = {f"{title(case)}, compiled": partial(time_compiled, context, case) for case in cases}
    # What most of a training is spent with is compiled before the larger size is looked at.
    names = [*parts, *compiled_parts]
    names.insert(len(OBJECTIVES), names.pop(len(parts) + OBJECTIVES.index("feature_metric")))
    return {name: (parts | compiled_parts)[name] for name in names}


def title(case: Case) -> str:
    return f"{case.objective}, {case.batch} of {case.height}x{case.width}"


def time_steps(context: Context, case: Case) -> Iterator[Row]:
    """Steps in each precision, with cuDNN's first choice of algorithms and with the best of those it has tried."""
    variants = {"float32": ["float32", "TF32"], "bfloat16": ["bfloat16"]}
    if context.is_small:  # every CPU is quick at float32, few at bfloat16
        variants = {"float32": ["float32"]}
    for precision, names in variants.items():
        case = case._replace(precision=precision)
        for make in (bare_networks, training_step):
            run = make(case, accelerator_for(case, context.device))
            for name, benchmark in product(names, [False] if context.is_small else [False, True]):
                key = f"{title(case)}, {name}{', cudnn.benchmark' if benchmark else ''}"
                if context.seconds_left() < LEAST_SECONDS:
                    yield Row(key, "not run", note=NO_TIME)
                    return
                measured = time_calls(run, context, name == "TF32", benchmark)
                if make is bare_networks:
                    BARE_SECONDS[key] = measured["s"]
                else:
                    yield Row(key, "figure", {**speed_of(case, measured), "x bare": measured["s"] / BARE_SECONDS[key]})
            del run


def time_compiled(context: Context, case: Case) -> Iterator[Row]:
    """bfloat16 with networks, augmentation and objective compiled; the bare networks are those of `time_steps`."""
    case, name = case._replace(precision="bfloat16"), f"{title(case)}, bfloat16, compiled"
    if context.seconds_left() < COMPILING_SECONDS:
        yield Row(name, "not run", note=NO_TIME)
        return
    accelerator = accelerator_for(case, context.device)
    started = time.monotonic()
    measured = time_calls(training_step(case, accelerator, compile_objective=True, compile_all=True), context)
    figures = {**speed_of(case, measured), "s to compile": time.monotonic() - started}
    bare = BARE_SECONDS.get(f"{title(case)}, bfloat16")
    yield Row(name, "figure", figures | ({} if bare is None else {"x bare": measured["s"] / bare}))


def speed_of(case: Case, measured: dict[str, float]) -> dict[str, float]:
    return {"s": measured["s"], "images/s": case.batch / measured["s"], "peak GB": measured["peak GB"]}


def time_calls(
    run: Callable[[], object], context: Context, tf32: bool = False, benchmark: bool = False
) -> dict[str, float]:
    """Seconds of a call, the mean of as many as fit into a second, and the peak of memory meanwhile."""
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = tf32, benchmark
    if not context.is_small:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    for _ in range(WARM_UP):
        run()
    started = time.perf_counter()
    run()
    synchronise(context.device)
    calls = 1 if context.is_small else max(3, min(20, int(1 / (time.perf_counter() - started))))
    started = time.perf_counter()
    for _ in range(calls):
        run()
    synchronise(context.device)
    return {"s": (time.perf_counter() - started) / calls, "peak GB": peak_memory(context.device)}
