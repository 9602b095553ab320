"""Command that gives an adapted model the instruction tuning of its base model: transplant."""

from pathlib import Path
from typing import Annotated

import typer

from funnel_export.cli.options import Json
from funnel_export.cli.output import say, show_progress


def transplant(
    adapted: Annotated[
        str,
        typer.Argument(metavar="ADAPTED", help="Folder of a checkpoint that was adapted to a funnel, or its Hub id."),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the new checkpoint.")],
    base: Annotated[
        str, typer.Option(metavar="CHECKPOINT", help="The dense model from which ADAPTED was made: folder or Hub id.")
    ],
    instruct: Annotated[
        str, typer.Option(metavar="CHECKPOINT", help="The instruction-tuned model of the same base: folder or Hub id.")
    ],
    json_: Json = False,
) -> None:
    """Add the difference of an instruct model and its base to a checkpoint that was adapted to a funnel."""
    from funnel_export.commands.transplant import transplant as run_transplant
    from funnel_export.report.transplant_text import describe_transplant

    with show_progress() as progress:
        found = run_transplant(adapted, out, base=base, instruct=instruct, progress=progress)
    say(found.model_dump_json() if json_ else describe_transplant(found, out))
