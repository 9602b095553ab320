"""`FunnelSpec`, and the segments into which it divides a model: which layers run at which length."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from typing import Any, Self

from funnel_export.errors import SpecError
from funnel_export.spec.choices import Pooling, Recovery, SlotPositions, Task, parse_choice

LARGEST_STRIDE = 1 << 20
"""Longer than any text; positions multiplied by the stride still fit in 64 bits."""
MAPS = "funnel"
"""Name of the maps of recovery `linear` in a model without its head; the names of their weights begin with it."""
DROP = "drop"
"""Written in place of a stride, for a funnel that leaves its middle layers out."""


def layer_name(index: int) -> str:
    """Name of a decoder layer's output."""
    return f"layers.{index}"


def is_layer_name(name: str) -> bool:
    """Whether this is the name of a decoder layer's output."""
    return name.startswith("layers.")


@dataclass(frozen=True, kw_only=True, slots=True)
class FunnelSpec:
    """A funnel: which layers run on the short sequence, how tokens are pooled, and how they are recovered.

    Layers [0, pool_layer) are the entry and layers [recover_layer, N) the exit; both run at full length. Layers
    [pool_layer, recover_layer) are the middle; they run on about 1/stride of the positions.
    """

    pool_layer: int
    """First layer that runs on slots; 0 pools the embeddings."""
    recover_layer: int
    """First layer that runs at full length again; N, the number of layers, recovers before the final norm."""
    stride: int
    """Tokens in a window, except that the first token of a text always has its own window."""
    pooling: Pooling = Pooling.MEAN
    """How the real tokens of a window become one slot."""
    recovery: Recovery = Recovery.DELTA
    """How a token's hidden state is combined with its slot after the middle layers."""
    slot_positions: SlotPositions = SlotPositions.ORIGINAL
    """Position of a slot in RoPE and masks."""
    lookahead: bool = False
    """Whether an unfinished last window has a slot too; tokens then see up to stride - 1 later tokens."""
    drop: bool = False
    """Whether the middle layers are left out. Nothing is pooled then, and `stride` is 1; tokens go on as they are, or
    with recovery `linear` through its map."""

    def __post_init__(self) -> None:
        for name in ("pool_layer", "recover_layer", "stride"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise SpecError(f"{name} is not a whole number", got=repr(value), wanted="an int")
        for name in ("lookahead", "drop"):
            if not isinstance(getattr(self, name), bool):
                raise SpecError(f"{name} is not true or false", got=repr(getattr(self, name)), wanted="a bool")
        for name, kind in (("pooling", Pooling), ("recovery", Recovery), ("slot_positions", SlotPositions)):
            object.__setattr__(self, name, parse_choice(name, kind, getattr(self, name)))
        if not 0 <= self.pool_layer < self.recover_layer:
            raise SpecError(
                "pool_layer must be less than recover_layer",
                got=f"pool_layer {self.pool_layer}, recover_layer {self.recover_layer}",
                wanted="0 <= pool_layer < recover_layer",
            )
        if self.stride < 1:
            raise SpecError(
                "stride must be at least 1", got=self.stride, wanted="stride >= 1", hint="use stride 2 or 4"
            )
        if self.stride > LARGEST_STRIDE:
            raise SpecError("the stride is too large", got=self.stride, wanted=f"stride <= {LARGEST_STRIDE}")
        if self.drop:
            self._validate_drop()

    def _validate_drop(self) -> None:
        """Raise `SpecError` for settings of slots, which a funnel that drops its layers does not have."""
        recoveries = Recovery.DELTA, Recovery.LINEAR
        slots = (
            ("stride", 1),
            ("pooling", Pooling.MEAN),
            ("slot_positions", SlotPositions.ORIGINAL),
            ("lookahead", False),
        )
        invalid = [f"{name} {getattr(self, name)}" for name, default in slots if getattr(self, name) != default]
        invalid += [f"recovery {self.recovery}"] * (self.recovery not in recoveries)
        if invalid:
            raise SpecError(
                "a funnel that drops its layers has no slots",
                got=", ".join(invalid),
                wanted=f"only recovery {' or '.join(recoveries)}",
            )

    @classmethod
    def parse(cls, text: str, **options: Any) -> Self:
        """Parse `P:R:S` or `P:R:drop`, for example `6:20:2`; `options` are the remaining fields.

        Raises:
            SpecError: if the text or an option is invalid.
        """
        match = re.fullmatch(rf"(\d{{1,6}}):(\d{{1,6}}):(\d{{1,6}}|{DROP})", text.strip(), re.ASCII)
        if match is None:
            raise SpecError(
                "invalid funnel",
                got=repr(text),
                wanted=f"three whole numbers P:R:S (pool_layer:recover_layer:stride), or P:R:{DROP}",
                hint="--funnel 6:20:2",
            )
        pool_layer, recover_layer = map(int, match.groups()[:2])
        if match[3] == DROP:
            return cls(pool_layer=pool_layer, recover_layer=recover_layer, stride=1, drop=True, **options)
        return cls(pool_layer=pool_layer, recover_layer=recover_layer, stride=int(match[3]), **options)

    @classmethod
    def from_dict(cls, values: object) -> Self:
        """The funnel from a dict as `to_dict` returns it and `config.json` stores it under "funnel".

        Raises:
            SpecError: if keys are missing or unknown, or a value is invalid.
        """
        names = [field.name for field in fields(cls)]
        required = {"pool_layer", "recover_layer", "stride"}
        if not isinstance(values, dict) or not required <= set(values) <= set(names):
            raise SpecError(
                "a funnel in JSON must be an object with the fields of a funnel",
                got=values,
                wanted=f"{', '.join(sorted(required))}, and optionally {', '.join(names[3:])}",
            )
        return cls(**values)

    def to_dict(self) -> dict[str, int | str | bool]:
        """The funnel as plain JSON values; `drop` only if it is true."""
        values = {k: str(v) if isinstance(v, StrEnum) else v for k, v in asdict(self).items()}
        return values if self.drop else {k: v for k, v in values.items() if k != "drop"}

    def __str__(self) -> str:
        return f"{self.pool_layer}:{self.recover_layer}:{DROP if self.drop else self.stride}"

    def validate(self, num_layers: int) -> None:
        """Raise `SpecError` unless the funnel fits a model of `num_layers` layers."""
        if self.recover_layer > num_layers:
            first = min(max(self.pool_layer, int(self.drop)), num_layers - 1)  # a layer is kept
            raise SpecError(
                "the funnel reaches beyond the model's layers",
                got=f"recover_layer {self.recover_layer}, and the model has {num_layers} layers",
                wanted=f"recover_layer <= {num_layers}",
                hint=f"--funnel {replace(self, recover_layer=num_layers, pool_layer=first)}",
            )
        if self.drop and self.recover_layer - self.pool_layer == num_layers:
            raise SpecError("the funnel drops all layers", got=str(self), wanted="at least one layer that is kept")

    def validate_task(self, task: Task) -> None:
        """Raise `SpecError` if the funnel has lookahead and the task needs a causal model."""
        if self.lookahead and task.generates:
            raise SpecError(
                "a lookahead funnel cannot generate text: tokens see later tokens",
                got=f"lookahead with {task}",
                wanted="a causal funnel",
                hint="remove --lookahead, or use --task text-classification or token-classification",
            )

    def validate_maps(self, stored: "FunnelSpec | None") -> None:
        """Raise `SpecError` if the recovery needs maps, and those of a checkpoint with the funnel `stored` do not fit.

        The stride may differ: maps of one stride can serve another.
        """
        if self.recovery is not Recovery.LINEAR:
            return
        if stored is None or stored.recovery is not Recovery.LINEAR:
            found = "without a funnel" if stored is None else f"with recovery {stored.recovery}"
            raise SpecError(
                "the checkpoint has no maps for recovery linear",
                got=f"recovery linear with a checkpoint {found}",
                wanted="a checkpoint with fitted maps",
                hint=f"funnel-export fit CHECKPOINT FITTED --funnel {self} --data TEXTS",
            )
        if replace(self, stride=1) != replace(stored, stride=1):
            raise SpecError(
                "the checkpoint's maps were made for another funnel",
                got=f"{self} with maps of {stored}",
                wanted=f"the same layers and pooling as {stored}",
            )

    def map_weights(self, width: int) -> int:
        """Numbers in the maps of recovery `linear` for hidden states of `width`, without biases; 0 for the others."""
        if self.recovery is not Recovery.LINEAR:
            return 0
        return width * width if self.drop else 4 * width * width

    def num_slots(self, num_tokens: int) -> int:
        """Number of slots for a row of `num_tokens` >= 1 real tokens."""
        return (num_tokens - 1 + (self.stride - 1 if self.lookahead else 0)) // self.stride + 1

    def segments(self, num_layers: int) -> "tuple[Segment, ...]":
        """The segments of a model with `num_layers` layers, in order and without empty ones.

        Raises:
            SpecError: if the funnel does not fit the model.
        """
        self.validate(num_layers)
        entry = Segment("entry", range(self.pool_layer))
        middle = Segment("middle", range(self.pool_layer, self.pool_layer if self.drop else self.recover_layer), self)
        exit_ = Segment("exit", range(self.recover_layer, num_layers))
        return tuple(segment for segment in (entry, middle, exit_) if segment.layers or segment.funnel)


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive layers that run on the same sequence: all tokens, or slots."""

    name: str
    layers: range
    funnel: FunnelSpec | None = None
    """The funnel that pools before its first layer and recovers after its last; None for layers that run on tokens. A
    segment that drops its layers has none."""
    label: str = "funnel"
    """Prefix of the names of its pooling and recovery; it is unique within a model."""

    @property
    def pooled_name(self) -> str:
        """Name of the hidden states after pooling, the input of its first layer."""
        return f"{self.label}.pooled"

    @property
    def recovered_name(self) -> str:
        """Name of the hidden states after recovery."""
        return f"{self.label}.recovered"

    @property
    def pooled(self) -> bool:
        """Whether its layers run on slots."""
        return self.funnel is not None and not self.funnel.drop

    @property
    def mapped(self) -> bool:
        """Whether its layers are dropped, and tokens pass through a map instead."""
        return self.funnel is not None and self.funnel.drop and self.funnel.recovery is Recovery.LINEAR

    @property
    def recovers(self) -> bool:
        """Whether it ends with a recovery: of tokens from slots, or past dropped layers."""
        return self.pooled or self.mapped

    @property
    def stride(self) -> int:
        """Tokens per position: 1 for layers that run on tokens."""
        return 1 if self.funnel is None else self.funnel.stride

    def length(self, num_tokens: int) -> int:
        """Number of positions that its layers run on, for a row of `num_tokens` >= 1 real tokens."""
        return num_tokens if self.funnel is None else self.funnel.num_slots(num_tokens)


def segments_of(funnel: FunnelSpec | None, num_layers: int) -> tuple[Segment, ...]:
    """The segments of a model with a funnel, or the single segment of a dense model.

    Raises:
        SpecError: if the funnel does not fit the model.
    """
    return (Segment("dense", range(num_layers)),) if funnel is None else funnel.segments(num_layers)


def segment_of(segments: Sequence[Segment], layer: int) -> Segment:
    """The segment that contains a layer."""
    return next(segment for segment in segments if layer in segment.layers)


def last_on_tokens(segments: Sequence[Segment]) -> int | None:
    """The model's last layer, None if it runs on slots."""
    *_, last = (segment for segment in segments if segment.layers)
    return None if last.pooled else last.layers[-1]


def boundary_names(segments: Sequence[Segment]) -> list[str]:
    """Names of the hidden states between the parts of a model, in the order of computation."""
    names: list[str] = []
    for segment in segments:
        inner = [layer_name(index) for index in segment.layers]
        names += [segment.pooled_name] * segment.pooled + inner + [segment.recovered_name] * segment.recovers
    return names


def is_pooled_name(name: str) -> bool:
    """Whether a boundary is the result of a pooling."""
    return name.endswith(".pooled")


def is_recovered_name(name: str) -> bool:
    """Whether a boundary is the result of a recovery."""
    return name.endswith(".recovered")


_STEPS = {".pooled": "/pool", ".recovered": "/recover"}


def node_prefix(boundary: str) -> str:
    """Prefix of the names of the nodes that compute a boundary: `layers.3`, `funnel/pool` or `funnel/recover`."""
    for ending, step in _STEPS.items():
        if boundary.endswith(ending):
            return boundary.removesuffix(ending) + step
    return boundary


def boundary_of(prefix: str) -> str:
    """The boundary that the nodes with this prefix compute; the inverse of `node_prefix`."""
    for ending, step in _STEPS.items():
        if prefix.endswith(step):
            return prefix.removesuffix(step) + ending
    return prefix
