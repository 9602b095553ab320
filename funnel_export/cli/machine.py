"""The command that says what this machine can do: doctor."""

import json
import platform
from importlib.metadata import PackageNotFoundError, version

from funnel_export.cli.app import Json, app, say


@app.command()
def doctor(json_: Json = False) -> None:
    """Show which targets work here, and what is missing for the others."""
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
