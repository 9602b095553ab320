"""Trials: the calls of all runners are interleaved, so that noise of the machine affects all of them equally.

Each runner has its own process. So memory is measured per runner, thread pools of different runtimes do not compete for
the cores, a crash does not stop the other runners, and runtimes from other environments can be compared.
"""

import contextlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from funnel_export.latency.latency_report import Memory, Model, RunnerResult
from funnel_export.latency.runner import RunnerSetup
from funnel_export.latency.shape import Shape
from funnel_export.progress import Progress
from funnel_export.spec.choices import Dtype
from funnel_export.system.worker import SILENCE, Worker, WorkerSilentError

REST = 0.1
"""Seconds of pause before each call, in which the previous runner's thread pool stops spinning.

ONNX Runtime's threads spin for 20 to 50 ms after a call; on two cores this slows the next runner by a quarter.
"""

OWN = ("-m", "funnel_export.latency.runner")


@dataclass(frozen=True, kw_only=True, slots=True)
class Runner:
    """One model in one runtime."""

    runtime: str
    model: Model
    dtype: Dtype
    request: Mapping[str, Any]
    """The first request to its process: what to load."""
    program: tuple[str, ...] = OWN
    """Arguments of the interpreter for a program that calls `serve`."""
    python: str = sys.executable
    """The interpreter, which may belong to another environment."""
    shapes: frozenset[Shape] | None = None
    """The shapes that it takes; None for all."""

    @classmethod
    def of(cls, runtime: str, model: Model, dtype: Dtype, setup: RunnerSetup, **more: Any) -> "Runner":
        """A runner for a bundle in PyTorch or in a target."""
        return cls(runtime=runtime, model=model, dtype=dtype, request=setup.model_dump(mode="json"), **more)


@dataclass(slots=True)
class Times:
    """Times of one runner on one shape."""

    first: float
    """Seconds of the first run."""
    sample: list[float]
    """Some outputs of the last row's last token."""
    seconds: list[float] = field(default_factory=list)
    """Seconds of each counted call."""


@dataclass(slots=True)
class RunnerRecord:
    """A runner with the results of its trials."""

    runner: Runner
    result: RunnerResult
    times: dict[Shape, Times] = field(default_factory=dict)
    worker: Worker | None = None

    def ask(self, request: Mapping[str, Any], timeout: float) -> dict[str, Any] | None:
        """Send a request and return the answer; on failure or timeout, record the error, end the process, return None.

        Args:
            request: see `serve`.
            timeout: seconds to wait until the process has read the request, and again for its answer.
        """
        if self.worker is None:
            return None
        answer = _answer(self.worker, json.dumps(request), timeout)
        if "error" not in answer:
            return answer
        self.result = self.result.model_copy(update={"error": answer["error"]})
        self.times.clear()
        self.worker.close()
        self.worker = None
        return None


def _answer(worker: Worker, request: str, timeout: float) -> dict[str, Any]:
    """A worker's answer to a request; if there is none, an object with `error`."""
    try:
        worker.send(request, timeout)
        line = worker.receive(timeout)
    except WorkerSilentError as err:
        return {"error": f"its process was killed: {err}"}
    if line is None:
        return {"error": _death(worker)}
    try:
        answer = json.loads(line)
    except ValueError:
        answer = None
    return answer if isinstance(answer, dict) else {"error": f"its process answered with {line[:200]!r}"}


def _death(worker: Worker) -> str:
    memory = "; the machine may have too little memory for all runners" if worker.was_killed else ""
    return f"its process died: {worker.death()}{memory}"


def run_trials(
    runners: Sequence[Runner],
    batches: Mapping[Shape, list[list[int]]],
    *,
    rounds: int | Mapping[Shape, int],
    warmup: int = 2,
    timeout: float = SILENCE,
    progress: Progress,
) -> list[RunnerRecord]:
    """Time every runner on every batch.

    Runners load and prepare each batch one after the other. Then each runs once per round, while the others are idle. A
    runner that fails gets an error and no times; the others continue.

    Args:
        runners: the runners to time.
        batches: token ids [batch][length + steps] by shape, without padding.
        rounds: counted calls of each runner, for all shapes or by shape.
        warmup: uncounted calls before them, in addition to the first run and the one in preparation.
        timeout: seconds that one request may take; a runner that takes longer is killed and gets an error.
        progress: called with the name of each step.
    """
    records = [
        RunnerRecord(each, RunnerResult(runtime=each.runtime, model=each.model, dtype=each.dtype)) for each in runners
    ]
    with contextlib.ExitStack() as stack:
        for record in records:
            progress(f"loading {record.result.name}")
            record.worker = stack.enter_context(Worker(record.runner.program, python=record.runner.python))
            loaded = record.ask(record.runner.request, timeout)
            if loaded is not None:
                record.result = record.result.model_copy(update=loaded)
        for shape, ids in batches.items():
            counted = rounds if isinstance(rounds, int) else rounds[shape]
            _run_trial(records, shape, ids, counted, warmup, timeout, progress)
        for record in records:
            memory = record.ask({}, timeout)
            if memory is not None:
                record.result = record.result.model_copy(update={"memory": Memory(**memory)})
    return records


def _run_trial(
    records: Sequence[RunnerRecord],
    shape: Shape,
    ids: list[list[int]],
    rounds: int,
    warmup: int,
    timeout: float,
    progress: Progress,
) -> None:
    """Time all runners on one shape."""
    for record in records:
        if record.runner.shapes is not None and shape not in record.runner.shapes:
            continue
        progress(f"{shape}: first run of {record.result.name}")
        ready = record.ask({"ids": ids, "steps": shape.steps}, timeout)
        if ready is not None:
            record.times[shape] = Times(ready["first_seconds"], ready["sample"])
    for number in range(warmup + rounds):
        progress(f"{shape}: round {number + 1} of {warmup + rounds}", number / (warmup + rounds))
        for record in records:
            if shape not in record.times:
                continue
            time.sleep(REST)
            answer = record.ask({"ids": None}, timeout)
            if answer is not None and number >= warmup:
                record.times[shape].seconds.append(answer["seconds"])
