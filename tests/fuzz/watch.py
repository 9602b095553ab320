"""What a hostile file may lead to: an error of this package or success, in time, and nothing written."""

import contextlib
import faulthandler
import hashlib
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from funnel_export.errors import FunnelExportError

EXAMPLES = int(os.environ.get("FUNNEL_EXPORT_FUZZ", "500"))
"""Cases of each kind; `make fuzz` asks for more."""
LONG = "FUNNEL_EXPORT_FUZZ" in os.environ
SECONDS = 30
"""No case may take longer: most take milliseconds, on a busy machine one of them a second or two."""
EXPORT_SECONDS = 300
"""A whole export may take this long."""

TALLIES: list["Tally"] = []


class HangError(BaseException):
    """A case took too long; no `except Exception` or `except OSError` may catch it."""


@dataclass
class Tally:
    """How the cases of one kind ended."""

    kind: str
    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        TALLIES.append(self)

    @property
    def accepted(self) -> int:
        """Cases that passed."""
        return self.outcomes["accepted"]

    @property
    def refused(self) -> int:
        """Cases that ended in an error of this package."""
        return self.outcomes.total() - self.accepted

    @contextlib.contextmanager
    def case(self, root: Path, seconds: int = SECONDS) -> Iterator[None]:
        """One case: whatever it raises but this package's errors is raised, and so is any change below `root`."""
        before, begin, said = listing(root), time.monotonic(), ""
        try:
            with limit(seconds):
                yield
        except FunnelExportError as err:
            said = str(err).replace("\n", "")
            self.outcomes[type(err).__name__] += 1
        else:
            self.outcomes["accepted"] += 1
        finally:
            self.seconds += time.monotonic() - begin
        assert said.isprintable()
        assert listing(root) == before


def listing(root: Path) -> dict[str, Any]:
    """Every entry below `root`: kind and permissions, size, time, and a digest of its content."""
    found = {}
    for path in sorted(root.rglob("*")):
        state = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(root))] = (
            state.st_mode,
            state.st_size,
            state.st_mtime_ns,
            hashlib.sha256(content).hexdigest(),
        )
    return found


@contextlib.contextmanager
def limit(seconds: int = SECONDS) -> Iterator[None]:
    """Raise `HangError`, or end the process, rather than wait for ever."""

    def ring(*_: object) -> None:
        raise HangError(f"more than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    faulthandler.dump_traceback_later(2 * seconds, exit=True)  # for what no Python signal can interrupt
    try:
        yield
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)
