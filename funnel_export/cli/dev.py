"""Commands for developing this package: `dev graph check`, `dev graph accept`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from funnel_export.cli.app import Command, Group
from funnel_export.cli.options import Json
from funnel_export.cli.output import say, show_progress, tell

dev = typer.Typer(cls=Group, name="dev", help="Commands for developing funnel_export itself.", no_args_is_help=True)
graph = typer.Typer(cls=Group, help="Compare exported graphs with the reviewed ones.", no_args_is_help=True)
dev.add_typer(graph, name="graph")

GRAPHS = Path("graphs")
GraphsFolder = Annotated[Path, typer.Argument(metavar="GRAPHS", help="Folder with the accepted graphs.")]


@graph.command("check", cls=Command)
def check(folder: GraphsFolder = GRAPHS, json_: Json = False) -> None:
    """Export the graphs again and print the differences from the accepted ones. The exit code is 1 if there are any."""
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
            '  try: review the differences; if intended, `funnel-export dev graph accept --why "..."`'
        )
        raise typer.Exit(1)


@graph.command("accept", cls=Command)
def accept(
    why: Annotated[str, typer.Option(metavar="TEXT", help="Why the graphs changed: a sentence for CHANGES.md.")],
    folder: GraphsFolder = GRAPHS,
    json_: Json = False,
) -> None:
    """Accept the graphs as they are exported now, and record the reason. Refused if the variable CI is set."""
    from funnel_export.commands.graphs import accept_graphs

    with show_progress() as progress:
        changed = accept_graphs(folder, why, progress)
    if json_:
        say(json.dumps({"accepted": changed}))
    else:
        say("\n".join(f"accepted {path}" for path in changed) or f"{folder}: nothing changed")
