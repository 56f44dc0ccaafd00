"""Look at the data before a training: in words, with pictures, within two minutes.

python -m featdepth.doctor --config configs/kitti.yaml [key=value ...] [--out DIR] [--samples N]

Exit code 0: no problem found; 1: problems found; 2: the configuration or the data cannot be used at all.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from featdepth.config import load_config, parse_arguments
from featdepth.console import count
from featdepth.doctor.cost import check_cost
from featdepth.doctor.findings import PROBLEM, WARNING, Finding, faults_of, skipped
from featdepth.doctor.focal_length import check_focal_length
from featdepth.doctor.ground_truth_fit import check_ground_truth
from featdepth.doctor.initial_motion import check_initial_motion
from featdepth.doctor.leakage import check_leakage
from featdepth.doctor.movement import check_exposure, check_motion, check_texture
from featdepth.doctor.order import check_order
from featdepth.doctor.pictures import draw_pictures
from featdepth.doctor.plausibility import check_plausibility, check_shape
from featdepth.doctor.stereo import check_stereo
from featdepth.doctor.survey import Survey
from featdepth.doctor.times import check_files, check_neighbours, check_parts, check_times
from featdepth.errors import InputError, run_program
from featdepth.files import write_text
from featdepth.parallel.host import one_thread
from featdepth.two_view.opencv import INSTALL, has_opencv

SAMPLES = 24
# In this order: some checks mean nothing after the faults that others found.
CHECKS = (
    check_parts,
    check_leakage,
    check_neighbours,
    check_times,
    check_texture,
    check_order,
    check_motion,
    check_exposure,
    check_shape,
    check_plausibility,
    check_focal_length,
    check_stereo,
    check_ground_truth,
    check_initial_motion,
    check_files,
)


# What looks at points that two frames share, and how that is called in words.
MATCHING = {
    check_texture: "texture",
    check_order: "order",
    check_motion: "motion",
    check_exposure: "exposure",
    check_focal_length: "focal length",
    check_stereo: "stereo",
    check_ground_truth: "ground truth",
}


def main() -> None:
    started = time.perf_counter()
    arguments = parse_arguments(None, __doc__, add_options, "python -m featdepth.doctor")
    if arguments.samples < 1:
        raise InputError(f"--samples {arguments.samples}: has to be at least 1")
    config = load_config(arguments.config, arguments.overrides, training=False)
    out = Path(arguments.out or f"{config.run.directory}_doctor")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; choose another --out")

    survey = Survey(config, arguments.samples)
    findings = []
    with one_thread():
        for finding in examine(survey):
            findings.append(finding)
            print(finding.line(), flush=True)
        pictures = draw_pictures(survey, out)
    for finding in check_cost(survey):
        findings.append(finding)
        print(finding.line(), flush=True)

    problems, warnings = (sum(finding.level == level for finding in findings) for level in (PROBLEM, WARNING))
    seconds = time.perf_counter() - started
    record = {"problems": problems, "warnings": warnings, "seconds": round(seconds, 1), "pictures": pictures}
    record["findings"] = [finding.record() for finding in findings]
    write_text(out / "report.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    found = f"{count(problems, 'problem')}, {count(warnings, 'warning')}"
    print(f"{found} in {seconds:.0f} s; pictures and report.json in {out}")
    sys.exit(1 if problems else 0)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="DIR", help="where pictures and report.json go (default: <run>_doctor)")
    parser.add_argument("--samples", type=int, default=SAMPLES, metavar="N", help="target frames that are looked at")


def examine(survey: Survey) -> Iterator[Finding]:
    """The findings of all checks of the data, each as soon as it is known."""
    findings: list[Finding] = []
    checks = CHECKS
    if not has_opencv():
        yield skipped("matching", f"no OpenCV, so {', '.join(MATCHING.values())} are not looked at; {INSTALL}")
        checks = tuple(check for check in CHECKS if check not in MATCHING)
    for check in checks:
        for finding in check(survey, faults_of(findings)):
            findings.append(finding)
            yield finding


if __name__ == "__main__":
    run_program(main)
