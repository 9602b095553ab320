"""A bundle in a target, as a runner times it: a graph for whole texts, or graphs with a cache."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from funnel_export.bundle.engine import load_engine
from funnel_export.bundle.load import Bundle
from funnel_export.bundle.ports import PortKind, feed
from funnel_export.runtime.load import load_stepper
from funnel_export.runtime.state import State, bytes_per_token
from funnel_export.targets.base import check_fits
from funnel_export.targets.registry import get_target

Ids = list[list[int]]
CHUNK = 512
"""Most tokens that are read at once before steps: memory grows with the square of what is read at once."""


class GraphModel:
    """The graph of a bundle that takes whole texts, or an engine of it."""

    def __init__(self, bundle: Bundle, target: str, engines: Sequence[str]) -> None:
        chosen = get_target(target)
        engine = load_engine(bundle, *engines) if engines else None
        if engine is not None:
            check_fits(chosen, engine)
        self._session = chosen.load(bundle.model, engine=engine)
        self._graph = bundle.model
        self.facts = {"device": self._session.device, "precision": self._session.precision}

    def run(self, ids: Ids, steps: int) -> list[float]:
        """See `TimedModel.run`; there are no steps."""
        assert not steps
        return last_output(self._session.run(self._feed(ids))[self._graph.output.name])

    def prepare(self, ids: Ids, steps: int) -> Callable[[], object]:
        """See `TimedModel.prepare`; there are no steps."""
        assert not steps
        return self._session.prepare(self._feed(ids))

    def _feed(self, ids: Ids) -> dict[str, NDArray[Any]]:
        tokens = np.array(ids, dtype=np.int64)
        return feed(self._graph.inputs, {PortKind.TOKENS: tokens, PortKind.MASK: np.ones_like(tokens)})


class StagesModel:
    """The graphs with a cache of a bundle, or engines of them."""

    def __init__(self, bundle: Bundle, target: str, engines: Sequence[str]) -> None:
        self._stepper = load_stepper(bundle, target, engines)
        last = list(self._stepper.sessions.values())[-1]
        self.facts = {
            "device": last.device,
            "precision": last.precision,
            "cache_bytes_per_token": bytes_per_token(self._stepper.layout),
        }

    def run(self, ids: Ids, steps: int) -> list[float]:
        """See `TimedModel.run`."""
        tokens = np.array(ids, dtype=np.int64)
        length = tokens.shape[1] - steps
        if not steps:
            return last_output(self._read(tokens)[1])
        return last_output(self._generate(self._read_in_chunks(tokens[:, :length]), tokens[:, length:]))

    def prepare(self, ids: Ids, steps: int) -> Callable[[], object]:
        """See `TimedModel.prepare`; a call without steps reads the texts into a new cache."""
        tokens = np.array(ids, dtype=np.int64)
        if not steps:
            return lambda: self._read(tokens)
        length = tokens.shape[1] - steps
        state = self._read_in_chunks(tokens[:, :length])
        before = state.lengths

        def generate() -> None:
            self._generate(state, tokens[:, length:])
            state.crop(before)

        return generate

    def _read(self, tokens: NDArray[np.int64]) -> tuple[State, NDArray[Any]]:
        """A new state with these tokens, and the logits of the last ones."""
        state = self._stepper.new_state(tokens.shape[0])
        return state, self._stepper.step(state, tokens)

    def _read_in_chunks(self, tokens: NDArray[np.int64]) -> State:
        """A new state with these tokens, which are read as `Batch` reads them: no clock runs, and memory is short."""
        state = self._stepper.new_state(tokens.shape[0])
        for at in range(0, tokens.shape[1], CHUNK):
            self._stepper.step(state, tokens[:, at : at + CHUNK])
        return state

    def _generate(self, state: State, tokens: NDArray[np.int64]) -> NDArray[Any]:
        """Read tokens one by one; the logits of the last ones."""
        for at in range(tokens.shape[1]):
            output = self._stepper.step(state, tokens[:, at : at + 1])
        return output


def last_output(output: NDArray[Any]) -> list[float]:
    """The outputs of the last row's last token, from [batch, tokens, width] or [batch, width]."""
    values: list[float] = output.reshape(-1, output.shape[-1])[-1].astype(np.float64).tolist()
    return values
