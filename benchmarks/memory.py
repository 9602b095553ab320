"""Memory of the processes that build: looked at from outside while they run, or limited by a control group."""

import os
import re
import threading
import time
from pathlib import Path
from typing import Any, Self

STATUS = re.compile(r"^(VmHWM|VmRSS|RssAnon|RssFile):\s+(\d+) kB$", re.MULTILINE)


class Watch:
    """Looks at a child of this process ten times a second, while the context lasts.

    Memory is split in two: anonymous, which only this process has, and pages of mapped files, which the system can take
    back and read again.
    """

    def __init__(self, command: str) -> None:
        """Watch the child whose command line has this in it."""
        self._command = command.encode()
        self._samples: list[dict[str, Any]] = []
        self._step = ""
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def step(self, step: str, _: float | None = None, /) -> None:
        """What the child does from now on: a `Progress`."""
        self._step = step

    def peak(self) -> dict[str, float]:
        """The most memory that the child held at once, and how it was split then; empty if it was never seen."""
        if not self._samples:
            return {}
        top = max(self._samples, key=lambda sample: sample["VmRSS"])
        most = max(self._samples, key=lambda sample: sample["RssAnon"])
        return {
            "peak_gb": _gb(self._samples[-1]["VmHWM"]),
            "anonymous_gb": _gb(top["RssAnon"]),
            "mapped_gb": _gb(top["RssFile"]),
            "largest_anonymous_gb": _gb(most["RssAnon"]),
            "written_by_then_gb": _gb(most["written"]),
            "anonymous_before_writing_gb": _gb(self._samples[self._written_at(1 << 20)]["RssAnon"]),
        }

    def course(self) -> list[dict[str, Any]]:
        """How memory went: a sample at the end of each step, and at each further gigabyte that was written."""
        rows = []
        for index, sample in enumerate(self._samples):
            later = self._samples[index + 1] if index + 1 < len(self._samples) else None
            if later is None or (later["step"], later["written"] // 1e9) != (sample["step"], sample["written"] // 1e9):
                memory = {"anonymous_gb": _gb(sample["RssAnon"]), "mapped_gb": _gb(sample["RssFile"])}
                facts = {"seconds": sample["seconds"], "step": sample["step"]}
                rows.append(facts | memory | {"written_gb": _gb(sample["written"])})
        return rows

    def _written_at(self, size: int) -> int:
        """Number of the last sample before this many bytes were written."""
        late = (index for index, sample in enumerate(self._samples) if sample["written"] >= size)
        return max(0, next(late, len(self._samples)) - 1)

    def _look(self) -> None:
        start = time.perf_counter()
        child = None
        while not self._done.wait(0.1):
            child = child or self._find()
            if child is None:
                continue
            try:
                found = {key: int(kb) * 1024 for key, kb in STATUS.findall((child / "status").read_text())}
                written = int((child / "io").read_text().split("wchar: ")[1].split()[0])
            except OSError:
                return
            if len(found) == 4:  # a process that has ended and was not waited for has none
                seconds = round(time.perf_counter() - start, 1)
                self._samples.append({**found, "written": written, "step": self._step, "seconds": seconds})

    def _find(self) -> Path | None:
        for children in Path("/proc/self/task").glob("*/children"):
            try:
                for number in children.read_text().split():
                    if self._command in Path("/proc", number, "cmdline").read_bytes().replace(b"\0", b" "):
                        return Path("/proc", number)
            except OSError:  # a thread or a child that is no more
                continue
        return None


def _gb(size: float) -> float:
    return round(size / 1e9, 2)


LIMITS = (
    # files of version 1 and of version 2: the limit, the same with swap, the most that was used, kills
    ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.max_usage_in_bytes", "memory.oom_control"),
    ("memory.max", "memory.swap.max", "memory.peak", "memory.events"),
)


class Limit:
    """A control group whose processes share a limit of memory, without swap; it is removed at the end.

    Mapped files and written ones count in it too, until the system takes their pages back.
    """

    def __init__(self, root: Path, size: int) -> None:
        """A group in `root`, a folder of control groups of version 1 or 2 with control of memory."""
        self._group = root / f"funnel-export-{os.getpid()}"
        self._size = size
        self._files: tuple[str, ...] = ()

    def __enter__(self) -> Self:
        self._group.mkdir()
        try:
            self._files = next(files for files in LIMITS if (self._group / files[0]).exists())
            limit, swap, _, _ = self._files
            (self._group / limit).write_text(str(self._size))
            if (self._group / swap).exists():
                (self._group / swap).write_text("0" if swap == "memory.swap.max" else str(self._size))
        except BaseException:
            self._group.rmdir()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._group.rmdir()

    @property
    def processes(self) -> Path:
        """The file into which a process writes its number, to be in the group with all that it starts then."""
        return self._group / "cgroup.procs"

    def facts(self) -> dict[str, Any]:
        """The limit, the most that was used under it, and how many processes were killed for it."""
        limit, _, used, events = ((self._group / file) for file in self._files)
        kills = re.search(r"^oom_kill (\d+)$", events.read_text(), re.MULTILINE)
        return {
            "limit_gb": round(int(limit.read_text()) / 1e9, 3),
            "most_used_gb": round(int(used.read_text()) / 1e9, 3) if used.exists() else None,
            "killed": int(kills[1]) if kills else None,
        }


def forget(files: list[Path]) -> None:
    """Take files out of the system's cache, so that they are read, and counted, anew."""
    os.sync()
    for file in files:
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
