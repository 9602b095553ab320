"""Chooses where new content is written first: beside the target, or inside it if it cannot be renamed."""

import os
import tempfile
from pathlib import Path

from funnel_export.errors import BundleError
from funnel_export.system.mounts import is_mount_point
from funnel_export.system.room import no_room


def site_of(target: Path, *, fillable: bool, hint: str | None = None) -> Path:
    """The folder in which the new content of `target` can be written: a parent of it, or `target` itself.

    It is `target` itself if that is a mount point, or if this user may not write into its parent.

    Args:
        target: an absolute path; it and its parents may be missing.
        fillable: whether it may be filled in place.
        hint: what to try if the target cannot be written; by default a writable place.

    Raises:
        BundleError: if the target cannot be written.
    """
    above = next(folder for folder in target.parents if folder.exists())
    mounted = target.is_dir() and is_mount_point(target)
    sites = [*([] if mounted else [above]), *([target] if fillable and target.is_dir() else [])]
    if not sites:
        raise BundleError(
            "the output folder is a mount point, which cannot be replaced",
            got=target,
            wanted="a folder that can be renamed",
            hint=hint or str(target / target.name),
        )
    failures = [_failure(site) for site in sites]
    if None in failures:
        return sites[failures.index(None)]
    (failure, *_) = [each for each in failures if each is not None]
    raise no_room(failure, sites[0]) or BundleError(
        "the output folder cannot be written",
        got=failure.strerror if failure.filename is None else f"{failure.strerror}: {sites[0]}",
        wanted=f"to create {target}",
        hint=hint or elsewhere(target),
    ) from failure


def _failure(folder: Path) -> OSError | None:
    """The error of writing into a folder, None if it works; it is tried, since permission bits are not enough."""
    try:
        with tempfile.TemporaryFile(dir=folder):  # a file without a name, so a kill leaves nothing
            return None
    except OSError as err:
        return err


def elsewhere(target: Path) -> str:
    """A new path with the same name in a folder where this user may write, as a hint."""
    folders = (Path.cwd(), Path.home(), Path(tempfile.gettempdir()))
    found = (each / target.name for each in folders if os.access(each, os.W_OK | os.X_OK))
    return str(next((path for path in found if not path.exists()), "a folder in which you may write"))
