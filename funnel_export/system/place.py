"""Puts large files into a folder as hard links or copies."""

import errno
import os
import shutil
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path

from funnel_export.system.mounts import mount_of


class Placing(StrEnum):
    """How weight files get into a bundle."""

    LINK = "link"
    COPY = "copy"
    AUTO = "auto"
    """Link files that already have several hard links, and copy others: onnx refuses weights with several."""


def copied_bytes(sources: Iterable[Path], folder: Path, placing: Placing) -> int:
    """Bytes of the files that `place` will copy into a folder.

    Raises:
        OSError: if a source cannot be read.
    """
    mount = mount_of(folder)
    found = [source.resolve() for source in sources]
    return sum(path.stat().st_size for path in found if not (_is_linked(path, placing) and mount_of(path) == mount))


def place(source: Path, target: Path, placing: Placing) -> None:
    """Link or copy `source` to the new name `target`; copy it if the file system cannot link it.

    Raises:
        OSError: if the source cannot be read, or the target cannot be written.
    """
    real = source.resolve()  # files in a Hub cache are symbolic links
    if _is_linked(real, placing):
        try:
            os.link(real, target)
        except OSError as err:
            if err.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
                raise
        else:
            return
    shutil.copyfile(real, target)


def _is_linked(file: Path, placing: Placing) -> bool:
    return placing is Placing.LINK or (placing is Placing.AUTO and file.stat().st_nlink > 1)
