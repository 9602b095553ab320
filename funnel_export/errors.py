"""Errors that teach: what is wrong, what was got, what was wanted, what to try."""

from typing import ClassVar


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
            f"  {label}: {value}"
            for label, value in (("got", got), ("wanted", wanted), ("try", hint))
            if value is not None
        ]
        super().__init__("\n".join(parts))
        self.what = what


class SpecError(FunnelExportError, ValueError):
    """A funnel or an option that cannot be."""


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
