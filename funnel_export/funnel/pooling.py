"""Pooling: make one slot of the tokens of each window."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from funnel_export.funnel.gather import take_columns
from funnel_export.funnel.wide import widen
from funnel_export.funnel.windows import window_tokens
from funnel_export.spec.choices import Pooling
from funnel_export.spec.funnel import FunnelSpec


def pool(
    x: Float[Tensor, "batch column width"],
    slots: Int[Tensor, "rows slot"],
    first: Int[Tensor, "batch 1"],
    length: Int[Tensor, "batch 1"],
    spec: FunnelSpec,
) -> Float[Tensor, "batch slot width"]:
    """Pool the tokens of each slot's window into one hidden state.

    Args:
        x: hidden states before the pool layer.
        slots: numbers of the slots to make; a single row counts for all rows of the batch.
        first: column of each row's token 0; negative if that token is in an earlier chunk.
        length: number of real tokens in each row.
        spec: gives stride and pooling.

    Windows start at a row's first real token, so padding never shifts them. A window's tokens outside its row are
    replaced by the nearest real token, which does not change the maximum, the first or the last; in a mean they have
    weight 0.
    """
    numbers = window_tokens(slots, spec.stride).expand(x.shape[0], -1, -1)
    inside = torch.minimum(numbers.clamp(min=0), length[:, :, None] - 1)
    match spec.pooling:
        case Pooling.FIRST:
            return take_columns(x, first + inside[:, :, 0])
        case Pooling.LAST:
            return take_columns(x, first + inside[:, :, -1])
        case Pooling.MAX:
            # Widened (the maximum stays the same) because torch exports a 16-bit amax with the wrong dtype.
            return widen(_windows(x, first, inside)).amax(dim=2).to(x.dtype)
        case Pooling.MEAN:
            wide = widen(_windows(x, first, inside))
            weight = (numbers == inside).to(wide.dtype)[..., None]
            count = weight.sum(dim=2).clamp(min=1)  # an absent slot has no tokens
            return ((wide * weight).sum(dim=2) / count).to(x.dtype)


def _windows(
    x: Float[Tensor, "batch column width"], first: Int[Tensor, "batch 1"], numbers: Int[Tensor, "batch slot stride"]
) -> Float[Tensor, "batch slot stride width"]:
    """The hidden states of each window's tokens."""
    batch, slots, stride = numbers.shape
    taken = take_columns(x, first + numbers.reshape(batch, slots * stride))
    return taken.reshape(batch, slots, stride, x.shape[2])
