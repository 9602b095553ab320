"""Reads files of a checkpoint that are copied into bundles."""

import os
import shlex
from collections.abc import Iterable
from pathlib import Path

from funnel_export.errors import CheckpointError
from funnel_export.system.files import LARGEST_COMPANION, permission_hint, read_bytes


def read_copied(checkpoint: Path, names: Iterable[str], largest: int = LARGEST_COMPANION) -> dict[str, bytes]:
    """The contents of files of a checkpoint, by name.

    Links may point within the checkpoint, or from a snapshot in the Hub's cache to its model's blobs. Others are
    refused: a checkpoint from a stranger could use them to copy any file of this machine into a bundle.

    Args:
        checkpoint: the checkpoint's folder.
        names: paths in this folder.
        largest: limit of each file in bytes.

    Raises:
        CheckpointError: if files are links out of the checkpoint (lists all of them), or a file cannot be read.
    """
    folder = checkpoint.resolve()
    blobs = [parent / "blobs" for parent in folder.parents if parent.name.startswith("models--")]
    files = {name: Path(os.path.realpath(checkpoint / name)) for name in names}  # `resolve` fails on loops of links
    outside = {n: f for n, f in files.items() if not any(f.is_relative_to(place) for place in (folder, *blobs))}
    if outside:
        copy = shlex.quote(f"{folder}-copy")
        raise CheckpointError(
            "files of the checkpoint are links out of it, which are not copied into a bundle",
            got="\n".join(f"{name} -> {file}" for name, file in outside.items()),
            wanted="files, or links within the checkpoint",
            hint=f"if you trust these links: cp -rL {shlex.quote(str(folder))} {copy}, and export {copy}",
        )
    try:
        return {name: read_bytes(file, largest) for name, file in files.items()}
    except OSError as err:
        raise CheckpointError(
            "a file of the checkpoint cannot be read",
            got=err,
            wanted="readable files",
            hint=permission_hint(err),
        ) from err
