"""`TrainingSpec`: how a model is trained for its funnel."""

import math
from dataclasses import dataclass
from enum import StrEnum

from funnel_export.errors import SpecError
from funnel_export.spec.choices import Recovery, parse_choice
from funnel_export.spec.funnel import FunnelSpec


class Objective(StrEnum):
    """What training minimizes."""

    KL = "kl"
    """KL(dense || model): the distance from the dense model's predictions."""
    TARGETS = "targets"
    """Cross entropy of the next tokens, or of labels."""
    HIDDEN = "hidden"
    """Squared distance from the dense model's hidden states at the recover layer, relative to their square. Only the
    weights before that layer are trained."""

    @property
    def needs_dense(self) -> bool:
        """Whether the dense model runs beside the model that is trained."""
        return self is not Objective.TARGETS


class Part(StrEnum):
    """Which weights are trained."""

    ALL = "all"
    """All of them."""
    MIDDLE = "middle"
    """The middle layers, one layer on each side of them, and the maps of recovery `linear`."""
    LORA = "lora"
    """Low-rank adapters of all layers, which are merged at the end, and the maps."""
    MAPS = "maps"
    """The maps only."""


LEARNING_RATES = {Part.ALL: 5e-5, Part.MIDDLE: 1e-4, Part.LORA: 2e-4, Part.MAPS: 5e-5}
"""Defaults: the largest rates of the schedule."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingSpec:
    """How a model is trained. The same settings, texts and packages give the same weights on the same CPU."""

    objective: Objective = Objective.KL
    part: Part = Part.LORA
    rank: int = 32
    """Rank of the adapters."""
    strides: tuple[int, ...] = ()
    """Strides of which each step draws one; empty for the funnel's own."""
    vocabulary: int | None = None
    """With objective `kl`, compare only this number of tokens, the most frequent ones of the texts; None for all."""
    epochs: float = 1.0
    """How many times the texts are used."""
    steps: int | None = None
    """Optimizer steps, in place of epochs."""
    batch_size: int = 8
    """Rows of tokens that run together on each device."""
    accumulation: int = 1
    """Batches whose gradients are averaged for a step."""
    learning_rate: float | None = None
    """Largest rate of a cosine schedule; None for the default of the part."""
    maps_learning_rate: float = 5e-5
    """Largest rate for the maps, whose inputs are large hidden states that no norm has scaled."""
    warmup: float = 0.03
    """Share of the steps in which the rate rises."""
    weight_decay: float = 0.0
    checkpointing: bool = False
    """Whether activations of layers are computed again in the backward pass, which saves memory."""
    save_steps: int = 100
    """Steps between two saves of the training state, after which a run can go on."""
    measure_steps: int | None = None
    """Steps between two measurements on held-out texts; None for the end only."""
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "objective", parse_choice("objective", Objective, self.objective))
        object.__setattr__(self, "part", parse_choice("part", Part, self.part))
        for name in ("rank", "vocabulary", "steps", "batch_size", "accumulation", "save_steps", "measure_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SpecError(f"{name} must be at least 1", got=value, wanted=f"{name} >= 1")
        for name in ("epochs", "learning_rate", "maps_learning_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise SpecError(f"{name} must be positive", got=value, wanted=f"{name} > 0")
        for name in ("warmup", "weight_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise SpecError(f"{name} must be between 0 and 1", got=getattr(self, name), wanted=f"0 <= {name} < 1")
        if self.vocabulary is not None and self.objective is not Objective.KL:
            raise SpecError("vocabulary is for objective kl", got=f"objective {self.objective}", wanted="no vocabulary")

    @property
    def rate(self) -> float:
        """The largest learning rate."""
        return self.learning_rate or LEARNING_RATES[self.part]

    def validate_funnel(self, funnel: FunnelSpec | None) -> None:
        """Raise `SpecError` unless the settings fit the funnel, None for the dense model."""
        if funnel is None and self.objective.needs_dense:
            raise SpecError(
                "the dense model cannot be trained towards itself",
                got=f"objective {self.objective} without a funnel",
                wanted=f"a funnel, or objective {Objective.TARGETS}",
                hint="--funnel P:R:S",
            )
        if self.part in (Part.MIDDLE, Part.MAPS) and funnel is None:
            raise SpecError(
                f"the dense model has no part {self.part}",
                got="no funnel",
                wanted=f"{Part.ALL} or {Part.LORA}",
            )
        if self.part is Part.MAPS and funnel is not None and funnel.recovery is not Recovery.LINEAR:
            raise SpecError(
                "the funnel has no maps",
                got=f"recovery {funnel.recovery}",
                wanted="recovery linear",
                hint="--recovery linear, or a checkpoint of funnel-export fit",
            )
        if self.strides and (funnel is None or funnel.drop or funnel.stride not in self.strides):
            raise SpecError(
                "the strides do not fit the funnel",
                got=f"strides {', '.join(map(str, self.strides))} with {funnel or 'no funnel'}",
                wanted="a funnel whose stride is one of them",
            )
        if any(stride < 1 for stride in self.strides):
            raise SpecError("a stride must be at least 1", got=min(self.strides), wanted="stride >= 1")
