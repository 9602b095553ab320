"""Writing a folder or a file whole or not at all, and tidying up after a process that could not.

What is being written stands beside its target as `.NAME.partial-*`, locked by the process that writes it. A lock ends
with its process, however that ends: what is there without one was left behind, and the next writer removes it. A lock
on the parent folder makes writers take turns where they look at or rename what others may have made.
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
    """Give a new folder to fill; when the block ends without an error, it becomes `target`.

    The new folder is made beside the target, so that giving it its name is one step. Whatever goes wrong before,
    `target` stays as it was, and the new folder is removed. Of several writers the last to end wins. A target that
    keeps its name, since it is a mount point or lies where this user may not write, is filled in place if it has a
    seal: see `funnel_export.system.filling`.

    Args:
        target: the folder to write; a missing or empty one, or one that `may_replace` accepts.
        may_replace: whether a folder with content may be replaced.
        seal: name of a file without which the folder is not what it should be.
        hint: what to try if nothing can be written there; by default a place that would do.

    Raises:
        BundleError: if the target holds something else, or cannot be written, or if there is no room.
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
                "the output could not be put in its place", got=err, wanted=target, hint="another name"
            ) from err


def check_place(
    target: Path, may_replace: Callable[[Path], bool], *, seal: str | None = None, hint: str | None = None
) -> Path:
    """Say before any work whether `replace_folder` can write there; arguments and errors are its own.

    Returns:
        The folder in which the new one is made: one above the target, or the target.
    """
    if not is_interrupted(target):  # else `replace_folder` looks when that is mended
        check_replaceable(target, may_replace)
    return site_of(target, fillable=seal is not None, hint=hint)


@contextlib.contextmanager
def folder_beside(target: Path) -> Iterator[Path]:
    """Give a private folder on the target's file system, and remove it when the block ends.

    It is locked. What takes turns, as `replace_folder` and `write_text` do, has to write into a folder inside it.

    Raises:
        OSError: if it cannot be made.
    """
    fresh, lock = claim(target, tempfile.mkdtemp)
    try:
        yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        lock.close()


def _gone(target: Path, err: Exception) -> BundleError:
    return BundleError(
        "the folder that was being written was removed or replaced by somebody else",
        got=err,
        wanted=f"{target.parent} as it was",
        hint="again, with one command at a time",
    )


def write_text(path: Path, text: str) -> None:
    """Write a text as `write_bytes` does, in UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file in one step, making its folder: a reader sees the old content or the new."""
    write_files({path: content})


def write_files(contents: Mapping[Path, bytes]) -> None:
    """Write files, each in one step, making their folders; none of them before there is room for all."""
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
        err.filename = err.filename or str(path)  # a write does not say to where
        raise
    finally:
        fresh.unlink(missing_ok=True)
        lock.close()


def _make_file(prefix: str, dir: Path) -> str:  # noqa: A002 - as mkdtemp names it
    handle, name = tempfile.mkstemp(prefix=prefix, dir=dir)
    os.close(handle)
    return name


def check_replaceable(target: Path, may_replace: Callable[[Path], bool]) -> None:
    """Raise `BundleError` if the target holds what may not be replaced, or cannot be looked into."""
    try:
        filled = target.is_dir() and not target.is_symlink() and not all(map(is_hidden, target.iterdir()))
    except OSError as err:
        raise BundleError("the output folder cannot be read", got=err, wanted=target) from err
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise BundleError("the output is not a folder", got=target, wanted="a new folder, an empty one or a bundle")
    if filled and not may_replace(target):
        raise BundleError(
            "the output folder holds something else, which is left as it is",
            got=target,
            wanted="a new folder, an empty one or a bundle",
            hint=f"another name, or a new folder in it: {target / target.name}",
        )


def _take_place(fresh: Path, target: Path, seal: str | None) -> None:
    """Give `fresh` the name `target`, and what had it before the name of `fresh`; or fill what keeps its name."""
    try:
        _swap(fresh, target)
    except OSError:  # a folder of an image's layer, or another user's in a folder as /tmp
        if seal is None or not target.is_dir():
            raise
        inside = fresh.rename(target / f".{INSIDE}{PARTIAL}{fresh.name[-8:]}")
        try:
            fill(inside, seal)
        finally:
            shutil.rmtree(inside, ignore_errors=True)


def _swap(fresh: Path, target: Path) -> None:
    """Give `fresh` the name `target`; what had it before gets the name of `fresh`."""
    try:
        fresh.rename(target)  # nothing is there, or an empty folder
    except OSError as err:
        if err.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    else:
        return
    if not _exchange(fresh, target):  # no such call on this system: a moment without a bundle
        aside = fresh.with_name(fresh.name + EARLIER)
        target.rename(aside)
        try:
            fresh.rename(target)
        except OSError:
            aside.rename(target)
            raise
        aside.rename(fresh)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step (Linux); False where the system cannot."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    return bool(call(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
