"""Names of what is being written, and the locks that tell it from what dead writers left."""

import contextlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from funnel_export.system.locks import locked, turn

INSIDE = "new-content"
"""Target of what is written inside a folder: the folder itself has another name where it is mounted elsewhere."""
PARTIAL = ".partial-"
EARLIER, LEAVING = ".old", ".leaving"
"""End the name of what takes earlier content; while its entries still come, the second."""
_END = rf"[a-z0-9_]{{8}}(\{EARLIER}|\{LEAVING})?"  # as tempfile and we name what is written


def is_partial(path: Path) -> bool:
    """Whether this is named as what a writer makes beside its target, and leaves there when it is killed."""
    return re.fullmatch(rf"\..+{PARTIAL}{_END}", path.name) is not None


def is_hidden(path: Path) -> bool:
    """Whether this is named as what is written inside a folder, and is no content of it yet."""
    return is_partial(path) and path.name.startswith(f".{INSIDE}{PARTIAL}")


def claim(target: Path, make: Callable[..., str]) -> tuple[Path, contextlib.ExitStack]:
    """Make something new beside the target and lock it, after removing what dead writers left."""
    prefix = f".{target.name}{PARTIAL}"
    ours = re.compile(re.escape(prefix) + _END)
    lock = contextlib.ExitStack()
    with turn(target.parent) as alone:
        for path in list(target.parent.iterdir()) if alone else []:
            if ours.fullmatch(path.name) and not is_hidden(path):  # `recover` has those
                _remove_if_left(path, target)
        fresh = Path(make(prefix=prefix, dir=target.parent))
        with contextlib.suppress(OSError):  # without locks nothing counts as left behind either
            lock.enter_context(locked(fresh))
    return fresh, lock


def _remove_if_left(path: Path, target: Path) -> None:
    """Remove what nobody writes any more; an earlier folder that was set aside goes back to its place first."""
    with contextlib.suppress(OSError), locked(path):  # locked, or gone, or another user's: it stays
        if path.suffix == EARLIER and not target.exists():
            path.rename(target)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
