"""The command line: each command is a thin layer over one call of the library."""

import atexit
import gc
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence

from typer.main import get_group

from funnel_export.cli import bundles, engines, graphs, latency, machine  # noqa: F401 - each registers its commands
from funnel_export.cli.app import app
from funnel_export.errors import FunnelExportError, printable


def main() -> None:
    """Run `funnel-export`."""
    run()


def run(arguments: Sequence[str] | None = None, *, command: str | None = None, program: str | None = None) -> None:
    """Run the command line, or one command of it as a program of its own; without `arguments`, those of the process.

    Exit codes: 0 done, 1 a gate failed, 2 bad input, 3 not available here, 4 refused.
    """
    warnings.showwarning = _show_warning
    atexit.register(gc.freeze)  # at exit Python collects garbage in all of torch, for a second and nothing
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what is half written is removed
    try:
        group = get_group(app)
        (group.commands[command] if command else group)(arguments, prog_name=program)
    except FunnelExportError as err:
        print(f"error: {err}", file=sys.stderr)  # noqa: T201
        sys.exit(err.exit_code)
    except OSError as err:
        print(f"error: {printable(str(err))}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    except Exception:  # noqa: BLE001 - an internal error; Python's own exit code, 1, means that a gate failed
        traceback.print_exc()
        sys.exit(os.EX_SOFTWARE)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"warning: {printable(str(message))}", file=sys.stderr)  # noqa: T201
