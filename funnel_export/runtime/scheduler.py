"""A thread that steps a batch for many clients: their texts wait for a row, join the batch and leave it."""

import logging
import threading
from collections import deque
from dataclasses import dataclass
from typing import Protocol

from funnel_export.errors import FunnelExportError
from funnel_export.runtime.batch import Batch, Token
from funnel_export.runtime.request import Request

LOG = logging.getLogger(__name__)


STOPPED, GONE = "the server stops", "the client has gone"


class UnavailableError(FunnelExportError):
    """A text cannot be generated now: too many wait for a row, or the scheduler is closed."""


class Receiver(Protocol):
    """Who asked for a text.

    The scheduler's thread calls `take` for each token. A text ends with a token that has a finish reason, or with one
    call of `fail`, which may also come from a thread that calls `submit`. The calls should be short, since the batch
    waits for them.
    """

    def take(self, token: Token) -> None:
        """Take the next token."""
        ...

    def fail(self, reason: str) -> None:
        """Learn that the text ends early, and why."""
        ...

    def is_gone(self) -> bool:
        """Whether nobody wants the text any more. It is asked before each step."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    request: Request
    receiver: Receiver


class Scheduler:
    """Steps a batch in a thread of its own as long as there are texts. `submit` and `close` are thread-safe."""

    def __init__(self, batch: Batch, queue: int) -> None:
        """Start the thread.

        Args:
            batch: an empty batch, which belongs to the thread from now on.
            queue: most texts that wait for a row.
        """
        self.batch, self.queue = batch, queue
        self._waiting: deque[_Job] = deque()
        self._running: dict[int, _Job] = {}
        self._closed = False
        self._work = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="funnel-export-scheduler", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Number of texts that wait for the next step or for a row."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Number of texts in the batch."""
        return len(self._running)

    def submit(self, request: Request, receiver: Receiver) -> None:
        """Ask for a text; its tokens go to the receiver.

        Raises:
            SpecError: if the batch can never generate it.
            UnavailableError: if too many texts wait, or the scheduler is closed.
        """
        self.batch.check(request)
        with self._work:
            if self._closed:
                raise UnavailableError(STOPPED)
            if self._is_full(request):
                self._drop_gone()
                if self._is_full(request):
                    raise UnavailableError(
                        "too many requests are waiting", got=f"{len(self._waiting)} requests", hint="ask again later"
                    )
            self._waiting.append(_Job(request, receiver))
            self._work.notify()

    def close(self) -> None:
        """Stop after the current step; all texts that have not ended fail."""
        with self._work:
            self._closed = True
            self._work.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._has_work():
                self._remove_gone()
                self._admit()
                if self._running:
                    self._step()
        finally:  # after an unexpected error too, so that nobody waits in vain
            with self._work:
                self._closed = True
            for job in (*self._running.values(), *self._waiting):
                _fail(job, STOPPED)
            self._running.clear()
            self._waiting.clear()

    def _has_work(self) -> bool:
        """Wait until there are texts; False once the scheduler is closed."""
        with self._work:
            self._work.wait_for(lambda: self._closed or self._waiting or self._running)
            return not self._closed

    def _is_full(self, request: Request) -> bool:
        """Whether a new text would wait longer than to the next step, behind as many as may wait."""
        requests = [*(job.request for job in self._waiting), request]
        joining = 0
        while joining < len(requests) and self.batch.has_room(*requests[: joining + 1]):
            joining += 1
        return len(requests) - joining > self.queue

    def _drop_gone(self) -> None:
        """Take texts that nobody wants out of the queue."""
        gone = [job for job in self._waiting if _is_gone(job)]
        self._waiting = deque(job for job in self._waiting if job not in gone)
        for job in gone:
            _fail(job, GONE)

    def _remove_gone(self) -> None:
        """Free the rows of texts that nobody wants."""
        for key, job in list(self._running.items()):
            if _is_gone(job):
                self._end(key, GONE)

    def _admit(self) -> None:
        """Add waiting texts to the batch, in the order of arrival, while it has room."""
        with self._work:
            while self._waiting and self.batch.has_room(self._waiting[0].request):
                job = self._waiting.popleft()
                if _is_gone(job):
                    _fail(job, GONE)
                else:
                    self._running[self.batch.insert(job.request)] = job

    def _step(self) -> None:
        try:
            tokens = self.batch.next()
        except Exception as err:
            LOG.exception("a step failed")
            for key in list(self._running):
                self._end(key, f"the step failed: {err}")
            return
        for token in tokens:
            if token.finish_reason == "error":
                self._end(token.key, "the model's logits are not finite")
            else:
                self._give(token)

    def _give(self, token: Token) -> None:
        job = self._running[token.key]
        if token.finish_reason:
            del self._running[token.key]
        try:
            job.receiver.take(token)
        except Exception:  # one client's error must not end the texts of the others
            LOG.exception("a token could not be delivered")
            if not token.finish_reason:
                self._end(token.key, "a token could not be delivered")

    def _end(self, key: int, reason: str) -> None:
        """Take a text out of the batch before its end."""
        self.batch.remove(key)
        _fail(self._running.pop(key), reason)


def _is_gone(job: _Job) -> bool:
    try:
        return job.receiver.is_gone()
    except Exception:
        LOG.exception("a client could not be asked whether it waits")
        return True


def _fail(job: _Job, reason: str) -> None:
    try:
        job.receiver.fail(reason)
    except Exception:
        LOG.exception("a client could not be told: %s", reason)
