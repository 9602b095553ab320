"""Writing a folder or a file whole or not at all, and tidying up after a process that could not.

What is being written stands beside its target as `.NAME.partial-*`, locked by the process that writes it. A lock ends
with its process, however that ends: what is there without one was left behind, and the next writer removes it. A lock
on the parent folder makes writers take turns where they look at or rename what others may have made.
"""

import contextlib
import ctypes
import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from funnel_export.errors import BundleError

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # <fcntl.h>, renameat2(2)
PATIENCE = 5.0
"""Seconds to wait for other writers, who hold the lock for some renames only."""
ASIDE = ".old"
"""Ends the name of an earlier folder where two names cannot be swapped in one step."""
PARTIAL, PARTIAL_END = ".partial-", r"[a-z0-9_]{8}(\.old)?"  # as tempfile and `_take_place` name what is written


@contextlib.contextmanager
def replace_folder(target: Path, may_replace: Callable[[Path], bool]) -> Iterator[Path]:
    """Give a new folder to fill; when the block ends without an error, it becomes `target`.

    The new folder is made beside the target, so that giving it its name is one step. Whatever goes wrong before,
    `target` stays as it was, and the new folder is removed. Of several writers the last to end wins.

    Args:
        target: the folder to write; a missing or empty one, or one that `may_replace` accepts.
        may_replace: whether a folder with content may be replaced.

    Raises:
        BundleError: if the target holds something else, or cannot be written.
    """
    check_replaceable(target, may_replace)
    with contextlib.ExitStack() as stack:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            fresh = stack.enter_context(folder_beside(target))
            fresh.chmod(0o777 & ~_umask())  # mkdtemp makes private folders
        except OSError as err:
            raise BundleError("the output folder cannot be written", got=err, wanted=f"to create {target}") from err
        yield fresh
        try:
            with _turn(target.parent):
                check_replaceable(target, may_replace)
                _take_place(fresh, target)
        except OSError as err:
            raise BundleError("the output could not be put in its place", got=err, wanted=target) from err


@contextlib.contextmanager
def folder_beside(target: Path) -> Iterator[Path]:
    """Give a private folder on the target's file system, and remove it when the block ends.

    It is locked. What takes turns, as `replace_folder` and `write_text` do, has to write into a folder inside it.

    Raises:
        OSError: if it cannot be made.
    """
    fresh, claim = _claim(target, tempfile.mkdtemp)
    try:
        yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        claim.close()


def write_text(path: Path, text: str) -> None:
    """Write a text as `write_bytes` does, in UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file in one step, making its folder: a reader sees the old content or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh, claim = _claim(path, _make_file)
    try:
        fresh.write_bytes(content)
        fresh.chmod(0o666 & ~_umask())
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
        claim.close()


def is_partial(path: Path) -> bool:
    """Whether this is named as what a writer makes beside its target, and leaves there when it is killed."""
    return re.fullmatch(rf"\..+{PARTIAL}{PARTIAL_END}", path.name) is not None


def _make_file(prefix: str, dir: Path) -> str:  # noqa: A002 - as mkdtemp names it
    handle, name = tempfile.mkstemp(prefix=prefix, dir=dir)
    os.close(handle)
    return name


def _claim(target: Path, make: Callable[..., str]) -> tuple[Path, contextlib.ExitStack]:
    """Make something new beside the target and lock it, after removing what dead writers left."""
    prefix = f".{target.name}{PARTIAL}"
    ours = re.compile(re.escape(prefix) + PARTIAL_END)
    claim = contextlib.ExitStack()
    with _turn(target.parent) as alone:
        for path in list(target.parent.iterdir()) if alone else []:
            if ours.fullmatch(path.name):
                _remove_if_left(path, target)
        fresh = Path(make(prefix=prefix, dir=target.parent))
        with contextlib.suppress(OSError):  # without locks nothing counts as left behind either
            claim.enter_context(_locked(fresh))
    return fresh, claim


def _remove_if_left(path: Path, target: Path) -> None:
    """Remove what nobody writes any more; an earlier folder that was set aside goes back to its place first."""
    try:
        with _locked(path):
            if path.suffix == ASIDE and not target.exists():
                path.rename(target)
            elif path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    except OSError:  # locked, or gone, or another user's: it stays
        return


@contextlib.contextmanager
def _turn(folder: Path) -> Iterator[bool]:
    """Wait until no other writer looks at or renames what is in the folder; whether that could be had.

    It cannot on a file system without locks, or where somebody holds the folder's lock for longer than `PATIENCE`, as
    `flock FOLDER command` does. Then nothing is tidied up, and writers to one place must not meet.
    """
    with contextlib.ExitStack() as stack:
        end, alone = time.monotonic() + PATIENCE, False
        while not alone and time.monotonic() < end:
            try:
                stack.enter_context(_locked(folder))
                alone = True
            except BlockingIOError:
                time.sleep(0.01)
            except OSError:
                break
        yield alone


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file or folder; `BlockingIOError` if somebody else does, `OSError` if there is none."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def check_replaceable(target: Path, may_replace: Callable[[Path], bool]) -> None:
    """Raise `BundleError` if the target holds what may not be replaced, or cannot be looked into."""
    try:
        filled = target.is_dir() and any(target.iterdir()) and not target.is_symlink()
    except OSError as err:
        raise BundleError("the output folder cannot be read", got=err, wanted=target) from err
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise BundleError("the output is not a folder", got=target, wanted="a new folder, an empty one or a bundle")
    if filled and not may_replace(target):
        raise BundleError(
            "the output folder holds something else, which is left as it is",
            got=target,
            wanted="a new folder, an empty one or a bundle",
            hint="another name",
        )


def _take_place(fresh: Path, target: Path) -> None:
    """Give `fresh` the name `target`; what had it before gets the name of `fresh`."""
    if not target.exists():
        fresh.rename(target)
    elif not _exchange(fresh, target):  # no such call on this system: a moment without a bundle
        aside = fresh.with_name(fresh.name + ASIDE)
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
