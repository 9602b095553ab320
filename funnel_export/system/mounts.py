"""Mounts: no rename and no hard link goes from one to another, even within one file system."""

import os
import re
from pathlib import Path


def mount_of(path: Path) -> int:
    """Number of the mount in which an existing file or folder lies; of its device, where the system tells no mounts."""
    handle = os.open(path, os.O_PATH)
    try:
        facts = Path(f"/proc/self/fdinfo/{handle}").read_text()
        return int(re.findall(r"^mnt_id:\s*(\d+)$", facts, re.MULTILINE)[0])
    except (OSError, IndexError):
        return os.fstat(handle).st_dev
    finally:
        os.close(handle)


def is_mount_point(folder: Path) -> bool:
    """Whether something is mounted at this folder, so that it keeps its name."""
    return mount_of(folder) != mount_of(folder.parent)
