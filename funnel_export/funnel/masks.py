"""Attention masks by position, the same for tokens and slots, for one pass and for chunks with a past."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def attention_bias(
    queries: Int[Tensor, "batch query"],
    keys: Int[Tensor, "batch key"],
    *,
    sliding_window: int | None,
    dtype: torch.dtype,
) -> Float[Tensor, "batch 1 query key"]:
    """What is added to the attention scores: 0 where a query sees a key, and a large negative number elsewhere.

    A query at position q sees the keys at 0 <= k <= q, in a sliding layer only those with k > q - sliding_window.
    Absent keys (negative positions) are seen by nobody.
    """
    query, key = queries[:, None, :, None], keys[:, None, None, :]
    visible = (key >= 0) & (key <= query)
    if sliding_window is not None:
        visible = visible & (key > query - sliding_window)
    # Half of the lowest number: a score added to the lowest one can round to -inf, and a row of nothing but -inf,
    # as every padding query has one, becomes NaN in the softmax, which Hugging Face computes in float32.
    lowest = max(torch.finfo(dtype).min, torch.finfo(torch.float32).min) / 2
    seen, hidden = (torch.full((), value, dtype=dtype, device=queries.device) for value in (0.0, lowest))
    return torch.where(visible, seen, hidden)
