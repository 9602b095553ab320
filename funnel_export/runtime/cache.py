"""`RuntimeCache`: the state of a batch with the interface of Hugging Face's caches."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import Cache

from funnel_export.runtime.state import State


class RuntimeCache(Cache):
    """The state of a batch, with the interface of Hugging Face's caches.

    Hugging Face counts columns, which include the padding of shorter prompts; the state counts the tokens of each row.
    """

    def __init__(self, state: State) -> None:
        super().__init__(layers=[])
        self.state = state
        self.real = np.zeros((state.rows, 0), np.bool_)
        """[batch, columns so far]: which columns are tokens and not padding."""

    @property
    def is_compileable(self) -> bool:
        """Never: the graphs are compiled by their runtime."""
        return False

    @property
    def is_initialized(self) -> bool:
        """Always."""
        return True

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002 - Cache's signature
        """Number of columns so far."""
        return self.real.shape[1]

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:  # noqa: ARG002
        """Most tokens of a row."""
        return self.state.limit

    def crop(self, max_length: int) -> None:
        """Keep this many columns; a negative number removes columns, as in `DynamicCache`."""
        kept = max_length if max_length >= 0 else self.real.shape[1] + max_length
        real = self.real[:, : max(0, kept)]
        self.state.crop(real.sum(axis=1))
        self.real = real

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the rows for beam search: row i becomes the former row `beam_idx[i]`."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row `repeats` times."""
        self._select(np.repeat(np.arange(self.state.rows), repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only the rows `indices`."""
        self._select(indices.cpu().numpy())

    def reset(self) -> None:
        """Forget all tokens."""
        self.state.crop(np.zeros(self.state.rows, np.int64))
        self.real = self.real[:, :0]

    def _select(self, rows: NDArray[np.int64]) -> None:
        self.state.select(rows)
        self.real = self.real[rows]
