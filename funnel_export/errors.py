"""Errors: what is wrong, what was got, what was wanted, what to try."""

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from pydantic import ValidationError

LONGEST_PART = 2000
"""Most characters that an error quotes of a value; a value from an untrusted file may have millions."""


def printable(text: str) -> str:
    """`text` with all characters that are not printable, except line breaks, as JSON escapes."""
    return "".join(c if c.isprintable() or c == "\n" else _escape(c) for c in text)


def _escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))


def _quote(value: object) -> str:
    """A value for an error: cut to `LONGEST_PART`, with later lines indented so that none looks like another part."""
    text = str(value)
    return (text if len(text) <= LONGEST_PART else f"{text[:LONGEST_PART]}…").replace("\n", "\n    ")


def describe_invalid(err: "ValidationError") -> list[str]:
    """The errors that pydantic found, each with the path of its field."""
    return [": ".join(filter(None, (".".join(map(str, each["loc"])), each["msg"]))) for each in err.errors()]


class FunnelExportWarning(UserWarning):
    """A problem that does not prevent a result."""


class FunnelExportError(Exception):
    """Base class of errors that a user can cause or fix; the command line prints them without a traceback.

    Args:
        what: the fault, in one clause.
        got: the value that was found.
        wanted: the value that was expected.
        hint: a command or an edit to try.
    """

    exit_code: ClassVar[int] = 2

    def __init__(self, what: str, *, got: object = None, wanted: object = None, hint: str | None = None) -> None:
        parts = [what]
        parts += [
            f"  {label}: {_quote(value)}"
            for label, value in (("got", got), ("wanted", wanted), ("try", hint))
            if value is not None
        ]
        super().__init__(printable("\n".join(parts)))
        self.what = printable(what)
        parts_given = {"got": got, "wanted": wanted, "hint": hint}
        self.details = {key: str(value) for key, value in parts_given.items() if value is not None}


class SpecError(FunnelExportError, ValueError):
    """An invalid funnel or an invalid option."""


class CheckpointError(FunnelExportError):
    """A checkpoint that cannot be exported."""


class DataError(FunnelExportError):
    """Documents that cannot be read, or that do not fit the model."""


class ExportError(FunnelExportError):
    """A graph that failed the export's audit or could not be made."""


class BundleError(FunnelExportError):
    """A folder that is not a bundle, or a bundle that differs from its manifest."""


class TargetUnavailableError(FunnelExportError):
    """A target that cannot work on this machine."""

    exit_code = 3


class TargetRefusedError(FunnelExportError):
    """A target that refused the graph."""

    exit_code = 4
