"""One step of generation: runs the graphs of a bundle on a chunk of tokens, and adds it to the state."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from funnel_export.bundle.load import Bundle, Graph
from funnel_export.bundle.ports import Port, PortKind
from funnel_export.bundle.signature import (
    CARRIED,
    CHANGE,
    HIDDEN,
    INPUT_IDS,
    LOGIT_COLUMNS,
    LOGITS,
    OPEN,
    PAST_LENGTH,
    READS,
    SLOTS,
    past_name,
    present_name,
)
from funnel_export.errors import SpecError
from funnel_export.runtime.state import Held, State, slots_of
from funnel_export.spec.stages import DECODER, ENTRY, EXIT, MIDDLE
from funnel_export.targets.base import Session

Arrays = dict[str, NDArray[Any]]


class Stepper:
    """Runs the stages of a bundle; it has no state of its own, so one serves several texts in turn."""

    def __init__(self, bundle: Bundle, sessions: Mapping[str, Session]) -> None:
        """Use loaded graphs.

        Args:
            bundle: a bundle of the task text-generation-with-past.
            sessions: a session for each of its graphs, by role.
        """
        self.sessions = dict(sessions)
        self.stride = 1 if bundle.spec.funnel is None else bundle.spec.funnel.stride
        self.vocab_size = bundle.architecture.vocab_size
        self.limit = bundle.architecture.max_position_embeddings
        self._graphs = bundle.graphs
        self.layout = _layout(self._graphs, self.stride)
        self._cache_of = {
            present_name(layer, which): past_name(layer, which)
            for layer in range(bundle.architecture.num_hidden_layers)
            for which in ("key", "value")
        }

    def new_state(self, rows: int, limit: int | None = None) -> State:
        """A state of rows without tokens, of at most `limit` tokens each."""
        return State.empty(self.layout, rows, self.limit if limit is None else min(limit, self.limit))

    def step(
        self,
        state: State,
        tokens: NDArray[np.int64],
        counts: NDArray[np.int64] | None = None,
        columns: NDArray[np.int64] | None = None,
    ) -> NDArray[Any]:
        """Add a chunk of tokens to each row; a step that fails leaves the state as it was.

        Args:
            state: of this stepper's layout.
            tokens: [batch, length] token ids; shorter rows are padded on the right with any token.
            counts: [batch], how many of them are real, 0 for a row that waits; by default all.
            columns: [batch, num_logits], the columns whose logits are wanted; by default each row's last.

        Returns:
            Logits, [batch, num_logits, vocab_size].

        Raises:
            SpecError: if the chunk does not fit the state or the model.
        """
        tokens, counts = self._validated(state, tokens, counts)
        wanted = np.maximum(counts - 1, 0)[:, None] if columns is None else np.asarray(columns, np.int64)
        lengths = state.lengths + counts
        state.reserve(lengths)
        given: Arrays = {INPUT_IDS: tokens, PAST_LENGTH: state.lengths, LOGIT_COLUMNS: wanted}
        if DECODER in self.sessions:
            results = self._run(DECODER, state, given)
            state.commit(lengths, self._present(results))
            return results[LOGITS]
        results = self._run(ENTRY, state, given)
        given[HIDDEN], fresh = results[HIDDEN], self._present(results)
        before, after = slots_of(state.lengths, self.stride), slots_of(lengths, self.stride)
        closed = after - before
        given[CHANGE] = state.last_change()
        if closed.any():
            given |= {CARRIED: given[CHANGE], SLOTS: before[:, None] + np.arange(closed.max())[None]}
            if self.stride > 1:
                given[OPEN] = state.last_hidden(self.stride - 1)
            results = self._run(MIDDLE, state, given)
            given[CHANGE], fresh = results[CHANGE], fresh | self._present(results)
            fresh[CHANGE] = results[CHANGE][:, 1:]
        numbers = state.lengths[:, None] + np.arange(tokens.shape[1])[None]
        given[READS] = np.clip(numbers // self.stride - before[:, None] + 1, 0, closed[:, None])
        results = self._run(EXIT, state, given)
        fresh |= self._present(results)
        if self.stride > 1:
            fresh[HIDDEN] = given[HIDDEN]
        state.commit(lengths, fresh)
        return results[LOGITS]

    def close(self) -> None:
        """Free the sessions."""
        for session in self.sessions.values():
            session.close()

    def _run(self, role: str, state: State, given: Arrays) -> Arrays:
        """Run a graph on what it takes of the given arrays and the state's caches."""
        empty = not state.lengths.any()  # no attention over an empty cache
        inputs = {}
        for port in self._graphs[role].inputs:
            if port.kind is not PortKind.PAST:
                inputs[port.name] = given[port.name]
            elif empty:
                inputs[port.name] = self.layout[port.name].zeros(state.rows, 1)
            else:
                inputs[port.name] = state.arrays[port.name]
        return self.sessions[role].run(inputs)

    def _present(self, results: Arrays) -> Arrays:
        """The new keys and values of a graph, by the names of the caches."""
        return {self._cache_of[name]: value for name, value in results.items() if name in self._cache_of}

    def _validated(
        self, state: State, tokens: NDArray[np.int64], counts: NDArray[np.int64] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        tokens = np.ascontiguousarray(tokens, np.int64)
        if tokens.ndim != 2 or tokens.shape[0] != state.rows or not tokens.size:
            raise SpecError(
                "the tokens do not fit the cache", got=f"shape {tokens.shape}", wanted=f"[{state.rows}, length >= 1]"
            )
        counts = np.full(state.rows, tokens.shape[1]) if counts is None else np.asarray(counts, np.int64)
        if counts.shape != (state.rows,) or (counts < 0).any() or (counts > tokens.shape[1]).any():
            raise SpecError(
                "invalid counts of tokens",
                got=counts.tolist(),
                wanted=f"{state.rows} numbers of 0 to {tokens.shape[1]}",
            )
        real = np.arange(tokens.shape[1])[None] < counts[:, None]
        outside = tokens[real & ((tokens < 0) | (tokens >= self.vocab_size))]
        if outside.size:
            raise SpecError(
                "a token is outside the model's vocabulary",
                got=outside[:5].tolist(),
                wanted=f"0 to {self.vocab_size - 1}",
            )
        return np.where(real, tokens, 0), counts


def _layout(graphs: Mapping[str, Graph], stride: int) -> dict[str, Held]:
    """What a state holds: the caches of all graphs, and for a funnel hidden states and changes."""
    layout = {}
    for role, graph in graphs.items():
        for port in graph.inputs:
            if port.kind is PortKind.PAST:
                layout[port.name] = _held(port, stride if role == MIDDLE else 1)
    if MIDDLE in graphs:
        ports = {port.name: port for port in graphs[EXIT].inputs}
        layout[CHANGE] = _held(ports[CHANGE], stride)
        if stride > 1:
            layout[HIDDEN] = _held(ports[HIDDEN], 1)
    return layout


def _held(port: Port, stride: int) -> Held:
    shape = tuple(0 if isinstance(size, str) else size for size in port.shape[1:])
    return Held(shape, _numpy_dtype(port.dtype), stride)


def _numpy_dtype(name: str) -> Any:
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
