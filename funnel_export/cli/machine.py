"""Commands for the first steps: demo, doctor."""

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer

from funnel_export.cli.options import Json
from funnel_export.cli.output import end, say, show_progress


def demo(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; an earlier demo is replaced.")],
    json_: Json = False,
) -> None:
    """Make a small model; export, compile, check and time it, and generate a text. Needs no download and no GPU."""
    with show_progress(stages=True) as progress:
        progress("loading PyTorch")
        from funnel_export.commands.demo import describe_demo, run_demo

        found = run_demo(out, progress=progress)
    say(found.report.model_dump_json() if json_ else describe_demo(out, found))
    end(found.report.parity, passed=found.passed)


def doctor(json_: Json = False) -> None:
    """Show which runtimes work on this machine, and what the others need."""
    from tabulate import tabulate

    from funnel_export.targets.base import availability_of
    from funnel_export.targets.registry import get_target, target_names

    targets = {name: availability_of(get_target(name)) for name in target_names()}
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
        say(json.dumps({"packages": packages, "targets": facts}))
        return
    rows = [
        (name, _yes(t.available), _yes(t.compiles), t.version or "-", t.detail + (f"; try: {t.hint}" if t.hint else ""))
        for name, t in targets.items()
    ]
    say(tabulate(packages.items(), tablefmt="plain", disable_numparse=True))
    say("\n" + tabulate(rows, ("target", "runs", "compiles", "version", ""), disable_numparse=True))


def _yes(fact: bool) -> str:
    return "yes" if fact else "no"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "-"
