"""Child processes that exchange one line per message; killed with the caller, with exit status and last stderr."""

import os
import queue
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Self, TextIO

LAST_WORDS = 1500
"""Characters of stderr that are shown when a process has ended."""
SILENCE = 3600.0
"""Default seconds to wait for a line from a worker: a build or a first run may take many minutes."""


PATIENCE = 5.0
"""Seconds in which a process that has closed its end must have ended."""


class WorkerSilentError(Exception):
    """A worker has not read a line or answered in time; it has been killed."""


class Worker:
    """A Python program that reads lines from stdin and answers in lines on stdout; it is killed when the context ends.

    It runs with `-P`, so that it does not import modules from the working folder, which may be an untrusted bundle.
    """

    def __init__(
        self, program: Sequence[str], *, python: str = sys.executable, environment: Mapping[str, str] | None = None
    ) -> None:
        """Start `python -P` with arguments such as `("-m", "package.module")` and extra environment variables."""
        self._said = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - closed by `close`
        self._process = subprocess.Popen(  # noqa: S603 - a program that the caller names
            [python, "-P", *program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, **(environment or {})},
        )
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)  # a pipe holds 64 KiB; a write of more would wait
        self._killed_here = False
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, line: str, seconds: float = SILENCE) -> None:
        """Send a line; if the process has died, nothing is sent, and `receive` returns None.

        Raises:
            WorkerSilentError: if the process does not read the line in time; it is killed, and the message has its last
                stderr.
        """
        assert self._process.stdin is not None
        pipe, rest = self._process.stdin.fileno(), memoryview(f"{line}\n".encode(errors="replace"))
        ready, end = select.poll(), time.monotonic() + seconds
        ready.register(pipe, select.POLLOUT)
        while rest:
            if not ready.poll(max(0, end - time.monotonic()) * 1000):
                self._kill()
                raise WorkerSilentError(f"it did not read a request in {seconds:g} s; {self.death()}")
            try:
                rest = rest[os.write(pipe, rest) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                return

    def receive(self, seconds: float = SILENCE) -> str | None:
        """The next line, None if the process has closed its stdout.

        Raises:
            WorkerSilentError: if no line comes in time; the process is killed, and the message has its last stderr.
        """
        try:
            return self._lines.get(timeout=seconds)
        except queue.Empty:
            self._kill()
            raise WorkerSilentError(f"no answer in {seconds:g} s; {self.death()}") from None

    def death(self) -> str:
        """Exit code or signal of the process, and its last stderr; a process that still runs is killed."""
        code = self._end()
        how = f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
        self._said.seek(0)
        return f"{how}\n{self._said.read()[-LAST_WORDS:]}".rstrip()

    @property
    def was_killed(self) -> bool:
        """Whether something else killed the process, as the system does when memory runs out."""
        return self._end() == -signal.SIGKILL and not self._killed_here

    def _end(self) -> int:
        """The exit code; a process that still runs after `PATIENCE` is killed."""
        try:
            return self._process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            return self._kill()

    def _kill(self) -> int:
        self._killed_here = True
        self._process.kill()
        return self._process.wait()

    def close(self) -> None:
        """Kill the process and close its streams; may be called again."""
        self._process.kill()
        self._process.wait()
        self._reader.join(timeout=5)
        read = [] if self._reader.is_alive() else [self._process.stdout]  # a child may keep it open
        for stream in (*read, self._process.stdin, self._said):
            assert stream is not None
            try:
                stream.close()
            except BrokenPipeError:
                continue

    def _read(self) -> None:
        """Put the lines that the process writes into the queue, and None at the end."""
        assert self._process.stdout is not None
        try:
            for line in self._process.stdout:
                self._lines.put(line.rstrip("\n"))
        except ValueError:  # closed during a read
            pass
        self._lines.put(None)


def take_stdout() -> TextIO:
    """In a worker: reserve stdout for answers, and send what libraries print to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers
