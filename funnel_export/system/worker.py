"""Processes of our own that are spoken to in lines: they end with the caller, and how one died is told."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Self, TextIO

LAST_WORDS = 1500
"""Characters of what a process that died had written."""


class Worker:
    """A Python program that reads lines from stdin and answers in lines on stdout; it is killed with the context.

    With -P, since a folder in which somebody works, a bundle perhaps, must not bring modules of its own.
    """

    def __init__(
        self, program: Sequence[str], *, python: str = sys.executable, environment: Mapping[str, str] | None = None
    ) -> None:
        """Start `python -P program`, as `("-m", "package.module")`, with more environment variables."""
        self._said = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - closed by `close`
        self._process = subprocess.Popen(  # noqa: S603 - a program that the caller names
            [python, "-P", *program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            encoding="utf-8",
            env={**os.environ, **(environment or {})},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, line: str) -> None:
        """Send a line; one that has died does not hear it, and `receive` says so."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return

    def receive(self) -> str | None:
        """The next line, None if the process has ended."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().rstrip("\n") or None

    def death(self) -> str:
        """How the process ended, and the last that it wrote to stderr."""
        code = self._process.wait()
        how = f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
        self._said.seek(0)
        return f"{how}\n{self._said.read()[-LAST_WORDS:]}".rstrip()

    @property
    def was_killed(self) -> bool:
        """Whether somebody killed it, as the system does for want of memory."""
        return self._process.wait() == -signal.SIGKILL

    def close(self) -> None:
        """Kill the process, whatever it does; what is closed already stays so."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdout, self._process.stdin, self._said):
            assert stream is not None
            try:
                stream.close()
            except BrokenPipeError:
                continue


def take_stdout() -> TextIO:
    """In a worker: stdout for answers alone; what libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers
