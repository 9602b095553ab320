"""Reading files that strangers made: regular files only, and never more of them than is sane."""

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

LARGEST_JSON = 1 << 26
"""Bytes of a JSON file that is read: a config with a label for each of 256000 tokens has a fifth of it."""
LARGEST_COMPANION = 1 << 28
"""Bytes of a tokenizer's file; Gemma2's largest has 34 million."""
LARGEST_HEADER = 100_000_000
"""Bytes of a safetensors header, as the safetensors library limits them."""
LARGEST_GRAPH = 1 << 28
"""Bytes of a graph; weights lie outside it, so that of the largest Gemma2 has a few megabytes."""


@contextmanager
def open_regular(path: Path) -> Iterator[BufferedReader]:
    """Open a regular file for reading; a pipe would block for ever, and a device may do anything.

    Raises:
        OSError: if there is no such file, or it is of another kind.
    """
    _check_regular(path.stat(), path)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # it may have become a pipe since
    with os.fdopen(descriptor, "rb") as stream:
        _check_regular(os.fstat(descriptor), path)
        yield stream


def read_bytes(path: Path, largest: int) -> bytes:
    """The content of a regular file of at most `largest` bytes.

    Raises:
        OSError: if there is no such file, it is of another kind, or larger.
    """
    with open_regular(path) as stream:
        content = stream.read(largest + 1)
    if len(content) > largest:
        raise OSError(errno.EFBIG, f"more than the {largest} bytes that such a file may have", str(path))
    return content


def permission_hint(err: Exception) -> str | None:
    """What to do about a file or folder that this user may not read; None where that is not what went wrong."""
    return f"let this user read it: ls -ld {err.filename}" if isinstance(err, PermissionError) else None


def regular_size(path: Path) -> int:
    """Bytes of a regular file, told without reading it.

    Raises:
        OSError: if there is no such file, or it is of another kind.
    """
    found = path.stat()
    _check_regular(found, path)
    return found.st_size


def sha256_of(path: Path) -> str:
    """Digest of a regular file, by reading it whole.

    Raises:
        OSError: if there is no such file, or it is of another kind.
    """
    with open_regular(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_regular(found: os.stat_result, path: Path) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "neither a file nor a link to one", str(path))
