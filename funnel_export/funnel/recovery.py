"""Recovery: give every token the result of its slot."""

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
    """Combine each token's hidden state with the slot that it reads.

    Args:
        x: hidden states of the tokens before the pool layer.
        pooled: the slots before the middle layers.
        middle: the same slots after the middle layers.
        reads: index of the slot that each token reads.
        spec: gives the recovery.

    With `in` and `out` for a token's slot in `pooled` and `middle`: `delta` is x + (out - in), `add` is x + out
    (Funnel-Transformer, Dai & Le 2020), `average` is (x + out)/2, `replace` is out. Sums accumulate in float32. With
    stride 1, `delta` equals `out` up to float32 rounding.
    """
    return apply_change(x, change_of(pooled, middle, spec), reads, spec)


def change_of(
    pooled: Float[Tensor, "batch slot width"], middle: Float[Tensor, "batch slot width"], spec: FunnelSpec
) -> Float[Tensor, "batch slot width"]:
    """What a slot gives to the tokens that read it: `out - in` for `delta`, at least in float32, otherwise `out`."""
    return widen(middle) - widen(pooled) if spec.recovery is Recovery.DELTA else middle


def apply_change(
    x: Float[Tensor, "batch column width"],
    change: Float[Tensor, "batch slot width"],
    reads: Int[Tensor, "batch column"],
    spec: FunnelSpec,
) -> Float[Tensor, "batch column width"]:
    """Combine each token's hidden state with the change of the slot that it reads."""
    taken = take_columns(change, reads)
    match spec.recovery:
        case Recovery.REPLACE:
            return taken
        case Recovery.DELTA | Recovery.ADD:
            return (widen(x) + widen(taken)).to(x.dtype)
        case Recovery.AVERAGE:
            return ((widen(x) + widen(taken)) / 2).to(x.dtype)
