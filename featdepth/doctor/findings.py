"""What the doctor says: one line a finding."""

from __future__ import annotations

from dataclasses import asdict, dataclass

OK, WARNING, PROBLEM, SKIPPED = "OK", "WARNING", "PROBLEM", "SKIPPED"
LEVELS = (OK, WARNING, PROBLEM, SKIPPED)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    level: OK; WARNING: trains, but look at it; PROBLEM: a training would be wasted; SKIPPED: could not be judged.
    """

    level: str
    check: str  # what was looked at, e.g. "stereo"
    text: str  # what was found, with the numbers
    expected: str = ""  # what the numbers should be
    advice: str = ""  # what to do
    fault: str = ""  # short name of what is wrong, for programs, e.g. "swapped_stereo"; empty where nothing is

    def line(self) -> str:
        """The finding as a line of the report."""
        text = f"{self.level:<7}  {self.check:<12}  {self.text}"
        if self.expected:
            text += f" (expected: {self.expected})"
        return f"{text}; {self.advice}" if self.advice else text

    def record(self) -> dict[str, str]:
        """The finding as it stands in report.json."""
        return asdict(self)


def ok(check: str, text: str, expected: str = "") -> Finding:
    return Finding(OK, check, text, expected)


def skipped(check: str, text: str) -> Finding:
    return Finding(SKIPPED, check, text)


def warning(check: str, fault: str, text: str, expected: str, advice: str) -> Finding:
    return Finding(WARNING, check, text, expected, advice, fault)


def problem(check: str, fault: str, text: str, expected: str, advice: str) -> Finding:
    return Finding(PROBLEM, check, text, expected, advice, fault)


def faults_of(findings: list[Finding]) -> set[str]:
    """The faults among the problems."""
    return {finding.fault for finding in findings if finding.level == PROBLEM}
