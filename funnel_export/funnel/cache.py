"""What a funnelled model keeps between the chunks of a text."""

from collections.abc import Callable
from typing import cast

from torch import LongTensor, Tensor
from transformers.cache_utils import Cache, DynamicLayer


class FunnelCache(Cache):
    """Key/value cache of a funnelled model, with the state of each row's open window.

    Entry and exit layers keep one key per column of the text so far, middle layers one per slot. Pass an empty one,
    or none at all with `use_cache=True`, for the first chunk; the attention mask of each call covers the whole text
    so far.
    """

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=DynamicLayer)
        self.columns = 0
        """Columns of the text so far, padding included."""
        self.open: Tensor | None = None
        """[batch, stride - 1, width]: hidden states at the pool point of each row's last tokens."""
        self.pooled: Tensor | None = None
        """[batch, 1, width]: each row's last slot as it went into the middle layers."""
        self.middle: Tensor | None = None
        """[batch, 1, width]: the same slot as it came out."""
        self.slot_positions: Tensor | None = None
        """[batch, slots]: position of each cached slot, `ABSENT` where a row has none."""

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002 - Cache's signature
        """Columns of the text so far: the middle layers' caches are shorter, and no caller should see that."""
        return self.columns

    def _map_rows(self, change: Callable[[Tensor], Tensor]) -> None:
        for name in ("open", "pooled", "middle", "slot_positions"):
            state = getattr(self, name)
            if state is not None:
                setattr(self, name, change(state))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take over the rows `beam_idx`, as beam search asks."""
        super().reorder_cache(cast(LongTensor, beam_idx))
        self._map_rows(lambda state: state.index_select(0, beam_idx.to(state.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row `repeats` times."""
        super().batch_repeat_interleave(repeats)
        self._map_rows(lambda state: state.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices`."""
        super().batch_select_indices(indices)
        self._map_rows(lambda state: state[indices])

    def reset(self) -> None:
        """Forget the text."""
        super().reset()  # type: ignore[no-untyped-call]
        self.columns, self.open, self.pooled, self.middle, self.slot_positions = 0, None, None, None, None

    def crop(self, tokens_to_remove: int) -> None:
        """Remove nothing: a closed window cannot be opened again, so speculative decoding cannot take tokens back."""
        if tokens_to_remove:
            raise ValueError(f"a FunnelCache cannot be cropped (by {tokens_to_remove}): windows stay closed")
