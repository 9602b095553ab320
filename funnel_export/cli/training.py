"""Command that trains a model for its funnel: adapt."""

from pathlib import Path
from typing import Annotated

import typer

from funnel_export.cli.evaluating import Data, LabelColumn, Split, Subset, TextColumn
from funnel_export.cli.options import (
    Funnel,
    Json,
    Lookahead,
    PoolingName,
    RecoveryName,
    SlotPositionsName,
    TaskName,
    chosen_funnel,
    listed,
)
from funnel_export.cli.output import say, show_progress
from funnel_export.spec.choices import AUTO, Device, Dtype
from funnel_export.spec.data import DataSpec
from funnel_export.spec.defaults import FIT_DTYPE, FIT_LENGTH, HELD_OUT_TOKENS
from funnel_export.spec.training import LEARNING_RATES, Objective, Part, TrainingSpec

TRAINING = "Training"
"""Heading of options."""
_DEFAULT = TrainingSpec()


def adapt(
    checkpoint: Annotated[
        str,
        typer.Argument(metavar="CHECKPOINT", help="Folder of a checkpoint, best one of `fit`, or its id on the Hub."),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the new checkpoint.")],
    data: Data,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    split: Split = None,
    subset: Subset = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Use at most N tokens of the texts.", show_default="all")
    ] = None,
    held_out: Annotated[
        int, typer.Option(min=1, metavar="N", help="Measure losses on at most N tokens, of one document of 20.")
    ] = HELD_OUT_TOKENS,
    length: Annotated[
        int, typer.Option(min=2, metavar="N", help="Most tokens that the model reads at once.")
    ] = FIT_LENGTH,
    funnel: Funnel = AUTO,
    pooling: PoolingName = None,
    recovery: RecoveryName = None,
    slot_positions: SlotPositionsName = None,
    lookahead: Lookahead = False,
    task: Annotated[
        TaskName,
        typer.Option(help="What the model is trained for. A language model gets a new head for classification."),
    ] = AUTO,
    objective: Annotated[
        Objective | None,
        typer.Option(
            help="What is minimized: the distance from the dense model's predictions (kl) or hidden states (hidden), "
            "or the cross entropy of the next tokens or labels (targets).",
            show_default="kl for language models with a funnel, else targets",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    part: Annotated[
        Part | None,
        typer.Option(
            "--train",
            help="Weights to train: all, the middle layers with one on each side, low-rank adapters, or the maps of "
            "recovery linear only.",
            show_default="lora, or all from scratch",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    rank: Annotated[
        int, typer.Option(min=1, metavar="N", help="Rank of the adapters.", rich_help_panel=TRAINING)
    ] = _DEFAULT.rank,
    strides: Annotated[
        list[int] | None,
        typer.Option(
            "--stride",
            min=1,
            metavar="S",
            help="Draw the stride of each step from those given.",
            show_default="the funnel's",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    vocabulary: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="With objective kl, compare the N most frequent tokens only, which saves time on a CPU.",
            show_default="all",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    epochs: Annotated[
        float, typer.Option(metavar="X", help="How many times the texts are used.", rich_help_panel=TRAINING)
    ] = _DEFAULT.epochs,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Steps, in place of epochs.", show_default="by epochs", rich_help_panel=TRAINING
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, metavar="N", help="Rows that run together.", rich_help_panel=TRAINING)
    ] = _DEFAULT.batch_size,
    accumulation: Annotated[
        int, typer.Option(min=1, metavar="N", help="Batches of a step.", rich_help_panel=TRAINING)
    ] = _DEFAULT.accumulation,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Largest rate of the cosine schedule.",
            show_default=listed(f"{name} {rate:g}" for name, rate in LEARNING_RATES.items()),
            rich_help_panel=TRAINING,
        ),
    ] = None,
    maps_learning_rate: Annotated[
        float,
        typer.Option(metavar="X", help="The same for the maps of recovery linear.", rich_help_panel=TRAINING),
    ] = _DEFAULT.maps_learning_rate,
    warmup: Annotated[
        float,
        typer.Option(metavar="X", help="Share of the steps in which the rate rises.", rich_help_panel=TRAINING),
    ] = _DEFAULT.warmup,
    weight_decay: Annotated[
        float, typer.Option(metavar="X", help="Weight decay of AdamW.", rich_help_panel=TRAINING)
    ] = _DEFAULT.weight_decay,
    checkpointing: Annotated[
        bool,
        typer.Option(
            "--gradient-checkpointing",
            help="Compute activations again in the backward pass, which saves memory.",
            rich_help_panel=TRAINING,
        ),
    ] = False,
    save_steps: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Save the state of the run every N steps.", rich_help_panel=TRAINING),
    ] = _DEFAULT.save_steps,
    measure_steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Measure the loss on held-out texts every N steps.",
            show_default="at the end",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Begin with new weights: pretraining.", rich_help_panel=TRAINING)
    ] = False,
    dtype: Annotated[
        Dtype, typer.Option(help="Data type of products. Trained weights are in float32.", rich_help_panel=TRAINING)
    ] = FIT_DTYPE,
    device: Annotated[Device, typer.Option(help="Device to train on.", rich_help_panel=TRAINING)] = Device.AUTO,
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Seed of all draws.", rich_help_panel=TRAINING)
    ] = _DEFAULT.seed,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run whose state OUT has; without one, begin.")
    ] = False,
    json_: Json = False,
) -> None:
    """Train a model for its funnel, and write a checkpoint that `export` takes."""
    from funnel_export.commands.adapt import adapt as run_adapt
    from funnel_export.commands.adapt import is_main
    from funnel_export.report.quality_text import describe_adapt

    chosen = chosen_funnel(
        funnel, pooling=pooling, recovery=recovery, slot_positions=slot_positions, lookahead=lookahead
    )
    settings = {
        "rank": rank,
        "strides": tuple(strides or ()),
        "vocabulary": vocabulary,
        "epochs": epochs,
        "steps": steps,
        "batch_size": batch_size,
        "accumulation": accumulation,
        "learning_rate": learning_rate,
        "maps_learning_rate": maps_learning_rate,
        "warmup": warmup,
        "weight_decay": weight_decay,
        "checkpointing": checkpointing,
        "save_steps": save_steps,
        "measure_steps": measure_steps,
        "seed": seed,
    }
    places = DataSpec(
        places=tuple(data), split=split, subset=subset, text_column=text_column, label_column=label_column
    )
    with show_progress() as progress:
        found = run_adapt(
            checkpoint,
            out,
            data=places,
            funnel=chosen,
            task=task,
            training=settings | ({"objective": objective} if objective else {}) | ({"part": part} if part else {}),
            from_scratch=from_scratch,
            tokens=tokens,
            held_out=held_out,
            length=length,
            dtype=dtype,
            device=device,
            resume=resume,
            progress=progress,
        )
    if is_main():  # of processes that train together, the others stay silent
        say(found.model_dump_json() if json_ else describe_adapt(found, out))
