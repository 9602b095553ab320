"""Platform, processor and memory of this machine."""

import os
import platform
import re
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

CGROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Files with a container's memory limit, in cgroup versions 2 and 1."""


def this_platform() -> str:
    """Operating system and processor architecture, for example linux-x86_64."""
    return f"{platform.system().lower()}-{platform.machine()}"


def processor() -> str:
    """Name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def conditions(packages: Iterable[str]) -> dict[str, str]:
    """Processor and versions of Python and packages, on which measurements depend."""
    return {
        "processor": processor(),
        "cpus": str(len(os.sched_getaffinity(0))),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def memory_bytes() -> int:
    """Bytes of memory that this process may use: the machine's, or the container's limit if that is lower."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in CGROUPS:
        try:
            found.append(int(path.read_text()))
        except (OSError, ValueError):  # missing, or the word `max`
            continue
    return min(found)


def peak_bytes() -> int:
    """Peak memory of this process in bytes, including mapped files.

    It is VmHWM, not ru_maxrss, since a new process inherits its parent's ru_maxrss.
    """
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024
