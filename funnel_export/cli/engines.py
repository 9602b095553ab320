"""Commands that make something for production of a bundle: compile, package."""

from pathlib import Path
from typing import Annotated

import typer

from funnel_export.cli.app import BundleFolder, Json, app, progress_bar, say
from funnel_export.errors import SpecError
from funnel_export.system.worker import SILENCE


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
    graph: Annotated[str | None, typer.Option(help="Role of the graph, where the bundle has several.")] = None,
    name: Annotated[
        str | None, typer.Option(help="Folder in `engines/` (default: the target and what it is built for).")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds without progress after which a build is ended.")] = SILENCE,
    list_options: Annotated[
        bool, typer.Option("--list-options", help="Show the target's options, and compile nothing.")
    ] = False,
    json_: Json = False,
) -> None:
    """Compile a bundle for a target; the engine goes into the bundle's `engines/`."""
    from funnel_export.commands.compile import compile_bundle
    from funnel_export.report.text import describe_engine, describe_target_options

    if list_options:
        say(describe_target_options(target))
        return
    pairs = [each.partition("=") for each in option or ()]
    if any(not sign for _, sign, _ in pairs):
        raise SpecError("an option is written KEY=VALUE", got=", ".join(option or ()), hint="--option tf32=true")
    with progress_bar() as progress:
        engine = compile_bundle(
            bundle,
            target,
            graph=graph,
            profiles=profile or (),
            options={key: value for key, _, value in pairs},
            name=name,
            timeout=timeout,
            progress=progress,
        )
    say(engine.manifest.model_dump_json() if json_ else describe_engine(engine))


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
    weights: Annotated[
        str, typer.Option(help="`link` or `copy` weights and plans; `auto` links plans and weights with several names.")
    ] = "auto",
    json_: Json = False,
) -> None:
    """Add a bundle, or an engine compiled from it, to a Triton model repository."""
    from funnel_export.commands.package import package
    from funnel_export.packaging.triton import Format
    from funnel_export.packaging.triton_config import Backend, Kind, TritonOptions
    from funnel_export.spec.choices import parse_choice

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
    with progress_bar() as progress:
        made = package(bundle, out, name=name, options=options, weights=weights, progress=progress)
    say(made.to_json() if json_ else "\n".join(str(made.path / file) for file in made.files()))
