"""Names and locks of partial content: the lock tells whether its writer is still alive."""

import contextlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from funnel_export.system.locks import locked, turn

INSIDE = "new-content"
"""Target name of content written inside the folder that it fills, whose own name may differ in another mount."""
PARTIAL = ".partial-"
EARLIER, LEAVING = ".old", ".leaving"
"""Suffixes of folders for earlier content: when all of it has been moved there, and while it is being moved."""
_END = rf"[a-z0-9_]{{8}}(\{EARLIER}|\{LEAVING})?"  # tempfile's random letters and our suffixes


def is_partial(path: Path) -> bool:
    """Whether this has the name of partial content, which a killed writer may have left."""
    return re.fullmatch(rf"\..+{PARTIAL}{_END}", path.name) is not None


def is_hidden(path: Path) -> bool:
    """Whether this has the name of partial content inside the folder that it will fill."""
    return is_partial(path) and path.name.startswith(f".{INSIDE}{PARTIAL}")


def claim(target: Path, make: Callable[..., str]) -> tuple[Path, contextlib.ExitStack]:
    """Create a partial file or folder beside the target and lock it, after removing what dead writers left."""
    prefix = f".{target.name}{PARTIAL}"
    ours = re.compile(re.escape(prefix) + _END)
    lock = contextlib.ExitStack()
    with turn(target.parent) as alone:
        for path in list(target.parent.iterdir()) if alone else []:
            if ours.fullmatch(path.name) and not is_hidden(path):  # `recover` handles hidden ones
                _remove_if_left(path, target)
        fresh = Path(make(prefix=prefix, dir=target.parent))
        with contextlib.suppress(OSError):  # on a file system without locks, nothing is removed either
            lock.enter_context(locked(fresh))
    return fresh, lock


def _remove_if_left(path: Path, target: Path) -> None:
    """Remove partial content without a writer; move an earlier folder back if the target is missing."""
    with contextlib.suppress(OSError), locked(path):  # fails if it is being written, gone or another user's
        if path.suffix == EARLIER and not target.exists():
            path.rename(target)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
