"""The scheduler's clients: each gets its own text or its own error, whatever the others do."""

import functools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from stepping import eager_stepper, texts
from transformers import Gemma2ForCausalLM

from funnel_export import Batch, FunnelSpec, Request, SpecError
from funnel_export.runtime.batch import Token
from funnel_export.runtime.invariants import faults_of_batch
from funnel_export.runtime.scheduler import GONE, STOPPED, Scheduler, UnavailableError
from funnel_export.runtime.stepper import Stepper

SECONDS = 60
"""Longest wait; a text takes far less."""


@functools.cache
def eager() -> Stepper:
    return eager_stepper(Gemma2ForCausalLM, FunnelSpec.parse("1:3:3"))


class Client:
    """Notes what it is told; `gone` and `on_token` are the test's."""

    def __init__(self, on_token: Callable[[Token], None] = lambda token: None) -> None:
        self.tokens: list[int | None] = []
        self.ends: list[str] = []
        self.gone, self.ended = False, threading.Event()
        self.on_token = on_token

    def take(self, token: Token) -> None:
        self.on_token(token)
        self.tokens.append(token.token)
        if token.finish_reason:
            self._end(token.finish_reason)

    def fail(self, reason: str) -> None:
        self._end(reason)

    def is_gone(self) -> bool:
        return self.gone

    def end(self) -> str:
        """How its text ended, once it has."""
        assert self.ended.wait(SECONDS)
        assert len(self.ends) == 1
        return self.ends[0]

    def _end(self, reason: str) -> None:
        self.ends.append(reason)
        self.ended.set()


