"""Commands for work on this package itself: `dev graph check`, `dev graph accept`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from funnel_export.cli.app import Command, Group
from funnel_export.cli.options import Json
from funnel_export.cli.output import say, show_progress, tell

dev = typer.Typer(cls=Group, name="dev", help="Commands for work on funnel_export itself.", no_args_is_help=True)
graph = typer.Typer(
    cls=Group, help="Compare the graphs that are exported with those that a person has read.", no_args_is_help=True
)
dev.add_typer(graph, name="graph")

GRAPHS = Path("graphs")
GraphsFolder = Annotated[Path, typer.Argument(metavar="GRAPHS", help="Folder with the accepted graphs.")]


@graph.command("check", cls=Command)
def check(folder: GraphsFolder = GRAPHS, json_: Json = False) -> None:
    """Export the graphs anew, and print how they differ from the accepted ones. The exit code is 1 if they do."""
    from funnel_export.commands.graphs import check_graphs

    with show_progress() as progress:
        differences = check_graphs(folder, progress)
    if json_:
        say(json.dumps({"differences": differences}))
    elif differences:
        say("".join(differences.values()).rstrip())
    else:
        say(f"{folder}: as accepted")
    if differences:
        tell(
            f"error: graphs differ from the accepted ones in {folder}\n"
            '  try: read the difference; if it is meant, `funnel-export dev graph accept --why "..."`'
        )
        raise typer.Exit(1)


@graph.command("accept", cls=Command)
def accept(
    why: Annotated[str, typer.Option(metavar="TEXT", help="Why the graphs changed: a sentence for CHANGES.md.")],
    folder: GraphsFolder = GRAPHS,
    json_: Json = False,
) -> None:
    """Take the graphs that are exported now as the accepted ones, and write down why. Refused where CI is set."""
    from funnel_export.commands.graphs import accept_graphs

    with show_progress() as progress:
        changed = accept_graphs(folder, why, progress)
    if json_:
        say(json.dumps({"accepted": changed}))
    else:
        say("\n".join(f"accepted {path}" for path in changed) or f"{folder}: nothing changed")
