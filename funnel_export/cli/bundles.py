"""Commands that make and show a bundle: export, quantize, inspect."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from funnel_export.cli.options import (
    BundleFolder,
    DtypeName,
    Funnel,
    Json,
    Lookahead,
    PoolingName,
    RecoveryName,
    SlotPositionsName,
    TaskName,
    chosen_funnel,
)
from funnel_export.cli.output import say, show_progress
from funnel_export.cli.quantizing import (
    DEFAULT_BITS,
    Bits,
    Block,
    Keep,
    MethodName,
    Symmetric,
    Texts,
    Tokens,
    chosen_quantization,
)
from funnel_export.spec.choices import AUTO, Logits
from funnel_export.spec.defaults import EXPORT_WEIGHTS
from funnel_export.spec.export import DEFAULT_LOGITS, DEFAULT_OPSET, OPSETS
from funnel_export.spec.quantization import QUANTIZED_OPSET
from funnel_export.system.place import Placing

if TYPE_CHECKING:
    from funnel_export.bundle.load import Bundle

GRAPH, FILES = "Graph", "Files"
"""Headings of options of `export`."""
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Remove an earlier bundle's reports, engines that do not fit, and files that were changed.",
        rich_help_panel=FILES,
    ),
]


def export(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT", help="Folder of a Gemma checkpoint, or id of a model on the Hugging Face Hub."
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the bundle; an earlier bundle is replaced.")],
    funnel: Funnel = AUTO,
    pooling: PoolingName = None,
    recovery: RecoveryName = None,
    slot_positions: SlotPositionsName = None,
    lookahead: Lookahead = False,
    task: Annotated[
        TaskName,
        typer.Option(
            help="Task of the graphs. `auto` is the checkpoint's, for text generation with a cache.",
            rich_help_panel=GRAPH,
        ),
    ] = AUTO,
    dtype: Annotated[
        DtypeName,
        typer.Option(
            help="Data type of the computation. `auto` is that of the stored embedding.", rich_help_panel=GRAPH
        ),
    ] = AUTO,
    logits: Annotated[
        Logits,
        typer.Option(
            help="For text generation: logits of all tokens, or only of each row's last one.", rich_help_panel=GRAPH
        ),
    ] = DEFAULT_LOGITS,
    opset: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help=f"ONNX opset, {OPSETS[0]} to {OPSETS[-1]}.",
            show_default=f"{DEFAULT_OPSET}, or {QUANTIZED_OPSET} for quantized weights",
            rich_help_panel=GRAPH,
        ),
    ] = None,
    bits: Bits = None,
    block: Block = None,
    symmetric: Symmetric = None,
    keep: Keep = None,
    method: MethodName = None,
    data: Texts = None,
    tokens: Tokens = None,
    weights: Annotated[
        Placing,
        typer.Option(
            help="Hard-link the weight files into the bundle, copy them, or link only those that already are hard "
            "links.",
            rich_help_panel=FILES,
        ),
    ] = EXPORT_WEIGHTS,
    revision: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Branch, tag or commit of a model on the Hub.",
            show_default="main",
            rich_help_panel=FILES,
        ),
    ] = None,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Export a checkpoint with a funnel to an ONNX bundle, without loading its weights."""
    from funnel_export.commands.export import export as run_export

    spec = chosen_funnel(funnel, pooling=pooling, recovery=recovery, slot_positions=slot_positions, lookahead=lookahead)
    quantization = chosen_quantization(bits, block=block, symmetric=symmetric, keep=keep, method=method)
    with show_progress() as progress:
        bundle = run_export(
            checkpoint,
            out,
            funnel=spec,
            task=task,
            dtype=dtype,
            logits=logits,
            weights=weights,
            opset=opset,
            quantization=quantization,
            data=data,
            tokens=tokens,
            revision=revision,
            overwrite=overwrite,
            progress=progress,
        )
    _say_written(bundle, out, as_json=json_)


def quantize(
    bundle: BundleFolder,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the new bundle; an earlier one is replaced.")],
    bits: Bits = DEFAULT_BITS,
    block: Block = None,
    symmetric: Symmetric = None,
    keep: Keep = None,
    method: MethodName = None,
    data: Texts = None,
    tokens: Tokens = None,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Write a bundle again with its weights in 8 or 4 bits; without loading the model, but for `gptq`."""
    from funnel_export.commands.quantize import quantize as run_quantize

    quantization = chosen_quantization(bits, block=block, symmetric=symmetric, keep=keep, method=method)
    assert quantization is not None
    with show_progress() as progress:
        made = run_quantize(bundle, out, quantization, data=data, tokens=tokens, overwrite=overwrite, progress=progress)
    _say_written(made, out, as_json=json_)


def _say_written(bundle: "Bundle", out: Path, *, as_json: bool) -> None:
    """Print the manifest, or one line."""
    if as_json:
        say(bundle.manifest.model_dump_json())
        return
    spec = bundle.spec
    stored = "" if spec.quantization is None else f", weights in {spec.quantization}"
    say(f"{out}: {spec.task}, {spec.dtype}{stored}")


def inspect(
    bundle: BundleFolder,
    graph: Annotated[bool, typer.Option("--graph", help="Print the graph as text without weights instead.")] = False,
    json_: Json = False,
) -> None:
    """Show a bundle: its contents, a drawing of its funnel, an audit of its graph, and the predicted savings."""
    from funnel_export.commands.inspect import describe_graphs
    from funnel_export.commands.inspect import inspect as run_inspect

    if graph:
        texts = describe_graphs(bundle)
        say(json.dumps({"graphs": texts}) if json_ else "\n".join(texts.values()).rstrip())
        return
    found = run_inspect(bundle)
    say(found.to_json() if json_ else found.to_text())
