"""What decoder layers need to know of positions: RoPE's angles of queries, and biases for the scores of keys."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from funnel_export.families.base import Family
from funnel_export.funnel.gather import take_columns
from funnel_export.funnel.masks import attention_bias


class Queries:
    """Queries at some positions: their angles, and their biases for all keys, each computed once and where needed.

    All layers that run on the same positions share them.
    """

    def __init__(
        self,
        family: Family,
        base: Any,
        positions: Tensor,
        keys: Callable[[int | None], Sequence[Tensor]],
        *,
        tokens_per_position: int = 1,
        padded: bool = False,
    ) -> None:
        """Describe queries.

        Args:
            family: of the model.
            base: the model without its head.
            positions: of the queries, [batch, queries].
            keys: gives the positions of keys, each [batch, keys], for a sliding window, or None for full attention;
                there is a bias for each of them.
            tokens_per_position: what positions are multiplied by for RoPE, and sliding windows divided by.
            padded: whether some positions are absent.
        """
        self.family, self.base, self.positions, self.keys = family, base, positions, keys
        self.tokens_per_position, self.padded = tokens_per_position, padded
        self._biases: dict[str, list[Tensor]] = {}
        self._angles: Mapping[str, tuple[Tensor, Tensor]] | None = None

    def at(self, columns: Tensor) -> "Queries":
        """The queries in these columns, [batch, chosen]; their keys are the same."""
        positions = take_columns(self.positions[:, :, None], columns)[:, :, 0]
        stride, padded = self.tokens_per_position, self.padded
        return Queries(self.family, self.base, positions, self.keys, tokens_per_position=stride, padded=padded)

    def window_of(self, layer_type: str) -> int | None:
        """The sliding window of layers of a type, in positions; None with full attention."""
        window = self.family.window_of(self.base.config, layer_type)
        return None if window is None else -(-window // self.tokens_per_position)

    def angles(self, layer_type: str, x: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, each [batch, queries, head_dim], with the dtype and device of `x`."""
        if self._angles is None:
            positions = self.positions.clamp(min=0) if self.padded else self.positions
            stride = self.tokens_per_position
            self._angles = self.family.angles(self.base, x, positions * stride if stride > 1 else positions)
        return self._angles[layer_type]

    def biases(self, layer_type: str, dtype: torch.dtype) -> list[Tensor]:
        """What is added to the scores of each of the keys, [batch, 1, queries, keys]."""
        if layer_type not in self._biases:
            window, bidirectional = self.window_of(layer_type), self.family.is_bidirectional(self.base.config)
            self._biases[layer_type] = [
                attention_bias(self.positions, keys, sliding_window=window, dtype=dtype, bidirectional=bidirectional)
                for keys in self.keys(window)
            ]
        return self._biases[layer_type]
