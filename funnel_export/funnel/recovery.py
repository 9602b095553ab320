"""Recovery: from the middle layers' slots back to every token."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from funnel_export.config import FunnelSpec, Recovery
from funnel_export.funnel.gather import take_columns


def recover(
    x: Float[Tensor, "batch column width"],
    pooled: Float[Tensor, "batch slot width"],
    middle: Float[Tensor, "batch slot width"],
    reads: Int[Tensor, "batch column"],
    spec: FunnelSpec,
) -> Float[Tensor, "batch column width"]:
    """Give each token what the middle layers made of the slot that it reads.

    Args:
        x: hidden states of the tokens at the pool point.
        pooled: the slots that went into the middle layers.
        middle: the same slots as they came out.
        reads: which of these slots each token reads.
        spec: recovery.

    `delta` x + (out - in), `add` x + out (Funnel-Transformer, Dai & Le 2020), `average` (x + out)/2, `replace` out.
    Sums accumulate in float32; with stride 1, `delta` then gives back `out` as it is.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    match spec.recovery:
        case Recovery.REPLACE:
            return take_columns(middle, reads)
        case Recovery.DELTA:
            change = take_columns(middle.to(wide) - pooled.to(wide), reads)
            return (x.to(wide) + change).to(x.dtype)
        case Recovery.ADD:
            return (x.to(wide) + take_columns(middle, reads).to(wide)).to(x.dtype)
        case Recovery.AVERAGE:
            return ((x.to(wide) + take_columns(middle, reads).to(wide)) / 2).to(x.dtype)
