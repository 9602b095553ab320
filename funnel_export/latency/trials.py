"""Trials: runners, each in a process of its own, run interleaved, so that noise of the machine disturbs all alike.

A process each, because memory can be told apart then, thread pools of different runtimes do not fight over the cores,
one that dies ends no other, and runtimes of other environments can run beside them.
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
from funnel_export.progress import Progress
from funnel_export.spec.choices import Dtype
from funnel_export.system.worker import SILENCE, Worker, WorkerSilentError

REST = 0.1
"""Seconds before each call, in which the thread pool of the call before stops looking for work.

ONNX Runtime's threads do so for 20 to 50 ms: on two cores, whoever comes next before that is a quarter slower.
"""

OWN = ("-m", "funnel_export.latency.runner")


@dataclass(frozen=True, kw_only=True, slots=True)
class Runner:
    """One model in one runtime."""

    runtime: str
    model: Model
    dtype: Dtype
    request: Mapping[str, Any]
    """What its process loads."""
    program: tuple[str, ...] = OWN
    """What its process runs: something that calls `serve`."""
    python: str = sys.executable
    """Its interpreter, which may be of another environment."""
    shapes: frozenset[tuple[int, int]] | None = None
    """The batches and lengths that it takes, if not all."""

    @classmethod
    def of(cls, runtime: str, model: Model, dtype: Dtype, setup: RunnerSetup, **more: Any) -> "Runner":
        """A bundle in PyTorch or in a target."""
        return cls(runtime=runtime, model=model, dtype=dtype, request=setup.model_dump(mode="json"), **more)


@dataclass(slots=True)
class Times:
    """One runner on one shape."""

    first: float
    """Seconds of the first run."""
    sample: list[float]
    """Some outputs of the last token."""
    seconds: list[float] = field(default_factory=list)


@dataclass(slots=True)
class RunnerRecord:
    """A runner and what its trials showed."""

    runner: Runner
    result: RunnerResult
    times: dict[tuple[int, int], Times] = field(default_factory=dict)
    worker: Worker | None = None

    def ask(self, request: Mapping[str, Any], timeout: float) -> dict[str, Any] | None:
        """Send a request and wait for the answer; None, and an error in the result, if there is none in time."""
        if self.worker is None:
            return None
        self.worker.send(json.dumps(request))
        answer = _answer(self.worker, timeout)
        if "error" not in answer:
            return answer
        self.result = self.result.model_copy(update={"error": answer["error"]})
        self.times.clear()
        self.worker.close()
        self.worker = None
        return None


def _answer(worker: Worker, timeout: float) -> dict[str, Any]:
    """A worker's answer, or what became of it under `error`."""
    try:
        line = worker.receive(timeout)
    except WorkerSilentError as err:
        return {"error": f"its process was ended: {err}"}
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
    batches: Mapping[tuple[int, int], list[list[int]]],
    *,
    rounds: int | Mapping[tuple[int, int], int],
    warmup: int = 2,
    timeout: float = SILENCE,
    progress: Progress,
) -> list[RunnerRecord]:
    """Time every runner on every batch.

    Runners load one after the other and get ready for a batch one after the other; then, round by round, each runs
    once, while the others rest. A runner that fails has an error and no times; the others go on.

    Args:
        runners: what is timed.
        batches: token ids [batch][length] by shape, without padding.
        rounds: counted calls of each runner, of all shapes alike or by shape.
        warmup: calls before them, besides the first run and the one that gets ready.
        timeout: seconds that one request to a runner may take; one that takes longer is ended, and has an error.
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
    shape: tuple[int, int],
    ids: list[list[int]],
    rounds: int,
    warmup: int,
    timeout: float,
    progress: Progress,
) -> None:
    """One trial: all runners on one shape."""
    name = f"batch {shape[0]}, length {shape[1]}"
    for record in records:
        if record.runner.shapes is not None and shape not in record.runner.shapes:
            continue
        progress(f"{name}: first run of {record.result.name}")
        ready = record.ask({"ids": ids}, timeout)
        if ready is not None:
            record.times[shape] = Times(ready["first_seconds"], ready["sample"])
    for number in range(warmup + rounds):
        progress(f"{name}: round {number + 1} of {warmup + rounds}", number / (warmup + rounds))
        for record in records:
            if shape not in record.times:
                continue
            time.sleep(REST)
            answer = record.ask({"ids": None}, timeout)
            if answer is not None and number >= warmup:
                record.times[shape].seconds.append(answer["seconds"])
