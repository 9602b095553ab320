"""Reads untrusted files: regular files only, up to a size limit."""

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

LARGEST_JSON = 1 << 26
"""Limit of JSON files in bytes; a config with a label for each of 256000 tokens has a fifth of it."""
LARGEST_COMPANION = 1 << 28
"""Limit of tokenizer files in bytes; Gemma2's largest has 34 million."""
LARGEST_HEADER = 100_000_000
"""Limit of safetensors headers in bytes, the same as in the safetensors library."""
LARGEST_GRAPH = 1 << 28
"""Limit of graphs in bytes; weights are external, so the largest Gemma2's graph has a few megabytes."""


@contextmanager
def open_regular(path: Path) -> Iterator[BufferedReader]:
    """Open a regular file for reading; others are refused, since a pipe would block and a device has side effects.

    Raises:
        OSError: if the file is missing or not a regular file.
    """
    _check_regular(path.stat(), path)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # it may have been replaced by a pipe since
    with os.fdopen(descriptor, "rb") as stream:
        _check_regular(os.fstat(descriptor), path)
        yield stream


def read_bytes(path: Path, largest: int) -> bytes:
    """The content of a regular file of at most `largest` bytes.

    Raises:
        OSError: if the file is missing, not a regular file, or larger.
    """
    with open_regular(path) as stream:
        content = stream.read(largest + 1)
    if len(content) > largest:
        raise OSError(errno.EFBIG, f"larger than the limit of {largest} bytes", str(path))
    return content


def permission_hint(err: Exception) -> str | None:
    """What to do if this user may not read a file or folder; None for other errors."""
    return f"check its permissions: ls -ld {err.filename}" if isinstance(err, PermissionError) else None


def regular_size(path: Path) -> int:
    """Size of a regular file in bytes.

    Raises:
        OSError: if the file is missing or not a regular file.
    """
    found = path.stat()
    _check_regular(found, path)
    return found.st_size


def sha256_of(path: Path) -> str:
    """SHA-256 of a regular file, in hexadecimal digits.

    Raises:
        OSError: if the file is missing or not a regular file.
    """
    with open_regular(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_regular(found: os.stat_result, path: Path) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
