"""Writing the reports of a bundle: what is read, how it becomes text, and where it goes."""

import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from funnel_export.bundle.load import Bundle, check_made_from
from funnel_export.bundle.manifest import REPORTS, parse_record
from funnel_export.errors import BundleError, FunnelExportWarning, printable
from funnel_export.latency.latency_report import LatencyReport
from funnel_export.report.contents import Contents, collect
from funnel_export.report.files import HTML, LATENCY, MARKDOWN, PAGES, PARITY
from funnel_export.report.folder import ELSEWHERE, reports_folder
from funnel_export.report.palette import DARK, LIGHT
from funnel_export.system.atomic import write_files, write_text
from funnel_export.system.files import LARGEST_JSON, read_bytes
from funnel_export.system.room import no_room
from funnel_export.verify.parity_report import ParityReport

if TYPE_CHECKING:
    from jinja2 import Environment

ReportT = TypeVar("ReportT", bound=BaseModel)

MOST_ROWS = 1000
"""Rows of latency that are shown; a page of more is of no use to anybody."""
SPECIAL = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", "\n": " ", **{character: f"\\{character}" for character in "\\`*_[]|~#$!"}}
)


def write_reports(bundle: Bundle, reports: str | os.PathLike[str] | None = None) -> list[Path]:
    """Write `report.md`, `report.html` and the pictures, each whole or not at all.

    They are made of `parity.json` and `latency.json` beside them, or else in the bundle's `reports`; where one is
    missing, they say that it was not run.

    Args:
        bundle: a verified bundle.
        reports: the folder to write into; by default the bundle's `reports`.

    Returns:
        The files that were written.

    Raises:
        BundleError: if one of the two is damaged or of another bundle, or the bundle's `reports` is a link or cannot be
            written.
        SpecError: if `reports` cannot be written, or holds other files of these names.
    """
    folder = reports_folder(bundle, reports)
    parity, latency = read_results(bundle, folder)
    try:
        contents = collect(bundle, parity, latency)
        texts = {folder / MARKDOWN: render_markdown(contents), folder / HTML: render_html(contents)}
        pictures = {folder / f"{name}.png": picture.png() for name, picture in contents.pictures.items()}
    except Exception as err:  # matplotlib raises what it likes of numbers that no run has
        raise BundleError("the reports cannot be drawn", got=f"{type(err).__name__}: {err}") from err
    try:
        _replace(folder, texts, pictures)
    except OSError as err:
        wanted = f"to write into {folder}"
        full = no_room(err, folder)
        raise full or BundleError("the reports cannot be written", got=err, wanted=wanted, hint=ELSEWHERE) from err
    return [*texts, *pictures]


def read_results(bundle: Bundle, folder: Path) -> tuple[ParityReport | None, LatencyReport | None]:
    """What `check` and `bench` wrote, of which the pages are made; None for what was not run.

    Args:
        bundle: a verified bundle.
        folder: the folder of the pages.

    Raises:
        BundleError: if one of the two is damaged, too large, or of another bundle.
    """
    parity = _read(_found(bundle, folder, PARITY), ParityReport, "check")
    latency = _read(_found(bundle, folder, LATENCY), LatencyReport, "bench")
    if parity is not None:
        check_made_from(parity, bundle, str(_found(bundle, folder, PARITY)), _again("check"))
    if latency is not None:
        check_made_from(latency.parity, bundle, str(_found(bundle, folder, LATENCY)), _again("bench"))
    if latency is not None and len(latency.rows) > MOST_ROWS:
        raise BundleError(
            "too many rows of latency",
            got=len(latency.rows),
            wanted=f"at most {MOST_ROWS}",
            hint="funnel-export bench again, or remove the file",
        )
    return parity, latency


def _replace(folder: Path, texts: Mapping[Path, str], pictures: Mapping[Path, bytes]) -> None:
    """Write files, and remove the pictures of an earlier report that this one has not."""
    write_files({**{path: text.encode() for path, text in texts.items()}, **pictures})
    for path in {folder / name for name in PAGES} - {*texts, *pictures}:
        path.unlink(missing_ok=True)


def _found(bundle: Bundle, folder: Path, name: str) -> Path:
    """Where a report is: in this folder, or else in the bundle's own."""
    own = bundle.path / REPORTS
    here = os.path.lexists(folder / name) or own.is_symlink()
    return folder / name if here else own / name


def keep_report(bundle: Bundle, file: str, report: BaseModel, folder: Path) -> None:
    """Write what a command found, for programs and for people; the caller has it even if that fails."""
    try:
        write_text(folder / file, report.model_dump_json(indent=2) + "\n")
    except OSError as err:
        left = _remove(folder, (file, *PAGES))
        earlier = f"; files of an earlier run could not be removed: {', '.join(left)}" if left else ""
        place = "the bundle" if folder == bundle.path / REPORTS else folder
        why = no_room(err, folder.parent) or err.strerror or err
        message = f"the report could not be kept in {place}: {why}{earlier}; try {ELSEWHERE}"
        warnings.warn(message, FunnelExportWarning, stacklevel=3)
        return
    try:
        write_reports(bundle, folder)
    except BundleError as err:  # a report of the other command that is damaged, or cannot be drawn
        _remove(folder, PAGES)
        warnings.warn(f"{file} is written, but no page of it: {err}", FunnelExportWarning, stacklevel=3)


def _remove(folder: Path, names: Iterable[str]) -> list[str]:
    """Remove files that look like results of this run; return the names of those that could not be removed."""
    left = []
    for name in names:
        try:
            (folder / name).unlink(missing_ok=True)
        except NotADirectoryError:  # a file in the folder's place: there is no earlier report
            continue
        except OSError:  # a read-only file system raises for files that do not exist, too
            if os.path.lexists(folder / name):
                left.append(name)
    return left


def _read(path: Path, kind: type[ReportT], command: str) -> ReportT | None:
    """A report that `check` or `bench` wrote; None if it was not run."""
    hint = _again(command)
    if path.is_symlink():
        raise BundleError("a report of the bundle is a symbolic link", got=path, wanted="a file", hint=hint)
    try:
        content = read_bytes(path, LARGEST_JSON)
    except FileNotFoundError:
        return None
    except OSError as err:
        raise BundleError("a report of the bundle cannot be read", got=err, wanted=path, hint=hint) from err
    return parse_record(content, kind, path, "a report of this version of funnel_export", hint)


def _again(command: str) -> str:
    return f"funnel-export {command} again, or remove the file"


def render_html(contents: Contents) -> str:
    """One page without scripts that loads nothing."""
    environment = _environment(_shown)
    themes = {"light": LIGHT, "dark": DARK}
    return environment.get_template("report.html.j2").render(it=contents, themes=themes)


def render_markdown(contents: Contents) -> str:
    """A page of tables, as GitHub shows it."""
    environment = _environment(_markdown)
    return environment.get_template("report.md.j2").render(it=contents)


def _environment(finalize: Callable[[Any], Any]) -> "Environment":
    """Templates in which every value goes through `finalize`, and is escaped for HTML unless that made it safe."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("funnel_export.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=finalize,
    )


def _shown(value: Any) -> Any:
    """Text without characters that a reader's terminal or browser would obey; numbers as they are."""
    return printable(value) if type(value) is str else value


def _markdown(value: Any) -> Any:
    """Text that Markdown shows as it is; what templates and macros of this package made stays."""
    from markupsafe import Markup

    if isinstance(value, Markup):
        return value
    return Markup(printable(str(value)).translate(SPECIAL))  # noqa: S704 - escaped by this line
