"""Hidden states around the layers that a funnel changes, in the dense model and in the model with the funnel."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from funnel_export.funnel import patch_forward, unpatch_forward
from funnel_export.funnel.gather import take_columns
from funnel_export.funnel.parts import Part, Shape, call_part
from funnel_export.funnel.recovery import change_of
from funnel_export.spec.choices import Recovery
from funnel_export.spec.funnel import FunnelSpec, layer_name


@dataclass(frozen=True, slots=True)
class States:
    """Hidden states of one text, each [tokens, width] in float32."""

    before: Tensor
    """Hidden states before the pool layer."""
    after: Tensor
    """Hidden states of the dense model before the recover layer."""
    change: Tensor | None
    """Change of each token's slot: after the middle layers minus before. None if the layers are dropped."""


def read_states(model: Any, spec: FunnelSpec, ids: Sequence[int]) -> States:
    """Run a text through the model without and with a funnel, each no further than the recover layer.

    Args:
        model: a Hugging Face model without a funnel.
        spec: the funnel.
        ids: tokens of the text.
    """
    first, last = layer_name(spec.pool_layer), layer_name(spec.recover_layer - 1)
    dense = _run(model, None, ids, last)
    before, after = dense.operands[first][0][0].float(), dense.results[last][0].float()
    if spec.drop:
        return States(before, after, None)
    with_slots = replace(spec, recovery=Recovery.DELTA)
    end = next(each.recovered_name for each in with_slots.segments(model.config.num_hidden_layers) if each.recovers)
    _, pooled, middle, reads = _run(model, with_slots, ids, end).operands[end]
    return States(before, after, take_columns(change_of(pooled, middle, with_slots), reads)[0].float())


class _Watch(Exception):  # noqa: N818 - it ends a forward, and is no error
    """A part runner that keeps operands and first results by part, and ends the forward after one of them."""

    def __init__(self, last: str) -> None:
        super().__init__()
        self.last = last
        self.operands: dict[str, tuple[Tensor, ...]] = {}
        self.results: dict[str, Tensor] = {}

    def __call__(self, name: str, part: Part, *tensors: Tensor, shapes: Sequence[Shape]) -> tuple[Tensor, ...]:
        results = call_part(name, part, *tensors, shapes=shapes)
        self.operands[name], self.results[name] = tensors, results[0]
        if name == self.last:
            raise self
        return results


def _run(model: Any, spec: FunnelSpec | None, ids: Sequence[int], last: str) -> _Watch:
    watch = _Watch(last)
    patch_forward(model, spec, watch)
    try:
        with torch.no_grad():
            model(input_ids=torch.tensor([ids]), use_cache=False)
    except _Watch:
        return watch.with_traceback(None)  # its frames refer to the model
    finally:
        unpatch_forward(model)
    raise AssertionError(f"the forward did not reach {last}")
