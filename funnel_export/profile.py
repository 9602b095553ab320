"""Optimization profiles: the ranges of batch size and sequence length that an engine is built for."""

import re
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from funnel_export.errors import SpecError

LARGEST = 1 << 20
"""Longer than any text; TensorRT's own dimensions end at 2^31 - 1."""

Size = Annotated[int, Field(ge=1, le=LARGEST)]

AXES = ("batch", "sequence")
_WRITTEN = re.compile(r"(?:([A-Za-z0-9_-]{1,64}):)?((?:\w+=[\d:]+,?)+)", re.ASCII)


class Range(BaseModel):
    """What one axis may be."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min: Size
    opt: Size
    """The size that the engine is tuned for."""
    max: Size

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
        match = _WRITTEN.fullmatch(text.strip())
        pairs = [pair.split("=") for pair in match[2].rstrip(",").split(",")] if match else []
        if match is None or sorted(axis for axis, _ in pairs) != sorted(AXES):
            raise _error(text, "not of that form")
        ranges: dict[str, dict[str, int]] = {}
        for axis, sizes in pairs:
            numbers = [int(size) for size in sizes.split(":") if 0 < len(size) < 10]
            if len(numbers) == 1 and ":" not in sizes:
                numbers *= 3
            if len(numbers) != 3 or sizes.count(":") not in (0, 2):
                raise _error(text, f"{axis} is {sizes}")
            if not 1 <= numbers[0] <= numbers[1] <= numbers[2]:
                raise _error(text, f"{axis} is {sizes}, and its sizes do not grow from 1 on")
            ranges[axis] = dict(zip(("min", "opt", "max"), numbers, strict=True))
        try:
            return cls.model_validate({**ranges, **({"name": match[1]} if match[1] else {})})
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
