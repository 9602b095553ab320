"""Optimization profiles: the ranges of batch size and sequence length that an engine is built for."""

import re
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from funnel_export.errors import SpecError

LARGEST = 1 << 20
"""Longer than any text; TensorRT's own dimensions end at 2^31 - 1."""

Size = Annotated[int, Field(ge=1, le=LARGEST)]

AXES = ("batch", "sequence")
_AXIS = re.compile(r"(batch|sequence)=(\d{1,7})(?::(\d{1,7}):(\d{1,7}))?", re.ASCII)


class Range(BaseModel):
    """What one axis may be."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min: Size
    opt: Size
    """The size that the engine is tuned for."""
    max: Size

    @model_validator(mode="after")
    def _grow(self) -> Self:
        if not self.min <= self.opt <= self.max:
            raise ValueError(f"its sizes do not grow: {self}")
        return self

    def __contains__(self, size: int) -> bool:
        return self.min <= size <= self.max

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"


class Profile(BaseModel):
    """One optimization profile, for every input of a graph alike."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")] = "default"
    batch: Range
    sequence: Range
    """Tokens of a row, padding included."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """The profile that `[NAME:]batch=MIN:OPT:MAX,sequence=MIN:OPT:MAX` names; a single size stands for all three.

        Raises:
            SpecError: if the text names no profile.
        """
        name, colon, rest = text.strip().partition(":")
        named = bool(colon) and "=" not in name
        axes = [_AXIS.fullmatch(part) for part in (rest if named else text.strip()).split(",")]
        if not all(axes) or sorted(match[1] for match in axes if match) != list(AXES):
            raise _error(text, "not of that form")
        ranges = {
            match[1]: {"min": match[2], "opt": match[3] or match[2], "max": match[4] or match[2]}
            for match in axes
            if match
        }
        try:
            return cls.model_validate({**ranges, **({"name": name} if named else {})})
        except ValidationError as err:
            raise _error(text, err.errors()[0]["msg"]) from err

    def shapes(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """Smallest, best and largest shape of an input [batch, sequence]."""
        batch, sequence = self.batch, self.sequence
        return (batch.min, sequence.min), (batch.opt, sequence.opt), (batch.max, sequence.max)

    def __contains__(self, shape: tuple[int, int]) -> bool:
        return shape[0] in self.batch and shape[1] in self.sequence

    def __str__(self) -> str:
        return f"{self.name}:batch={self.batch},sequence={self.sequence}"


def _error(text: str, why: str) -> SpecError:
    return SpecError(
        "an optimization profile is written [NAME:]batch=MIN:OPT:MAX,sequence=MIN:OPT:MAX",
        got=f"{text!r}: {why}",
        wanted=f"1 <= MIN <= OPT <= MAX <= {LARGEST} for batch and sequence, or one size for all three",
        hint="--profile batch=1:1:8,sequence=16:512:4096",
    )
