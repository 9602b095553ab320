"""Command that measures what a model says about documents: evaluate."""

from pathlib import Path
from typing import Annotated

import typer

from funnel_export.cli.options import (
    Funnel,
    Json,
    Lookahead,
    PoolingName,
    RecoveryName,
    SlotPositionsName,
    chosen_funnel,
    complete_target,
)
from funnel_export.cli.output import say, show_progress
from funnel_export.spec.choices import AUTO, Device, Dtype
from funnel_export.spec.data import DataSpec
from funnel_export.spec.defaults import EVALUATED_LENGTH, SEED

DATA, RUN = "Data", "Run"
"""Headings of options."""
Data = Annotated[
    list[str],
    typer.Option(
        metavar="PLACE",
        help="Documents: text files, .jsonl, .json, .csv or .parquet, a folder of these, a folder that datasets "
        "saved, or the id of a data set on the Hub. May be given several times.",
        rich_help_panel=DATA,
    ),
]
TextColumn = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Column of the texts, or for token classification of the lists of words.",
        show_default="text, or tokens",
        rich_help_panel=DATA,
    ),
]
LabelColumn = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Column of the labels, or for token classification of the lists of labels.",
        show_default="label, or tags",
        rich_help_panel=DATA,
    ),
]
Split = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Split of a data set.", show_default="the only one, or test", rich_help_panel=DATA
    ),
]
Subset = Annotated[
    str | None, typer.Option(metavar="NAME", help="Subset of a data set on the Hub.", rich_help_panel=DATA)
]


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="Folder of a Gemma checkpoint, id of a model on the Hugging Face Hub, or a bundle."
        ),
    ],
    data: Data,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    split: Split = None,
    subset: Subset = None,
    max_documents: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Use only the first N documents.", rich_help_panel=DATA),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Use only the first N tokens of the texts.", rich_help_panel=DATA),
    ] = None,
    funnel: Funnel = AUTO,
    pooling: PoolingName = None,
    recovery: RecoveryName = None,
    slot_positions: SlotPositionsName = None,
    lookahead: Lookahead = False,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Runtime to use for a bundle, as `doctor` names it.",
            show_default="the first that runs the bundle",
            autocompletion=complete_target,
            rich_help_panel=RUN,
        ),
    ] = None,
    engine: Annotated[
        str | None, typer.Option(metavar="NAME", help="Engine of the bundle to use.", rich_help_panel=RUN)
    ] = None,
    dtype: Annotated[
        Dtype, typer.Option(help="Data type in which PyTorch computes.", rich_help_panel=RUN)
    ] = Dtype.FLOAT32,
    device: Annotated[Device, typer.Option(help="Device of PyTorch.", rich_help_panel=RUN)] = Device.AUTO,
    dense: Annotated[
        bool | None,
        typer.Option(
            "--dense/--no-dense",
            help="Also measure the dense model of the same weights in PyTorch, and the distance from it.",
            show_default="with a funnel",
            rich_help_panel=RUN,
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="CHECKPOINT",
            help="Compare with the dense model of this checkpoint, for example the one that training began with.",
            show_default="the same weights",
            rich_help_panel=RUN,
        ),
    ] = None,
    length: Annotated[
        int, typer.Option(min=2, metavar="N", help="Most tokens that the model reads at once.", rich_help_panel=RUN)
    ] = EVALUATED_LENGTH,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Rows of tokens that run together.",
            show_default="as many as have 512 tokens",
            rich_help_panel=RUN,
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Seed of the intervals' draws.", rich_help_panel=RUN)
    ] = SEED,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write the report as JSON; an earlier report is replaced."),
    ] = None,
    json_: Json = False,
) -> None:
    """Measure a model on documents: loss, accuracy, F1 scores, and the distance from the dense model."""
    from funnel_export.commands.evaluate import evaluate as run_evaluate
    from funnel_export.report.quality_text import describe_quality

    documents = DataSpec(
        places=tuple(data), split=split, subset=subset, text_column=text_column, label_column=label_column
    )
    chosen = chosen_funnel(
        funnel, pooling=pooling, recovery=recovery, slot_positions=slot_positions, lookahead=lookahead
    )
    with show_progress() as progress:
        found = run_evaluate(
            model,
            documents,
            funnel=chosen,
            dtype=dtype,
            target=target,
            engine=engine,
            dense=dense,
            against=against,
            length=length,
            max_documents=max_documents,
            max_tokens=max_tokens,
            batch_size=batch_size,
            device=device,
            seed=seed,
            out=out,
            progress=progress,
        )
    say(found.model_dump_json() if json_ else describe_quality(found))
