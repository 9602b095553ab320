"""Where the reports of a bundle go: into its own folder, or into one that was asked for, replacing nothing foreign."""

import json
import os
from pathlib import Path

from funnel_export.bundle.load import Bundle
from funnel_export.bundle.manifest import REPORTS
from funnel_export.errors import BundleError, SpecError
from funnel_export.report.files import LATENCY, PAGES, PARITY
from funnel_export.system.files import LARGEST_JSON, read_bytes

ELSEWHERE = "--reports DIR, a folder where you may write"
"""What to try where a bundle cannot be written."""


def reports_folder(bundle: Bundle, asked: str | os.PathLike[str] | None) -> Path:
    """Where reports of a bundle are written: its own folder, or the one that was asked for, which is made.

    Raises:
        BundleError: if the bundle's own folder is a link.
        SpecError: if the folder that was asked for cannot be written, is in the bundle, or holds other files that are
            named like reports.
    """
    own = bundle.path / REPORTS
    if asked is None or Path(asked).absolute() == own.absolute():
        if own.is_symlink():
            raise BundleError("the bundle's reports lie elsewhere", got=f"a symbolic link {own}", hint=ELSEWHERE)
        return own
    folder = Path(asked)
    if bundle.path.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise SpecError(
            "the reports would lie among the bundle's files", got=folder, wanted=f"a folder outside {bundle.path}"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(f"no permission to write into {folder}")
    except OSError as err:
        raise SpecError("the reports cannot be written there", got=err, wanted=ELSEWHERE) from err
    foreign = _foreign(folder)
    if foreign is not None:
        raise SpecError(
            "the folder for reports holds another file of that name, which is left as it is",
            got=foreign,
            wanted="a new folder, or one with reports of `check` or `bench`",
            hint="another --reports",
        )
    return folder


def _foreign(folder: Path) -> Path | None:
    """A file that a report would replace and that no command of this package wrote."""
    present = [folder / name for name in (PARITY, LATENCY) if os.path.lexists(folder / name)]
    for path in present:
        if not _is_report(path):
            return path
    pages = [folder / name for name in PAGES if os.path.lexists(folder / name)]
    return pages[0] if pages and not present else None


def _is_report(path: Path) -> bool:
    """Whether this is a report of `check` or `bench`, of any version."""
    try:
        content = json.loads(read_bytes(path, LARGEST_JSON))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and type(content.get("schema_version")) is int
