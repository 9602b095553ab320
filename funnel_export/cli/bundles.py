"""Commands about bundles: demo, export, inspect, check, report."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from funnel_export.cli.app import BundleFolder, Json, app, end, progress_bar, say
from funnel_export.errors import SpecError
from funnel_export.spec.choices import Pooling, Recovery, SlotPositions
from funnel_export.spec.export import DEFAULT_OPSET
from funnel_export.spec.funnel import FunnelSpec


@app.command()
def demo(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    json_: Json = False,
) -> None:
    """Do it all on a small model that is made here: no download, no GPU."""
    from funnel_export.commands.demo import describe_demo, run_demo

    with progress_bar() as progress:
        report = run_demo(out, progress=progress)
    say(report.model_dump_json() if json_ else describe_demo(out, report))
    end(report.parity, passed=report.passed)


@app.command()
def export(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="Folder of a Gemma2 checkpoint, or Hub id.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the bundle; an earlier bundle is replaced.")],
    funnel: Annotated[
        str, typer.Option(metavar="P:R:S", help="Pool at layer P, recover at R, stride S; `none` for the dense model.")
    ] = "auto",
    pooling: Annotated[Pooling | None, typer.Option(help="How a window becomes a slot (default: mean).")] = None,
    recovery: Annotated[Recovery | None, typer.Option(help="How tokens take a slot up (default: delta).")] = None,
    slot_positions: Annotated[
        SlotPositions | None, typer.Option(help="Position of a slot in RoPE and masks (default: original).")
    ] = None,
    lookahead: Annotated[
        bool, typer.Option("--lookahead", help="Give an unfinished last window a slot; not for text generation.")
    ] = False,
    task: Annotated[str, typer.Option(help="Task as Optimum names it; `auto` reads the architectures.")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="float32, float16 or bfloat16; `auto` is what the embedding is stored in.")
    ] = "auto",
    logits: Annotated[str, typer.Option(help="Of text generation: `all` tokens, or each row's `last` only.")] = "all",
    weights: Annotated[str, typer.Option(help="`link` hard-links the weight files, `copy` copies them.")] = "link",
    opset: Annotated[int, typer.Option(help="ONNX opset, 18 to 22.")] = DEFAULT_OPSET,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub id (default: main).")] = None,
    json_: Json = False,
) -> None:
    """Export a checkpoint with a funnel to an ONNX bundle, without loading its weights."""
    from funnel_export.commands.export import export as run_export

    options = {"pooling": pooling, "recovery": recovery, "slot_positions": slot_positions}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if lookahead:
        given["lookahead"] = True
    if given and funnel in ("auto", "none"):
        raise SpecError(f"{', '.join(given)} without a funnel", got=f"--funnel {funnel}", wanted="--funnel P:R:S")
    spec = funnel if funnel in ("auto", "none") else FunnelSpec.parse(funnel, **given)
    with progress_bar() as progress:
        bundle = run_export(
            checkpoint,
            out,
            funnel=spec,
            task=task,
            dtype=dtype,
            logits=logits,
            weights=weights,
            opset=opset,
            revision=revision,
            progress=progress,
        )
    say(bundle.manifest.model_dump_json() if json_ else f"{out}: {bundle.manifest.task}, {bundle.manifest.dtype}")


@app.command()
def inspect(bundle: BundleFolder, json_: Json = False) -> None:
    """Show what is in a bundle: its funnel as a picture, its audit, and what it is predicted to save."""
    from funnel_export.commands.inspect import inspect as run_inspect

    found = run_inspect(bundle)
    say(found.to_json() if json_ else found.to_text())


@app.command()
def check(
    bundle: BundleFolder,
    target: Annotated[
        list[str] | None, typer.Option(help="Target to check, several times if wanted (default: all that work here).")
    ] = None,
    length: Annotated[
        list[int] | None, typer.Option(min=1, help="A further sequence length, several times if wanted.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Leave out longer sequences, as around a window of 4096.")
    ] = None,
    factor: Annotated[
        float | None, typer.Option(min=1.0, help="How many times eager PyTorch's own error may be lost (default: 4).")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the tokens.")] = 0,
    json_: Json = False,
) -> None:
    """Compare targets with eager PyTorch; the last line is JSON, and the exit code is 1 if one differs."""
    from funnel_export.commands.check import check as run_check
    from funnel_export.report.text import describe_parity

    with progress_bar() as progress:
        report = run_check(
            bundle,
            targets=target or None,
            lengths=length or (),
            max_length=max_length,
            factor=factor,
            seed=seed,
            progress=progress,
        )
    if not json_:
        say(describe_parity(report))
    say(report.model_dump_json())
    end(report, passed=report.passed)


@app.command()
def report(bundle: BundleFolder, json_: Json = False) -> None:
    """Make `reports/report.md`, `report.html` and pictures of what `check` and `bench` found."""
    from funnel_export.bundle.load import load_bundle
    from funnel_export.report.pages import write_reports

    paths = [str(path) for path in write_reports(load_bundle(bundle))]
    say(json.dumps({"written": paths}) if json_ else "\n".join(paths))
