"""Locks of files and folders, which end with their process, however that ends."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

PATIENCE = 5.0
"""Seconds to wait for other writers, who hold the lock of a folder for some renames only."""


@contextlib.contextmanager
def turn(folder: Path) -> Iterator[bool]:
    """Wait until no other writer looks at or renames what is in the folder; whether that could be had.

    It cannot on a file system without locks, or where somebody holds the folder's lock for longer than `PATIENCE`, as
    `flock FOLDER command` does. Then nothing is tidied up, and writers to one place must not meet.
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
    """Hold the lock of a file or folder; `BlockingIOError` if somebody else does, `OSError` if there is none."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)
