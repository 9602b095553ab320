"""The state that a funnel model keeps between the chunks of a text."""

from collections.abc import Callable
from typing import cast

from torch import LongTensor, Tensor
from transformers.cache_utils import Cache, DynamicLayer


class FunnelCache(Cache):
    """Key/value cache of a funnel model, with the state of each row's open window.

    Entry and exit layers cache one key per column, middle layers one per slot. For the first chunk, pass an empty
    `FunnelCache`, or `use_cache=True` without a cache. The attention mask of every call covers all columns so far.
    """

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=DynamicLayer)
        self.columns = 0
        """Number of columns so far, padding included."""
        self.open: Tensor | None = None
        """[batch, stride - 1, width]: hidden states at the pool point of each row's last tokens."""
        self.pooled: Tensor | None = None
        """[batch, 1, width]: each row's last slot before the middle layers."""
        self.middle: Tensor | None = None
        """[batch, 1, width]: the same slot after the middle layers."""
        self.slot_positions: Tensor | None = None
        """[batch, slots]: position of each cached slot, `ABSENT` for slots that a row does not have."""

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002 - Cache's signature
        """Number of columns so far. It is the same for all layers, although middle layers cache fewer keys."""
        return self.columns

    def _map_rows(self, change: Callable[[Tensor], Tensor]) -> None:
        for name in ("open", "pooled", "middle", "slot_positions"):
            state = getattr(self, name)
            if state is not None:
                setattr(self, name, change(state))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the rows for beam search: row i becomes the former row `beam_idx[i]`."""
        super().reorder_cache(cast(LongTensor, beam_idx))
        self._map_rows(lambda state: state.index_select(0, beam_idx.to(state.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row `repeats` times."""
        super().batch_repeat_interleave(repeats)
        self._map_rows(lambda state: state.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only the rows `indices`."""
        super().batch_select_indices(indices)
        self._map_rows(lambda state: state[indices])

    def reset(self) -> None:
        """Clear the cache."""
        super().reset()  # type: ignore[no-untyped-call]
        self.columns, self.open, self.pooled, self.middle, self.slot_positions = 0, None, None, None, None

    def crop(self, tokens_to_remove: int) -> None:
        """Raise `ValueError` unless `tokens_to_remove` is 0: a closed window cannot be reopened.

        Speculative decoding crops the cache when it rejects tokens, so it does not work with a funnel.
        """
        if tokens_to_remove:
            raise ValueError(f"a FunnelCache cannot be cropped (by {tokens_to_remove}): closed windows stay closed")