class Gate:
    """Stops the scheduler's thread within a token of a client, until the test opens it."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self, token: Token) -> None:
        self.reached.set()
        assert self.opened.wait(SECONDS)


def request(number: int = 0, new: int = 12) -> Request:
    return Request(prompt=tuple(texts([5, 3, 8, 2, 6])[number]), max_new_tokens=new)


@functools.cache
def alone(number: int, new: int = 12) -> list[int | None]:
    batch, found = Batch(stepper=eager(), max_rows=1), []
    batch.insert(request(number, new))
    while batch.keys:
        found += [token.token for token in batch.next()]
    return found


@contextmanager
def scheduling(rows: int = 2, queue: int = 8, **options: Any) -> Iterator[Scheduler]:
    scheduler = Scheduler(Batch(stepper=eager(), max_rows=rows, **options), queue)
    try:
        yield scheduler
    finally:
        scheduler.close()
    assert (scheduler.running, scheduler.waiting) == (0, 0)
    assert faults_of_batch(scheduler.batch) == []


def ask(scheduler: Scheduler, number: int = 0, new: int = 12, client: Client | None = None) -> Client:
    client = client or Client()
    scheduler.submit(request(number, new), client)
    return client


def gated(scheduler: Scheduler, new: int = 12) -> tuple[Client, Gate]:
    """A client whose first token stops the scheduler."""
    gate = Gate()
    client = ask(scheduler, new=new, client=Client(gate))
    assert gate.reached.wait(SECONDS)
    return client, gate


def test_clients_at_once_get_what_each_gets_alone() -> None:
    with scheduling() as scheduler:
        with ThreadPoolExecutor(5) as pool:
            clients = list(pool.map(lambda number: ask(scheduler, number), range(5)))
        assert [client.end() for client in clients] == ["length"] * 5
        assert [client.tokens for client in clients] == [alone(number) for number in range(5)]


def test_only_texts_without_a_free_row_count_as_waiting() -> None:
    with scheduling(rows=3, queue=1) as scheduler:
        first, gate = gated(scheduler)
        others = [ask(scheduler, number) for number in (1, 2, 3)]  # two free rows, and one that waits
        with pytest.raises(UnavailableError, match=r"(?s)too many requests are waiting.*got: 3 requests"):
            ask(scheduler)
        gate.opened.set()
        assert [client.end() for client in (first, *others)] == ["length"] * 4
        assert [client.tokens for client in (first, *others)] == [alone(number) for number in range(4)]


def test_texts_without_free_bytes_count_as_waiting() -> None:
    with scheduling(rows=8) as free:
        most = free.batch._bytes([request()] * 2)
    with scheduling(rows=8, queue=1, max_bytes=most) as scheduler:
        _, gate = gated(scheduler)
        ask(scheduler)
        ask(scheduler)
        with pytest.raises(UnavailableError):
            ask(scheduler)
        gate.opened.set()


def test_a_client_that_goes_away_frees_its_row() -> None:
    with scheduling(rows=1) as scheduler:
        first, gate = gated(scheduler, new=400)
        second = ask(scheduler, 1)
        first.gone = True
        gate.opened.set()
        assert first.end() == GONE
        assert second.end() == "length"
        assert (len(first.tokens), second.tokens) == (1, alone(1))


def test_clients_that_went_away_make_room_in_a_full_queue() -> None:
    with scheduling(rows=1, queue=1) as scheduler:
        _, gate = gated(scheduler)
        second = ask(scheduler, 1)
        second.gone = True
        third = ask(scheduler, 2)
        assert second.end() == GONE
        gate.opened.set()
        assert third.end() == "length"
        assert third.tokens == alone(2)


def test_a_client_that_goes_away_before_its_turn_is_never_read() -> None:
    with scheduling(rows=1) as scheduler:
        first, gate = gated(scheduler)
        second = ask(scheduler, 1)
        second.gone = True
        gate.opened.set()
        assert (second.end(), first.end(), second.tokens) == (GONE, "length", [])


def test_a_text_that_can_never_be_generated_is_refused() -> None:
    with scheduling() as scheduler:
        with pytest.raises(SpecError, match="longer than the model takes"):
            ask(scheduler, new=1000)
        assert ask(scheduler).end() == "length"


@pytest.mark.parametrize("method", ["take", "is_gone", "fail"])
def test_a_client_that_raises_harms_only_itself(method: str) -> None:
    def broken(*_: Any) -> Any:
        raise OSError("connection reset")

    client = Client()
    setattr(client, method, broken)
    client.gone = method == "fail"
    with scheduling() as scheduler:
        ask(scheduler, 1, client=client)
        other = ask(scheduler)
        assert (other.end(), other.tokens) == ("length", alone(0))
        assert client.tokens == []
        assert client.ends == {"take": ["a token could not be delivered"], "is_gone": [GONE], "fail": []}[method]


class Broken:
    """A session that fails, or whose logits are not finite."""

    def __init__(self, session: Any, fault: str) -> None:
        self.session, self.fault = session, fault

    def run(self, inputs: Any) -> Any:
        if self.fault == "raises":
            raise RuntimeError("out of memory")
        results = self.session.run(inputs)
        return results | {"logits": np.full_like(results["logits"], np.nan)}


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("raises", "the step failed: out of memory"), ("nan", "the model's logits are not finite")],
)
def test_a_failing_step_is_an_error_and_not_the_end(fault: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with scheduling() as scheduler:
        with monkeypatch.context() as patch:
            sessions = scheduler.batch.stepper.sessions
            patch.setitem(sessions, "exit", Broken(sessions["exit"], fault))
            failed = [ask(scheduler, number) for number in (0, 1)]
            assert [client.end() for client in failed] == [reason] * 2
        later = ask(scheduler)
        assert (later.end(), later.tokens) == ("length", alone(0))


def test_closing_fails_what_has_not_ended() -> None:
    with scheduling(rows=1) as scheduler:
        first, gate = gated(scheduler, new=400)
        second = ask(scheduler, 1)
        closing = threading.Thread(target=scheduler.close)
        closing.start()
        gate.opened.set()
        closing.join(SECONDS)
        assert (first.end(), second.end()) == (STOPPED, STOPPED)
        with pytest.raises(UnavailableError, match=STOPPED):
            ask(scheduler)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_nobody_waits_for_a_thread_that_has_died(monkeypatch: pytest.MonkeyPatch) -> None:
    with scheduling() as scheduler:
        monkeypatch.setattr(scheduler, "_admit", lambda: 1 / 0)
        assert ask(scheduler).end() == STOPPED
        with pytest.raises(UnavailableError, match=STOPPED):
            ask(scheduler)
