"""Ports: the inputs and outputs of a graph, with kinds and named axes."""

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any

from funnel_export.bundle.record import Record
from funnel_export.errors import BundleError, SpecError
from funnel_export.spec.profile import AxisName


class PortKind(StrEnum):
    """Meaning of a graph's input or output."""

    TOKENS = "tokens"
    """Token ids, [batch, sequence]."""
    MASK = "mask"
    """1 for real tokens and 0 for padding, [batch, sequence]."""
    INDEX = "index"
    """Counts of tokens, numbers of slots, columns: integers that the runtime makes."""
    STATE = "state"
    """Hidden states that one graph passes to another."""
    PAST = "past"
    """Keys or values of earlier tokens or slots, [batch, key_value_heads, length, head_dim]."""
    PRESENT = "present"
    """Keys or values of a chunk, as in `PAST`."""
    HIDDEN = "hidden_states"
    """Hidden states after the final norm."""
    LOGITS = "logits"
    """Scores of tokens or classes."""


class Port(Record):
    """An input or output of a graph."""

    name: str
    kind: PortKind
    dtype: str
    shape: list[int | AxisName]
    """Sizes; dynamic axes by name."""

    @property
    def axes(self) -> list[str]:
        """Names of the dynamic axes."""
        return [size for size in self.shape if isinstance(size, str)]


def dynamic_axes(ports: Iterable[Port]) -> list[str]:
    """The dynamic axes of ports, each once, in the order of first use."""
    return list(dict.fromkeys(axis for port in ports for axis in port.axes))


def feed(ports: Sequence[Port], values: Mapping[PortKind, Any]) -> dict[str, Any]:
    """Values by port name, chosen by the port's kind; raises `BundleError` if a kind has no value."""
    missing = [f"{port.name} ({port.kind})" for port in ports if port.kind not in values]
    if missing:
        raise BundleError("the graph has inputs of unsupported kinds", got=missing, wanted=[*values])
    return {port.name: values[port.kind] for port in ports}


def sizes_of(ports: Sequence[Port], shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """The sizes of the dynamic axes, from the shapes of the ports' tensors.

    Raises:
        SpecError: if a tensor does not have its port's rank or fixed sizes, or if an axis has two sizes.
    """
    sizes: dict[str, int] = {}
    for port in ports:
        shape = shapes[port.name]
        same = len(shape) == len(port.shape) and all(
            size == (sizes.setdefault(axis, size) if isinstance(axis, str) else axis)
            for axis, size in zip(port.shape, shape, strict=True)
        )
        if not same:
            raise SpecError(
                "an input does not have the graph's shape", got=f"{port.name} {[*shape]}", wanted=port.shape
            )
    return sizes
