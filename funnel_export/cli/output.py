"""Output of the commands: results, errors, warnings, progress and logs."""

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from funnel_export.errors import TargetRefusedError, printable
from funnel_export.progress import Progress, no_progress

if TYPE_CHECKING:
    from rich.console import Console

    from funnel_export.verify.parity_report import ParityReport

LOG = logging.getLogger("funnel_export")
"""Its level sets how much is printed, from `ERROR` (results and errors only) to `DEBUG` (everything)."""
GENERAL = "General"
"""Heading of the options that every command has."""
QUIET, USUAL, VERBOSE = logging.ERROR, logging.WARNING, logging.DEBUG


class _Stderr(logging.Handler):
    """Prints the logs of libraries, but not torch's trace log, which is slow and meant for its own tools."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        tell(self.format(record))


_LOGS = _Stderr()


def set_loudness(level: int) -> None:
    """Set how much is printed: `QUIET`, `USUAL` or `VERBOSE`."""
    root = logging.getLogger()
    LOG.setLevel(level)
    root.removeHandler(_LOGS)
    if level == VERBOSE:
        for library in ("TRANSFORMERS", "HF_HUB"):  # their loggers do not propagate to the root
            os.environ.setdefault(f"{library}_VERBOSITY", "info")
        root.setLevel(logging.INFO)
        root.addHandler(_LOGS)


def is_quiet() -> bool:
    """Whether only results and errors are printed."""
    return not LOG.isEnabledFor(USUAL)


def is_verbose() -> bool:
    """Whether tracebacks and logs are printed too."""
    return LOG.isEnabledFor(VERBOSE)


def say(text: str) -> None:
    """Print a result."""
    typer.echo(printable(text))  # names in a bundle may be untrusted


def tell(text: str) -> None:
    """Print anything that is not a result, to stderr."""
    print(printable(text), file=sys.stderr, flush=True)  # noqa: T201


def show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Print a warning on one line; a replacement for `warnings.showwarning`."""
    if not is_quiet():
        tell(f"warning: {message}")


def end(parity: "ParityReport", *, passed: bool) -> None:
    """Exit with 4 if a target refused the graph, or with 1 if the command's result is a failure."""
    if parity.refused:
        raise typer.Exit(TargetRefusedError.exit_code)
    if not passed:
        raise typer.Exit(1)


@contextmanager
def show_progress(*, stages: bool = False) -> Iterator[Progress]:
    """Show the steps of a command on stderr: as a bar on a terminal, or with `--verbose` as one line each.

    Args:
        stages: without a terminal, print one line per stage; steps are named `stage: step`.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if is_quiet():
        yield no_progress
    elif is_verbose():
        yield _Lines()
    elif console.is_terminal:
        with _bar(console) as show:
            yield show
    else:
        yield _Lines(stages=True) if stages else no_progress


class _Lines:
    """Prints one line per step, or per stage, with the seconds since the start."""

    def __init__(self, *, stages: bool = False) -> None:
        self.stages, self.start, self.shown = stages, time.monotonic(), ""

    def __call__(self, step: str, _done: float | None = None, /) -> None:
        text = step.partition(":")[0] if self.stages else step
        if text != self.shown:
            tell(f"{time.monotonic() - self.start:5.0f} s  {text}")
        self.shown = text


@contextmanager
def _bar(console: "Console") -> Iterator[Progress]:
    """A progress bar with the current step, shown from the first step on."""
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    bar = Bar(*columns, console=console, transient=True)
    task = bar.add_task("starting", total=None)

    def show(step: str, done: float | None = None, /) -> None:
        bar.update(task, description=step, total=None if done is None else 1.0, completed=done or 0.0)
        bar.start()

    try:
        yield show
    finally:
        bar.stop()
