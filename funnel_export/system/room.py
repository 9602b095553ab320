"""Room on a disk: asked about before large work, and what to say when it has run out."""

import errno
import os
import resource
import shutil
import tempfile
from pathlib import Path

from funnel_export.errors import BundleError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""A full disk, a used quota, a file as large as it may become."""
PROBE = 1 << 16
"""Bytes that a disk with room takes."""
HINT = "make room there, or write to another disk"


def check_room(folder: Path, needed: int, what: str) -> None:
    """Raise `BundleError` unless a folder's disk has room for `needed` bytes of `what`; quotas are not seen."""
    found = shutil.disk_usage(folder)
    if found.total and needed > found.free:  # some network file systems tell nothing
        raise BundleError(
            "there is not enough room on the disk",
            got=f"{found.free:,} bytes free in {folder.parent}",
            wanted=f"at least {needed:,} bytes for {what}",
            hint=HINT,
        )


def no_room(err: BaseException, folder: Path) -> BundleError | None:
    """The error that says how much room is left in a folder, if its lack is the cause of `err`; else None."""
    full = _full(err)
    return None if full is None else _error(full, folder, {})


def no_room_in(fresh: Path, err: BaseException) -> BundleError | None:
    """The same of a new folder in which a writer has failed; a library may not say why, so that it is tried."""
    files = [path for path in fresh.rglob("*") if path.is_file() and path.stat().st_nlink == 1]  # no linked weights
    written = {path: path.stat().st_size for path in sorted(files, key=lambda path: path.stat().st_mtime_ns)}
    full = _full(err) or _told(err) or _try_to_write(fresh, written)
    return None if full is None else _error(full, fresh.parent, written)


def _full(err: BaseException | None) -> OSError | None:
    """The first cause that is about room."""
    while err is not None and not (isinstance(err, OSError) and err.errno in FULL):
        err = err.__cause__
    return err


def _told(err: BaseException) -> OSError | None:
    """What a library of another language says that the system said."""
    code = next((code for code in FULL if os.strerror(code) in str(err)), None)
    return None if code is None else OSError(code, os.strerror(code))


def _try_to_write(folder: Path, written: dict[Path, int]) -> OSError | None:
    """What keeps a folder, with files of these sizes in it, from taking more; None if nothing does."""
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    largest = max(written, key=lambda path: written[path], default=None)
    if largest is not None and limit != resource.RLIM_INFINITY and written[largest] >= limit:
        return OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(largest))
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            os.posix_fallocate(probe.fileno(), 0, PROBE)
    except OSError as err:
        return _full(err)
    return None


def _free(folder: Path) -> int:
    """Bytes that this user may still write into a folder, which may be missing."""
    return shutil.disk_usage(next(each for each in (folder, *folder.absolute().parents) if each.exists())).free


def _error(full: OSError, folder: Path, written: dict[Path, int]) -> BundleError:
    """What is written so far is in the order in which it was."""
    file = full.filename2 or full.filename or next(reversed(written), None)
    at = "" if file is None else f": {file}"
    more = f" for more than the {sum(written.values()):,} bytes that were written" if written else ""
    return BundleError(
        "there is no room left for the output",
        got=f"{os.strerror(full.errno or 0)}{at}; {_free(folder):,} bytes free in {folder}",
        wanted=f"room{more}",
        hint="a higher limit for files (`ulimit -f`), or another disk" if full.errno == errno.EFBIG else HINT,
    )
