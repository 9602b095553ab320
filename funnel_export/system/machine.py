"""What this machine is."""

import platform
from pathlib import Path


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
