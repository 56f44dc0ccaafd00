"""Rounds of the torture test: `python tests/support/torture.py --kills 40` is a longer one."""

from __future__ import annotations

import pytest
import torture


@pytest.mark.long
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_runs_end_as_undisturbed_ones(
    processes: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["torture.py", "--kills", "6", "--processes", str(processes)])
    assert torture.main() == 0
    assert "6 kills" in capsys.readouterr().out
