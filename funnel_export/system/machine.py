"""Platform, processor and memory of this machine."""

import os
import platform
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path, PurePosixPath

OWN_CGROUPS = Path("/proc/self/cgroup")
"""File that names the cgroups of this process, as `NUMBER:CONTROLLERS:/PATH` lines."""
CGROUPS = Path("/sys/fs/cgroup")
"""Where cgroups are mounted."""


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
    """Bytes of memory that this process may use: the machine's, or the lowest limit of its cgroups.

    A container has a limit at the root of what it sees, a systemd service or slice at its own cgroup or above it.
    """
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _limits():
        try:
            found.append(int(path.read_text()))
        except (OSError, ValueError):  # missing, or the word `max`
            continue
    return min(found)


def _limits() -> Iterator[Path]:
    """Files with memory limits, of this process's cgroups and those above them, in cgroup versions 2 and 1."""
    places = {"": ["/"], "memory": ["/"]}  # by controller; version 2 names none
    with suppress(OSError):
        for line in OWN_CGROUPS.read_text(errors="surrogateescape").splitlines():
            controllers, _, place = line.partition(":")[2].partition(":")
            for name in places.keys() & set(controllers.split(",")):
                places[name].append(place)
    for name, mounts, file in (
        ("", ("", "unified"), "memory.max"),  # in a hybrid of both versions, the second is mounted at `unified`
        ("memory", ("memory",), "memory.limit_in_bytes"),
    ):
        for place in places[name]:
            own = PurePosixPath(place.lstrip("/"))
            if ".." not in own.parts:  # else the process was moved out of what its namespace shows
                yield from (CGROUPS / mount / each / file for mount in mounts for each in (own, *own.parents))


def peak_bytes() -> int:
    """Peak memory of this process in bytes, including mapped files.

    It is VmHWM, not ru_maxrss, since a new process inherits its parent's ru_maxrss.
    """
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024
