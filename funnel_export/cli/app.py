"""What the commands share: the application, common arguments, how they print and show progress."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from funnel_export.errors import TargetRefusedError, printable
from funnel_export.progress import Progress, no_progress

if TYPE_CHECKING:
    from funnel_export.verify.parity_report import ParityReport

app = typer.Typer(
    help="Export Gemma models with a sequence funnel, and prove that it computes what PyTorch computes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(asked: bool) -> None:
    if asked:
        say(f"funnel-export {version('funnel-export')}")
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


BundleFolder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder that `export` wrote.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def say(text: str) -> None:
    """Print a result."""
    typer.echo(printable(text))  # names in a bundle are its maker's


def end(parity: "ParityReport", *, passed: bool) -> None:
    """End a command by the exit code of what it found."""
    if parity.refused:
        raise typer.Exit(TargetRefusedError.exit_code)
    if not passed:
        raise typer.Exit(1)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A line that says what is going on, with a bar, on a terminal and from the first step on; nothing in a pipe."""
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    if not console.is_terminal:
        yield no_progress
        return
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
