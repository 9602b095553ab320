"""Replaces the content of a folder that cannot be renamed, such as a mount point of `docker run -v volume:/out`.

The new content is written into a hidden folder inside, and its entries are moved out of it at the end. One entry is the
seal: the file that marks the folder as complete. The earlier seal is moved away first and the new one is moved in last,
so a reader finds the earlier content, a folder without a seal, or the new content. If a move fails, all earlier moves
are undone. After a kill, `recover` undoes or completes them.
"""

import contextlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from funnel_export.system.claims import EARLIER, LEAVING, is_hidden
from funnel_export.system.locks import locked, turn


def fill(fresh: Path, seal: str) -> None:
    """Replace the content of a folder with that of `fresh`, a hidden folder inside it; `fresh` is empty afterwards.

    Raises:
        OSError: if an entry cannot be moved; all moves are undone.
    """
    folder, leaving, earlier = _folders(fresh)
    with contextlib.ExitStack() as undo:

        def move(source: Path, target: Path) -> None:
            source.rename(target)
            undo.callback(target.rename, source)

        leaving.mkdir()
        undo.callback(leaving.rmdir)
        for entry in reversed(_seal_last(folder, seal)):
            move(entry, leaving / entry.name)
        move(leaving, earlier)
        for entry in _seal_last(fresh, seal):
            move(entry, folder / entry.name)
        undo.pop_all()
    shutil.rmtree(earlier, ignore_errors=True)


def is_interrupted(folder: Path) -> bool:
    """Whether a process is moving entries into a folder, or was killed while it did."""
    with contextlib.suppress(OSError):  # the folder is missing or not readable
        return any(entry.suffix in (EARLIER, LEAVING) for entry in folder.iterdir() if is_hidden(entry))
    return False


def recover(folder: Path, seal: str) -> None:
    """Undo or complete what killed processes began in a folder, and remove what they left.

    Args:
        folder: the folder that was being filled.
        seal: name of the file that marks it as complete.
    """
    with turn(folder) as alone:
        left = {_without_end(entry) for entry in folder.iterdir() if alone and is_hidden(entry)}
        for fresh in left:
            with contextlib.suppress(OSError), locked(fresh) if fresh.exists() else contextlib.nullcontext():
                _recover(fresh, seal)  # skipped if it is locked by a live writer


def _recover(fresh: Path, seal: str) -> None:
    """Undo if earlier entries were still being moved away, else complete."""
    folder, leaving, earlier = _folders(fresh)
    if leaving.is_dir():
        _move_all(_seal_last(leaving, seal), folder)
        leaving.rmdir()
    elif earlier.is_dir() and not (folder / seal).exists():
        _move_all(_seal_last(fresh if (fresh / seal).exists() else earlier, seal), folder)
    for path in (earlier, fresh):
        shutil.rmtree(path, ignore_errors=True)


def _folders(fresh: Path) -> tuple[Path, Path, Path]:
    """The folder that is filled, and those for its earlier content: during the moves, and after them."""
    return fresh.parent, fresh.with_name(fresh.name + LEAVING), fresh.with_name(fresh.name + EARLIER)


def _without_end(hidden: Path) -> Path:
    return hidden.with_suffix("") if hidden.suffix in (EARLIER, LEAVING) else hidden


def _seal_last(folder: Path, seal: str) -> list[Path]:
    entries = [entry for entry in folder.iterdir() if not is_hidden(entry)]
    return sorted(entries, key=lambda entry: (entry.name == seal, entry.name))


def _move_all(entries: Iterable[Path], folder: Path) -> None:
    for entry in entries:
        if not os.path.lexists(folder / entry.name):  # keep what somebody has put there since
            entry.rename(folder / entry.name)
