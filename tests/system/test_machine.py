"""What this machine is, and what of it this process may use."""

from pathlib import Path

import pytest

from funnel_export.system import machine
from funnel_export.system.machine import memory_bytes


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CGROUPS", (tmp_path / "two", tmp_path / "one"))
    whole = memory_bytes()
    assert whole > 1 << 28
    (tmp_path / "two").write_text("max\n")
    assert memory_bytes() == whole
    (tmp_path / "one").write_text("9223372036854771712\n")
    assert memory_bytes() == whole
    (tmp_path / "two").write_text("268435456\n")
    assert memory_bytes() == 1 << 28
