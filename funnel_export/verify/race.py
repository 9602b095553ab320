"""A race: models in processes of their own take turns, so that whatever else the machine does falls on all alike.

A process each, because memory can be told apart then, thread pools of different runtimes do not fight over the cores,
one that dies takes no other with it, and runtimes of other environments can take part.
"""

import contextlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from funnel_export.config import Dtype
from funnel_export.progress import Progress
from funnel_export.verify.contender import Lineup
from funnel_export.verify.latency import ContenderResult, Memory, Model
from funnel_export.worker import Worker

REST = 0.1
"""Seconds before each call, in which the thread pool of the call before stops looking for work.

ONNX Runtime's threads do so for 20 to 50 ms: on two cores, whoever comes next before that is a quarter slower.
"""

OWN = ("-m", "funnel_export.verify.contender")


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """What takes part."""

    runtime: str
    model: Model
    dtype: Dtype
    order: Mapping[str, Any]
    """What its process is to load."""
    program: tuple[str, ...] = OWN
    """What its process runs: something that calls `turns.serve`."""
    python: str = sys.executable
    """Its interpreter, which may be of another environment."""
    shapes: frozenset[tuple[int, int]] | None = None
    """The batches and lengths that it takes, if not all."""

    @classmethod
    def of(cls, runtime: str, model: Model, dtype: Dtype, lineup: Lineup, **more: Any) -> "Contender":
        """A bundle in PyTorch or in a target."""
        return cls(runtime=runtime, model=model, dtype=dtype, order=lineup.model_dump(mode="json"), **more)


@dataclass(slots=True)
class Times:
    """One contender on one shape."""

    first: float
    """Seconds of the first run."""
    sample: list[float]
    """Some outputs of the last token."""
    seconds: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Entry:
    """A contender and what became of it."""

    contender: Contender
    result: ContenderResult
    times: dict[tuple[int, int], Times] = field(default_factory=dict)
    worker: Worker | None = None

    def ask(self, order: Mapping[str, Any]) -> dict[str, Any] | None:
        """Send an order and wait for the answer; None, and an error in the result, if there is none to be had."""
        if self.worker is None:
            return None
        self.worker.send(json.dumps(order))
        line = self.worker.receive()
        answer: dict[str, Any] = {"error": _death(self.worker)} if line is None else json.loads(line)
        if "error" not in answer:
            return answer
        self.result = self.result.model_copy(update={"error": answer["error"]})
        self.times.clear()
        self.worker.close()
        self.worker = None
        return None


def _death(worker: Worker) -> str:
    memory = "; the machine may have too little memory for all contenders" if worker.was_killed else ""
    return f"its process died: {worker.death()}{memory}"


def race(
    contenders: Sequence[Contender],
    batches: Mapping[tuple[int, int], list[list[int]]],
    *,
    rounds: int | Mapping[tuple[int, int], int],
    warmup: int = 2,
    progress: Progress,
) -> list[Entry]:
    """Time every contender on every batch.

    Contenders load one after the other and get ready for a batch one after the other; then, round by round, each runs
    once, while the others rest. A contender that fails has an error and no times; the others go on.

    Args:
        contenders: what takes part.
        batches: token ids [batch][length] by shape, without padding.
        rounds: counted calls of each contender, of all shapes alike or by shape.
        warmup: calls before them, besides the first run and the one that gets ready.
        progress: called with the name of each step.
    """
    entries = [
        Entry(each, ContenderResult(runtime=each.runtime, model=each.model, dtype=each.dtype)) for each in contenders
    ]
    with contextlib.ExitStack() as stack:
        for entry in entries:
            progress(f"loading {entry.result.name}")
            entry.worker = stack.enter_context(Worker(entry.contender.program, python=entry.contender.python))
            loaded = entry.ask(entry.contender.order)
            if loaded is not None:
                entry.result = entry.result.model_copy(update=loaded)
        for shape, ids in batches.items():
            _heat(entries, shape, ids, rounds if isinstance(rounds, int) else rounds[shape], warmup, progress)
        for entry in entries:
            memory = entry.ask({})
            if memory is not None:
                entry.result = entry.result.model_copy(update={"memory": Memory(**memory)})
    return entries


def _heat(
    entries: Sequence[Entry],
    shape: tuple[int, int],
    ids: list[list[int]],
    rounds: int,
    warmup: int,
    progress: Progress,
) -> None:
    """All contenders on one shape."""
    name = f"batch {shape[0]}, length {shape[1]}"
    for entry in entries:
        if entry.contender.shapes is not None and shape not in entry.contender.shapes:
            continue
        progress(f"{name}: first run of {entry.result.name}")
        ready = entry.ask({"ids": ids})
        if ready is not None:
            entry.times[shape] = Times(ready["first_seconds"], ready["sample"])
    for number in range(warmup + rounds):
        progress(f"{name}: round {number + 1} of {warmup + rounds}", number / (warmup + rounds))
        for entry in entries:
            if shape not in entry.times:
                continue
            time.sleep(REST)
            answer = entry.ask({"ids": None})
            if answer is not None and number >= warmup:
                entry.times[shape].seconds.append(answer["seconds"])
