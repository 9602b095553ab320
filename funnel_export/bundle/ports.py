"""Ports: what goes into a graph and comes out of it, by kind and with named axes."""

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict

from funnel_export.errors import BundleError


class Kind(StrEnum):
    """What a tensor that a graph takes or gives stands for."""

    TOKENS = "tokens"
    """Token ids, [batch, sequence]."""
    MASK = "mask"
    """1 for real tokens and 0 for padding, [batch, sequence]."""
    STATE = "state"
    """Hidden states on their way from one graph to another."""
    HIDDEN = "hidden_states"
    """Hidden states after the final norm."""
    LOGITS = "logits"
    """Scores of tokens or classes."""


class Port(BaseModel):
    """An input or output of a graph."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: Kind
    dtype: str
    shape: list[int | str]
    """Sizes; dynamic axes by name."""

    @property
    def axes(self) -> list[str]:
        """Names of the dynamic axes."""
        return [size for size in self.shape if isinstance(size, str)]


def dynamic_axes(ports: Iterable[Port]) -> list[str]:
    """The dynamic axes of ports, each once, in the order in which they are first named."""
    return list(dict.fromkeys(axis for port in ports for axis in port.axes))


def port_of_kind(ports: Sequence[Port], kind: Kind) -> Port:
    """The only port of a kind; `BundleError` if there is none, or more than one."""
    found = [port for port in ports if port.kind is kind]
    if len(found) != 1:
        raise BundleError(
            f"the graph has {len(found)} ports of kind {kind}",
            got=", ".join(f"{port.name} ({port.kind})" for port in ports),
            wanted=f"one of kind {kind}",
        )
    return found[0]


def feed(ports: Sequence[Port], values: Mapping[Kind, Any]) -> dict[str, Any]:
    """Values by the names of the ports that take them; `BundleError` for a port whose kind has no value."""
    missing = [f"{port.name} ({port.kind})" for port in ports if port.kind not in values]
    if missing:
        raise BundleError("the graph takes inputs that are not at hand", got=missing, wanted=[*values])
    return {port.name: values[port.kind] for port in ports}


def sizes_of(ports: Sequence[Port], shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """The sizes of the dynamic axes, from the shapes of the tensors at these ports."""
    return {
        axis: size
        for port in ports
        for axis, size in zip(port.shape, shapes[port.name], strict=True)
        if isinstance(axis, str)
    }
