"""The main loop of a runner's process: it loads a model, runs it on request, and returns the time of each call.

This module imports only the standard library and `system`, so that runners can use other environments.
"""

import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from funnel_export.system.machine import peak_bytes
from funnel_export.system.worker import take_stdout

SAMPLES = 64
"""Number of outputs that are sent back for comparison, evenly spaced."""


class TimedModel(Protocol):
    """A model that a runner times."""

    facts: dict[str, Any]
    """`device` and `precision`; with a cache also `cache_bytes_per_token`."""

    def run(self, ids: list[list[int]], steps: int) -> list[float]:
        """Run a batch of token ids without padding, the last `steps` of each row one by one after the others.

        Returns the outputs of the last row's last token.
        """
        ...

    def prepare(self, ids: list[list[int]], steps: int) -> Callable[[], object]:
        """Return a function that runs the model on this batch and returns when the device is done.

        With `steps`, all but the last `steps` tokens of each row are read now, and the function reads the others, one
        by one. It may be called several times, always after the same tokens.
        """
        ...


def no_device() -> int | None:
    """The memory in use without a device: None."""
    return None


def serve(load: Callable[[dict[str, Any]], TimedModel], device_bytes: Callable[[], int | None] = no_device) -> None:
    """Answer requests from stdin until it ends. Each request and each answer is one JSON object on a line.

    1. The first request goes to `load`. The answer has the model's facts and `load_seconds`.
    2. `{"ids": ..., "steps": ...}`: prepare this batch. The answer has `first_seconds`, the time of the first run, and
       `sample`, some of its outputs.
    3. `{"ids": null}`: run the same batch. The answer has `seconds`.
    4. `{}`: the answer has the peak memory, `host_bytes` and `device_bytes`.

    If a request fails, the answer has `error`.

    Args:
        load: makes a model from the first request.
        device_bytes: returns the bytes in use on the device by all processes. The other runners are idle while one
            prepares, so the increase belongs to it.
    """
    answers = take_stdout()
    runner = _Runner(load, device_bytes)
    for line in sys.stdin:
        try:
            answer = runner.answer(json.loads(line))
        except Exception as err:  # noqa: BLE001 - a runtime may raise anything; the caller gets it
            answer = {"error": f"{type(err).__name__}: {err}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


class _Runner:
    def __init__(self, load: Callable[[dict[str, Any]], TimedModel], device_bytes: Callable[[], int | None]) -> None:
        self._load, self._in_use = load, device_bytes
        self._model: TimedModel | None = None
        self._call: Callable[[], object] | None = None
        self._held: int | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._model is None:
            return self._start(request)
        if "ids" not in request:
            return {"host_bytes": peak_bytes(), "device_bytes": self._held}
        if request["ids"] is not None:
            return self._get_ready(self._model, request["ids"], request["steps"])
        assert self._call is not None
        seconds, _ = _timed(self._call)
        return {"seconds": seconds}

    def _start(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._counted():
            seconds, self._model = _timed(lambda: self._load(request))
        gc.collect()
        gc.freeze()  # keep garbage collections of the libraries' objects out of the timed calls
        return {**self._model.facts, "load_seconds": seconds}

    def _get_ready(self, model: TimedModel, ids: list[list[int]], steps: int) -> dict[str, Any]:
        with self._counted():
            seconds, outputs = _timed(lambda: model.run(ids, steps))
            self._call = model.prepare(ids, steps)
            self._call()
        return {"first_seconds": seconds, "sample": outputs[:: max(1, len(outputs) // SAMPLES)]}

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Add the device memory that the block takes."""
        before = self._in_use()
        yield
        after = self._in_use()
        if before is not None and after is not None:
            self._held = (self._held or 0) + max(0, after - before)


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result
