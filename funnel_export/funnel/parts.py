"""Parts: the steps of a forward on hidden states, each called through a runner.

A part is a decoder layer, the pooling or the recovery. Eager PyTorch, the export (which traces each distinct part once)
and the parity check (which records the hidden states between parts) use the same forward with different runners.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

Part = Callable[..., Tensor | tuple[Tensor, ...]]
Size = int | torch.SymInt
"""A size, which is symbolic while tracing."""
Shape = tuple[Size, ...]


@runtime_checkable  # so that tests can check annotations at run time
class PartRunner(Protocol):
    """Runs a part of the forward on hidden states in `tensors[0]` and more operands.

    It returns the part's results, of these shapes and the dtype of the hidden states; the first is hidden states.
    """

    def __call__(self, name: str, part: Part, *tensors: Tensor, shapes: Sequence[Shape]) -> tuple[Tensor, ...]: ...


def call_part(name: str, part: Part, *tensors: Tensor, shapes: Sequence[Shape]) -> tuple[Tensor, ...]:  # noqa: ARG001 - a part runner's signature
    """The default runner: call the part."""
    result = part(*tensors)
    return result if isinstance(result, tuple) else (result,)


def run_part(run: PartRunner, name: str, part: Part, *tensors: Tensor, length: Size) -> Tensor:
    """Run a part that returns hidden states only, [batch, length, width]."""
    batch, _, width = tensors[0].shape
    (result,) = run(name, part, *tensors, shapes=[(batch, length, width)])
    return result


@dataclass(frozen=True, slots=True, eq=False)  # torch.compile in PyTorch 2.11 hashes instances before fields are set
class ModulePart:
    """A part that has parameters, those of a module."""

    module: nn.Module
    path: str
    """The module's name in the model without its head."""

    def __call__(self, *tensors: Tensor) -> Any:
        """Call the module."""
        return self.module(*tensors)


@dataclass(frozen=True, slots=True, eq=False)
class LayerPart(ModulePart):
    """A decoder layer as a part: takes hidden states, attention bias, cos and sin, and returns hidden states."""

    cache: Cache | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __call__(self, x: Tensor, bias: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # type: ignore[override]
        out: Tensor = self.module(
            x, attention_mask=bias, position_embeddings=(cos, sin), past_key_values=self.cache, **self.kwargs
        )
        return out
