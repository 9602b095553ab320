"""The choices that settings have, by the names that users write."""

from enum import StrEnum
from typing import TypeVar

from funnel_export.errors import SpecError

E = TypeVar("E", bound=StrEnum)
AUTO = "auto"
"""What stands for a choice that the input makes: a checkpoint's task, dtype and funnel."""
EAGER, TORCH_COMPILE = "eager", "torch.compile"
PYTORCH = (EAGER, TORCH_COMPILE)
"""The ways to run PyTorch itself; targets and engines stand beside them in reports, and have other names."""


class Pooling(StrEnum):
    """How the real tokens of a window become one slot."""

    MEAN = "mean"
    MAX = "max"
    FIRST = "first"
    LAST = "last"


class Recovery(StrEnum):
    """How a token takes up what the middle layers made of its slot."""

    DELTA = "delta"
    ADD = "add"
    AVERAGE = "average"
    REPLACE = "replace"


class SlotPositions(StrEnum):
    """Which position a slot has in RoPE and masks: its window's last real token, or its own number."""

    ORIGINAL = "original"
    COMPACT = "compact"


class Task(StrEnum):
    """What the exported graph computes, named as Optimum names it."""

    FEATURE_EXTRACTION = "feature-extraction"
    TEXT_GENERATION = "text-generation"
    TEXT_CLASSIFICATION = "text-classification"
    TOKEN_CLASSIFICATION = "token-classification"  # noqa: S105 - a task, not a secret


class Dtype(StrEnum):
    """Compute dtype of a graph."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


class Logits(StrEnum):
    """For which tokens a language model's graph gives logits: all, or each row's last, which is what a prompt needs."""

    ALL = "all"
    LAST = "last"


class Device(StrEnum):
    """What PyTorch runs on where it is timed."""

    AUTO = "auto"
    """A GPU if PyTorch has one and everything else that is timed runs on one."""
    CPU = "cpu"
    CUDA = "cuda"


class Format(StrEnum):
    """What a bundle is packaged as."""

    TRITON = "triton"


class Backend(StrEnum):
    """What of Triton runs the model."""

    ONNXRUNTIME = "onnxruntime"
    TENSORRT = "tensorrt"


class Kind(StrEnum):
    """Where instances of the model run."""

    AUTO = "auto"
    CPU = "cpu"
    GPU = "gpu"


def parse_choice(name: str, kind: type[E], value: object) -> E:
    """`value` as a member of `kind`; `SpecError` names the choices."""
    try:
        return kind(value)  # type: ignore[arg-type]  # StrEnum raises ValueError for anything else
    except ValueError as err:
        raise SpecError(f"unknown {name}", got=repr(value), wanted=" | ".join(kind)) from err
