"""Enumerations of the values that settings accept, with the names that users write."""

from enum import StrEnum
from typing import TypeVar

from funnel_export.errors import SpecError

E = TypeVar("E", bound=StrEnum)
AUTO = "auto"
"""Take the value (task, dtype, funnel) from the checkpoint."""
EAGER, TORCH_COMPILE = "eager", "torch.compile"
PYTORCH = (EAGER, TORCH_COMPILE)
"""Ways to run PyTorch. Reports list them with targets and engines, which must have other names."""


class Pooling(StrEnum):
    """How the real tokens of a window become one slot."""

    MEAN = "mean"
    MAX = "max"
    FIRST = "first"
    LAST = "last"


class Recovery(StrEnum):
    """How a token's hidden state is combined with its slot after the middle layers."""

    DELTA = "delta"
    ADD = "add"
    AVERAGE = "average"
    REPLACE = "replace"
    LINEAR = "linear"
    """`delta` with fitted or trained linear maps."""

    @property
    def takes_change(self) -> bool:
        """Whether a token gets what the middle layers changed in its slot, not the slot itself."""
        return self in (Recovery.DELTA, Recovery.LINEAR)


class SlotPositions(StrEnum):
    """Position of a slot in RoPE and masks: that of its window's last real token, or the slot's own number."""

    ORIGINAL = "original"
    COMPACT = "compact"


class Task(StrEnum):
    """What the exported graph computes; the names are Optimum's."""

    FEATURE_EXTRACTION = "feature-extraction"
    TEXT_GENERATION = "text-generation"
    """Logits of a whole text in a single pass."""
    TEXT_GENERATION_WITH_PAST = "text-generation-with-past"
    """Logits of the next tokens, from the keys and values of earlier ones."""
    TEXT_CLASSIFICATION = "text-classification"
    TOKEN_CLASSIFICATION = "token-classification"  # noqa: S105 - a task, not a secret

    @property
    def has_past(self) -> bool:
        """Whether its graphs take the keys and values of earlier tokens."""
        return self is Task.TEXT_GENERATION_WITH_PAST

    @property
    def single_pass(self) -> "Task":
        """The task of the same model that takes whole texts."""
        return Task.TEXT_GENERATION if self.has_past else self

    @property
    def generates(self) -> bool:
        """Whether the model is a language model."""
        return self.single_pass is Task.TEXT_GENERATION


class Dtype(StrEnum):
    """Compute dtype of a graph."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


class Logits(StrEnum):
    """Which tokens a language model's graph returns logits for: all, or only each row's last (enough for a prompt)."""

    ALL = "all"
    LAST = "last"


class Device(StrEnum):
    """Device on which PyTorch is timed."""

    AUTO = "auto"
    """A GPU if PyTorch has one and everything else that is timed runs on a GPU."""
    CPU = "cpu"
    CUDA = "cuda"


class Format(StrEnum):
    """Format that a bundle is packaged in."""

    TRITON = "triton"


class Backend(StrEnum):
    """Triton backend that runs the model."""

    ONNXRUNTIME = "onnxruntime"
    TENSORRT = "tensorrt"
    PYTHON = "python"
    """Text generation with a cache; the others take whole texts."""


class Kind(StrEnum):
    """Where instances of the model run."""

    AUTO = "auto"
    CPU = "cpu"
    GPU = "gpu"


def parse_choice(name: str, kind: type[E], value: object) -> E:
    """`value` as a member of `kind`. Raises `SpecError` with the valid choices."""
    try:
        return kind(value)  # type: ignore[arg-type]  # StrEnum raises ValueError for anything else
    except ValueError as err:
        raise SpecError(f"unknown {name}", got=repr(value), wanted=" | ".join(kind)) from err
