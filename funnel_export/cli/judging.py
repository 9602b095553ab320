"""Commands that test a bundle and report the results: check, bench, report."""

import json
from pathlib import Path
from typing import Annotated

import typer

from funnel_export.cli.options import (
    NONE,
    BundleFolder,
    Engines,
    Json,
    PytorchName,
    Reports,
    Seed,
    Targets,
    listed,
    one_of,
)
from funnel_export.cli.output import end, say, show_progress
from funnel_export.spec.choices import PYTORCH, Device
from funnel_export.spec.defaults import BATCHES, FACTOR, LEAST_ROUNDS, LENGTHS, MAX_KL, ROUNDS, SEED
from funnel_export.system.worker import SILENCE

QUANTIZATION = "Quantized weights"
"""Heading of options."""
Unquantized = Annotated[
    Path | None,
    typer.Option(
        metavar="BUNDLE",
        help="Bundle or checkpoint that this quantized bundle was made from, to compare with.",
        show_default=False,
        rich_help_panel=QUANTIZATION,
    ),
]


def check(
    bundle: BundleFolder,
    target: Targets = None,
    engine: Engines = None,
    length: Annotated[
        list[int] | None,
        typer.Option(min=1, metavar="N", help="Additional length to check, in tokens. May be given several times."),
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Leave out rows of more tokens, to save memory.")
    ] = None,
    factor: Annotated[
        float, typer.Option(min=1.0, metavar="X", help="How many times eager PyTorch's own error is allowed.")
    ] = FACTOR,
    seed: Seed = SEED,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="Stop a build that makes no progress for this long.")
    ] = SILENCE,
    unquantized: Unquantized = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PLACE",
            help="Documents on which both are compared too, as `evaluate` takes them. May be given several times.",
            show_default=False,
            rich_help_panel=QUANTIZATION,
        ),
    ] = None,
    max_kl: Annotated[
        float,
        typer.Option(
            metavar="NATS",
            help="Largest mean KL divergence from the unquantized model.",
            rich_help_panel=QUANTIZATION,
        ),
    ] = MAX_KL,
    reports: Reports = None,
    json_: Json = False,
) -> None:
    """Compare every runtime and engine with eager PyTorch. The exit code is 1 if one differs."""
    from funnel_export.commands.check import check as run_check
    from funnel_export.report.text import describe_parity

    with show_progress() as progress:
        found = run_check(
            bundle,
            targets=target or None,
            engines=engine or None,
            lengths=length or (),
            max_length=max_length,
            factor=factor,
            seed=seed,
            timeout=timeout,
            unquantized=unquantized,
            data=data or None,
            max_kl=max_kl,
            reports=reports,
            progress=progress,
        )
    say(found.model_dump_json() if json_ else describe_parity(found))
    end(found, passed=found.passed)


def bench(
    bundle: BundleFolder,
    target: Targets = None,
    engine: Engines = None,
    dense: Annotated[
        Path | None,
        typer.Option(
            metavar="BUNDLE",
            help="Dense bundle of the same weights to compare with.",
            show_default="exported by bench",
        ),
    ] = None,
    pytorch: Annotated[
        list[PytorchName] | None,
        typer.Option(
            metavar=one_of((*PYTORCH, NONE)),
            help="How to run PyTorch as a baseline. May be given several times.",
            show_default=listed(PYTORCH),
        ),
    ] = None,
    length: Annotated[
        list[int] | None,
        typer.Option(metavar="N", help="Tokens per row. May be given several times.", show_default=listed(LENGTHS)),
    ] = None,
    batch: Annotated[
        list[int] | None,
        typer.Option(metavar="N", help="Rows per batch. May be given several times.", show_default=listed(BATCHES)),
    ] = None,
    rounds: Annotated[
        int, typer.Option(metavar="N", help=f"Timed calls of each model, at least {LEAST_ROUNDS}.")
    ] = ROUNDS,
    min_speedup: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Fail unless the funnel is at least X times as fast as the dense model in every runtime, by the lower "
            "end of the 95 % interval.",
        ),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Longest rows of the parity check, in tokens.",
            show_default="the longest timed rows",
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="Longest time of one call, or of a build without progress.")
    ] = SILENCE,
    device: Annotated[Device, typer.Option(help="Device of PyTorch.")] = Device.AUTO,
    seed: Seed = SEED,
    unquantized: Unquantized = None,
    reports: Reports = None,
    json_: Json = False,
) -> None:
    """Time the funnel and the dense model. The exit code is 1 if the outputs are wrong or the funnel is too slow.

    Of a bundle that generates text, prompts and the steps after them are timed, in PyTorch without torch.compile.
    """
    from funnel_export.commands.bench import bench as run_bench
    from funnel_export.report.text import describe_latency

    with show_progress() as progress:
        found = run_bench(
            bundle,
            targets=target or None,
            engines=engine or None,
            dense=dense,
            pytorch=None if pytorch is None else [each for each in pytorch if each != NONE],
            lengths=length or None,
            batches=batch or BATCHES,
            rounds=rounds,
            min_speedup=min_speedup,
            max_length=max_length,
            timeout=timeout,
            device=device,
            seed=seed,
            unquantized=unquantized,
            reports=reports,
            progress=progress,
        )
    say(found.model_dump_json() if json_ else describe_latency(found))
    end(found.parity, passed=found.passed)


def report(bundle: BundleFolder, reports: Reports = None, json_: Json = False) -> None:
    """Write the results of `check` and `bench` as HTML, Markdown and pictures."""
    from funnel_export.bundle.load import load_bundle
    from funnel_export.report.pages import write_reports

    paths = [str(path) for path in write_reports(load_bundle(bundle), reports)]
    say(json.dumps({"written": paths}) if json_ else "\n".join(paths))
