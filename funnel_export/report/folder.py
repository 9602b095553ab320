"""The folder for the reports of a bundle: its own or a requested one, without overwriting other files."""

import json
import os
from pathlib import Path

from funnel_export.bundle.load import Bundle, is_bundle
from funnel_export.bundle.manifest import REPORTS
from funnel_export.errors import BundleError, SpecError
from funnel_export.report.files import LATENCY, PAGES, PARITY
from funnel_export.system.files import LARGEST_JSON, read_bytes

ELSEWHERE = "--reports DIR, a folder where you may write"
"""Hint for a bundle that cannot be written."""
QUALITY = "quality.json"
"""A name for the reports of `evaluate`, which have no name of their own."""
KEYS = {
    PARITY: {"passed", "floor", "targets"},
    LATENCY: {"parity", "runners", "rows"},
    QUALITY: {"rows_sha256", "measures"},
}
"""Keys that a report of any version has, by its name."""


def reports_folder(bundle: Bundle, asked: str | os.PathLike[str] | None) -> Path:
    """The folder for the reports of a bundle: the bundle's own, or the requested one, which is created.

    Raises:
        BundleError: if the bundle's own folder is a symbolic link.
        SpecError: if the requested folder cannot be written, is inside the bundle, or holds other files with the names
            of reports.
    """
    own = bundle.path / REPORTS
    if asked is None or Path(asked).absolute() == own.absolute():
        if own.is_symlink():
            raise BundleError("the bundle's `reports` is a symbolic link", got=own, wanted="a folder", hint=ELSEWHERE)
        return own
    folder = Path(asked)
    places = (folder.resolve(), *folder.resolve().parents)
    outer = next((place for place in places if place == bundle.path.resolve() or is_bundle(place)), None)
    if outer is not None:
        what = "the bundle" if outer == bundle.path.resolve() else "another bundle"
        raise SpecError(f"the folder for reports is inside {what}", got=folder, wanted=f"a folder outside {outer}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(f"no permission to write into {folder}")
    except OSError as err:
        raise SpecError("the folder for reports cannot be written", got=err, hint=ELSEWHERE) from err
    foreign = _foreign(folder)
    if foreign is not None:
        raise SpecError(
            "a file in the folder for reports has the name of a report but is not one; it was left unchanged",
            got=foreign,
            wanted="a new folder, or one with reports of `check` or `bench`",
            hint="--reports with another folder",
        )
    return folder


def _foreign(folder: Path) -> Path | None:
    """A file that a report would overwrite but that this package did not write; None if there is none."""
    present = [folder / name for name in (PARITY, LATENCY) if os.path.lexists(folder / name)]
    for path in present:
        if not is_report(path, path.name):
            return path
    pages = [folder / name for name in PAGES if os.path.lexists(folder / name)]
    return pages[0] if pages and not present else None


def is_report(path: Path, name: str) -> bool:
    """Whether this is a report of any version; `name` is that of its kind, as in `KEYS`.

    Manifests have a version too, so the kind's own keys must be there.
    """
    try:
        content = json.loads(read_bytes(path, LARGEST_JSON))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and type(content.get("schema_version")) is int and content.keys() >= KEYS[name]
