"""A short round of the torture test: `python tests/torture.py --kills 40` is the long one."""

from __future__ import annotations

import pytest
import torture


@pytest.mark.long
@pytest.mark.parametrize(("processes", "kills"), [(1, 4), (2, 4)])
def test_killed_runs_end_as_undisturbed_ones(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], processes: int, kills: int
) -> None:
    monkeypatch.setattr("sys.argv", ["torture.py", "--kills", str(kills), "--processes", str(processes)])
    assert torture.main() == 0
    assert f"{kills} kills" in capsys.readouterr().out
