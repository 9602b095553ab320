"""The command line: each command is a thin layer over one call of the library."""

import atexit
import gc
import json
import os
import platform
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer

from funnel_export.config import FunnelSpec, Pooling, Recovery, SlotPositions
from funnel_export.errors import FunnelExportError, SpecError, TargetRefusedError, printable

app = typer.Typer(
    help="Export Gemma2 with a sequence funnel, and prove that it computes what PyTorch computes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

graph = typer.Typer(help="Review graphs: texts without weights that CI compares a fresh export with.")
app.add_typer(graph, name="graph", no_args_is_help=True)

GraphsFolder = Annotated[Path, typer.Argument(metavar="[GRAPHS]", help="Folder with the reviewed graphs.")]
BundleFolder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder that `export` wrote.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 a gate failed, 2 bad input, 3 not available here, 4 refused."""
    warnings.showwarning = _show_warning
    atexit.register(gc.freeze)  # at exit Python collects garbage in all of torch, for a second and nothing
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what is half written is removed
    try:
        app()
    except FunnelExportError as err:
        print(f"error: {err}", file=sys.stderr)  # noqa: T201
        sys.exit(err.exit_code)
    except OSError as err:
        print(f"error: {printable(str(err))}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    except Exception:  # noqa: BLE001 - a mistake of ours; Python's own exit code would say that a gate failed
        traceback.print_exc()
        sys.exit(os.EX_SOFTWARE)


@app.command()
def demo(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    json_: Json = False,
) -> None:
    """Do it all on a small model that is made here: no download, no GPU."""
    from funnel_export.demo import describe_demo, run_demo

    with _progress() as progress:
        report = run_demo(out, progress=progress)
    _print(report.model_dump_json() if json_ else describe_demo(out, report))
    if not report.parity.passed:
        raise typer.Exit(1)


@app.command()
def export(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="Folder of a Gemma2 checkpoint, or Hub id.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the bundle; an earlier bundle is replaced.")],
    funnel: Annotated[
        str, typer.Option(metavar="P:R:S", help="Pool at layer P, recover at R, stride S; `none` for the dense model.")
    ] = "auto",
    pooling: Annotated[Pooling | None, typer.Option(help="How a window becomes a slot [default: mean].")] = None,
    recovery: Annotated[Recovery | None, typer.Option(help="How tokens take a slot up [default: delta].")] = None,
    slot_positions: Annotated[
        SlotPositions | None, typer.Option(help="Position of a slot in RoPE and masks [default: original].")
    ] = None,
    lookahead: Annotated[
        bool, typer.Option("--lookahead", help="Give an unfinished last window a slot; not for text generation.")
    ] = False,
    task: Annotated[str, typer.Option(help="Task as Optimum names it; `auto` reads the architectures.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16; `auto` is what is stored.")] = "auto",
    weights: Annotated[str, typer.Option(help="`link` hard-links the weight files, `copy` copies them.")] = "link",
    opset: Annotated[int, typer.Option(help="ONNX opset, 18 to 22.")] = 20,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub id [default: main].")] = None,
    json_: Json = False,
) -> None:
    """Export a checkpoint with a funnel to an ONNX bundle, without loading its weights."""
    from funnel_export import pipeline

    options = {"pooling": pooling, "recovery": recovery, "slot_positions": slot_positions}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if lookahead:
        given["lookahead"] = True
    if given and funnel in ("auto", "none"):
        raise SpecError(f"{', '.join(given)} without a funnel", got=f"--funnel {funnel}", wanted="--funnel P:R:S")
    spec = funnel if funnel in ("auto", "none") else FunnelSpec.parse(funnel, **given)
    with _progress() as progress:
        bundle = pipeline.export(
            checkpoint,
            out,
            funnel=spec,
            task=task,
            dtype=dtype,
            weights=weights,
            opset=opset,
            revision=revision,
            progress=progress,
        )
    _print(bundle.manifest.model_dump_json() if json_ else f"{out}: {bundle.manifest.task}, {bundle.manifest.dtype}")


@app.command()
def inspect(bundle: BundleFolder, json_: Json = False) -> None:
    """Show what is in a bundle: its funnel as a picture, its audit, and what it is predicted to save."""
    from funnel_export.bundle import load_bundle
    from funnel_export.verify.summary import audit_bundle, describe_bundle, predictions

    opened = load_bundle(bundle)
    if not json_:
        _print(describe_bundle(opened))
        return
    manifest = opened.manifest.model_dump(mode="json")
    _print(json.dumps({"manifest": manifest, "audit": audit_bundle(opened), "predicted": predictions(opened)}))


@app.command()
def check(
    bundle: BundleFolder,
    target: Annotated[
        list[str] | None, typer.Option(help="Target to check, several times if wanted [default: all that work here].")
    ] = None,
    length: Annotated[
        list[int] | None, typer.Option(min=1, help="A further sequence length, several times if wanted.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Leave out longer sequences, as around a window of 4096.")
    ] = None,
    factor: Annotated[
        float | None, typer.Option(min=1.0, help="How many times eager PyTorch's own error may be lost [default: 4].")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the tokens.")] = 0,
    json_: Json = False,
) -> None:
    """Compare targets with eager PyTorch; the last line is JSON, and the exit code is 1 if one differs."""
    from funnel_export import checking
    from funnel_export.verify.summary import describe_parity

    with _progress() as progress:
        report = checking.check(
            bundle,
            targets=target or None,
            lengths=length or (),
            max_length=max_length,
            factor=factor,
            seed=seed,
            progress=progress,
        )
    if not json_:
        _print(describe_parity(report))
    _print(report.model_dump_json())
    if any(result.error and not result.cases for result in report.targets):
        raise typer.Exit(TargetRefusedError.exit_code)
    if not report.passed:
        raise typer.Exit(1)


@app.command("compile")
def compile_(
    bundle: BundleFolder,
    target: Annotated[str, typer.Option(help="What to compile for: a name that `doctor` shows.")],
    profile: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME:]batch=MIN:OPT:MAX,sequence=MIN:OPT:MAX",
            help="Shapes that the engine is for, several times if wanted; TensorRT only.",
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="A setting of the runtime by its own name, several times if wanted."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Folder in `engines/` [default: the target and what it is built for].")
    ] = None,
    list_options: Annotated[
        bool, typer.Option("--list-options", help="Show the target's options, and compile nothing.")
    ] = False,
    json_: Json = False,
) -> None:
    """Compile a bundle for a target; the engine goes into the bundle's `engines/`."""
    from funnel_export.compiling import compile_bundle
    from funnel_export.verify.summary import describe_engine, describe_target_options

    if list_options:
        _print(describe_target_options(target))
        return
    pairs = [each.partition("=") for each in option or ()]
    if any(not sign for _, sign, _ in pairs):
        raise SpecError("an option is written KEY=VALUE", got=", ".join(option or ()), hint="--option tf32=true")
    with _progress() as progress:
        engine = compile_bundle(
            bundle,
            target,
            profiles=profile or (),
            options={key: value for key, _, value in pairs},
            name=name,
            progress=progress,
        )
    _print(engine.manifest.model_dump_json() if json_ else describe_engine(engine))


@app.command()
def package(
    bundle: BundleFolder,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the model repository; other models stay.")],
    format_: Annotated[str, typer.Option("--format", help="What to package it as: triton.")] = "triton",
    name: Annotated[str | None, typer.Option(help="Name of the model (default: the bundle's folder).")] = None,
    backend: Annotated[str, typer.Option(help="onnxruntime, or tensorrt for an engine.")] = "onnxruntime",
    engine: Annotated[str | None, typer.Option(help="Engine to take (default: the only one).")] = None,
    max_batch_size: Annotated[
        int | None, typer.Option(help="Rows in a batch; 0: clients batch (default: the engine's, or 8).")
    ] = None,
    dynamic_batching: Annotated[
        bool, typer.Option("--dynamic-batching", help="Put requests that wait together into one batch.")
    ] = False,
    preferred_batch_size: Annotated[
        list[int] | None, typer.Option(help="A batch that need not wait for more, several times if wanted.")
    ] = None,
    max_queue_delay_us: Annotated[int | None, typer.Option(help="Microseconds that a request may wait.")] = None,
    instances: Annotated[int, typer.Option(help="Copies of the model, on every GPU if it runs there.")] = 1,
    kind: Annotated[str, typer.Option(help="auto, cpu or gpu.")] = "auto",
    gpu: Annotated[list[int] | None, typer.Option(help="A GPU to use, several times if wanted (default: all).")] = None,
    weights: Annotated[str, typer.Option(help="`link` hard-links weights and plans, `copy` copies them.")] = "link",
    json_: Json = False,
) -> None:
    """Add a bundle, or an engine compiled from it, to a Triton model repository."""
    from funnel_export.config import parse_choice
    from funnel_export.package import Format, package
    from funnel_export.triton import Backend, Kind, TritonOptions

    parse_choice("format", Format, format_)
    options = TritonOptions(
        backend=parse_choice("backend", Backend, backend),
        engine=engine,
        max_batch_size=max_batch_size,
        dynamic_batching=dynamic_batching,
        preferred_batch_size=tuple(preferred_batch_size or ()),
        max_queue_delay_us=max_queue_delay_us,
        instances=instances,
        kind=parse_choice("kind", Kind, kind),
        gpus=tuple(gpu or ()),
    )
    with _progress() as progress:
        made = package(bundle, out, name=name, options=options, weights=weights, progress=progress)
    _print(made.to_json() if json_ else "\n".join(str(made.path / file) for file in made.files()))


@graph.command("show")
def graph_show(bundle: BundleFolder) -> None:
    """Print what a bundle's graph computes, as a text without weights."""
    from funnel_export.bundle import load_bundle
    from funnel_export.contracts import describe_bundle_graph

    _print(describe_bundle_graph(load_bundle(bundle)).rstrip())


@graph.command("check")
def graph_check(folder: GraphsFolder = Path("graphs")) -> None:
    """Export the graphs under contract anew; print how they differ, with exit code 1 if they do."""
    from funnel_export.contracts import check_graphs

    with _progress() as progress:
        difference = check_graphs(folder, progress)
    if difference:
        _print(difference.rstrip())
        print(  # noqa: T201
            f"error: graphs differ from the accepted ones in {folder}\n"
            '  try: read the difference; if it is meant, `funnel-export graph accept --why "..."`',
            file=sys.stderr,
        )
        raise typer.Exit(1)
    _print(f"{folder}: as accepted")


@graph.command("accept")
def graph_accept(
    why: Annotated[str, typer.Option(help="Why the graphs changed: a sentence for CHANGES.md.")],
    folder: GraphsFolder = Path("graphs"),
) -> None:
    """Take fresh graphs as the accepted ones, and write down why; refused where CI is set."""
    from funnel_export.contracts import accept_graphs

    with _progress() as progress:
        changed = accept_graphs(folder, why, progress)
    _print("\n".join(f"accepted {path}" for path in changed) or f"{folder}: nothing changed")


@app.command()
def doctor(json_: Json = False) -> None:
    """Show which targets work here, and what is missing for the others."""
    from tabulate import tabulate

    from funnel_export.targets import get_target, target_names

    targets = {name: get_target(name).availability() for name in target_names()}
    packages = {name: _version(name) for name in ("funnel-export", "torch", "transformers", "onnx", "onnxscript")}
    packages = {"python": platform.python_version(), **packages}
    if json_:
        facts = {
            name: {
                "available": t.available,
                "compiles": t.compiles,
                "version": t.version,
                "detail": t.detail,
                "hint": t.hint,
            }
            for name, t in targets.items()
        }
        _print(json.dumps({"packages": packages, "targets": facts}))
        return
    rows = [
        (name, _yes(t.available), _yes(t.compiles), t.version or "-", t.detail + (f"; try: {t.hint}" if t.hint else ""))
        for name, t in targets.items()
    ]
    _print(tabulate(packages.items(), tablefmt="plain", disable_numparse=True))
    _print("\n" + tabulate(rows, ("target", "runs", "compiles", "version", ""), disable_numparse=True))


def _yes(fact: bool) -> str:
    return "yes" if fact else "no"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "-"


def _print(text: str) -> None:
    typer.echo(printable(text))  # names in a bundle are its maker's


@contextmanager
def _progress() -> Iterator[Any]:
    """A line that says what is going on, with a bar, on a terminal and from the first step on; nothing in a pipe."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from funnel_export.progress import no_progress

    console = Console(stderr=True)
    if not console.is_terminal:
        yield no_progress
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task("starting", total=None)

    def show(step: str, done: float | None = None, /) -> None:
        bar.update(task, description=step, total=None if done is None else 1.0, completed=done or 0.0)
        bar.start()

    try:
        yield show
    finally:
        bar.stop()


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"warning: {printable(str(message))}", file=sys.stderr)  # noqa: T201
