"""The state of texts that are being generated: the caches of every layer, and how many tokens each row has.

A row's token p is at index p of its caches, its slot j at index j of those of the middle layers. What the layers of the
middle stage need of earlier tokens is kept too: the hidden states at the pool point, and the change of each slot. So a
row can go back to any length.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from funnel_export.bundle.signature import CHANGE, HIDDEN
from funnel_export.errors import SpecError

BLOCK = 128
"""Capacities are multiples of this number of tokens."""


@dataclass(frozen=True, slots=True)
class Held:
    """An array of the state: one entry for each token, or for each slot, along an axis."""

    shape: tuple[int, ...]
    """Shape for one row, with 0 in place of the length."""
    dtype: Any
    stride: int
    """Tokens per entry: 1, or the funnel's stride for slots."""

    @property
    def axis(self) -> int:
        """The axis of the entries in an array with rows."""
        return self.shape.index(0) + 1

    def zeros(self, rows: int, length: int) -> NDArray[Any]:
        """An array of zeros for `rows` rows of `length` entries."""
        return np.zeros(self.shape_of(rows, length), self.dtype)

    def shape_of(self, rows: int, length: int) -> tuple[int, ...]:
        """The shape of an array for `rows` rows of `length` entries."""
        shape = [rows, *self.shape]
        shape[self.axis] = length
        return tuple(shape)


