"""The loop of a runner's process: it loads a model, runs it on request, and answers how long each call took.

Nothing but the standard library is imported here, so that runners can live in other environments.
"""

import gc
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from funnel_export.system.worker import take_stdout

SAMPLES = 64
"""Outputs that are sent back for comparison, evenly spread."""


class TimedModel(Protocol):
    """A model that a runner times."""

    facts: dict[str, str]
    """`device` and `precision`."""

    def run(self, ids: list[list[int]]) -> list[float]:
        """Run a batch without padding, as a caller would; the outputs of the last row's last token."""
        ...

    def prepare(self, ids: list[list[int]]) -> Callable[[], object]:
        """A call that runs on a batch, again and again, and returns when the device is done."""
        ...


def no_device() -> int | None:
    """Memory in use on a device that is not there."""
    return None


def serve(load: Callable[[dict[str, Any]], TimedModel], device_bytes: Callable[[], int | None] = no_device) -> None:
    """Answer requests from stdin, one JSON object a line, until it ends; each answer is one line of JSON.

    1. What to load, for `load`. The answer has the model's facts and `load_seconds`; or `error`.
    2. `{"ids": ...}`: get ready for this batch. The answer has `first_seconds` of the first run, and a `sample` of its
       outputs.
    3. `{"ids": null}`: run on the same batch. The answer has `seconds`.
    4. `{}`: the answer has the most memory that was held, `host_bytes` and `device_bytes`.

    What goes wrong is answered with `error`.

    Args:
        load: makes a model from the first request.
        device_bytes: memory in use on the device, by all processes; while one runner gets ready the others rest, so
            what is added then is its own.
    """
    answers = take_stdout()
    runner = _Runner(load, device_bytes)
    for line in sys.stdin:
        try:
            answer = runner.answer(json.loads(line))
        except Exception as err:  # noqa: BLE001 - whatever a runtime raises is reported to the caller
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
            return self._get_ready(self._model, request["ids"])
        assert self._call is not None
        seconds, _ = _timed(self._call)
        return {"seconds": seconds}

    def _start(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._counted():
            seconds, self._model = _timed(lambda: self._load(request))
        gc.collect()
        gc.freeze()  # so that no collection of what the libraries hold falls into a call
        return {**self._model.facts, "load_seconds": seconds}

    def _get_ready(self, model: TimedModel, ids: list[list[int]]) -> dict[str, Any]:
        with self._counted():
            seconds, outputs = _timed(lambda: model.run(ids))
            self._call = model.prepare(ids)
            self._call()
        return {"first_seconds": seconds, "sample": outputs[:: max(1, len(outputs) // SAMPLES)]}

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Add what is held on the device after the block and was not before."""
        before = self._in_use()
        yield
        after = self._in_use()
        if before is not None and after is not None:
            self._held = (self._held or 0) + max(0, after - before)


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def peak_bytes() -> int:
    """The most memory that this process has held, mapped files included.

    VmHWM, not ru_maxrss: a new process starts with its parent's ru_maxrss.
    """
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024
