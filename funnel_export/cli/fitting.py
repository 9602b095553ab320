"""Command that wins back what a funnel costs: fit."""

from pathlib import Path
from typing import Annotated

import typer

from funnel_export.cli.evaluating import Data, Split, Subset, TextColumn
from funnel_export.cli.options import Json, Lookahead, PoolingName, SlotPositionsName, chosen_funnel
from funnel_export.cli.output import say, show_progress
from funnel_export.spec.choices import Dtype, Recovery
from funnel_export.spec.data import DataSpec
from funnel_export.spec.defaults import EXPORT_WEIGHTS, FIT_DTYPE, FIT_LENGTH, FIT_TOKENS, SEED
from funnel_export.spec.funnel import FunnelSpec
from funnel_export.system.place import Placing


def fit(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="Folder of the dense checkpoint, or its id on the Hub.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the new checkpoint.")],
    data: Data,
    funnel: Annotated[
        str,
        typer.Option(
            metavar="P:R:S",
            help="Pool before layer P, recover before layer R, with stride S; `drop` for S leaves the layers out.",
        ),
    ],
    pooling: PoolingName = None,
    slot_positions: SlotPositionsName = None,
    lookahead: Lookahead = False,
    text_column: TextColumn = None,
    split: Split = None,
    subset: Subset = None,
    tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Use at most N tokens of the texts.")] = FIT_TOKENS,
    length: Annotated[
        int, typer.Option(min=2, metavar="N", help="Most tokens that the model reads at once.")
    ] = FIT_LENGTH,
    dtype: Annotated[Dtype, typer.Option(help="Data type in which PyTorch computes.")] = FIT_DTYPE,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of the order of the documents.")] = SEED,
    weights: Annotated[
        Placing, typer.Option(help="Hard-link the weight files into the new checkpoint, or copy them.")
    ] = EXPORT_WEIGHTS,
    json_: Json = False,
) -> None:
    """Fit the recovery of a funnel to texts, and write a checkpoint with recovery `linear`."""
    from funnel_export.commands.fit import fit as run_fit
    from funnel_export.report.quality_text import describe_fit

    spec = chosen_funnel(
        funnel, pooling=pooling, recovery=Recovery.LINEAR, slot_positions=slot_positions, lookahead=lookahead
    )
    places = DataSpec(places=tuple(data), split=split, subset=subset, text_column=text_column)
    with show_progress() as progress:
        found = run_fit(
            checkpoint,
            out,
            funnel=spec if isinstance(spec, FunnelSpec) else FunnelSpec.parse(spec),
            data=places,
            tokens=tokens,
            length=length,
            dtype=dtype,
            seed=seed,
            weights=weights,
            progress=progress,
        )
    say(found.model_dump_json() if json_ else describe_fit(found, out))