def slots_of(lengths: NDArray[np.int64], stride: int) -> NDArray[np.int64]:
    """How many slots rows of these lengths have: one for each closed window."""
    return -(-lengths // stride)


def entries_of(capacity: int, stride: int) -> int:
    """Entries of an array for `capacity` tokens, one per `stride` tokens; at least one, as the graphs need."""
    return max(1, -(-capacity // stride))


def capacity_of(tokens: int, limit: int) -> int:
    """The capacity of arrays for rows of `tokens` tokens."""
    return min(limit, -(-tokens // BLOCK) * BLOCK)


def bytes_of(layout: Mapping[str, Held], rows: int, capacity: int) -> int:
    """Bytes of a state with this number of rows and this capacity, without allocating it."""
    return sum(
        math.prod(held.shape_of(rows, entries_of(capacity, held.stride))) * np.dtype(held.dtype).itemsize
        for held in layout.values()
    )


def bytes_per_token(layout: Mapping[str, Held]) -> float:
    """Bytes that a token adds to a state of one row, on average."""
    return sum(bytes_of({name: held}, 1, held.stride) / held.stride for name, held in layout.items())


@dataclass(slots=True, eq=False)
class State:
    """The caches of a batch of rows, and the rows' lengths in tokens.

    A step first calls `reserve`, and `commit` only when all its graphs have run: a step that fails changes nothing.
    """

    layout: Mapping[str, Held]
    """What is held, by the name of the graph's input (caches) or `hidden` and `changes` (of a funnel)."""
    limit: int
    """Most tokens of a row: the model's positions, or less."""
    lengths: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """[batch]: tokens of each row."""
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    """Arrays [batch, ..., capacity, ...], by the names of `layout`."""
    capacity: int = 0
    """Tokens that fit into the arrays."""

    @classmethod
    def empty(cls, layout: Mapping[str, Held], rows: int, limit: int) -> "State":
        """A state of rows without tokens."""
        state = cls(layout, limit, np.zeros(rows, np.int64))
        state.arrays = {name: held.zeros(rows, entries_of(0, held.stride)) for name, held in layout.items()}
        return state

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.lengths)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays.values())

    def reserve(self, lengths: NDArray[np.int64]) -> None:
        """Make room for rows of these lengths.

        Raises:
            SpecError: if a row is longer than `limit`.
        """
        needed = int(lengths.max(initial=0))
        if needed > self.limit:
            raise SpecError(
                "the text is longer than the model or the cache takes",
                got=f"{needed} tokens",
                wanted=f"at most {self.limit} tokens",
                hint="a shorter prompt, or fewer new tokens",
            )
        if needed <= self.capacity:
            return
        capacity = capacity_of(needed, self.limit)
        self.arrays = {name: self._grown(name, capacity) for name in self.layout}
        self.capacity = capacity

    def place(self, name: str, capacity: int) -> tuple[slice, ...]:
        """Index of the entries of the first `capacity` tokens in an array."""
        held = self.layout[name]
        return (slice(None),) * held.axis + (slice(entries_of(capacity, held.stride)),)

    def _grown(self, name: str, capacity: int) -> NDArray[Any]:
        held, old = self.layout[name], self.arrays[name]
        new = held.zeros(self.rows, entries_of(capacity, held.stride))
        kept = min(old.shape[held.axis], new.shape[held.axis])
        place = (slice(None),) * held.axis + (slice(kept),)
        new[place] = old[place]
        return new

    def commit(self, lengths: NDArray[np.int64], fresh: Mapping[str, NDArray[Any]]) -> None:
        """Store the entries of a chunk, and set the rows' lengths.

        Args:
            lengths: [batch], tokens of each row with the chunk.
            fresh: new entries by the names of `layout`; those of a row begin with its first new token or slot. What a
                row has too many, its padding, is not stored.
        """
        for name, new in fresh.items():
            held, array = self.layout[name], self.arrays[name]
            begins, ends = slots_of(self.lengths, held.stride), slots_of(lengths, held.stride)
            array, new = np.moveaxis(array, held.axis, 1), np.moveaxis(new, held.axis, 1)  # views
            if (begins == begins[0]).all() and (ends == ends[0]).all():
                array[:, begins[0] : ends[0]] = new[:, : ends[0] - begins[0]]
                continue
            for row, (begin, end) in enumerate(zip(begins, ends, strict=True)):
                array[row, begin:end] = new[row, : end - begin]
        self.lengths = lengths.copy()

    def last_hidden(self, count: int) -> NDArray[Any]:
        """[batch, count, width]: hidden states at the pool point of each row's last tokens; zeros before its first."""
        columns = self.lengths[:, None] - np.arange(count, 0, -1)[None]
        return self._taken(HIDDEN, columns)

    def last_change(self) -> NDArray[Any]:
        """[batch, 1, width]: the change of each row's last slot; zeros for a row without tokens."""
        held = self.layout[CHANGE]
        return self._taken(CHANGE, slots_of(self.lengths, held.stride)[:, None] - 1)

    def _taken(self, name: str, columns: NDArray[np.int64]) -> NDArray[Any]:
        taken = self.arrays[name][np.arange(self.rows)[:, None], np.maximum(columns, 0)]
        taken[columns < 0] = 0
        return taken

    def crop(self, lengths: NDArray[np.int64]) -> None:
        """Forget each row's tokens from index `lengths` on, [batch].

        Raises:
            SpecError: if a row has fewer tokens than that.
        """
        if lengths.shape != self.lengths.shape or (lengths < 0).any() or (lengths > self.lengths).any():
            raise SpecError(
                "a row cannot be cropped to more tokens than it has",
                got=lengths.tolist(),
                wanted=f"0 to {self.lengths.tolist()}",
            )
        self.lengths = lengths.astype(np.int64)

    def select(self, rows: Sequence[int] | NDArray[np.int64]) -> None:
        """Keep these rows, in this order; a row may be there several times, as in beam search.

        The capacity becomes what these rows need.
        """
        chosen = np.asarray(rows, np.int64)
        lengths = self.lengths[chosen]
        capacity = min(self.capacity, capacity_of(int(lengths.max(initial=0)), self.limit))
        arrays = {name: array[self.place(name, capacity)][chosen] for name, array in self.arrays.items()}
        self.arrays, self.lengths, self.capacity = arrays, lengths, capacity

    def join(self, other: "State") -> None:
        """Append the rows of another state of the same layout."""
        longest = np.array([max(self.capacity, other.capacity)])
        for state in (self, other):
            state.reserve(longest)
        self.arrays = {name: np.concatenate([array, other.arrays[name]]) for name, array in self.arrays.items()}
        self.lengths = np.concatenate([self.lengths, other.lengths])
