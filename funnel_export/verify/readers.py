"""Readers: what a candidate computes for the rows of a case, in a single pass or in steps."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from funnel_export.bundle.load import Bundle
from funnel_export.bundle.ports import PortKind, feed
from funnel_export.bundle.signature import HIDDEN
from funnel_export.runtime.stepper import Stepper
from funnel_export.spec.funnel import boundary_names, layer_name
from funnel_export.spec.stages import ENTRY, Stage, stages_of
from funnel_export.targets.base import Session
from funnel_export.verify.candidates import Candidate
from funnel_export.verify.cases import Case, kept_positions

Inputs = Mapping[PortKind, NDArray[Any]]


class Reader(Protocol):
    """A loaded candidate."""

    device: str
    """Device that it runs on, under the runtime's name."""
    precision: str
    """Dtype that it computes in, as far as the runtime reports it."""

    def read(self, case: Case, inputs: Inputs) -> NDArray[Any]:
        """The outputs that are compared, [positions of all rows, width]."""
        ...

    def boundaries(self, case: Case, inputs: Inputs) -> tuple[Case, Mapping[str, NDArray[Any]]]:
        """Hidden states by name, each [batch, length, width], and the case as it was padded for them."""
        ...

    def close(self) -> None:
        """Free memory."""
        ...


def load_reader(candidate: Candidate, bundle: Bundle, *, inside: bool = False) -> Reader:
    """Load a candidate; with `inside` for its boundaries instead of its outputs."""
    names = boundary_names(bundle.segments) if inside else []
    if not bundle.spec.task.has_past:
        return SinglePass(bundle, candidate.load(bundle.model, names))
    stages = stages_of(bundle.spec.funnel, bundle.architecture.num_hidden_layers)
    sessions = {
        role: candidate.load(graph, _named_in(stages[role]) if inside else ()) for role, graph in bundle.graphs.items()
    }
    return InSteps(bundle, sessions)


class SinglePass:
    """A graph that takes whole texts."""

    def __init__(self, bundle: Bundle, session: Session) -> None:
        self._bundle, self._session = bundle, session
        self.device, self.precision = session.device, session.precision

    def read(self, case: Case, inputs: Inputs) -> NDArray[Any]:
        """See `Reader.read`: all real tokens, each row's last token, or one vector for each row."""
        output = self._run(inputs)[self._bundle.output.name]
        one_per_row = output.ndim == 2 or output.shape[:2] != case.shape  # a class, or the last token's logits
        return output.reshape(-1, output.shape[-1]) if one_per_row else output[case.real]

    def boundaries(self, case: Case, inputs: Inputs) -> tuple[Case, Mapping[str, NDArray[Any]]]:
        """See `Reader.boundaries`."""
        return case, self._run(inputs)

    def close(self) -> None:
        """See `Reader.close`."""
        self._session.close()

    def _run(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        return self._session.run(feed(self._bundle.model.inputs, inputs))


class InSteps:
    """The stages of a model that generates text: prompts are read in chunks, and then token by token."""

    def __init__(self, bundle: Bundle, sessions: Mapping[str, Session]) -> None:
        self._seen: dict[str, NDArray[Any]] = {}
        self._stepper = Stepper(bundle, {role: _Recorded(each, self._seen) for role, each in sessions.items()})
        last = list(sessions.values())[-1]
        self.device, self.precision = last.device, last.precision
        spec = bundle.spec.funnel
        self._stride = 1 if spec is None else spec.stride
        self._renamed = {HIDDEN: layer_name(spec.pool_layer - 1)} if spec is not None and spec.pool_layer else {}

    def read(self, case: Case, inputs: Inputs) -> NDArray[Any]:
        """See `Reader.read`: the logits of each row's `kept_positions`."""
        rows, state = _rows(inputs), self._stepper.new_state(len(case.lengths))
        kept = [kept_positions(length) for length in case.lengths]
        found: list[list[NDArray[Any]]] = [[] for _ in rows]
        for counts in chunks_of(case, self._stride):
            begins, length = state.lengths.copy(), int(counts.max())
            tokens = np.zeros((len(rows), length), np.int64)
            wanted = []
            for row, begin, count, positions, line in zip(rows, begins, counts, kept, tokens, strict=True):
                line[:count] = row[begin : begin + count]
                wanted.append(positions[(positions >= begin) & (positions < begin + count)] - begin)
            columns = np.zeros((len(rows), max(1, *map(len, wanted))), np.int64)
            for line, own in zip(columns, wanted, strict=True):
                line[: len(own)] = own
            logits = self._stepper.step(state, tokens, counts, columns)
            for row_found, row_logits, own in zip(found, logits, wanted, strict=True):
                row_found.append(row_logits[: len(own)])
        return np.concatenate([each for row_found in found for each in row_found])

    def boundaries(self, case: Case, inputs: Inputs) -> tuple[Case, Mapping[str, NDArray[Any]]]:
        """See `Reader.boundaries`: the rows are read in one chunk, with the logits of every token."""
        aligned = replace(case, padding="right")
        tokens = np.zeros(case.shape, np.int64)
        tokens[aligned.real] = np.concatenate(_rows(inputs))
        columns = np.tile(np.arange(tokens.shape[1]), (len(tokens), 1))
        self._stepper.step(self._stepper.new_state(len(tokens)), tokens, np.array(case.lengths), columns)
        return aligned, {self._renamed.get(name, name): value for name, value in self._seen.items()}

    def close(self) -> None:
        """See `Reader.close`."""
        self._stepper.close()


class _Recorded:
    """A session that also keeps its outputs where all stages' are kept."""

    def __init__(self, session: Session, seen: dict[str, NDArray[Any]]) -> None:
        self._session, self._seen = session, seen
        self.device, self.precision = session.device, session.precision
        self.prepare, self.close = session.prepare, session.close

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """See `Session.run`."""
        results = self._session.run(inputs)
        self._seen.update(results)
        return results


def chunks_of(case: Case, stride: int) -> Iterator[NDArray[np.int64]]:
    """Counts of tokens, [batch], in which the rows of a case are read: a prompt, then single tokens.

    If the case is padded on the left, all but the last token of a row are read at once. Otherwise the last tokens, over
    two windows, come one by one, and the prompt before them in two chunks. Rows that are read to their end wait.
    """
    lengths, whole = np.array(case.lengths), case.padding == "left"
    singles = np.minimum(lengths - 1, 1 if whole else 2 * stride + 2)
    prompts = lengths - singles
    first = prompts if whole else -(-prompts // 2)
    yield first
    if (prompts > first).any():
        yield prompts - first
    for at in range(int(singles.max())):
        yield (singles > at).astype(np.int64)


def _rows(inputs: Inputs) -> list[NDArray[Any]]:
    """The real tokens of each row."""
    tokens, mask = inputs[PortKind.TOKENS], inputs[PortKind.MASK]
    return [row[real != 0] for row, real in zip(tokens, mask, strict=True)]


def _named_in(stage: Stage) -> Sequence[str]:
    """The boundaries that have a name in a stage's graph; the entry's last layer is its output."""
    names = [*stage.steps, *(layer_name(index) for index in stage.layers)]
    return names[:-1] if stage.role == ENTRY else names
