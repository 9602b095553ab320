"""Free disk space: a check before large writes, and the error for a full disk."""

import errno
import os
import resource
import shutil
import tempfile
from pathlib import Path

from funnel_export.errors import BundleError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Error numbers of a full disk, an exhausted quota and the limit on file size."""
PROBE = 1 << 16
"""Bytes that are written to test whether a disk is full."""
HINT = "free space there, or write to another disk"


def check_room(folder: Path, needed: int, what: str) -> None:
    """Raise `BundleError` unless a folder's disk has `needed` free bytes for `what`; quotas are not checked."""
    found = shutil.disk_usage(folder)
    if found.total and needed > found.free:  # some network file systems report 0 for all
        raise BundleError(
            "not enough space on the disk",
            got=f"{found.free:,} bytes free in {folder.parent}",
            wanted=f"at least {needed:,} bytes for {what}",
            hint=HINT,
        )


def no_room(err: BaseException, folder: Path) -> BundleError | None:
    """The error for a full disk, with the free space in a folder, if that is the cause of `err`; else None."""
    full = _full(err)
    return None if full is None else _error(full, folder, {})


def no_room_in(fresh: Path, err: BaseException) -> BundleError | None:
    """The error for a full disk after a failed write; another write is tried, since libraries may hide the cause."""
    files = [path for path in fresh.rglob("*") if path.is_file() and path.stat().st_nlink == 1]  # no linked weights
    written = {path: path.stat().st_size for path in sorted(files, key=lambda path: path.stat().st_mtime_ns)}
    full = _full(err) or _told(err) or _try_to_write(fresh, written)
    return None if full is None else _error(full, fresh.parent, written)


def _full(err: BaseException | None) -> OSError | None:
    """The first error in the chain of causes that is about space."""
    while err is not None and not (isinstance(err, OSError) and err.errno in FULL):
        err = err.__cause__
    return err


def _told(err: BaseException) -> OSError | None:
    """The system error whose text is quoted in a message, as native libraries do."""
    code = next((code for code in FULL if os.strerror(code) in str(err)), None)
    return None if code is None else OSError(code, os.strerror(code))


def _try_to_write(folder: Path, written: dict[Path, int]) -> OSError | None:
    """The error of writing more into a folder that holds files of these sizes; None if it works."""
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
    """Free bytes for this user on the disk of a folder, which may be missing."""
    return shutil.disk_usage(next(each for each in (folder, *folder.absolute().parents) if each.exists())).free


def _error(full: OSError, folder: Path, written: dict[Path, int]) -> BundleError:
    """Build the error; `written` maps files to sizes in bytes, the latest file last."""
    file = full.filename2 or full.filename or next(reversed(written), None)
    at = "" if file is None else f": {file}"
    more = f" for more than the {sum(written.values()):,} bytes already written" if written else ""
    return BundleError(
        "no space left for the output",
        got=f"{os.strerror(full.errno or 0)}{at}; {_free(folder):,} bytes free in {folder}",
        wanted=f"space{more}",
        hint="raise the limit on file size (`ulimit -f`), or use another disk" if full.errno == errno.EFBIG else HINT,
    )
