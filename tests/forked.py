"""Runners of a bench that are forked from a process that has imported everything.

Importing torch and transformers takes seconds, and tests start hundreds of runners. They are processes of their own all
the same: other pipes, other memory, and killed alone. Tests of the start itself have the marker `processes`.
"""

import gc
import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any, TextIO
from unittest.mock import patch

from funnel_export.latency.trials import OWN
from funnel_export.system import worker

_SUBPROCESS = worker.subprocess
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        "funnel_export.latency.runner",
        "funnel_export.latency.in_pytorch",
        "transformers.models.gemma2.modeling_gemma2",
        "onnxruntime",
        "openvino",
    ]
)
QUIET = {"CI": "true"}
"""Keeps OpenVINO from sending telemetry in a thread that imports modules. A process that is forked meanwhile would wait
for the lock of such an import for ever."""


class ForkedProcess:
    """As much of `subprocess.Popen` as a worker uses."""

    def __init__(self, program: Sequence[str], environment: Mapping[str, str], stderr: TextIO) -> None:
        given, taken = os.pipe(), os.pipe()
        ends = [Connection(given[0], writable=False), Connection(taken[1], readable=False)]
        ends.append(Connection(os.dup(stderr.fileno()), readable=False))
        with patch.dict(os.environ, QUIET):
            forkserver.ensure_running()
        self._process = _SERVER.Process(target=_run, args=(tuple(program), dict(environment), *ends), daemon=True)
        self._process.start()
        for end in ends:
            end.close()
        self.stdin = os.fdopen(given[1], "w", encoding="utf-8")
        self.stdout = os.fdopen(taken[0], encoding="utf-8", errors="replace")

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, or minus the signal that ended it."""
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired("a runner", timeout or 0)
        return code

    def kill(self) -> None:
        """End it."""
        self._process.kill()


def share_imports() -> None:
    """Fork runners; start all other workers as usual."""
    worker.subprocess = SimpleNamespace(**vars(subprocess) | {"Popen": _start})  # type: ignore[assignment]


def import_anew(monkeypatch: Any) -> None:
    """Start every worker as usual, for one test."""
    monkeypatch.setattr(worker, "subprocess", _SUBPROCESS)


def _start(command: Sequence[str], **options: Any) -> Any:
    python, _, *program = command
    if python != sys.executable or tuple(program) != OWN:
        return subprocess.Popen(command, **options)
    return ForkedProcess(program, options["env"], options["stderr"])


def _run(program: Sequence[str], environment: Mapping[str, str], *ends: Connection) -> None:
    """In the new process: run a module as the main one, with the imports left out of its garbage collections."""
    gc.freeze()
    for number, end in enumerate(ends):
        os.dup2(end.fileno(), number)
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115 - to the end of the process
        for number, mode in enumerate("rww")
    )
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [*program[1:]]
    runpy.run_module(program[1], run_name="__main__", alter_sys=True)
