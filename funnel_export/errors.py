"""Errors that teach: what is wrong, what was got, what was wanted, what to try."""

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from pydantic import ValidationError

LONGEST_PART = 2000
"""Characters of what an error quotes; a file of a stranger may hold millions."""


def printable(text: str) -> str:
    """`text` with everything that a terminal would obey instead of show, but line breaks, written as JSON escapes."""
    return "".join(c if c.isprintable() or c == "\n" else _escape(c) for c in text)


def _escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))


def _quote(value: object) -> str:
    """A part of an error: no longer than it helps, and its further lines indented, so that none looks like a part."""
    text = str(value)
    return (text if len(text) <= LONGEST_PART else f"{text[:LONGEST_PART]}…").replace("\n", "\n    ")


def describe_invalid(err: "ValidationError") -> list[str]:
    """What pydantic found, each with its place where there is one."""
    return [": ".join(filter(None, (".".join(map(str, each["loc"])), each["msg"]))) for each in err.errors()]


class FunnelExportWarning(UserWarning):
    """What a caller should know of a result that is there all the same."""


class FunnelExportError(Exception):
    """Base of every error that a user can cause or mend; the command line prints it without a traceback.

    Args:
        what: what is wrong, in one clause.
        got: what was found.
        wanted: what would have been right.
        hint: what to try next.
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


class ExportError(FunnelExportError):
    """A graph that the export must not hand out."""


class BundleError(FunnelExportError):
    """A bundle that is not what its manifest says, or no bundle at all."""


class TargetUnavailableError(FunnelExportError):
    """A target that cannot work on this machine."""

    exit_code = 3


class TargetRefusedError(FunnelExportError):
    """A target that refused the graph."""

    exit_code = 4
