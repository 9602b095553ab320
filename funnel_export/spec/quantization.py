"""`Quantization`: in how many bits an export stores which weights."""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from funnel_export.errors import SpecError
from funnel_export.spec.choices import parse_choice

BITS = (8, 4)
"""Bits of a stored weight."""
BLOCKS = (128, 64, 32, 16)
"""Block sizes, largest first. ONNX Runtime takes them for 4 and 8 bits, TensorRT 128 and 64 for 4 bits."""
DEFAULT_BLOCKS: dict[int, int | None] = {4: 64, 8: None}
"""Block size by bits; None is one scale for each output of a product."""
QUANTIZED_OPSET = 21
"""The first opset with weights of 4 bits, and with a scale for each block."""


class Part(StrEnum):
    """A part of a model whose weights are quantized together.

    The maps of recovery `linear` are none: they are few, and in 8 bits they cost a real model ten times what all other
    weights cost it (docs/quantize.md).
    """

    EMBEDDING = "embedding"
    HEAD = "head"
    ATTENTION = "attention"
    MLP = "mlp"


class Method(StrEnum):
    """How the stored numbers are chosen."""

    RTN = "rtn"
    """Round to nearest: the scale of a block is its largest weight's."""
    GPTQ = "gptq"
    """Weights that are still to be rounded make up for the errors of those before, on texts (arXiv:2210.17323)."""

    @property
    def reads_texts(self) -> bool:
        """Whether it needs texts."""
        return self is Method.GPTQ


class Origin(StrEnum):
    """What quantized a checkpoint before it was exported, by `quant_method` in its `config.json`."""

    GPTQ = "gptq"
    AWQ = "awq"
    COMPRESSED_TENSORS = "compressed-tensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantization:
    """Weight-only quantization: a weight is stored as (code - zero point) * scale, with a scale for each block.

    A product's weights have blocks along its inputs. The embedding has 8 bits and one scale for each token, whatever
    `bits` says: a token's row is all that is read of it.
    """

    bits: int
    """Bits of a weight, 8 or 4."""
    block_size: int | None = 0
    """Weights of one output that share a scale; None if all do. By default 64 with 4 bits, and None with 8.

    An axis that no block of this size divides gets the largest one that does.
    """
    symmetric: bool = True
    """Whether the zero point is 0. TensorRT needs that."""
    keep: tuple[Part, ...] = ()
    """Parts that are not quantized."""
    method: Method | None = Method.RTN
    """None if the codes are those of others, whose method their checkpoint does not say."""
    origin: Origin | None = None
    """Whose codes these are, None for those that an export chose."""
    kept_weights: tuple[str, ...] = ()
    """Weights of other parts that are not quantized either, by their names without a prefix."""

    def __post_init__(self) -> None:
        """Validate the fields; raise `SpecError` for the first invalid one."""
        if type(self.bits) is not int or self.bits not in BITS:
            raise SpecError("weights cannot have this number of bits", got=self.bits, wanted=" | ".join(map(str, BITS)))
        if self.block_size == 0:
            object.__setattr__(self, "block_size", DEFAULT_BLOCKS[self.bits])
        any_size = self.bits == 8 or self.origin is not None
        sizes: Collection[int | None] = (*BLOCKS, None) if any_size else BLOCKS
        if isinstance(self.block_size, bool) or self.block_size not in sizes:
            raise SpecError(
                f"{self.bits} bits do not have this block size", got=self.block_size, wanted=" | ".join(map(str, sizes))
            )
        if not isinstance(self.symmetric, bool):
            raise SpecError("symmetric is not true or false", got=repr(self.symmetric), wanted="a bool")
        kept = {parse_choice("part to keep", Part, part) for part in self.keep}
        object.__setattr__(self, "keep", tuple(part for part in Part if part in kept))
        if kept == set(Part):
            raise SpecError("all parts of the model are kept", got=", ".join(Part), wanted="a part to quantize")
        self._validate_origin()

    def _validate_origin(self) -> None:
        """Validate the fields that say who chose the codes; raise `SpecError` for the first invalid one."""
        if self.origin is None:
            object.__setattr__(self, "method", parse_choice("method", Method, self.method))
            if self.kept_weights:
                raise SpecError(
                    "single weights cannot be kept", got=self.kept_weights, wanted="parts: " + " | ".join(Part)
                )
            return
        object.__setattr__(self, "origin", parse_choice("origin", Origin, self.origin))
        object.__setattr__(self, "method", None)
        if not all(isinstance(name, str) for name in self.kept_weights):
            raise SpecError("kept_weights are not names", got=self.kept_weights, wanted="names of weights")
        object.__setattr__(self, "kept_weights", tuple(sorted(self.kept_weights)))

    @classmethod
    def from_dict(cls, values: object) -> Self:
        """The quantization from a dict as `to_dict` returns it; raises `SpecError` for an invalid one."""
        names = set(cls.__dataclass_fields__)
        lists = {"keep", "kept_weights"}
        if (
            not isinstance(values, dict)
            or not names - {"origin", "kept_weights"} <= set(values) <= names
            or not all(isinstance(values[name], list | tuple) for name in lists & set(values))
        ):
            raise SpecError(
                "a quantization in JSON must be an object with its fields", got=values, wanted=", ".join(sorted(names))
            )
        return cls(**values | {name: tuple(values[name]) for name in lists & set(values)})

    def to_dict(self) -> dict[str, Any]:
        """The quantization as plain JSON values; who quantized the checkpoint only if others did."""
        origin = {"origin": str(self.origin), "kept_weights": list(self.kept_weights)} if self.origin else {}
        return {
            "bits": self.bits,
            "block_size": self.block_size,
            "symmetric": self.symmetric,
            "keep": [str(part) for part in self.keep],
            "method": None if self.method is None else str(self.method),
            **origin,
        }

    def bits_of(self, part: Part, outputs: int = 2) -> int | None:
        """Bits of the weights of a part's product with so many outputs, None if they are kept.

        Products with an odd number of outputs have 8 bits, since two codes of 4 bits fill a byte.
        """
        if part in self.keep:
            return None
        return 8 if part is Part.EMBEDDING or outputs % 2 else self.bits

    def block_of(self, inputs: int) -> int | None:
        """The block size for a product with so many inputs: the largest that divides it; None if none does."""
        if self.block_size is None:
            return None
        return next((size for size in BLOCKS if size <= self.block_size and inputs % size == 0), None)

    def check_chosen(self) -> None:
        """Raise `SpecError` if it describes codes of others, so that no weights can be rounded as it says."""
        if self.origin is not None:
            raise SpecError(
                "weights cannot be quantized as others do it",
                got=f"origin {self.origin}",
                wanted="a method: " + " | ".join(Method),
                hint=f"to export a checkpoint with {self.origin} codes, leave the quantization out",
            )

    def __str__(self) -> str:
        blocks = "one scale for each output" if self.block_size is None else f"blocks of {self.block_size}"
        kept = f", without {', '.join(self.keep)}" if self.keep else ""
        single = f", without {len(self.kept_weights)} more weights" if self.kept_weights else ""
        by = self.method if self.origin is None else f"codes of {self.origin}"
        return f"{self.bits} bits, {blocks}, {'' if self.symmetric else 'a'}symmetric{kept}{single}, {by}"
