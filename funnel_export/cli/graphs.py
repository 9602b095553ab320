"""Commands about reviewed graphs: show, check, accept."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from funnel_export.cli.app import BundleFolder, app, progress_bar, say

graph = typer.Typer(help="Review graphs: texts without weights that CI compares a fresh export with.")
app.add_typer(graph, name="graph", no_args_is_help=True)

GraphsFolder = Annotated[Path, typer.Argument(metavar="[GRAPHS]", help="Folder with the reviewed graphs.")]


@graph.command("show")
def graph_show(bundle: BundleFolder) -> None:
    """Print what a bundle's graph computes, as a text without weights."""
    from funnel_export.bundle.load import load_bundle
    from funnel_export.commands.graphs import describe_bundle_graph

    say(describe_bundle_graph(load_bundle(bundle)).rstrip())


@graph.command("check")
def graph_check(folder: GraphsFolder = Path("graphs")) -> None:
    """Export the graphs under contract anew; print how they differ, with exit code 1 if they do."""
    from funnel_export.commands.graphs import check_graphs

    with progress_bar() as progress:
        difference = check_graphs(folder, progress)
    if difference:
        say(difference.rstrip())
        print(  # noqa: T201
            f"error: graphs differ from the accepted ones in {folder}\n"
            '  try: read the difference; if it is meant, `funnel-export graph accept --why "..."`',
            file=sys.stderr,
        )
        raise typer.Exit(1)
    say(f"{folder}: as accepted")


@graph.command("accept")
def graph_accept(
    why: Annotated[str, typer.Option(help="Why the graphs changed: a sentence for CHANGES.md.")],
    folder: GraphsFolder = Path("graphs"),
) -> None:
    """Take fresh graphs as the accepted ones, and write down why; refused where CI is set."""
    from funnel_export.commands.graphs import accept_graphs

    with progress_bar() as progress:
        changed = accept_graphs(folder, why, progress)
    say("\n".join(f"accepted {path}" for path in changed) or f"{folder}: nothing changed")
