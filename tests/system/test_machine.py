"""What this machine is, and what of it this process may use."""

from pathlib import Path

import pytest

from funnel_export.system import machine
from funnel_export.system.machine import memory_bytes

LIMIT = 1 << 28


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where cgroups are mounted; this process is in none yet."""
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "OWN_CGROUPS", tmp_path / "own")
    return tmp_path / "cgroup"


def limit(file: Path, value: object = LIMIT) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{value}\n")


def test_a_containers_limit_counts(root: Path) -> None:
    whole = memory_bytes()
    assert whole > LIMIT
    limit(root / "memory.max", "max")
    assert memory_bytes() == whole
    limit(root / "memory" / "memory.limit_in_bytes", 9223372036854771712)
    assert memory_bytes() == whole
    limit(root / "memory.max")
    assert memory_bytes() == LIMIT


SECOND = "0::/user.slice/user-0.slice/run-1.scope"
FIRST = "5:cpu,cpuacct:/elsewhere\n4:hugetlb,memory:/user.slice/run-1.scope\n1:name=systemd:/user.slice"


@pytest.mark.parametrize(
    ("own", "file", "counts"),
    [
        (SECOND, "user.slice/user-0.slice/run-1.scope/memory.max", True),
        (SECOND, "user.slice/user-0.slice/memory.max", True),
        (SECOND, "user.slice/memory.max", True),
        (SECOND, "unified/user.slice/memory.max", True),
        (SECOND, "system.slice/memory.max", False),
        (SECOND, "user.slice/memory.limit_in_bytes", False),
        (FIRST, "memory/user.slice/run-1.scope/memory.limit_in_bytes", True),
        (FIRST, "memory/user.slice/memory.limit_in_bytes", True),
        (FIRST, "memory/elsewhere/memory.limit_in_bytes", False),
        ("0::/a:b", "a:b/memory.max", True),
        ("0::/../other.scope", "memory.max", True),
        ("0::/../cgroup/other.scope", "other.scope/memory.max", False),
        ("rubbish", "memory.max", True),
    ],
)
def test_the_limits_of_the_own_cgroup_and_those_above_count(own: str, file: str, counts: bool, root: Path) -> None:
    limit(root / file)
    root.with_name("own").write_text(own + "\n")
    assert (memory_bytes() == LIMIT) is counts
