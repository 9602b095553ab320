"""Mounts: renames and hard links do not work across them, even within one file system."""

import os
import re
from pathlib import Path


def mount_of(path: Path) -> int:
    """Id of the mount of an existing file or folder; the id of its device if the system does not give mount ids."""
    handle = os.open(path, os.O_PATH)
    try:
        facts = Path(f"/proc/self/fdinfo/{handle}").read_text()
        return int(re.findall(r"^mnt_id:\s*(\d+)$", facts, re.MULTILINE)[0])
    except (OSError, IndexError):
        return os.fstat(handle).st_dev
    finally:
        os.close(handle)


def is_mount_point(folder: Path) -> bool:
    """Whether this folder is a mount point, which cannot be renamed."""
    return mount_of(folder) != mount_of(folder.parent)
