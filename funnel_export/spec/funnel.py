"""A funnel, and the segments that it makes of a model: which layers run at which length."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any, Self

from funnel_export.errors import SpecError
from funnel_export.spec.choices import Pooling, Recovery, SlotPositions, Task, parse_choice

LARGEST_STRIDE = 1 << 20
"""Longer than any text; positions times the stride still fit 64 bits."""


def layer_name(index: int) -> str:
    """Name of a decoder layer's output."""
    return f"layers.{index}"


@dataclass(frozen=True, kw_only=True, slots=True)
class FunnelSpec:
    """Which layers run on the short sequence, and how it is made and undone.

    Layers [0, pool_layer) are the entry and [recover_layer, N) the exit, both at full length; layers
    [pool_layer, recover_layer) are the middle and run on about 1/stride of the tokens.
    """

    pool_layer: int
    """First layer that runs on pooled tokens; 0 pools the embeddings."""
    recover_layer: int
    """First layer that runs at full length again; the number of layers recovers before the final norm."""
    stride: int
    """Tokens in a window; the first token of a text always has a window of its own."""
    pooling: Pooling = Pooling.MEAN
    """How the real tokens of a window become one slot."""
    recovery: Recovery = Recovery.DELTA
    """How a token takes up what the middle layers made of its slot."""
    slot_positions: SlotPositions = SlotPositions.ORIGINAL
    """Position of a slot in RoPE and sliding windows."""
    lookahead: bool = False
    """Whether an unfinished last window has a slot too; tokens then see up to stride - 1 later tokens."""

    def __post_init__(self) -> None:
        for name in ("pool_layer", "recover_layer", "stride"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise SpecError(f"{name} of a funnel is a whole number", got=repr(value), wanted="an int")
        if not isinstance(self.lookahead, bool):
            raise SpecError("lookahead of a funnel is true or false", got=repr(self.lookahead), wanted="a bool")
        for name, kind in (("pooling", Pooling), ("recovery", Recovery), ("slot_positions", SlotPositions)):
            object.__setattr__(self, name, parse_choice(name, kind, getattr(self, name)))
        if not 0 <= self.pool_layer < self.recover_layer:
            raise SpecError(
                "a funnel pools before it recovers",
                got=f"pool_layer {self.pool_layer}, recover_layer {self.recover_layer}",
                wanted="0 <= pool_layer < recover_layer",
            )
        if self.stride < 1:
            raise SpecError("a funnel's stride is at least 1", got=self.stride, wanted="stride >= 1", hint="2 or 4")
        if self.stride > LARGEST_STRIDE:
            raise SpecError("a funnel's stride has a limit", got=self.stride, wanted=f"stride <= {LARGEST_STRIDE}")

    @classmethod
    def parse(cls, text: str, **options: Any) -> Self:
        """The funnel that `P:R:S` names, for example `6:20:2`; `options` are the remaining fields.

        Raises:
            SpecError: if the text or the value of an option is not a funnel's.
        """
        match = re.fullmatch(r"(\d{1,6}):(\d{1,6}):(\d{1,6})", text.strip(), re.ASCII)
        if match is None:
            raise SpecError(
                "a funnel is written pool_layer:recover_layer:stride",
                got=repr(text),
                wanted="three whole numbers P:R:S",
                hint="--funnel 6:20:2",
            )
        pool_layer, recover_layer, stride = map(int, match.groups())
        return cls(pool_layer=pool_layer, recover_layer=recover_layer, stride=stride, **options)

    @classmethod
    def from_dict(cls, values: object) -> Self:
        """The funnel that `to_dict` wrote, as `config.json` carries it under "funnel".

        Raises:
            SpecError: if keys are missing or unknown, or a value is not a funnel's.
        """
        names = [field.name for field in fields(cls)]
        required = {"pool_layer", "recover_layer", "stride"}
        if not isinstance(values, dict) or not required <= set(values) <= set(names):
            raise SpecError(
                "a funnel in JSON is an object with a funnel's fields",
                got=values,
                wanted=f"{', '.join(sorted(required))}, and optionally {', '.join(names[3:])}",
            )
        return cls(**values)

    def to_dict(self) -> dict[str, int | str | bool]:
        """The funnel as plain JSON values."""
        return {k: str(v) if isinstance(v, StrEnum) else v for k, v in asdict(self).items()}

    def __str__(self) -> str:
        return f"{self.pool_layer}:{self.recover_layer}:{self.stride}"

    def validate(self, num_layers: int) -> None:
        """Raise `SpecError` unless the funnel fits a model of `num_layers` layers."""
        if self.recover_layer > num_layers:
            raise SpecError(
                "the funnel reaches beyond the model's layers",
                got=f"recover_layer {self.recover_layer}, and the model has {num_layers} layers",
                wanted=f"recover_layer <= {num_layers}",
                hint=f"--funnel {min(self.pool_layer, num_layers - 1)}:{num_layers}:{self.stride}",
            )

    def validate_task(self, task: Task) -> None:
        """Raise `SpecError` if the funnel looks ahead in a task whose outputs must not depend on later tokens."""
        if self.lookahead and task is Task.TEXT_GENERATION:
            raise SpecError(
                "a lookahead funnel shows a token what comes after it, so it cannot generate text",
                got=f"lookahead with {task}",
                wanted="a causal funnel",
                hint="leave out --lookahead, or export text-classification or token-classification",
            )

    def num_slots(self, num_tokens: int) -> int:
        """Length of the short sequence for a row of `num_tokens` >= 1 real tokens."""
        return (num_tokens - 1 + (self.stride - 1 if self.lookahead else 0)) // self.stride + 1

    def segments(self, num_layers: int) -> "tuple[Segment, ...]":
        """The segments of a model of `num_layers` layers, in order; those without a layer are left out.

        Raises:
            SpecError: if the funnel does not fit the model.
        """
        self.validate(num_layers)
        entry = Segment("entry", range(self.pool_layer))
        middle = Segment("middle", range(self.pool_layer, self.recover_layer), self)
        exit_ = Segment("exit", range(self.recover_layer, num_layers))
        return tuple(segment for segment in (entry, middle, exit_) if segment.layers)


@dataclass(frozen=True, slots=True)
class Segment:
    """Layers that run one after the other on one sequence: on all tokens, or on slots."""

    name: str
    layers: range
    funnel: FunnelSpec | None = None
    """How its slots are made before its first layer, and undone after its last; None for layers that run on tokens."""
    label: str = "funnel"
    """What the names of its pooling and recovery begin with; segments of one model have different ones."""

    @property
    def pooled_name(self) -> str:
        """Name of the hidden states that go into its first layer."""
        return f"{self.label}.pooled"

    @property
    def recovered_name(self) -> str:
        """Name of the hidden states that are made of its last layer's."""
        return f"{self.label}.recovered"

    @property
    def pooled(self) -> bool:
        """Whether its layers run on slots."""
        return self.funnel is not None

    @property
    def stride(self) -> int:
        """Tokens for one position."""
        return 1 if self.funnel is None else self.funnel.stride

    def length(self, num_tokens: int) -> int:
        """How many positions its layers run on, for a row of `num_tokens` >= 1 real tokens."""
        return num_tokens if self.funnel is None else self.funnel.num_slots(num_tokens)


def segments_of(funnel: FunnelSpec | None, num_layers: int) -> tuple[Segment, ...]:
    """The segments of a model with a funnel, or the single one of a dense model.

    Raises:
        SpecError: if the funnel does not fit the model.
    """
    return (Segment("dense", range(num_layers)),) if funnel is None else funnel.segments(num_layers)


def segment_of(segments: Sequence[Segment], layer: int) -> Segment:
    """The segment in which a layer runs."""
    return next(segment for segment in segments if layer in segment.layers)


def boundary_names(segments: Sequence[Segment]) -> list[str]:
    """The hidden states between the parts of a model, in the order in which they are computed."""
    names: list[str] = []
    for segment in segments:
        inner = [layer_name(index) for index in segment.layers]
        names += [segment.pooled_name, *inner, segment.recovered_name] if segment.pooled else inner
    return names


def is_pooled_name(name: str) -> bool:
    """Whether a boundary is a pooling."""
    return name.endswith(".pooled")


def is_recovered_name(name: str) -> bool:
    """Whether a boundary is a recovery."""
    return name.endswith(".recovered")


_STEPS = {".pooled": "/pool", ".recovered": "/recover"}


def node_prefix(boundary: str) -> str:
    """What the names of the nodes that compute a boundary begin with: `layers.3`, `funnel/pool` or `funnel/recover`."""
    for ending, step in _STEPS.items():
        if boundary.endswith(ending):
            return boundary.removesuffix(ending) + step
    return boundary


def boundary_of(prefix: str) -> str:
    """The boundary that nodes under a prefix compute."""
    for ending, step in _STEPS.items():
        if prefix.endswith(step):
            return prefix.removesuffix(step) + ending
    return prefix
