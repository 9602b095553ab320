"""Optimization profiles: the range of each dynamic axis that an engine is built for."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from funnel_export.errors import SpecError

LARGEST = 1 << 20
"""Longer than any text, and below TensorRT's limit of 2^31 - 1."""
MOST_PROFILES = 64
"""Most optimization profiles of an engine; a check may run a batch for each."""

Size = Annotated[int, Field(ge=1, le=LARGEST)]
AxisName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]

BATCH, SEQUENCE = "batch_size", "sequence_length"
"""Axes of a graph, with Optimum's names."""
SINGLE_PASS = (BATCH, SEQUENCE)
"""The dynamic axes of a graph that takes whole texts."""
SHORT = {BATCH: "batch", SEQUENCE: "sequence"}
"""Short names of axes on the command line; other axes have only their full names."""
_LONG = {short: name for name, short in SHORT.items()}

_AXIS = re.compile(r"([a-z][a-z0-9_]{0,63})=(\d{1,7})(?::(\d{1,7}):(\d{1,7}))?", re.ASCII)


class Range(BaseModel):
    """Smallest, best and largest size of one axis."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min: Size
    opt: Size
    """The size that the engine is tuned for."""
    max: Size

    @model_validator(mode="after")
    def _grow(self) -> Self:
        if not self.min <= self.opt <= self.max:
            raise ValueError(f"expected min <= opt <= max: {self}")
        return self

    def __contains__(self, size: int) -> bool:
        return self.min <= size <= self.max

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"


class Profile(BaseModel):
    """One optimization profile: a range for each dynamic axis of a graph."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")] = "default"
    axes: Annotated[dict[AxisName, Range], Field(min_length=1, max_length=16)]
    """Ranges by axis name; lengths include padding."""

    @classmethod
    def parse(cls, text: str, axes: Sequence[str] = SINGLE_PASS) -> Self:
        """Parse `[NAME:]batch=MIN:OPT:MAX,sequence=MIN:OPT:MAX`. A single size is used as minimum, optimum and maximum.

        Args:
            text: an optional name, and a range for each axis, in any order.
            axes: the dynamic axes of the graph.

        Raises:
            SpecError: if the text is invalid or its axes are not those of the graph.
        """
        name, colon, rest = text.strip().partition(":")
        named = bool(colon) and "=" not in name
        found = [_AXIS.fullmatch(part) for part in (rest if named else text.strip()).split(",")]
        matches = [match for match in found if match]
        names = [match[1] if match[1] in axes else _LONG.get(match[1], match[1]) for match in matches]
        if len(matches) < len(found):
            raise _error(text, "invalid syntax", axes)
        _check_axes(text, names, axes)
        sizes = [{"min": match[2], "opt": match[3] or match[2], "max": match[4] or match[2]} for match in matches]
        ranges = dict(zip(names, sizes, strict=True))
        try:
            return cls.model_validate(
                {"axes": {axis: ranges[axis] for axis in axes}, **({"name": name} if named else {})}
            )
        except ValidationError as err:
            raise _error(text, err.errors()[0]["msg"], axes) from err

    def validate_axes(self, axes: Sequence[str]) -> None:
        """Raise `SpecError` unless the profile has ranges for exactly these axes."""
        _check_axes(str(self), list(self.axes), axes)

    def shapes(self, shape: Sequence[int | str]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Smallest, best and largest shape of a tensor; in `shape`, dynamic axes have names instead of sizes."""
        ranges = [Range(min=s, opt=s, max=s) if isinstance(s, int) else self.axes[s] for s in shape]
        return tuple(r.min for r in ranges), tuple(r.opt for r in ranges), tuple(r.max for r in ranges)

    def __contains__(self, sizes: Mapping[str, int]) -> bool:
        return all(sizes[axis] in span for axis, span in self.axes.items())

    def __str__(self) -> str:
        return f"{self.name}:" + ",".join(f"{SHORT.get(axis, axis)}={span}" for axis, span in self.axes.items())


def fitting_profiles(profiles: Sequence[Profile], sizes: Mapping[str, int]) -> list[int]:
    """Indices of the profiles that allow these sizes, sorted by how near their optimum lengths are."""

    def distance(index: int) -> int:
        spans = profiles[index].axes.items()
        return sum(abs(span.opt - sizes[axis]) for axis, span in spans if axis != BATCH)

    return sorted((index for index, profile in enumerate(profiles) if sizes in profile), key=distance)


def _check_axes(text: str, names: Sequence[str], axes: Sequence[str]) -> None:
    """Raise `SpecError` unless a profile has every axis of the graph exactly once, and no other axis."""
    if sorted(names) == sorted(axes):
        return
    found = {
        "missing": [axis for axis in axes if axis not in names],
        "unknown": [name for name in names if name not in axes],
        "repeated": [name for name in dict.fromkeys(names) if names.count(name) > 1],
    }
    why = "; ".join(f"{word} {', '.join(SHORT.get(n, n) for n in named)}" for word, named in found.items() if named)
    raise _error(text, why, axes)


def _error(text: str, why: str, axes: Iterable[str]) -> SpecError:
    names = [SHORT.get(axis, axis) for axis in axes]
    single = set(axes) == set(SINGLE_PASS)
    example = "batch=1:1:8,sequence=16:512:4096" if single else ",".join(f"{name}=1:1:8" for name in names)
    return SpecError(
        "invalid optimization profile",
        got=f"{text!r}: {why}",
        wanted=f"[NAME:]{','.join(f'{name}=MIN:OPT:MAX' for name in names)} with 1 <= MIN <= OPT <= MAX <= {LARGEST}, "
        "or one size instead of the three",
        hint=f"--profile {example}",
    )
