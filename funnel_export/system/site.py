"""Where a new folder is written before it gets its place: beside it, or inside it if it keeps its name."""

import os
import tempfile
from pathlib import Path

from funnel_export.errors import BundleError
from funnel_export.system.mounts import is_mount_point
from funnel_export.system.room import no_room


def site_of(target: Path, *, fillable: bool, hint: str | None = None) -> Path:
    """The folder in which what becomes `target` can be written: one above it, or itself.

    Itself is an existing folder that is a mount point, or lies where this user may not write.

    Args:
        target: an absolute path; it and folders above may be missing.
        fillable: whether it may be filled in place.
        hint: what to try if there is none; by default a place that would do.

    Raises:
        BundleError: if there is none.
    """
    above = next(folder for folder in target.parents if folder.exists())
    mounted = target.is_dir() and is_mount_point(target)
    sites = [*([] if mounted else [above]), *([target] if fillable and target.is_dir() else [])]
    if not sites:
        raise BundleError(
            "the output folder is a mount point, and cannot be replaced",
            got=target,
            wanted="a folder that can get another name",
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
    """What keeps this user from writing into a folder, found out by trying; permissions do not say all."""
    try:
        with tempfile.TemporaryFile(dir=folder):  # without a name, so that a kill leaves nothing
            return None
    except OSError as err:
        return err


def elsewhere(target: Path) -> str:
    """A place of the same name in which this user may write."""
    folders = (Path.cwd(), Path.home(), Path(tempfile.gettempdir()))
    found = (each / target.name for each in folders if os.access(each, os.W_OK | os.X_OK))
    return str(next((path for path in found if not path.exists()), "a folder in which you may write"))
