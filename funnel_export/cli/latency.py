"""The command that times a bundle: bench."""

from typing import Annotated

import typer

from funnel_export.cli.app import BundleFolder, Json, app, end, progress_bar, say
from funnel_export.system.worker import SILENCE


@app.command()
def bench(
    bundle: BundleFolder,
    target: Annotated[
        list[str] | None, typer.Option(help="Target to time, several times if wanted (default: all that work here).")
    ] = None,
    pytorch: Annotated[
        list[str] | None,
        typer.Option(help="eager, torch.compile or none, several times if wanted (default: the first two)."),
    ] = None,
    length: Annotated[
        list[int] | None, typer.Option(help="Tokens of a row, several times if wanted (default: 128 and 512).")
    ] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Rows, several times if wanted (default: 1).")] = None,
    rounds: Annotated[int, typer.Option(help="Counted calls of each, interleaved; at least 6.")] = 9,
    min_speedup: Annotated[
        float | None,
        typer.Option(help="Fail unless the funnel is so many times as fast in every target, noise accounted for."),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(min=1, help="Longest rows of the parity check before it (default: the longest that are timed)."),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds that one call of a runner may take.")] = SILENCE,
    device: Annotated[str, typer.Option(help="PyTorch's device: auto, cpu or cuda.")] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the tokens.")] = 0,
    json_: Json = False,
) -> None:
    """Time the funnel beside the dense model; the exit code is 1 if it is wrong or not fast enough."""
    from funnel_export.commands.bench import BATCHES, LENGTHS
    from funnel_export.commands.bench import bench as run_bench
    from funnel_export.report.text import describe_latency
    from funnel_export.spec.choices import PYTORCH

    with progress_bar() as progress:
        report = run_bench(
            bundle,
            targets=target or None,
            pytorch=PYTORCH if pytorch is None else [each for each in pytorch if each != "none"],
            lengths=length or LENGTHS,
            batches=batch or BATCHES,
            rounds=rounds,
            min_speedup=min_speedup,
            max_length=max_length,
            timeout=timeout,
            device=device,
            seed=seed,
            progress=progress,
        )
    say(report.model_dump_json() if json_ else describe_latency(report))
    end(report.parity, passed=report.passed)
