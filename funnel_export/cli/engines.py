"""Commands that prepare a bundle for production: compile, package."""

import json
from pathlib import Path
from typing import Annotated

import typer

from funnel_export.cli.options import BundleFolder, Json, complete_target
from funnel_export.cli.output import say, show_progress
from funnel_export.errors import SpecError
from funnel_export.spec.choices import Backend, Format, Kind
from funnel_export.spec.defaults import PACKAGE_WEIGHTS
from funnel_export.spec.triton import BATCH_OF_A_GRAPH, TritonOptions
from funnel_export.system.place import Placing
from funnel_export.system.worker import SILENCE

TRITON = TritonOptions()
"""The defaults."""
BATCHING, PLACE = "Batches", "Where it runs"
"""Headings of the options of `package`."""


def compile_(
    bundle: BundleFolder,
    target: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Runtime to compile for, as `doctor` names it.", autocompletion=complete_target
        ),
    ],
    profile: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME:]batch=MIN:OPT:MAX,sequence=MIN:OPT:MAX",
            help="Optimization profile: the shapes that the engine takes. TensorRT only. May be given several times.",
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Option of the runtime. May be given several times.",
        ),
    ] = None,
    list_options: Annotated[
        bool, typer.Option("--list-options", help="List the options that --option takes, and exit.")
    ] = False,
    graph: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Graph to compile, if there are several.", show_default="all"),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name of the engine, and of its folder in `engines/`.",
            show_default="the runtime and the device",
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="Stop a build that makes no progress for this long.")
    ] = SILENCE,
    json_: Json = False,
) -> None:
    """Compile a bundle for a runtime. The engine goes into the bundle's folder `engines/`."""
    from funnel_export.bundle.load import load_bundle
    from funnel_export.commands.compile import compile_bundle, default_engine_name
    from funnel_export.report.text import describe_engine, describe_target_options
    from funnel_export.targets.options import describe_options
    from funnel_export.targets.registry import get_target

    if list_options:
        fields = ("name", "default", "meaning")
        options = [dict(zip(fields, row, strict=True)) for row in describe_options(get_target(target).options)]
        say(json.dumps({"options": options}) if json_ else describe_target_options(target))
        return
    pairs = [each.partition("=") for each in option or ()]
    if any(not sign for _, sign, _ in pairs):
        raise SpecError(
            "an option has no value", got=", ".join(option or ()), wanted="KEY=VALUE", hint="--option tf32=true"
        )
    opened = load_bundle(bundle)
    roles = [graph] if graph is not None or len(opened.graphs) == 1 else list(opened.graphs)
    engines = []
    for role in roles:
        with show_progress() as progress:
            engine = compile_bundle(
                opened,
                target,
                graph=role,
                profiles=profile or (),
                options={key: value for key, _, value in pairs},
                name=name if name is None or len(roles) == 1 else default_engine_name(opened.graphs[str(role)], name),
                timeout=timeout,
                progress=progress,
            )
        engines.append(engine)
        if not json_:
            say(describe_engine(engine))
    if json_:
        manifests = [engine.manifest.model_dump(mode="json") for engine in engines]
        say(json.dumps(manifests[0] if len(roles) == 1 else {"engines": manifests}))


def package(
    bundle: BundleFolder,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the model repository; other models are kept.")],
    format_: Annotated[Format, typer.Option("--format", help="Server to package for.")] = Format.TRITON,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Name of the model.", show_default="the bundle's folder"),
    ] = None,
    backend: Annotated[
        Backend | None,
        typer.Option(
            help="Run the bundle's graph in ONNX Runtime, an engine in TensorRT, or generate text with the Python "
            "backend.",
            show_default="the one that runs the bundle's task",
        ),
    ] = TRITON.backend,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Engine to package, or the name that the engines of several graphs share.",
            show_default="the only one for TensorRT, none for the Python backend",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Runtime of the Python backend, as `doctor` names it.",
            show_default="the first that runs the bundle",
            autocompletion=complete_target,
        ),
    ] = None,
    weights: Annotated[
        Placing,
        typer.Option(
            help="Hard-link weights and engines, copy them, or link engines and only those weights that already are "
            "hard links."
        ),
    ] = PACKAGE_WEIGHTS,
    max_batch_size: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Most rows in a batch: for the Python backend, texts at the same time. With 0 the clients make the "
            "batches.",
            show_default=f"the engine's largest, or {BATCH_OF_A_GRAPH}",
            rich_help_panel=BATCHING,
        ),
    ] = None,
    max_bytes: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Most bytes of the caches, for the Python backend.",
            show_default="no limit",
            rich_help_panel=BATCHING,
        ),
    ] = None,
    dynamic_batching: Annotated[
        bool,
        typer.Option("--dynamic-batching", help="Combine waiting requests into one batch.", rich_help_panel=BATCHING),
    ] = False,
    preferred_batch_size: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N",
            help="Batch size that is sent without waiting for more requests. May be given several times.",
            rich_help_panel=BATCHING,
        ),
    ] = None,
    max_queue_delay_us: Annotated[
        int | None,
        typer.Option(
            metavar="MICROSECONDS",
            help="Longest time that a request waits for others.",
            rich_help_panel=BATCHING,
        ),
    ] = None,
    instances: Annotated[
        int,
        typer.Option(metavar="N", help="Copies of the model, per GPU if it runs on GPUs.", rich_help_panel=PLACE),
    ] = TRITON.instances,
    kind: Annotated[
        Kind, typer.Option(help="Device to run on. `auto` is a GPU if the model needs one.", rich_help_panel=PLACE)
    ] = TRITON.kind,
    gpu: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N",
            help="Index of a GPU to use. May be given several times.",
            show_default="all",
            rich_help_panel=PLACE,
        ),
    ] = None,
    json_: Json = False,
) -> None:
    """Add a bundle, or engines compiled from it, to a model repository of Triton Inference Server."""
    from funnel_export.commands.package import package

    assert format_ is Format.TRITON  # the only one so far
    options = TritonOptions(
        backend=backend,
        engine=engine,
        target=target,
        max_batch_size=max_batch_size,
        max_bytes=max_bytes,
        dynamic_batching=dynamic_batching,
        preferred_batch_size=tuple(preferred_batch_size or ()),
        max_queue_delay_us=max_queue_delay_us,
        instances=instances,
        kind=kind,
        gpus=tuple(gpu or ()),
    )
    with show_progress() as progress:
        made = package(bundle, out, name=name, options=options, weights=weights, progress=progress)
    say(made.to_json() if json_ else "\n".join(str(made.path / file) for file in made.files()))
