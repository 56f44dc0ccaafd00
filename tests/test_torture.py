"""A short round of the torture test: `python tests/support/torture.py --kills 40` is the long one."""

from __future__ import annotations

import pytest
import torture


def torture_with(kills: int, processes: int, patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]) -> None:
    patch.setattr("sys.argv", ["torture.py", "--kills", str(kills), "--processes", str(processes)])
    assert torture.main() == 0
    assert f"{kills} kills" in capture.readouterr().out


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.long), 2])
def test_killed_runs_end_as_undisturbed_ones(
    processes: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torture_with(2, processes, monkeypatch, capsys)


@pytest.mark.long
@pytest.mark.parametrize("processes", [1, 2])
def test_runs_killed_more_often(
    processes: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torture_with(6, processes, monkeypatch, capsys)
