"""The command line, run as a user would: in this process, or where the process itself matters in one of its own."""

import contextlib
import io
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable

from funnel_export import cli

Done = subprocess.CompletedProcess[str]


def run(*arguments: object) -> Done:
    """Run `funnel-export` in this process, without the seconds that a new one takes to import torch."""
    return call(lambda: cli.run([*map(str, arguments)]))


def run_alone(*arguments: object) -> Done:
    """Run `funnel-export` in a process of its own."""
    command = [sys.executable, "-m", "funnel_export", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def call(main: Callable[[], object]) -> Done:
    """Call the main function of a program; what it prints, and its exit code."""
    out, err = io.StringIO(), io.StringIO()
    terminate, code = signal.getsignal(signal.SIGTERM), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("default")  # as in a new process: pytest makes errors of them
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            signal.signal(signal.SIGTERM, terminate)
    return subprocess.CompletedProcess([], code, out.getvalue(), err.getvalue())
