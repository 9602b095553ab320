"""Writes folders and files atomically, and removes what killed processes left.

New content is written beside its target, as `.NAME.partial-*`, and locked by the writing process. The system releases
the lock when the process ends, even if it is killed. The next writer removes partial content without a lock. Writers
also lock the parent folder while they list or rename entries in it, so that they take turns.
"""

import contextlib
import ctypes
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from funnel_export.errors import BundleError
from funnel_export.system.claims import EARLIER, INSIDE, PARTIAL, claim, is_hidden
from funnel_export.system.filling import fill, is_interrupted, recover
from funnel_export.system.locks import turn
from funnel_export.system.room import no_room, no_room_in
from funnel_export.system.site import site_of

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # <fcntl.h>, renameat2(2)


@contextlib.contextmanager
def replace_folder(
    target: Path, may_replace: Callable[[Path], bool], *, seal: str | None = None, hint: str | None = None
) -> Iterator[Path]:
    """Yield a new folder to fill; when the block ends without an error, it becomes `target`.

    The new folder is created beside the target, so that one rename puts it in place. If anything fails, `target`
    is unchanged and the new folder is removed. Of several writers, the last to finish wins. A target that cannot be
    renamed (a mount point, or a folder in a parent without write permission) is filled in place if `seal` is given:
    see `funnel_export.system.filling`.

    Args:
        target: the folder to write; it is missing, empty or accepted by `may_replace`.
        may_replace: whether a folder with content may be replaced.
        seal: name of the file that marks the folder as complete.
        hint: what to try if the target cannot be written; by default a writable place.

    Raises:
        BundleError: if the target holds something else or cannot be written, or if the disk is full.
    """
    filled = seal if check_place(target, may_replace, seal=seal, hint=hint) == target else None
    with contextlib.ExitStack() as stack:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if seal is not None and target.is_dir():
                recover(target, seal)
            fresh = stack.enter_context(folder_beside(target / INSIDE if filled else target))
            fresh.chmod(0o777 & ~_umask())  # mkdtemp makes private folders
        except OSError as err:
            full = no_room(err, target.parent)
            raise full or BundleError(
                "the output folder cannot be written", got=err, wanted=f"to create {target}"
            ) from err
        try:
            yield fresh
        except Exception as err:
            error = no_room_in(fresh, err) if fresh.exists() else _gone(target, err)
            if error is None:
                raise
            raise error from err
        try:
            with turn(fresh.parent):
                check_replaceable(target, may_replace)
                if filled:
                    fill(fresh, filled)
                else:
                    _take_place(fresh, target, seal)
        except OSError as err:
            full = no_room(err, fresh.parent)
            raise full or BundleError(
                "the output could not be moved to its place", got=err, wanted=target, hint="use another name"
            ) from err


def check_place(
    target: Path, may_replace: Callable[[Path], bool], *, seal: str | None = None, hint: str | None = None
) -> Path:
    """Check before any work that `replace_folder` can write there; it has the same arguments and errors.

    Returns:
        The folder in which the new one is created: a parent of the target, or the target.
    """
    if not is_interrupted(target):  # otherwise `replace_folder` checks after the recovery
        check_replaceable(target, may_replace)
    return site_of(target, fillable=seal is not None, hint=hint)


@contextlib.contextmanager
def folder_beside(target: Path) -> Iterator[Path]:
    """Yield a private folder on the target's file system, and remove it when the block ends.

    The folder is locked. `replace_folder` and `write_text` lock the parent of what they write, so use them only in a
    subfolder of this folder.

    Raises:
        OSError: if the folder cannot be created.
    """
    fresh, lock = claim(target, tempfile.mkdtemp)
    try:
        yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        lock.close()


def _gone(target: Path, err: Exception) -> BundleError:
    return BundleError(
        "another process removed or replaced the folder during the write",
        got=err,
        wanted=f"no changes in {target.parent} by others",
        hint="run it again, with no other command on this folder",
    )


def write_text(path: Path, text: str) -> None:
    """Write a text atomically, in UTF-8; see `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically, and create its folder if needed: a reader sees the old content or the new."""
    write_files({path: content})


def write_files(contents: Mapping[Path, bytes]) -> None:
    """Write files, each atomically; none is replaced before the new contents of all are on the disk."""
    with contextlib.ExitStack() as stack:
        written = {path: stack.enter_context(_file_beside(path, content)) for path, content in contents.items()}
        for path, fresh in written.items():
            fresh.replace(path)


@contextlib.contextmanager
def _file_beside(path: Path, content: bytes) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh, lock = claim(path, _make_file)
    try:
        fresh.write_bytes(content)
        fresh.chmod(0o666 & ~_umask())
        yield fresh
    except OSError as err:
        err.filename = err.filename or str(path)  # errors of `write` have no file name
        raise
    finally:
        fresh.unlink(missing_ok=True)
        lock.close()


def _make_file(prefix: str, dir: Path) -> str:  # noqa: A002 - the name in mkdtemp
    handle, name = tempfile.mkstemp(prefix=prefix, dir=dir)
    os.close(handle)
    return name


def check_replaceable(target: Path, may_replace: Callable[[Path], bool]) -> None:
    """Raise `BundleError` if the target holds content that may not be replaced, or cannot be read."""
    try:
        filled = target.is_dir() and not target.is_symlink() and not all(map(is_hidden, target.iterdir()))
    except OSError as err:
        raise BundleError("the output folder cannot be read", got=err, wanted=target) from err
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise BundleError("the output is not a folder", got=target, wanted="a new folder, an empty one or a bundle")
    if filled and not may_replace(target):
        raise BundleError(
            "the output folder holds something else, and was not changed",
            got=target,
            wanted="a new folder, an empty one or a bundle",
            hint=f"use another name, or a new folder in it: {target / target.name}",
        )


def _take_place(fresh: Path, target: Path, seal: str | None) -> None:
    """Swap the names of `fresh` and `target`; if `target` cannot be renamed, fill it."""
    try:
        _swap(fresh, target)
    except OSError:  # a folder in a container image's layer, or another user's folder in /tmp
        if seal is None or not target.is_dir():
            raise
        inside = fresh.rename(target / f".{INSIDE}{PARTIAL}{fresh.name[-8:]}")
        try:
            fill(inside, seal)
        finally:
            shutil.rmtree(inside, ignore_errors=True)


def _swap(fresh: Path, target: Path) -> None:
    """Rename `fresh` to `target`; an earlier `target` gets the name of `fresh`."""
    try:
        fresh.rename(target)  # works if `target` is missing or empty
    except OSError as err:
        if err.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    else:
        return
    if not _exchange(fresh, target):  # no exchange on this system: for a moment, `target` does not exist
        aside = fresh.with_name(fresh.name + EARLIER)
        target.rename(aside)
        try:
            fresh.rename(target)
        except OSError:
            aside.rename(target)
            raise
        aside.rename(fresh)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names atomically (Linux); False if the system cannot."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    return bool(call(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
