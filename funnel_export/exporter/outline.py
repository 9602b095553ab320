"""Outlining: a trace in which each part of the forward is one node, to be filled in later.

A Gemma2 has dozens of decoder layers that differ in nothing but their weights. Tracing and translating each of them is
nearly all the work of an ordinary export. Here the forward is traced with an `Outline` as its runner, which leaves one
marker node per part, and each distinct part is traced once, on its own (see `trace`).
"""

from dataclasses import dataclass

import torch
from torch import SymInt, Tensor

from funnel_export.funnel.model import LayerPart, Part

DOMAIN, MARKER = "funnel_export", "Part"


@dataclass(frozen=True, slots=True)
class Operand:
    """Dtype and axes of a tensor that goes into a part; dynamic axes by the name of their expression."""

    dtype: torch.dtype
    axes: tuple[int | str, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> "Operand":
        """Read them off a tensor of the trace."""
        axes = tuple(str(size) if isinstance(size, SymInt) else int(size) for size in tensor.shape)
        return cls(tensor.dtype, axes)


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a part in the trace."""

    part: Part
    operands: tuple[Operand, ...]

    def signature(self) -> object:
        """Equal for calls whose parts compute the same, given their weights."""
        if not isinstance(self.part, LayerPart):
            return id(self.part)
        layer = self.part.layer
        shapes = tuple((name, tuple(p.shape), p.dtype) for name, p in layer.named_parameters())
        scalars = tuple(
            (f"{prefix}.{name}", value)
            for prefix, module in layer.named_modules()
            for name, value in sorted(vars(module).items())
            if isinstance(value, int | float | str | bool | None) and name not in _PER_LAYER
        )
        return shapes, scalars, tuple((o.dtype, len(o.axes)) for o in self.operands)


_PER_LAYER = {"layer_idx", "layer_type", "sliding_window"}
"""Attributes of a layer that reach its computation only through the mask, which is an operand."""


class Outline:
    """A runner that marks each part in the trace and remembers it."""

    def __init__(self) -> None:
        self.calls: dict[str, Call] = {}

    def __call__(self, name: str, part: Part, *tensors: Tensor, length: int) -> Tensor:
        """Stand in for the part: hidden states of its shape, from a node that bears its name."""
        self.calls[name] = Call(part, tuple(Operand.of(tensor) for tensor in tensors))
        x = tensors[0]
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{MARKER}",
            tensors,
            {"name": name},
            dtype=x.dtype,
            shape=(x.shape[0], length, x.shape[2]),
            version=1,
        )
