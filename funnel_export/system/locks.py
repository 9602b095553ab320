"""Locks on files and folders, which the system releases when their process ends."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

PATIENCE = 5.0
"""Seconds to wait for other writers, which lock a folder only for a few renames."""


@contextlib.contextmanager
def turn(folder: Path) -> Iterator[bool]:
    """Wait for the folder's lock and hold it; yield whether it was obtained.

    It is not obtained on a file system without locks, or if another process holds it for longer than `PATIENCE`, as
    `flock FOLDER command` may. Leftovers are then not removed, and writers to the same place are not kept apart.
    """
    with contextlib.ExitStack() as stack:
        end, alone = time.monotonic() + PATIENCE, False
        while not alone and time.monotonic() < end:
            try:
                stack.enter_context(locked(folder))
                alone = True
            except BlockingIOError:
                time.sleep(0.01)
            except OSError:
                break
        yield alone


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file or folder.

    Raises:
        BlockingIOError: if another process holds it.
        OSError: if the file is missing, or the file system has no locks.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)
