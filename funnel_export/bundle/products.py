"""What a target made of the matrix products of a quantized graph, as far as it was seen when the engine was built."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError

from funnel_export.bundle.record import Record
from funnel_export.spec.choices import Dtype

FACT = "products"
"""Its name among the facts of an engine's manifest."""
PLACES = {
    "optimized graph": "in the optimized graph",
    "runtime graph": "in the runtime graph",
    "network": "in the network that the builder was given; the plan was not read",
}
"""Where products were seen, in words."""


class Weights(Record):
    """How the weights of some products are stored: as codes, or in a dtype."""

    bits: Literal[8, 4] | None = None
    """Bits of a code."""
    block_size: Annotated[int, Field(ge=1)] | None = None
    """Inputs that share a scale; None if that was not seen."""
    dtype: Dtype | None = None
    """Dtype of weights that are not codes."""

    @classmethod
    def plain(cls, dtype: str) -> Self | None:
        """Weights in a dtype, under NumPy's name; None if no graph computes in it."""
        return cls(dtype=Dtype(dtype)) if dtype in set(Dtype) else None

    @classmethod
    def codes(cls, bits: int, block_size: int | None = None) -> Self | None:
        """Weights in codes of so many bits; None for invalid ones."""
        try:
            return cls.model_validate({"bits": bits, "block_size": block_size})
        except ValidationError:
            return None

    def __str__(self) -> str:
        blocks = "" if self.block_size is None else f" in blocks of {self.block_size}"
        return str(self.dtype) if self.bits is None else f"{self.bits} bits{blocks}"


class Counted(Weights):
    """So many products."""

    count: Annotated[int, Field(ge=1)]


class Products(Record):
    """The products with weights that a target computes; those of attention are not among them."""

    weights: Annotated[list[Counted], Field(min_length=1)]
    activations: Literal["exact", "rounded"] | None = None
    """Whether the target may round the inputs of products with codes; None if that was not seen."""
    setting: Annotated[str, Field(pattern=r"^[A-Za-z0-9_. ]+$", max_length=255)] | None = None
    """The runtime's setting that says so, with its value."""
    seen: Literal["optimized graph", "runtime graph", "network"]
    """Where the products were seen."""

    @classmethod
    def count(cls, weights: Iterable[Weights | None], **others: Any) -> Self | None:
        """The products with these weights; None if there are none, or one is stored in a way that is not known."""
        found = Counter(weights)
        if not found or None in found:
            return None
        counted = [Counted(count=count, **kind.model_dump()) for kind, count in found.most_common() if kind is not None]
        return cls(weights=counted, **others)

    @classmethod
    def read(cls, facts: Mapping[str, Any]) -> Self | None:
        """Those among the facts of an engine; None if it has none that this version understands."""
        try:
            return cls.model_validate(facts[FACT])
        except (KeyError, ValidationError):
            return None

    def facts(self) -> dict[str, Any]:
        """The products as a fact of an engine."""
        return {FACT: self.model_dump(mode="json", exclude_none=True)}

    def __str__(self) -> str:
        kinds = ", ".join(f"{each.count} in {each}" for each in self.weights)
        setting = "" if self.setting is None else f" ({self.setting})"
        rounded = {"exact": "; activations are not rounded", "rounded": "; activations may be rounded", None: ""}
        return f"{kinds} {PLACES[self.seen]}{rounded[self.activations]}{setting}"
