"""Writing a folder whole or not at all."""

import contextlib
import ctypes
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from funnel_export.errors import BundleError

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # <fcntl.h>, renameat2(2)


@contextlib.contextmanager
def replace_folder(target: Path, may_replace: Callable[[Path], bool]) -> Iterator[Path]:
    """Give a new folder to fill; when the block ends without an error, it becomes `target`.

    The new folder is made beside the target, so that giving it its name is one step. Whatever goes wrong before,
    `target` stays as it was, and the new folder is removed.

    Args:
        target: the folder to write; a missing or empty one, or one that `may_replace` accepts.
        may_replace: whether a folder with content may be replaced.

    Raises:
        BundleError: if the target holds something else, or cannot be written.
    """
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise BundleError("the output is not a folder", got=target, wanted="a new folder, an empty one or a bundle")
    if target.is_dir() and any(target.iterdir()) and not may_replace(target):
        raise BundleError(
            "the output folder holds something else, which is left as it is",
            got=target,
            wanted="a new folder, an empty one or a bundle",
            hint="another name",
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
        fresh.chmod(0o777 & ~_umask())  # mkdtemp makes private folders
    except OSError as err:
        raise BundleError("the output folder cannot be written", got=err, wanted=f"to create {target}") from err
    try:
        yield fresh
        try:
            _take_place(fresh, target)
        except OSError as err:
            raise BundleError("the output could not be put in its place", got=err, wanted=target) from err
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a file in one step, making its folder: a reader sees the old content or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as stream:
        fresh = Path(stream.name)
        try:
            stream.write(text)
            stream.flush()
            fresh.chmod(0o666 & ~_umask())
            fresh.replace(path)
        except OSError:
            fresh.unlink(missing_ok=True)
            raise


def _take_place(fresh: Path, target: Path) -> None:
    """Give `fresh` the name `target`; what had it before gets the name of `fresh`."""
    if not target.exists():
        fresh.rename(target)
    elif not _exchange(fresh, target):  # no such call on this system: a moment without a bundle
        aside = fresh.with_name(fresh.name + ".old")
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
