"""What this machine is."""

import os
import platform
from pathlib import Path

CGROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where a container reads its own limit of memory, in versions 2 and 1."""


def this_platform() -> str:
    """Operating system and processor architecture, as linux-x86_64."""
    return f"{platform.system().lower()}-{platform.machine()}"


def processor() -> str:
    """Name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def memory_bytes() -> int:
    """The memory that this process may fill: this machine's, or the limit of the container if that is less."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in CGROUPS:
        try:
            found.append(int(path.read_text()))
        except (OSError, ValueError):  # no such file, or `max`
            continue
    return min(found)
