"""Pooling: from the tokens of each window to one slot."""

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
    """Summarise each slot's window from hidden states `x`.

    Args:
        x: hidden states of the tokens at the pool point.
        slots: numbers of the slots to make; one row serves every row of the batch.
        first: the column in which a row's token 0 stands, or would stand.
        length: number of real tokens in a row.
        spec: stride and pooling.

    Rows are anchored at their own first token, so padding never moves a window. Tokens outside a row are replaced by
    the nearest real one, which changes neither a maximum nor an end, and have no weight in a mean.
    """
    numbers = window_tokens(slots, spec.stride).expand(x.shape[0], -1, -1)
    inside = torch.minimum(numbers.clamp(min=0), length[:, :, None] - 1)
    match spec.pooling:
        case Pooling.FIRST:
            return take_columns(x, first + inside[:, :, 0])
        case Pooling.LAST:
            return take_columns(x, first + inside[:, :, -1])
        case Pooling.MAX:
            # Widened, which changes no maximum: torch's translation of a 16-bit amax gives float32 by another name.
            return widen(_windows(x, first, inside)).amax(dim=2).to(x.dtype)
        case Pooling.MEAN:
            wide = widen(_windows(x, first, inside))
            weight = (numbers == inside).to(wide.dtype)[..., None]
            count = weight.sum(dim=2).clamp(min=1)  # a slot that its row does not have holds no token
            return ((wide * weight).sum(dim=2) / count).to(x.dtype)


def _windows(
    x: Float[Tensor, "batch column width"], first: Int[Tensor, "batch 1"], numbers: Int[Tensor, "batch slot stride"]
) -> Float[Tensor, "batch slot stride width"]:
    """The hidden states of each window's tokens."""
    batch, slots, stride = numbers.shape
    taken = take_columns(x, first + numbers.reshape(batch, slots * stride))
    return taken.reshape(batch, slots, stride, x.shape[2])
