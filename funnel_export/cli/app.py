"""The application: registration of the commands, and the options that all of them have."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from funnel_export.cli.output import GENERAL, QUIET, VERBOSE, say, set_loudness


def _set_quiet(asked: bool) -> None:
    if asked:
        set_loudness(QUIET)


def _set_verbose(asked: bool) -> None:
    if asked:
        set_loudness(VERBOSE)


def _show_version(asked: bool) -> None:
    if asked:
        say(f"funnel-export {version('funnel-export')}")
        raise typer.Exit


def _options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def _loudness(
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose",
            "-v",
            callback=_set_verbose,
            is_eager=True,
            expose_value=False,
            rich_help_panel=GENERAL,
            help="Print every step, the libraries' logs, and tracebacks.",
        ),
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet",
            "-q",
            callback=_set_quiet,
            is_eager=True,
            expose_value=False,
            rich_help_panel=GENERAL,
            help="Print results and errors only: no progress, no warnings.",
        ),
    ] = False,
) -> None:
    pass


@cache
def _common_options() -> list[Any]:
    """`--verbose` and `--quiet`, which may stand before or after a command's name."""
    single = typer.Typer(add_completion=False)
    single.command()(_loudness)
    return get_command(single).params


def _as_shown(params: Sequence[Any]) -> list[Any]:
    """Parameters as `--help` shows them: flags without a type, since they take no value."""
    for param in params:
        if getattr(param, "is_flag", False):
            param.metavar = ""
        if "--help" in param.opts:
            param.rich_help_panel = GENERAL
    return [*params]


class _Common:
    """Adds the options that all commands have; a mixin for Typer's classes."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.params.extend(_common_options())  # type: ignore[attr-defined]  # of Typer's class

    def get_params(self, ctx: Any) -> list[Any]:
        """The arguments and options."""
        return _as_shown(super().get_params(ctx))  # type: ignore[misc]  # of Typer's class


class Command(_Common, TyperCommand):
    """A command."""


class Group(_Common, TyperGroup):
    """A group of commands."""


def make_app(panels: Mapping[str, Sequence[Callable[..., None]]], groups: Mapping[str, typer.Typer]) -> typer.Typer:
    """Make the application.

    Args:
        panels: commands by the heading under which `--help` shows them.
        groups: groups of commands by heading.
    """
    app = typer.Typer(
        cls=Group,
        help="Export Gemma models with a sequence funnel, and prove that it computes what PyTorch computes.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    app.callback()(_options)
    for panel, functions in panels.items():
        for function in functions:
            app.command(function.__name__.rstrip("_"), cls=Command, rich_help_panel=panel)(function)
    for panel, group in groups.items():
        app.add_typer(group, rich_help_panel=panel)
    return app
