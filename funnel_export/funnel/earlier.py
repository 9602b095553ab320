"""Entries of the caches that the queries of a chunk read: all of them, or those that a sliding window reaches."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from funnel_export.funnel.windows import ABSENT

Cache = Float[Tensor, "batch key_value_heads capacity head_dim"]


@dataclass(frozen=True, slots=True)
class Entries:
    """Some entries of the caches of every row."""

    positions: Int[Tensor, "batch entry"]
    """Negative where a row has no such entry."""
    flat: Int[Tensor, " taken"] | None = None
    """Their indices among the entries of all rows and heads; None if they are the whole cache."""

    def of(self, cache: Cache) -> Float[Tensor, "batch key_value_heads entry head_dim"]:
        """These entries of a cache."""
        if self.flat is None:
            return cache
        batch, heads, capacity, width = cache.shape
        taken = cache.reshape(batch * heads * capacity, width).index_select(0, self.flat)
        return taken.reshape(batch, heads, self.positions.shape[1], width)


class Earlier:
    """The entries before a chunk: each selection of them is computed once for all layers."""

    def __init__(self, begins: Int[Tensor, "batch 1"], cache: Cache) -> None:
        """Describe caches.

        Args:
            begins: position of each row's first query, which is the number of the row's entries.
            cache: one of the caches, for their sizes.
        """
        self.begins, self.sizes = begins, tuple(cache.shape[:3])
        self._entries: dict[int | None, Entries] = {}

    def within(self, reach: int | None) -> Entries:
        """The last `reach` entries of each row, or as many as a cache holds; the whole cache if None."""
        if reach not in self._entries:
            self._entries[reach] = self._all() if reach is None else self._last(reach)
        return self._entries[reach]

    def _all(self) -> Entries:
        index = torch.arange(self.sizes[2], device=self.begins.device)[None]
        return Entries(torch.where(index < self.begins, index, ABSENT))

    def _last(self, reach: int) -> Entries:
        batch, heads, capacity = self.sizes
        count, device = torch.sym_min(capacity, reach), self.begins.device
        positions = self.begins - count + torch.arange(count, device=device)[None]
        cells = torch.arange(batch * heads, device=device).reshape(batch, heads, 1) * capacity
        return Entries(positions, (cells + positions.clamp(min=0)[:, None]).reshape(-1))
