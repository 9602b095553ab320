"""Kills a job after a given line of the files that it writes with, in a process of its own."""

import hashlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Set
from pathlib import Path
from types import FrameType
from typing import Any

FORK = multiprocessing.get_context("fork")


def digest(folder: Path) -> str:
    """Digest of every file in a folder, with its name."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        found.update(f"{path.relative_to(folder)} {path.is_dir()}".encode())
        if path.is_file():
            found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


class Lines:
    """Counts lines of the files that write, and kills the process after the last one that it may run."""

    def __init__(self, files: Set[str], last: int | None = None) -> None:
        self.files, self.count, self.last = files, 0, last

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        """A trace function."""
        if frame.f_code.co_filename not in self.files:
            return None
        if event == "line":
            if self.count == self.last:
                os.kill(os.getpid(), signal.SIGKILL)
            self.count += 1
        return self


def run(job: Callable[[], object], files: Set[str], last: int | None, count: Any) -> None:
    """Run a job in this process until it has run this number of lines."""
    lines = Lines(files, last)
    sys.settrace(lines)
    job()
    sys.settrace(None)
    count.value = lines.count


def forked(job: Callable[[], object], files: Set[str], last: int | None = None) -> tuple[int, int]:
    """Exit code of a job in a process of its own, and the lines of these files that it ran to its end."""
    count = FORK.Value("i", 0)
    process = FORK.Process(target=run, args=(job, files, last, count))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode, count.value
