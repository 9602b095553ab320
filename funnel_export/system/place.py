"""Putting a large file into a folder that is being written: as a hard link, or as a copy."""

import errno
import os
import shutil
from enum import StrEnum
from pathlib import Path


class Placing(StrEnum):
    """How weight files get into a bundle."""

    LINK = "link"
    COPY = "copy"
    AUTO = "auto"
    """Link a file that has several names already, and copy others: onnx refuses weights with several names."""


def place(source: Path, target: Path, placing: Placing) -> None:
    """Put `source` at the new name `target`; a link that the file system cannot make becomes a copy.

    Raises:
        OSError: if the source cannot be read, or the target not be written.
    """
    real = source.resolve()  # a Hub cache holds links; what we write must hold files
    if placing is Placing.LINK or (placing is Placing.AUTO and real.stat().st_nlink > 1):
        try:
            os.link(real, target)
        except OSError as err:
            if err.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
                raise
        else:
            return
    shutil.copyfile(real, target)
