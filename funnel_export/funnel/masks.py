"""Attention masks computed from positions, for tokens and slots, with and without a cache."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def attention_bias(
    queries: Int[Tensor, "batch query"],
    keys: Int[Tensor, "batch key"],
    *,
    sliding_window: int | None,
    dtype: torch.dtype,
    bidirectional: bool = False,
) -> Float[Tensor, "batch 1 _ key"]:
    """Bias for the attention scores: 0 where a query sees a key, and a large negative number elsewhere.

    A query at position q sees the keys at positions 0 <= k <= q; in a sliding layer, also k > q - sliding_window. With
    bidirectional attention it sees all keys; in a sliding layer, those closer than sliding_window. No query sees an
    absent key (a negative position).
    """
    query, key = queries[:, None, :, None], keys[:, None, None, :]
    visible = key >= 0
    if not bidirectional:
        visible = visible & (key <= query)
    if sliding_window is not None:
        visible = visible & (key > query - sliding_window)
        if bidirectional:
            visible = visible & (key < query + sliding_window)
    # Half of the lowest number: a score added to the lowest number can round to -inf. Padding queries see no key, and
    # the softmax (float32 in Hugging Face) of a row with only -inf is NaN.
    lowest = max(torch.finfo(dtype).min, torch.finfo(torch.float32).min) / 2
    seen, hidden = (torch.full((), value, dtype=dtype, device=queries.device) for value in (0.0, lowest))
    return torch.where(visible, seen, hidden)
