"""Recovery: from the middle layers' slots back to every token."""

from jaxtyping import Float, Int
from torch import Tensor

from funnel_export.funnel.gather import take_columns
from funnel_export.funnel.wide import widen
from funnel_export.spec.choices import Recovery
from funnel_export.spec.funnel import FunnelSpec


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
    Sums accumulate in float32; with stride 1, `delta` then gives back `out`, but for float32's rounding.
    """
    match spec.recovery:
        case Recovery.REPLACE:
            return take_columns(middle, reads)
        case Recovery.DELTA:
            change = take_columns(widen(middle) - widen(pooled), reads)
            return (widen(x) + change).to(x.dtype)
        case Recovery.ADD:
            return (widen(x) + widen(take_columns(middle, reads))).to(x.dtype)
        case Recovery.AVERAGE:
            return ((widen(x) + widen(take_columns(middle, reads))) / 2).to(x.dtype)
