"""The command line: each command is a thin layer over one call of the library."""

import atexit
import gc
import json
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Mapping, Sequence
from typing import NoReturn

from typer.core import TyperGroup
from typer.main import get_command

from funnel_export.cli.app import make_app
from funnel_export.cli.bundles import export, inspect, quantize
from funnel_export.cli.dev import dev
from funnel_export.cli.engines import compile_, package
from funnel_export.cli.evaluating import evaluate
from funnel_export.cli.fitting import fit
from funnel_export.cli.generating import generate
from funnel_export.cli.judging import bench, check, report
from funnel_export.cli.machine import demo, doctor
from funnel_export.cli.output import USUAL, is_verbose, say, set_loudness, show_warning, tell
from funnel_export.cli.training import adapt
from funnel_export.cli.transplanting import transplant
from funnel_export.errors import FunnelExportError, FunnelExportWarning

PANELS = {
    "First steps": (demo, doctor),
    "Bundles": (export, quantize, inspect, check, bench, report),
    "Quality": (evaluate, fit, adapt, transplant),
    "Production": (compile_, package, generate),
}
GROUPS = {"Development": dev}
app = make_app(PANELS, GROUPS)
STOPPED = {128 + signal.SIGINT: "stopped by Ctrl-C", 128 + signal.SIGTERM: "stopped by SIGTERM"}
"""Exit codes of a command that a signal ended, as in a shell."""


def main() -> None:
    """Run `funnel-export`."""
    run()


def run(arguments: Sequence[str] | None = None, *, command: str | None = None, program: str | None = None) -> None:
    """Run the command line, or a single command as its own program.

    Exit codes: 0 done, 1 a gate failed, 2 bad input, 3 target not available on this machine, 4 graph refused, 70
    internal error, 130 Ctrl-C, 143 SIGTERM. Errors go to stderr; with `--json`, the exit code and the error's parts
    also go to stdout as a JSON object.

    Args:
        arguments: the arguments; by default those of the process.
        command: name of the single command.
        program: name of the program in help texts.
    """
    set_loudness(USUAL)
    warnings.showwarning = show_warning
    atexit.register(gc.freeze)  # otherwise garbage collection of torch's objects takes a second at exit
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that partial files are removed
    as_json = "--json" in (sys.argv[1:] if arguments is None else arguments)
    try:
        group = get_command(app)
        assert isinstance(group, TyperGroup)
        (group.commands[command] if command else group)(arguments, prog_name=program)
    except FunnelExportError as err:
        _tell_error(err)
        _fail(err.exit_code, {"what": err.what, **err.details}, as_json=as_json)
    except (OSError, FunnelExportWarning) as err:  # Python may be set to raise warnings as errors
        _tell_error(err)
        _fail(2, {"what": str(err)}, as_json=as_json)
    except SystemExit as end:
        if end.code == 2:  # a usage error, which is printed already
            _fail(2, {"what": "invalid command line", "hint": "--help"}, as_json=as_json)
        if end.code in STOPPED:
            _fail(int(end.code), {"what": STOPPED[int(end.code)]}, as_json=as_json)
        raise
    except KeyboardInterrupt:  # before the command begins; afterwards, Typer exits with 130
        _fail(128 + signal.SIGINT, {"what": STOPPED[128 + signal.SIGINT]}, as_json=as_json)
    except Exception as err:  # noqa: BLE001 - an internal error; Python's own exit code, 1, means that a gate failed
        traceback.print_exc()
        _fail(os.EX_SOFTWARE, {"what": f"internal error: {type(err).__name__}: {err}"}, as_json=as_json)


def _fail(code: int, error: Mapping[str, str], *, as_json: bool) -> NoReturn:
    """Exit with a code; with `as_json`, print the error as JSON."""
    if as_json:
        parts = {name: error.get(name) for name in ("what", "got", "wanted", "hint")}
        say(json.dumps({"exit_code": code, "error": parts}))
    sys.exit(code)


def _tell_error(err: Exception) -> None:
    if is_verbose():
        traceback.print_exc()
    tell(f"error: {err}")
