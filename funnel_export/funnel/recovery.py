"""Recovery: give every token the result of its slot."""

from dataclasses import dataclass
from functools import partial

from jaxtyping import Float, Int
from torch import Tensor, nn

from funnel_export.funnel.gather import take_columns
from funnel_export.funnel.parts import ModulePart, Part
from funnel_export.funnel.wide import widen
from funnel_export.spec.choices import Recovery
from funnel_export.spec.funnel import MAPS, FunnelSpec


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
    stride 1, `delta` equals `out` up to float32 rounding. `linear` has parameters, see `recovery_part`.
    """
    return apply_change(x, change_of(pooled, middle, spec), reads, spec)


def change_of(
    pooled: Float[Tensor, "batch slot width"], middle: Float[Tensor, "batch slot width"], spec: FunnelSpec
) -> Float[Tensor, "batch slot width"]:
    """What a slot gives to the tokens that read it: `out - in`, at least in float32, or `out`; see `takes_change`."""
    return widen(middle) - widen(pooled) if spec.recovery.takes_change else middle


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
        case Recovery.LINEAR:
            raise ValueError("recovery linear has parameters: use recovery_part or change_part")


@dataclass(frozen=True, slots=True, eq=False)
class RecoverPart(ModulePart):
    """Recovery `linear` as a part: takes what `recover` takes and the tokens' numbers, and returns hidden states."""

    spec: FunnelSpec

    def __call__(self, x: Tensor, pooled: Tensor, middle: Tensor, reads: Tensor, numbers: Tensor) -> Tensor:  # type: ignore[override]
        change = change_of(pooled, middle, self.spec)
        out: Tensor = self.module(x, take_columns(change, reads), numbers)
        return out


class ChangePart(ModulePart):
    """Recovery `linear` from changes, as `apply_change`; takes the tokens' numbers too."""

    def __call__(self, x: Tensor, change: Tensor, reads: Tensor, numbers: Tensor) -> Tensor:  # type: ignore[override]
        out: Tensor = self.module(x, take_columns(change, reads), numbers)
        return out


def recovery_part(spec: FunnelSpec, maps: nn.Module | None) -> Part:
    """`recover` for a funnel, or with its maps: the part then takes the tokens' numbers too."""
    return partial(recover, spec=spec) if maps is None else RecoverPart(maps, MAPS, spec)


def change_part(spec: FunnelSpec, maps: nn.Module | None) -> Part:
    """`apply_change` for a funnel, or with its maps: the part then takes the tokens' numbers too."""
    return partial(apply_change, spec=spec) if maps is None else ChangePart(maps, MAPS)
